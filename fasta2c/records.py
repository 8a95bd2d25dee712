"""What a run writes down: rows of metrics, checkpoints and, at its end, how it went; of several ranks, rank 0 alone."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fasta2c import snapshot
from fasta2c.config import TrainConfig, to_plain
from fasta2c.distributed import Ranks
from fasta2c.learning.tally import Tally
from fasta2c.parts import Parts
from fasta2c.run import checkpoint
from fasta2c.run.clock import Clock
from fasta2c.run.directory import RunDirectory
from fasta2c.run.metrics import MetricsLog
from fasta2c.run.provenance import commit, versions
from fasta2c.run.report import TimeReport
from fasta2c.snapshot import Saved

# What a checkpoint holds for --resume, beside what `snapshot` takes, and of what kind it is.
RESUMED: Mapping[str, type | UnionType] = {
    **dict.fromkeys(("update", "skipped", "resumes", "env_restarts"), int),
    "wall_seconds": float,
    "best_return": float | None,
    "log": dict,
}


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    run_dir: Path
    env_steps: int
    updates: int
    episodes: int
    wall_seconds: float
    sps: float
    """Env steps per second of wall time, warm-up left out."""
    mean_return: float | None
    """Over the last 100 games; None if none has ended."""
    warm_up_seconds: float
    """What the first update took, compilation included; on a GPU the first three, of which graphs are recorded."""
    time_report: TimeReport | None
    """Where the time went; None after a single update."""
    best_return: float | None
    """The highest mean over 100 games seen at a row of metrics.csv, or of fewer where no 100 have ended: best.pt's."""


class Standing(NamedTuple):
    """How far a run has come, earlier sessions included."""

    update: int
    env_steps: int
    skipped: int
    """Updates that were not applied."""
    resumes: int
    env_restarts: int
    """Environments that failed and were made anew."""


def shown(config: TrainConfig) -> dict[str, Any]:
    """`config` in plain values, as it is shown to people: without the paths of one machine."""
    return {name: value for name, value in to_plain(config).items() if name not in ("run_dir", "init_from")}


class Records:
    """Keeps the figures of a run between two rows, and writes them.

    With several ranks all of them call `row`, `save` and `finish` alike: a checkpoint has something of each.

    Args:
        config: of the run.
        parts: what is saved, and counted.
        directory: where it is written.
        clock: of this session.
        device: where the network is.
        ranks: who trains together.
        saved: what the run goes on from, if it does.
    """

    def __init__(
        self,
        config: TrainConfig,
        parts: Parts,
        directory: RunDirectory,
        clock: Clock,
        *,
        device: torch.device,
        ranks: Ranks,
        saved: Saved | None,
    ) -> None:
        self._config = config
        self._parts = parts
        self._directory = directory
        self._clock = clock
        self._device = device
        self._ranks = ranks
        self._episodes = parts.collector.counts.episodes
        self._tally = Tally(device)
        self._logged = {"update": 0, "env_steps": 0, "wall_seconds": 0.0}
        self.best_return: float | None = None
        """As `TrainResult` has it."""
        self._best_is_whole = False
        """Whether it is over as many games as a mean can be; one over fewer gives way to the first that is."""
        self.eval_return: float | None = None
        """Of an evaluation since the last row."""
        self.saved_at = time.monotonic()
        """When the last checkpoint was saved, or this session began."""
        if saved is not None:
            with checkpoint.understood(saved.file):
                log = saved.state["log"]
                self.eval_return = log["eval_return"]
                self._tally.load_state_dict(log["metrics"])
                self._logged = {name: log[name] for name in self._logged}
            # A best policy of the time since the last checkpoint is kept; one that is undone by going back is not.
            best = ranks.of_leader(lambda: checkpoint.best_of(directory))
            if best is not None and not (saved.older and best.env_steps > parts.collector.counts.env_steps):
                self.best_return = best.mean_return
                self._best_is_whole = best.games >= self._episodes.window
        if ranks.leads:
            directory.write_config({**shown(config), "versions": versions(), "commit": commit()})
        self.log = MetricsLog(
            directory.root if ranks.leads else None, resume_at=parts.collector.counts.env_steps if saved else None
        )
        """metrics.csv and TensorBoard."""
        self.log.add_config(shown(config))

    def add(self, metrics: Tensor) -> None:
        """Take the metrics of an update into the next row."""
        self._tally.add(metrics)

    def row(self, standing: Standing) -> None:
        """Write the means since the last row, and best.pt where no games so far were as good; waits for the device."""
        episodes, learner = self._episodes, self._parts.learner
        now, steps = self._clock.wall_seconds, standing.env_steps
        best = self.best_return if self._best_is_whole and self.best_return is not None else -math.inf
        if episodes.full and episodes.mean_return is not None and episodes.mean_return > best:
            self._save_best(standing)
        self.log.write(
            {
                "env_steps": steps,
                "update": standing.update,
                "wall_seconds": now,
                "sps": (steps - self._logged["env_steps"]) / max(now - self._logged["wall_seconds"], 1e-9),
                "episode_return_mean": episodes.mean_return,
                "episode_length_mean": episodes.mean_length,
                "episodes": episodes.count,
                **self._tally.take_means(),
                "lr": learner.lr,
                "ent_coef": learner.ent_coef,
                "best_return": self.best_return,
                "eval_return_mean": self.eval_return,
                "skipped_updates": standing.skipped,
                **{f"{phase}_fraction": self._clock.shares[phase] for phase in ("env", "act", "update")},
            }
        )
        self.eval_return = None
        self._logged = {"update": standing.update, "env_steps": steps, "wall_seconds": now}

    def save(self, standing: Standing) -> None:
        """Write a checkpoint."""
        state = self._state(standing)
        if self._ranks.leads:
            checkpoint.save(self._directory, state, env_steps=standing.env_steps)
            if self.best_return is None:
                checkpoint.drop_best(self._directory)
        self.saved_at = time.monotonic()

    def finish(self, standing: Standing) -> None:
        """The last row of a session, and where its time went."""
        if standing.update > self._logged["update"]:
            self.row(standing)
        if not self._best_is_whole and self._episodes.mean_return is not None:
            self._save_best(standing)
        if (report := self.time_report(standing)) is not None:
            self.log.add_text("time/report", f"{report.shares}  \n{report.limit}  \n{report.advice}")

    def write_summary(self, status: str, standing: Standing) -> None:
        """Write how the run ended; raises `RunError` as the disk does."""
        if not self._ranks.leads:
            return
        values = {
            "status": status,
            "env": self._config.env,
            "seed": self._config.seed,
            "env_steps": standing.env_steps,
            "updates": standing.update,
            "episodes": self._episodes.count,
            "wall_seconds": self._clock.wall_seconds,
            "sps": self._clock.sps(standing.env_steps),
            "mean_return": self._episodes.mean_return,
            "best_return": self.best_return,
            "skipped_updates": standing.skipped,
            "dropped": self._parts.collector.counts.dropped,
            "ranks": self._ranks.world_size,
            "env_restarts": standing.env_restarts,
            "phase_seconds": self._clock.phase_seconds,
            "warm_up_seconds": self._clock.warm_up_seconds,
            "versions": versions(),
        }
        self._directory.write_summary(values)

    def result(self, standing: Standing) -> TrainResult:
        """How the run ended."""
        return TrainResult(
            run_dir=self._directory.path,
            env_steps=standing.env_steps,
            updates=standing.update,
            episodes=self._episodes.count,
            wall_seconds=self._clock.wall_seconds,
            sps=self._clock.sps(standing.env_steps),
            mean_return=self._episodes.mean_return,
            warm_up_seconds=self._clock.warm_up_seconds,
            time_report=self.time_report(standing),
            best_return=self.best_return,
        )

    def time_report(self, standing: Standing) -> TimeReport | None:
        """Where the time of this session went since its warm-up; None where there was nothing after it."""
        groups = self._parts.envs
        in_turn = groups[0].in_turn
        return self._clock.report(
            update=standing.update,
            env_steps=standing.env_steps,
            num_steps=self._config.num_steps,
            on_gpu=self._device.type == "cuda",
            in_turn=in_turn,
            overlapped=len(groups) > 1 and not in_turn,
        )

    def close(self) -> None:
        """Close the log."""
        self.log.close()

    def _save_best(self, standing: Standing) -> None:
        self.best_return, self._best_is_whole = self._episodes.mean_return, self._episodes.full
        state = self._state(standing)
        if self._ranks.leads:
            checkpoint.save_best(self._directory, state)

    def _state(self, standing: Standing) -> dict[str, Any]:
        """What a checkpoint holds: tensors and plain values."""
        return {
            **snapshot.take(self._parts, self._config, self._device, self._ranks),
            "update": standing.update,
            "resumes": standing.resumes,
            "env_restarts": standing.env_restarts,
            "wall_seconds": self._clock.wall_seconds,
            "best_return": self.best_return,
            "log": {**self._logged, "eval_return": self.eval_return, "metrics": self._tally.state_dict()},
            "skipped": standing.skipped,
        }
