"""Phase timers: where the wall time of a run went."""

from __future__ import annotations

import time
from collections import defaultdict
from types import TracebackType


class PhaseTimer:
    """Adds up wall seconds by phase; a phase inside another takes its time out of the outer one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._phases: dict[str, _Phase] = {}
        self._stack: list[str] = []
        self._since = 0.0

    def __call__(self, phase: str) -> _Phase:
        """Count what happens inside as `phase`."""
        if phase not in self._phases:
            self._phases[phase] = _Phase(self, phase)
        return self._phases[phase]

    def since(self, phase: str) -> float | None:
        """When (by `time.perf_counter`) `phase` was entered or come back to, if it goes on; any thread may ask."""
        try:
            return self._since if self._stack[-1] == phase else None
        except IndexError:
            return None

    def switch(self, *, to: str | None) -> None:
        """Enter the phase `to`, or leave the one that was entered last."""
        now = time.perf_counter()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._since = now
        if to is None:
            self._stack.pop()
        else:
            self._stack.append(to)


class _Phase:
    """A context for one phase, used again and again: a generator's would cost cheap environments a few per cent."""

    def __init__(self, timer: PhaseTimer, phase: str) -> None:
        self._timer = timer
        self._phase = phase

    def __enter__(self) -> None:
        self._timer.switch(to=self._phase)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._timer.switch(to=None)
