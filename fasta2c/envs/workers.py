"""Processes of single environments, as Gymnasium's asynchronous vector starts them: they end with ours, not before."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import math
import multiprocessing
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

from gymnasium.vector.async_vector_env import _async_worker  # private, yet what a `worker` of one's own is to build on

from fasta2c import randomness

LOOKS = 10
"""Within a timeout: a process that was stopped for a while (Ctrl-Z) has waited for one of them, not all that time."""
_PR_SET_PDEATHSIG = 1


def worker(seeds: Sequence[int]) -> Callable[..., None]:
    """What the vector is to run in each process, the seeds being those of its environments."""
    return functools.partial(_work, threading.current_thread() is threading.main_thread(), seeds)


def _work(dies_with_ours: bool, seeds: Sequence[int], index: int, *arguments: Any) -> None:
    """Step an environment until our process says or ends."""
    randomness.seed(seeds[index])  # it has inherited our generators as they are, and so have all others
    # A terminal, `timeout`, systemd or a batch system signals all processes of a run: ours decides when these end.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _nothing)  # not ignored: programs that the environment starts would inherit that
    signal.siginterrupt(signal.SIGTERM, False)
    # Where ours is killed, one that hangs would stay, and hold what it has inherited: the lock on the run's folder.
    if dies_with_ours:  # the system goes by the thread that has started it
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    ours = multiprocessing.parent_process()
    if ours is None or ours.is_alive():
        _async_worker(index, *arguments)


def _nothing(signum: int, frame: FrameType | None) -> None:
    """Let a signal go by."""


class Leash:
    """Sees that `processes`, which ignore SIGTERM, are killed when `owner` is forgotten or Python exits."""

    def __init__(self, owner: object, processes: Sequence[BaseProcess]) -> None:
        self._kill = weakref.finalize(owner, kill, processes)
        atexit.register(self._kill)  # before multiprocessing, which would send them SIGTERM and wait

    def kill(self) -> None:
        """Kill them now."""
        self._kill()
        atexit.unregister(self._kill)


def kill(processes: Iterable[BaseProcess]) -> None:
    """Kill `processes` and wait until they are gone."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


@contextlib.contextmanager
def none_left() -> Any:
    """Processes that were started inside are killed if it fails."""
    before = set(multiprocessing.active_children())
    try:
        yield
    except BaseException:
        kill(set(multiprocessing.active_children()) - before)
        raise


class Patience:
    """Waits for answers, so many seconds in all; seconds in which this process was stopped do not count.

    Args:
        seconds: infinite: for ever.
    """

    def __init__(self, seconds: float) -> None:
        self._left, self._look = seconds, seconds / LOOKS

    def outlasts(self, pipes: Iterable[Connection | None]) -> bool:
        """Whether each of `pipes` has an answer, or an end, in time; one that is None has none to give."""
        if math.isinf(self._left):
            return True
        for pipe in pipes:
            while pipe is not None:
                began = time.monotonic()
                if pipe.poll(min(self._look, max(self._left, 0.0))):
                    self._left -= min(time.monotonic() - began, self._look)
                    break
                self._left -= self._look
                if self._left <= 0:
                    return False
        return True
