"""Environments in one of Gymnasium's vectors: stepped, told of when they fail, and made anew."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AsyncVectorEnv
from numpy.typing import NDArray

from fasta2c import custom
from fasta2c.envs.base import spread_seeds
from fasta2c.envs.workers import Leash, Patience
from fasta2c.errors import RunError, warn


class Vector:
    """Some of the environments in one of Gymnasium's vectors.

    Args:
        make: makes a vector of environments with such seeds.
        columns: which these are.
        seeds: theirs.
    """

    def __init__(self, make: Callable[[Sequence[int]], Any], columns: slice, seeds: list[int]) -> None:
        self.columns = columns
        self.failures = 0
        """How often they failed since a step of theirs could be used."""
        self.begins = True
        """Whether the next step begins all games, rather than acts in them."""
        self._make = make
        self._seeds: Any = seeds
        self._first_seed, self._made = seeds[0], 0
        self._actions: NDArray[Any] | None = None
        self._failed: Exception | None = None
        self._alive = False
        self._leash: Leash | None = None
        self.envs: Any
        self._begin()

    def send(self, actions: NDArray[Any]) -> None:
        """Begin to step, or to reset, in other processes."""
        self._actions = actions
        if isinstance(self.envs, AsyncVectorEnv):
            try:
                self.envs.reset_async(seed=self._seeds) if self.begins else self.envs.step_async(actions)
            except Exception as error:  # told where it can be dealt with
                self._failed = error

    def receive(self, patience: Patience) -> tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Observations, rewards, terminated and truncated; raises what the environments do, or `TimeoutError`."""
        error, self._failed = self._failed, None
        if error is not None:
            raise error
        elsewhere = isinstance(self.envs, AsyncVectorEnv)
        if elsewhere and not patience.outlasts(self.envs.parent_pipes):
            raise multiprocessing.TimeoutError
        if not self.begins:
            step = self.envs.step_wait() if elsewhere else self.envs.step(self._actions)
            return step[:4]
        observations, _ = self.envs.reset_wait() if elsewhere else self.envs.reset(seed=self._seeds)
        self.begins, self._seeds = False, None
        count = self.envs.num_envs
        return observations, np.zeros(count), np.zeros(count, bool), np.zeros(count, bool)

    def told(self, error: Exception | SystemExit, timeout: float) -> str:
        """What has happened to which environment."""
        processes, pipes = (
            (self.envs.processes, self.envs.parent_pipes) if isinstance(self.envs, AsyncVectorEnv) else ([], [])
        )

        def first(those: Iterable[bool]) -> str:
            number = next((n for n, found in enumerate(those) if found), 0 if self.envs.num_envs == 1 else None)
            return "an environment" if number is None else f"environment {self.columns.start + number}"

        if isinstance(error, multiprocessing.TimeoutError | RunError):  # the latter is the watchdog's
            return f"{first(not pipe.poll() for pipe in pipes)} has not answered within {timeout:g} s (--env-timeout)"
        raised = [pipe is None for pipe in pipes]  # Gymnasium closes the pipe of one that did
        if pipes and not any(raised) and isinstance(error, BrokenPipeError | EOFError | ConnectionResetError):
            for process in processes:
                process.join(0.1)  # it may be about to end
            codes = [process.exitcode for process in processes]
            code = next((code for code in codes if code is not None), 0)
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            return f"the process of {first(code is not None for code in codes)} was ended {how}"
        return f"{first(raised)} raised {custom.told(error)}"

    def make_anew(self) -> None:
        """Replace all of it, with other seeds."""
        self.abandon()
        self._made += 1
        self.failures += 1
        self.begins = True
        count = self.columns.stop - self.columns.start
        self._seeds = spread_seeds(self._first_seed, count, stream=self._made)
        self._begin()

    def abandon(self) -> None:
        """Let go of environments that do not answer any more, or may not."""
        self._alive = False
        if self._leash is not None:  # their own close would wait for what they were last asked
            self._drop(self._leash)
        else:
            with contextlib.suppress(*custom.RAISED):
                self.envs.close()
            self.envs.closed = True

    def close(self, seconds: float) -> None:
        """Close them, if they are there. What goes wrong with that is told, and fails nothing.

        Those in processes of their own may take so many `seconds`.
        """
        if not self._alive:
            return
        self._alive = False
        try:
            with self._closing_within(seconds):
                self.envs.close()
        except custom.RAISED as error:
            warn(f"an environment could not be closed: {custom.told(error)}")
        if self._leash is not None:
            self._drop(self._leash)

    def _drop(self, leash: Leash) -> None:
        """End the processes, and what Gymnasium keeps of them."""
        leash.kill()
        for pipe in self.envs.parent_pipes:
            if pipe is not None:
                pipe.close()
        self.envs.closed = True

    @contextlib.contextmanager
    def _closing_within(self, seconds: float) -> Iterator[None]:
        """Inside, those in processes of their own that take longer are killed, and so waited for no more."""
        leash, late = self._leash, threading.Event()
        if leash is None:
            yield
            return

        def end() -> None:
            late.set()
            leash.kill()

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        except (EOFError, OSError):
            if not late.is_set():
                raise
        finally:
            timer.cancel()
            timer.join()  # killing takes it a moment: then no process is left
        if late.is_set():
            warn("environments that took too long to close were killed.")

    def _begin(self) -> None:
        self.envs, self._alive = self._make(self._seeds), True
        self._leash = Leash(self, self.envs.processes) if isinstance(self.envs, AsyncVectorEnv) else None
