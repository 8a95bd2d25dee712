"""How long a run has taken, how fast its session is, and where its time went."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fasta2c.run.report import PHASES, TimeReport

if TYPE_CHECKING:
    from fasta2c.timing import PhaseTimer


class Clock:
    """Starts with a session. The session's speed is told of what comes after its warm-up (compilation and the like).

    Args:
        timer: counts the session's phases.
        update: the run's updates before the session.
        env_steps: its env steps before.
        wall_before: its wall seconds before.
    """

    def __init__(self, timer: PhaseTimer, *, update: int, env_steps: int, wall_before: float) -> None:
        self._timer = timer
        self._wall_before = wall_before
        self._started = self._warm_at = time.perf_counter()
        self._warm_update, self._warm_steps = update, env_steps
        self._warm_phases: dict[str, float] = {}

    def end_warm_up(self, *, update: int, env_steps: int) -> None:
        """From here on, after so many updates and env steps of the run, time is counted that tells a speed."""
        self._warm_at, self._warm_update, self._warm_steps = time.perf_counter(), update, env_steps
        self._warm_phases = {phase: self._timer.seconds[phase] for phase in PHASES}

    @property
    def wall_seconds(self) -> float:
        """Of the run, earlier sessions included."""
        return self._wall_before + time.perf_counter() - self._started

    @property
    def warm_up_seconds(self) -> float:
        """Of the session; 0 while it lasts."""
        return self._warm_at - self._started

    @property
    def shares(self) -> dict[str, float]:
        """By phase, its share of the session so far."""
        total = sum(self._timer.seconds.values()) or 1.0
        return {phase: self._timer.seconds[phase] / total for phase in PHASES}

    @property
    def phase_seconds(self) -> dict[str, float]:
        """By phase, of the session; "other" is what no phase counts."""
        seconds = {phase: self._timer.seconds[phase] for phase in PHASES}
        other = time.perf_counter() - self._started - sum(seconds.values())
        return {**seconds, "other": max(other, 0.0)}

    def sps(self, env_steps: int) -> float:
        """Env steps per second of the session after its warm-up, the run now at `env_steps`."""
        seconds = time.perf_counter() - self._warm_at
        return (env_steps - self._warm_steps) / seconds if seconds > 0 else 0.0

    def report(
        self, *, update: int, env_steps: int, num_steps: int, on_gpu: bool, in_turn: bool, overlapped: bool
    ) -> TimeReport | None:
        """Where the time went after the warm-up, the run now at `update`; None where nothing came after it.

        `num_steps` are an update's rows; for the rest see `TimeReport`.
        """
        rows = (update - self._warm_update) * num_steps
        if not self._warm_phases or not rows:
            return None
        return TimeReport(
            {phase: self._timer.seconds[phase] - self._warm_phases[phase] for phase in PHASES},
            env_steps=env_steps - self._warm_steps,
            rows=rows,
            on_gpu=on_gpu,
            in_turn=in_turn,
            overlapped=overlapped,
        )
