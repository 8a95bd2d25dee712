"""The errors a user can cause or meet; each knows the exit code it ends the command line with."""

from __future__ import annotations

import contextlib
import difflib
import signal
import sys
from collections.abc import Iterable


class Fasta2cError(Exception):
    """Base of all errors that are told in one line, without a traceback."""

    exit_code = 1


class UserError(Fasta2cError):
    """The user's mistake: bad input, told with what to do about it (exit 2)."""

    exit_code = 2


class RunError(Fasta2cError):
    """The run failed while it ran; its log and last checkpoint are whole (exit 1)."""

    exit_code = 1


class DiskError(RunError):
    """The disk refused what the run cannot do without; with room again, the run can go on."""


class PeerLost(RunError):
    """Another rank of the run has failed or was killed, which it may have told of itself, or cannot be reached."""

    def __init__(self, why: str = "") -> None:
        what = f"the ranks cannot reach each other ({why})" if why else "another rank has gone without a word (killed?)"
        super().__init__(f"{what}; the run stops.")


class Stopped(Fasta2cError):
    """A signal ended the run after a checkpoint was saved (exit 128 + signal number)."""

    def __init__(self, signum: int, advice: str = "") -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}{advice and f'; {advice}'}")
        self.signum = signum
        self.exit_code = 128 + signum


def warn(text: str) -> None:
    """Print a line to stderr, where there is one, even in a quiet run."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(f"fasta2c: warning: {text}", file=sys.stderr, flush=True)


def nearest(word: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The `count` known words nearest to `word`, case ignored, best first; may be empty."""
    by_lower = {k.lower(): k for k in known}
    found = difflib.get_close_matches(word.lower(), by_lower, n=count, cutoff=0.5)
    return [by_lower[f] for f in found]


def did_you_mean(word: str, known: Iterable[str], count: int = 3) -> str:
    """` Did you mean A, B or C?` for the nearest known words, or an empty string."""
    words = nearest(word, known, count)
    if not words:
        return ""
    listed = " or ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)
    return f" Did you mean {listed}?"


def one_line(error: BaseException) -> str:
    """What `error` says, its name where it says nothing, cut where it is long."""
    try:
        text = str(error)
    except Exception:  # a user's own kind of error can fail at this too
        text = ""
    return " ".join(text.split())[:300] or type(error).__name__


def reason(error: Exception) -> str:
    """Why the system refused, without the path that a message names already; of other errors what they say."""
    return getattr(error, "strerror", None) or str(error)


def is_out_of_memory(error: Exception) -> bool:
    """Whether `error` says that memory is out: Python's own, or one in torch's words."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in ("out of memory", "allocate memory"))
