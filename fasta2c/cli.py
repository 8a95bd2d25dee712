"""The command line: a verb parses its flags and makes one call; errors become one line and an exit code."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import fasta2c
from fasta2c.config import TrainConfig, from_plain, load_preset, read_config
from fasta2c.errors import Fasta2cError, Stopped, UserError, did_you_mean, is_out_of_memory
from fasta2c.fields import Range
from fasta2c.flags import Given, errors_named, json_object, parse, scan

if TYPE_CHECKING:
    from fasta2c.evaluation import EvalResult

# torch and EnvPool are imported where they are used: an overview or a misspelt flag needs neither.


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (DESIGN section 5); only a bug raises."""
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
        return _tell(f"error: {error}", error.exit_code)
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
    return 0


def _tell(message: str, code: int) -> int:
    """Print `message` to stderr as one line, whatever is in it, and return `code`."""
    line = " ".join((message if len(message) <= 1000 else f"{message[:700]} … {message[-290:]}").split("\n"))
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in line)
    with contextlib.suppress(OSError):
        print(f"fasta2c: {shown}", file=sys.stderr, flush=True)
    return code


def _dispatch(argv: list[str]) -> None:
    """Run the verb that `argv` starts with."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
    elif argv[0] == "--version":
        print(f"fasta2c {fasta2c.__version__}")
    elif argv[0] in VERBS:
        VERBS[argv[0]](argv[1:])
    elif argv[0].startswith("-"):
        raise UserError(f"{argv[0]} comes before the verb; write fasta2c {'|'.join(VERBS)} and flags after it.")
    else:
        hint = did_you_mean(argv[0], VERBS, 1) or f" Use {' or '.join(VERBS)}."
        raise UserError(f"unknown verb {argv[0]!r}.{hint}")


def _overview() -> str:
    verbs = "\n".join(f"  {name:<7} {(verb.__doc__ or '').splitlines()[0]}" for name, verb in VERBS.items())
    return f"""fasta2c {fasta2c.__version__} trains A2C agents as fast as the environments can run.

usage: fasta2c VERB [FLAGS]

verbs:
{verbs}

examples:
  fasta2c train --env Atari/Pong --num-envs 256
  fasta2c eval runs/... --episodes 100 --json

The flags of a verb: fasta2c VERB --help"""


# --- train


@dataclass(frozen=True, kw_only=True)
class _TrainFlags:
    """Train an agent. Later ones win: defaults, the environment's preset, --config, flags."""

    config: Path | None = None
    """YAML file of settings, such as a run's config.yaml; it wins over the preset, flags win over it."""
    resume: Path | None = None
    """Run directory to go on with; the run may be made longer, not learn differently."""
    settings: TrainConfig = field(default_factory=TrainConfig)
    """What a run is made of. The defaults shown are those of the environment given, or of the run resumed."""


def _train(argv: list[str]) -> None:
    """Train an agent."""
    given = scan(argv, _TrainFlags)
    origins = {name: g.flag for name, g in given.items()}
    with errors_named(origins):
        base = _base_config(given, origins)
        flags = parse(_TrainFlags, "train", argv, given, _TrainFlags(settings=base), env_kwargs=base.env_kwargs)
        from fasta2c.trainer import train

        config = flags.settings
        result = train(config) if flags.resume is None else train(config, resume=flags.resume)
    if config.quiet:
        print(result.run_dir)
        return
    mean, best = (f"{r:,.2f}" if r is not None else None for r in (result.mean_return, result.best_return))
    print(f"mean return    {f'{mean} over the last 100 episodes (best {best})' if mean else 'no episode has ended'}")
    print(f"speed          {result.sps:,.0f} env steps per second, {result.env_steps:,} env steps in all")
    if result.warm_up_seconds > 1:
        print(f"warm-up        {result.warm_up_seconds:,.1f} s, compilation included, not in the speed")
    if (report := result.time_report) is not None:
        print(f"time           {report.shares}")
        print(f"limit          {report.limit}")
        print(f"advice         {report.advice}")
    print(f"run directory  {result.run_dir}")
    print(f"evaluate it:   fasta2c eval {shlex.quote(str(result.run_dir))}")


def _base_config(given: Mapping[str, Given], origins: dict[str, str]) -> TrainConfig:
    """What the flags are laid over: a resumed run's settings, or defaults < preset < --config.

    Fields that come from a file are added to `origins`.
    """
    path = {name: Path(given[name].value or "") for name in ("config", "resume") if name in given}
    if "resume" in path:
        for name in ("config", "run_dir", "init_from"):
            if name in given:
                raise UserError(f"{given[name].flag} cannot be used with --resume, which goes on with the run's own.")
        from fasta2c.policy import load_state
        from fasta2c.run import checkpoint

        file = checkpoint.resolve(path["resume"])
        return TrainConfig(**from_plain(load_state(file)["config"], str(file)))
    values = read_config(path["config"]) if "config" in path else {}
    origins.update({name: f"{path['config']}: {name}" for name in values if name not in given})
    if "env" in given and given["env"].value:
        values["env"] = given["env"].value
    config = TrainConfig(**values)
    return config.with_preset(_preset(config.env))


def _preset(env: str) -> dict[str, Any]:
    """The preset of the environment called `env`."""
    if env == TrainConfig.env:  # spelt as presets are; looking it up would import EnvPool only to show --help
        family, name = env.split("/")
        return load_preset(family, name)
    from fasta2c.envs.ids import resolve

    env_id = resolve(env)
    return load_preset(env_id.family, env_id.name)


# --- eval


@dataclass(frozen=True, kw_only=True)
class _PlayerFlags:
    """How a trained agent plays."""

    checkpoint: str = "latest"
    """latest, best, or a file."""
    greedy: bool = False
    """Take the likeliest action instead of sampling."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda or cuda:N."""
    seed: int | None = None
    """Seed of environments and sampling; the run's own unless given."""
    quiet: bool = False
    """Show no progress."""


@dataclass(frozen=True, kw_only=True)
class _EvalFlags(_PlayerFlags):
    """Play whole, unclipped episodes with a run's policy, none favoured for being short. Several runs get a table."""

    run_dir: tuple[Path, ...]
    """Run directories, or checkpoint files."""
    episodes: int = 100
    """Episodes to play with each."""
    num_envs: int | None = None
    """Environments that share the episodes; at most 32 unless given."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Options of the environment as JSON, laid over those it was trained with."""
    json: bool = False
    """Print one JSON object; of several runs, a list of them."""

    def __post_init__(self) -> None:
        _check_ranges(self, {"episodes": Range(1, 10**9), "num_envs": Range(1, 10**6), "seed": Range(0, 2**62)})


def _check_ranges(flags: object, limits: Mapping[str, Range]) -> None:
    """Raise `UserError` for a flag that is given and out of its range."""
    for name, bounds in limits.items():
        value = getattr(flags, name)
        if value is not None and not bounds.holds(value):
            raise UserError(f"{name}: {value} is out of range; it must be {bounds}.")


def _eval(argv: list[str]) -> None:
    """Play whole episodes with trained agents."""
    given = scan(argv, _EvalFlags)
    with errors_named({name: g.flag for name, g in given.items()}):
        flags = parse(_EvalFlags, "eval", argv, given)
        if not flags.run_dir:
            raise UserError("RUN_DIR is missing; see fasta2c eval --help.")
        from fasta2c.evaluation import evaluate
        from fasta2c.run import checkpoint

        for run_dir in flags.run_dir:
            checkpoint.resolve(run_dir, flags.checkpoint)  # a mistake in the last shows before the first has played
        results = [
            evaluate(
                run_dir,
                episodes=flags.episodes,
                checkpoint=flags.checkpoint,
                greedy=flags.greedy,
                device=flags.device,
                seed=flags.seed,
                num_envs=flags.num_envs,
                env_kwargs=flags.env_kwargs,
                progress=not (flags.json or flags.quiet),
            )
            for run_dir in flags.run_dir
        ]
    told = [dataclasses.asdict(result) for result in results]
    if len(told) > 1:
        told = [{"run_dir": str(run_dir), **values} for run_dir, values in zip(flags.run_dir, told, strict=True)]
    if flags.json:
        print(json.dumps(told[0] if len(told) == 1 else told))
        return
    if len(told) > 1:
        print(_table(flags.run_dir, results))
        return
    (result,) = results
    print(f"mean return  {result.mean_return:,.2f} ± {result.std_return:,.2f} (standard deviation)")
    if result.low_return is not None:
        print(f"             {result.low_return:,.2f} to {result.high_return:,.2f} with 95 % confidence")
    print(f"range        {result.min_return:,.2f} to {result.max_return:,.2f}")
    print(f"mean length  {result.mean_length:,.1f} env steps")
    print(f"episodes     {result.episodes:,}")


def _table(run_dirs: Sequence[Path], results: Sequence[EvalResult]) -> str:
    """Results of several runs, a line each."""
    rows = [("run", "mean return", "95 % of means", "deviation", "range", "length", "episodes")]
    for run_dir, r in zip(run_dirs, results, strict=True):
        interval = f"{r.low_return:,.2f} to {r.high_return:,.2f}" if r.low_return is not None else ""
        span = f"{r.min_return:,.2f} to {r.max_return:,.2f}"
        numbers = (f"{r.mean_return:,.2f}", interval, f"{r.std_return:,.2f}", span, f"{r.mean_length:,.1f}")
        rows.append((str(run_dir), *numbers, f"{r.episodes:,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
    return "\n".join("  ".join(line) for line in lines)


# --- play


@dataclass(frozen=True, kw_only=True)
class _PlayFlags(_PlayerFlags):
    """Film whole episodes of a run's policy, as the real game shows them."""

    run_dir: Path
    """Run directory, or a checkpoint file."""
    out: Path = Path("play.mp4")
    """The film: a .mp4 or .gif file."""
    episodes: int | None = None
    """Episodes to play; one for each environment unless given."""
    num_envs: int = 1
    """Environments shown side by side."""
    fps: float | None = None
    """Env steps shown in a second; the game's own pace unless given."""
    captions: bool = True
    """Write score and step below each picture."""

    def __post_init__(self) -> None:
        limits = {
            "episodes": Range(1, 10**6),
            "num_envs": Range(1, 64),
            "seed": Range(0, 2**62),
            "fps": Range(0.1, 240),
        }
        _check_ranges(self, limits)


def _play(argv: list[str]) -> None:
    """Film whole episodes of a trained agent."""
    given = scan(argv, _PlayFlags)
    with errors_named({name: g.flag for name, g in given.items()}):
        flags = parse(_PlayFlags, "play", argv, given)
        from fasta2c.tools.play import record

        film = record(
            flags.run_dir,
            flags.out,
            episodes=flags.episodes or flags.num_envs,
            num_envs=flags.num_envs,
            checkpoint=flags.checkpoint,
            greedy=flags.greedy,
            device=flags.device,
            seed=flags.seed,
            fps=flags.fps,
            captions=flags.captions,
            progress=not flags.quiet,
        )
    if flags.quiet:
        print(film.path)
        return
    print(f"mean return  {film.result.mean_return:,.2f} over {film.result.episodes:,} episodes")
    print(f"film         {film.path}, {film.pictures / film.fps:,.1f} s at {film.fps:g} env steps per second")


# --- plot


@dataclass(frozen=True, kw_only=True)
class _PlotFlags:
    """Draw learning curves: return and episode length; seeds of one setting become a mean with a 95 % band."""

    run_dir: tuple[Path, ...]
    """Run directories, or folders that hold some."""
    out: Path = Path("plot")
    """The plot: a .png, .svg or .pdf file; without an ending both a .png and an .svg."""
    x: Literal["env-steps", "wall-time"] = "env-steps"
    """What to draw over."""
    smoothing: float = 0.05
    """Share of the x axis that is averaged over; 0 for none."""

    def __post_init__(self) -> None:
        _check_ranges(self, {"smoothing": Range(0, 1)})


def _plot(argv: list[str]) -> None:
    """Draw learning curves of runs."""
    given = scan(argv, _PlotFlags)
    with errors_named({name: g.flag for name, g in given.items()}):
        flags = parse(_PlotFlags, "plot", argv, given)
        if not flags.run_dir:
            raise UserError("RUN_DIR is missing; see fasta2c plot --help.")
        from fasta2c.tools.plot import plot

        for file in plot(flags.run_dir, flags.out, x=flags.x, smoothing=flags.smoothing):
            print(file)


# --- sweep


@dataclass(frozen=True, kw_only=True)
class _SweepFlags:
    """Search settings, each tried with every seed; called again with the same --sweep-dir it goes on."""

    space: str = ""
    """What to search, as JSON: '{"lr": [1e-4, 1e-3], "gamma": {"low": 0.9, "high": 0.999}}'; ranges not in a grid."""
    sweep_dir: Path = Path("sweep")
    """Folder of the sweep; several processes that are given the same share the work."""
    sampler: Literal["grid", "random", "tpe"] = "grid"
    """grid tries all combinations; random and tpe (tree-structured Parzen estimator) draw --trials of them."""
    trials: int | None = None
    """Settings to try; all of a grid unless given."""
    seeds: tuple[int, ...] = (0,)
    """Seeds that each setting is run with."""
    prune: bool = True
    """Give up settings that stand below the median of the others."""
    config: Path | None = None
    """YAML file of settings for every run."""
    settings: TrainConfig = field(default_factory=TrainConfig)
    """Settings of every run. The defaults shown are those of the environment given."""

    def __post_init__(self) -> None:
        _check_ranges(self, {"trials": Range(1, 10**6)})


def _sweep(argv: list[str]) -> None:
    """Search for good settings."""
    given = scan(argv, _SweepFlags)
    origins = {name: g.flag for name, g in given.items()}
    for name in ("seed", "run_dir", "init_from"):
        if name in given:
            raise UserError(f"{given[name].flag} is the sweep's own business; see --seeds and --sweep-dir.")
    with errors_named(origins):
        base = _base_config(given, origins)
        if "space" not in given and not {"-h", "--help"} & set(argv):
            raise UserError("--space is missing; see fasta2c sweep --help.")
        flags = parse(_SweepFlags, "sweep", argv, given, _SweepFlags(settings=base), env_kwargs=base.env_kwargs)
        from fasta2c.tools.sweep import sweep

        tried = sweep(
            flags.settings,
            json_object(flags.space, "space", '{"lr": [1e-4, 1e-3]}'),
            flags.sweep_dir,
            seeds=flags.seeds,
            sampler=flags.sampler,
            trials=flags.trials,
            prune=flags.prune,
        )
    best = flags.sweep_dir / "best.yaml"
    if flags.settings.quiet:
        print(best)
        return
    for trial in tried:
        print(trial)
    print(f"train the best:  fasta2c train --config {shlex.quote(str(best))}")


# --- envs


@dataclass(frozen=True, kw_only=True)
class _EnvsFlags:
    """List environments with what they observe and take, and whether they train here.

    PATTERN is a part of an id, or has *: Jumanji, 'Atari/P*', 'gymnasium:Cart*'. All of EnvPool's are listed without.
    """

    json: bool = False
    """Print a JSON list."""


def _envs(argv: list[str]) -> None:
    """List environments, their spaces, and whether they train here."""
    patterns = [token for token in argv if not token.startswith("-")]
    if len(patterns) > 1:
        raise UserError(f"envs takes one pattern, not {len(patterns)}; quote it where the shell would expand it.")
    flagged = [token for token in argv if token.startswith("-")]
    flags = parse(_EnvsFlags, "envs [PATTERN]", flagged, scan(flagged, _EnvsFlags))
    from fasta2c.envs.catalog import catalog

    found = []
    for entry in catalog(*patterns):
        found.append(entry)
        if not flags.json:
            spaces = f"{entry.observations} -> {entry.actions}" if entry.trains else f"does not train: {entry.reason}"
            print(f"{entry.name:<40} {entry.id:<40} {spaces}", flush=True)
    if not found:
        raise UserError(f"no environment matches {patterns[0]!r}; fasta2c envs lists all.")
    if flags.json:
        print(json.dumps([dataclasses.asdict(entry) for entry in found], indent=1))


VERBS: dict[str, Callable[[list[str]], None]] = {
    "train": _train,
    "eval": _eval,
    "play": _play,
    "plot": _plot,
    "sweep": _sweep,
    "envs": _envs,
}
