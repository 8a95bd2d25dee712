"""Scores and lengths of real games, kept on the host beside the rollout."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Game(NamedTuple):
    """A game that has ended."""

    env: int
    """Which of the E environments played it."""
    score: float
    """The sum of the game's own rewards."""
    length: int
    """In env steps."""


class EpisodeStatistics:
    """Sums unclipped scores over real games; keeps the last `window` finished ones.

    A game ends where `game_over` says so (not at a life), and reset rows count for nothing. Those under way are of this
    process's environments, those that have ended of all ranks'.

    Args:
        num_envs: E.
        window: games the means are over.
    """

    def __init__(self, num_envs: int, window: int = 100) -> None:
        self._returns = np.zeros(num_envs, dtype=np.float64)
        self._lengths = np.zeros(num_envs, dtype=np.int64)
        self._finished: deque[tuple[float, int]] = deque(maxlen=window)
        self.count = 0
        """Games finished so far."""

    def update(
        self,
        valid: NDArray[np.bool_],
        scores: NDArray[np.floating[Any]],
        game_over: NDArray[np.bool_],
        envs: slice = slice(None),
    ) -> list[Game]:
        """Take in these fields of one row of the environments `envs`; returns the games that ended, to `record`."""
        returns, lengths = self._returns[envs], self._lengths[envs]
        returns += np.where(valid, scores, 0.0)
        lengths += valid
        (ended,) = np.nonzero(game_over & valid)
        if not len(ended):
            return []
        first = envs.start or 0
        games = [Game(first + int(e), float(returns[e]), int(lengths[e])) for e in ended]
        returns[ended] = 0.0
        lengths[ended] = 0
        return games

    def record(self, games: Sequence[Game]) -> None:
        """Count `games` that have ended, here or where other ranks play, and keep the last.

        One whose score is not finite is only counted: an update with such a reward is not made either.
        """
        self._finished.extend((game.score, game.length) for game in games if math.isfinite(game.score))
        self.count += len(games)

    @property
    def mean_return(self) -> float | None:
        """Mean return of the last games, or None before the first has ended."""
        return float(np.mean([score for score, _ in self._finished])) if self._finished else None

    @property
    def mean_length(self) -> float | None:
        """Mean length of the last games in env steps, or None before the first has ended."""
        return float(np.mean([length for _, length in self._finished])) if self._finished else None

    @property
    def window(self) -> int:
        """Games that the means are over at most."""
        return self._finished.maxlen or 0

    @property
    def full(self) -> bool:
        """Whether the means are over a whole window."""
        return len(self._finished) == self.window

    def state_dict(self) -> dict[str, Any]:
        """Finished games, and those under way, as plain values."""
        return {
            "count": self.count,
            "finished": [list(game) for game in self._finished],
            "returns": self._returns.tolist(),
            "lengths": self._lengths.tolist(),
        }

    def load_finished(self, state: dict[str, Any]) -> None:
        """Take over the games of `state_dict` that have ended."""
        self.count = state["count"]
        self._finished.clear()
        self._finished.extend((float(score), int(length)) for score, length in state["finished"])

    def load_under_way(self, state: dict[str, Any]) -> None:
        """Take over the games of `state_dict` that are under way."""
        self._returns[:] = state["returns"]
        self._lengths[:] = state["lengths"]

    def drop_under_way(self, envs: Any) -> dict[str, int]:
        """Forget the games under way of `envs` (an index of arrays), which begin anew.

        Returns:
            how many "games" these were, and their "env_steps".
        """
        lengths = self._lengths[envs]
        dropped = {"games": int(np.count_nonzero(lengths)), "env_steps": int(lengths.sum())}
        self._returns[envs] = 0.0
        self._lengths[envs] = 0
        return dropped
