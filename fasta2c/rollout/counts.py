"""Env steps and games, counted beside the rollouts that they are of, for all ranks together.

Shapes: E environments of this rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fasta2c.envs.episodes import EpisodeStatistics, Game


class RolloutCounts(NamedTuple):
    """What a rollout brought beside its tensors."""

    env_steps: int
    """Valid rows."""
    games: list[Game]
    """Those that ended."""
    dropped_games: int
    """Those left without an end, as their environments failed or could not be saved."""
    dropped_env_steps: int
    """Of these games."""


Exchange = Callable[[RolloutCounts], Callable[[], Sequence[RolloutCounts]]]
"""Begins to send this rank's counts to the others; what it returns waits for everybody's."""


class Counts:
    """What has happened in a run so far. Rows are added as they come; they count once their rollout is settled.

    Args:
        num_envs: E.
        exchange: tells the other ranks; without it, this is the only one.
    """

    def __init__(self, num_envs: int, exchange: Exchange | None = None) -> None:
        self._exchange = exchange
        self._await: Callable[[], Sequence[RolloutCounts]] | None = None
        self.episodes = EpisodeStatistics(num_envs)
        self.ended: list[Game] = []
        """Games that ended in the last rollout."""
        self.env_steps = 0
        """Valid rows of all rollouts so far, a resumed run's earlier sessions included."""
        self.dropped = {"games": 0, "env_steps": 0}
        """Games that were left without an end, as their environments could not be saved or failed; their env steps."""
        # Of the rollout that is being filled, here.
        self._steps = 0
        self._games: list[Game] = []
        self._lost = {"games": 0, "env_steps": 0}

    def add(self, valid: NDArray[Any], scores: NDArray[Any], game_over: NDArray[Any], envs: slice) -> None:
        """Take in these fields of one row of the environments `envs`."""
        self._steps += int(np.count_nonzero(valid))
        self._games += self.episodes.update(valid, scores, game_over, envs)

    def lose(self, envs: NDArray[Any]) -> None:
        """The games of these environments are lost."""
        for what, count in self.episodes.drop_under_way(envs).items():
            self._lost[what] += count

    def end_rollout(self) -> None:
        """All rows of a rollout are there: tell the other ranks, without waiting; alone, they count at once."""
        here = RolloutCounts(self._steps, self._games, self._lost["games"], self._lost["env_steps"])
        self._steps, self._games, self._lost = 0, [], dict.fromkeys(self._lost, 0)
        if self._exchange is None:
            self._count([here])
        else:
            self._await = self._exchange(here)

    def settle(self) -> None:
        """Count what happened in the last rollout on every rank, which was told meanwhile."""
        if self._await is not None:
            self._count(self._await())
            self._await = None

    def _count(self, happened: Sequence[RolloutCounts]) -> None:
        self.ended = [game for there in happened for game in there.games]
        self.episodes.record(self.ended)
        for there in happened:
            self.env_steps += there.env_steps
            self.dropped["games"] += there.dropped_games
            self.dropped["env_steps"] += there.dropped_env_steps

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"env_steps": self.env_steps, "episodes": self.episodes.state_dict(), "dropped": dict(self.dropped)}

    def load_state_dict(self, states: Sequence[dict[str, Any]], own: int | None) -> None:
        """Go on from what `state_dict` returned.

        Args:
            states: of all ranks of the run that was saved.
            own: which of them has the games that go on here; None where all of them are dropped.
        """
        self.env_steps = states[0]["env_steps"]
        self.dropped = dict(states[0]["dropped"])
        self.episodes.load_finished(states[0]["episodes"])
        if own is not None:
            self.episodes.load_under_way(states[own]["episodes"])
            return
        lengths = [length for state in states for length in state["episodes"]["lengths"]]
        self.dropped["games"] += sum(length > 0 for length in lengths)
        self.dropped["env_steps"] += sum(lengths)
