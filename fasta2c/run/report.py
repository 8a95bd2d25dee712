"""Where a run's time went, what limits it here, and what would make it faster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# A phase of `PhaseTimer` and what it is called.
PHASES = {"env": "environments", "act": "acting", "update": "updating", "copy": "copying", "log": "logging"}
# A row that takes less is mostly what any row costs, however many environments it has.
SHORT_ROW = 2e-3


@dataclass(frozen=True)
class TimeReport:
    """The phases of a run, its warm-up (compilation, recording) left out."""

    seconds: Mapping[str, float]
    """By phase, all of `PHASES`; of the environments what they were waited for."""
    env_steps: int
    rows: int
    """Lockstep rows: steps of all environments together."""
    on_gpu: bool
    in_turn: bool
    """Whether the environments step one after another, as Gymnasium's do."""
    overlapped: bool
    """Whether environments step while the network acts for others, so that they are waited for less than they take."""

    @property
    def shares(self) -> str:
        """`environments 55 %, acting 20 %, …`, the greatest first."""
        total = sum(self.seconds.values())
        greatest = sorted(((self.seconds[phase] / total, name) for phase, name in PHASES.items()), reverse=True)
        return ", ".join(f"{name} {share:.0%}" for share, name in greatest)

    @property
    def limit(self) -> str:
        """How fast the run could be if nothing but the environments, or nothing but the network, took time."""
        network = f"{self.env_steps / max(self._network, 1e-9):,.0f}"
        if self.overlapped:
            return f"{network} env steps per second if the environments were never waited for"
        environments = f"{self.env_steps / max(self.seconds['env'], 1e-9):,.0f}"
        return f"{environments} env steps per second if only environments took time, {network} if only the network did"

    @property
    def advice(self) -> str:
        """One sentence."""
        seconds = self.seconds
        # On a GPU, which is not waited for, an update's time shows as the next row's: rows are no measure there.
        longest = max(seconds["env"], self._network, seconds["copy"], seconds["log"])
        rollouts = seconds["env"] + seconds["act"] + seconds["copy"]
        row = rollouts / self.rows
        if longest == seconds["log"]:
            return "logs, checkpoints and evaluation are the limit: raise their intervals (--log-interval, …)."
        if row < SHORT_ROW and rollouts > seconds["update"] and not self.on_gpu:
            return (
                f"a row takes {1e6 * row:,.0f} µs, which more environments would hardly change: "
                "raise --num-envs (auto tries some)."
            )
        if longest == seconds["copy"]:
            return "copies are the limit: the observations are large for what is done with them."
        if longest == seconds["env"] and self.in_turn:
            return "the environments are the limit, as Gymnasium steps one after another: EnvPool's use every core."
        if longest == seconds["env"]:
            return "the environments are the limit: more CPU cores, not more --num-envs."
        if self.on_gpu:
            return "the network is the limit: a smaller one, or --precision bf16, not more --num-envs."
        return "the network is the limit: a GPU or a smaller network, not more --num-envs."

    @property
    def _network(self) -> float:
        return self.seconds["act"] + self.seconds["update"]
