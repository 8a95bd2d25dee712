"""Callbacks: code of a user's that is told what happens in a run, and may end it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fasta2c.envs.episodes import Game

if TYPE_CHECKING:
    from fasta2c.trainer import Trainer


class Callback:
    """Override what is of interest; an error raised in here ends the run, its log and last checkpoint whole.

    `run` knows `env_steps`, `update`, `mean_return` (over the last 100 games), `config`, `run_dir`, `policy` (which
    goes on learning, and is one and the same all the time: `policy.reset()` before other games, if it has memory) and
    `stop()`, which ends the run after this update as if its budget were spent.
    """

    def on_update(self, run: Trainer) -> None:
        """An update has been made. To look at tensors here waits for the device."""

    def on_episode_end(self, run: Trainer, game: Game) -> None:
        """A whole game, not only a life of it, has ended in the rollout that an update was just made of."""

    def on_checkpoint(self, run: Trainer, path: Path) -> None:
        """The run was saved as `path`."""
