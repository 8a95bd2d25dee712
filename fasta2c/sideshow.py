"""Games that are played beside the training: evaluations, and films for TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from fasta2c.config import TrainConfig
from fasta2c.envs.make import VectorEnvs
from fasta2c.errors import Fasta2cError, warn
from fasta2c.evaluation import eval_envs, pictures, play
from fasta2c.policy import Policy
from fasta2c.run.film import check_ffmpeg, gif

# Steps of a game that a film shows at most: more than a minute of Atari.
FILM_ROWS = 1000
# Environments that share the games of an evaluation at most.
MOST_ENVS = 32


class Sideshow:
    """Plays with a policy that goes on learning elsewhere.

    Args:
        config: of the run.
        device: where the policy is.
        policy: makes one of the parameters as they are then.
    """

    def __init__(self, config: TrainConfig, device: torch.device, policy: Callable[[], Policy]) -> None:
        self._config = config
        self._device = device
        self._policy = policy
        self._envs: VectorEnvs | None = None
        self._warned = False

    def check(self) -> None:
        """Raise `UserError` where films are asked for, and the environment cannot be drawn or nothing writes them."""
        if self._config.video_interval:
            check_ffmpeg()
            with self._games(1, render=True) as envs:
                envs.reset()
                envs.render()

    @property
    def rows(self) -> int | None:
        """Steps so far of the games being played; None while there are none."""
        envs = self._envs  # asked for by another thread, while this one may take it away
        return None if envs is None else envs.rows

    def evaluate(self) -> float:
        """The mean score of `eval_episodes` whole games."""
        with self._games(min(self._config.eval_episodes, MOST_ENVS)) as envs:
            return play(self._policy(), envs, self._config.eval_episodes).mean_return

    def film(self) -> bytes | None:
        """A game, or the first part of a long one, as a GIF; None where that fails, which does not end the run."""
        try:
            with self._games(1, render=True) as envs:
                return gif(pictures(self._policy(), envs, FILM_ROWS), envs.fps)
        except (Fasta2cError, OSError) as error:
            if not self._warned:
                warn(f"no film could be made ({error}); the run goes on.")
            self._warned = True
            return None

    @contextmanager
    def _games(self, num_envs: int, *, render: bool = False) -> Iterator[VectorEnvs]:
        with eval_envs(self._config, num_envs, self._device, render=render) as envs:
            self._envs = envs
            try:
                yield envs
            finally:
                self._envs = None
