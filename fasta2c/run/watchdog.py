"""A wait that never ends is ended: by an error in the waiting thread, or where that hears of nothing, by leaving."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from fasta2c.errors import RunError, warn
from fasta2c.run.signals import leave

POLLS = 10
"""Looks within a timeout. These are counted, not seconds: a process that was stopped for a while has not waited."""
GRACE_SECONDS = 5.0


class Watchdog:
    """Inside this context, a wait of the main thread that lasts `timeout` seconds becomes a `RunError` there.

    Code that is not Python's hears of no error: then the process ends with exit code 1, as it stands.

    Args:
        timeout: seconds; 0 watches nothing, as does a context outside the main thread.
        waiting: something that is equal as long as one and the same wait lasts; None where nothing is waited for.
        told: what to say of it.
    """

    def __init__(self, timeout: float, waiting: Callable[[], Any], told: str) -> None:
        self._timeout = timeout
        self._waiting = waiting
        self._told = told
        self._done = threading.Event()
        self._previous: Any = None
        self._barks = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watchdog:
        if self._timeout > 0 and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGUSR1, self._raise)
            self._thread = threading.Thread(target=self._watch, name="fasta2c watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()
            signal.signal(signal.SIGUSR1, signal.SIG_DFL if self._previous is None else self._previous)

    def _watch(self) -> None:
        last, looks = None, 0
        while not self._done.wait(self._timeout / POLLS):
            now = self._waiting()
            looks = looks + 1 if now is not None and now == last else 0
            last = now
            if looks < POLLS:
                continue
            self._barks = True
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            if not self._heard(last):
                warn(self._told)
                leave(1)
            looks = 0

    def _heard(self, wait: Any) -> bool:
        """Whether `wait` ends within the time of grace."""
        return any(self._done.wait(GRACE_SECONDS / POLLS) or self._waiting() != wait for _ in range(POLLS))

    def _raise(self, signum: int, frame: FrameType | None) -> None:
        if self._barks:
            self._barks = False
            raise RunError(self._told)
        if callable(self._previous):  # somebody else's signal
            self._previous(signum, frame)
