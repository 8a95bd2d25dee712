"""The command line: a verb parses its flags and makes one call; errors become one line and an exit code."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NamedTuple

import fasta2c
from fasta2c.errors import Fasta2cError, PeerLost, Stopped, UserError, did_you_mean, is_out_of_memory
from fasta2c.flags import write_completion
from fasta2c.run.signals import leave
from fasta2c.verbs import envs, eval, export, play, plot, sweep, train

# Columns that a help text is laid out for at least.
NARROWEST = 40


class Verb(NamedTuple):
    """What a verb does with what follows it, and the flags that it takes."""

    run: Callable[[list[str]], None]
    flags: type


# Verbs import torch and EnvPool where they use them: an overview or a misspelt flag needs neither.
VERBS = {
    "train": Verb(train.run, train.TrainFlags),
    "eval": Verb(eval.run, eval.EvalFlags),
    "play": Verb(play.run, play.PlayFlags),
    "plot": Verb(plot.run, plot.PlotFlags),
    "sweep": Verb(sweep.run, sweep.SweepFlags),
    "export": Verb(export.run, export.ExportFlags),
    "envs": Verb(envs.run, envs.EnvsFlags),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; only a bug raises.

    0: done. 1: the run failed while it ran. 2: what was typed cannot be done. 128 + N: signal N ended it.
    """
    try:
        code = _run(argv)
    except Exception:
        if "LOCAL_RANK" not in os.environ:
            raise
        if _speaks_first(told := traceback.format_exc()):
            with contextlib.suppress(OSError):
                print(told, file=sys.stderr, flush=True)
        code = 1
    if code and "LOCAL_RANK" in os.environ:
        leave(code)  # Python would wait for what is under way between ranks
    return code


def _run(argv: Sequence[str] | None) -> int:
    _prepare_streams()
    with contextlib.suppress(OSError):  # it may have been removed
        if (here := os.getcwd()) not in sys.path:
            sys.path.append(here)  # a module of the user's is found where they are, as `python -m` would
    try:
        try:
            _dispatch(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()
    except SystemExit as leaving:  # tyro, having shown --help
        return leaving.code if isinstance(leaving.code, int) else 0
    except Stopped as error:
        return _tell(str(error), error.exit_code)
    except Fasta2cError as error:
        return _tell(f"error: {error}", error.exit_code, of_another=isinstance(error, PeerLost))
    except KeyboardInterrupt:
        return _tell("interrupted", 130)
    except BrokenPipeError:
        # Whoever read our output has left. What is still buffered would fail again as Python exits.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError:
        return _tell("error: out of memory; use fewer --num-envs or --num-steps.", 1)
    except OSError as error:
        # Only a name that the user wrote can be too long.
        return _tell(f"error: {error}", 2 if error.errno == errno.ENAMETOOLONG else 1)
    except RuntimeError as error:
        if is_out_of_memory(error):
            return _tell("error: out of memory; use fewer --num-envs or --num-steps, or a smaller --micro-batch.", 1)
        raise
    except BaseException as error:
        if isinstance(error, Exception):
            raise
        return _tell(f"error: {type(error).__name__}: {error}", 1)  # of an environment in Rust, say, that panics
    return 0


def _prepare_streams() -> None:
    """Make stdout and stderr take whatever is written to them."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us; what is printed to None is printed to stdout
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as Python runs
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may not know ± or a folder's name
    if os.environ.get("COLUMNS", "").isdecimal():  # tyro never ends its help for a terminal of four
        os.environ["COLUMNS"] = str(max(int(os.environ["COLUMNS"]), NARROWEST))


def _tell(message: str, code: int, *, of_another: bool = False) -> int:
    """Print `message` to stderr as one line, whatever is in it, and return `code`.

    Of several ranks one alone does; none where it is `of_another`, which could tell itself.
    """
    if not _speaks_first(message, for_another=of_another):
        return code
    line = " ".join((message if len(message) <= 1000 else f"{message[:700]} … {message[-290:]}").split("\n"))
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in line)
    with contextlib.suppress(OSError):
        print(f"fasta2c: {shown}", file=sys.stderr, flush=True)
    return code


def _speaks_first(message: str, *, for_another: bool = False) -> bool:
    """Whether `message` is this process's to show, which of several ranks may all have it."""
    if "LOCAL_RANK" not in os.environ:
        return True
    from fasta2c.distributed import speaks_first  # late, as it imports torch

    return speaks_first(message, for_another=for_another)


def _dispatch(argv: list[str]) -> None:
    """Run the verb that `argv` starts with."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
    elif argv[0] == "--version":
        print(f"fasta2c {fasta2c.__version__}")
    elif argv[0] in VERBS:
        if argv[0] != "train":
            _alone(argv[0])
        VERBS[argv[0]].run(argv[1:])
    elif argv[0].startswith("--tyro-"):
        write_completion({name: verb.flags for name, verb in VERBS.items()}, argv)
    elif argv[0].startswith("-"):
        raise UserError(f"{argv[0]} comes before the verb; write fasta2c {'|'.join(VERBS)} and flags after it.")
    else:
        hint = did_you_mean(argv[0], VERBS, 1) or f" Use {' or '.join(VERBS)}."
        raise UserError(f"unknown verb {argv[0]!r}.{hint}")


def _alone(verb: str) -> None:
    """Raise `UserError` where torchrun would have `verb` done once for each of its processes."""
    if "LOCAL_RANK" in os.environ:
        from fasta2c.distributed import Ranks  # late, as it imports torch

        if (count := Ranks.from_environment().world_size) > 1:
            raise UserError(f"{verb} is the work of one process, not of {count}; start it without torchrun.")


def _overview() -> str:
    verbs = "\n".join(f"  {name:<7} {(verb.run.__doc__ or '').splitlines()[0]}" for name, verb in VERBS.items())
    return f"""fasta2c {fasta2c.__version__} trains A2C agents as fast as the environments can run.

usage: fasta2c VERB [FLAGS]

verbs:
{verbs}

examples:
  fasta2c train --env Atari/Pong --num-envs 256
  fasta2c eval runs/... --episodes 100 --json

The flags of a verb: fasta2c VERB --help
Shell completion:    fasta2c --tyro-write-completion bash|zsh|tcsh FILE"""
