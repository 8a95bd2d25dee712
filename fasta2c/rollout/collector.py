"""Fills a rollout: T lockstep rows of acting, stepping and storing.

Shapes: T rows, E environments.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fasta2c.envs.base import HostEnvs
from fasta2c.envs.episodes import EpisodeStatistics
from fasta2c.models import distributions
from fasta2c.rollout.buffer import RolloutBuffer, env_slices
from fasta2c.timing import PhaseTimer


class Collector:
    """Steps `envs` with the actions of `model` and keeps what comes back in one buffer, filled anew each time.

    Args:
        envs: the environments, on the host.
        model: observations to (logits, values); called without gradients.
        buffer: the rollout to fill.
        generator: where the actions' randomness comes from, on the buffer's device.
        samples: the most observations the model is called with at once.
        timer: counts the phases "act", "env" and "copy".
    """

    def __init__(
        self,
        envs: HostEnvs,
        model: nn.Module,
        buffer: RolloutBuffer,
        *,
        generator: torch.Generator,
        samples: int,
        timer: PhaseTimer,
    ) -> None:
        self._envs = envs
        self._model = model
        self._buffer = buffer
        self._generator = generator
        self._slices = list(env_slices(buffer.num_envs, samples))
        self._timer = timer
        self.episodes = EpisodeStatistics(envs.num_envs)
        self.env_steps = 0
        """Valid rows of all rollouts so far; a resumed run sets what it begins with."""
        buffer.start(torch.from_numpy(envs.reset()))

    @torch.no_grad()
    def collect(self) -> RolloutBuffer:
        """Fill the buffer with the next T rows and the values of T + 1 observations."""
        buffer, timer = self._buffer, self._timer
        buffer.carry_over()
        for t in range(buffer.num_steps):
            with timer("act"):
                logits_EA, buffer.values_T1E[t] = self._forward(t)
                buffer.actions_TE[t] = distributions.sample(logits_EA, self._generator)
                actions = buffer.actions_TE[t].cpu().numpy()
            with timer("env"):
                row = self._envs.step(actions)
                self.env_steps += int(np.count_nonzero(row.valid))
                self.episodes.update(row)
            with timer("copy"):
                buffer.add_frames(t, torch.from_numpy(row.observations), torch.from_numpy(row.first))
                _store(buffer.rewards_TE, t, row.rewards)
                _store(buffer.terminated_TE, t, row.terminated)
                _store(buffer.truncated_TE, t, row.truncated)
                _store(buffer.valid_TE, t, row.valid)
        with timer("act"):
            _, buffer.values_T1E[buffer.num_steps] = self._forward(buffer.num_steps)
        return buffer

    def _forward(self, t: int) -> tuple[Tensor, Tensor]:
        """Logits [E, A] and values [E] of observation t."""
        parts = [self._model(self._buffer.observations(slice(t, t + 1), envs)) for envs in self._slices]
        if len(parts) == 1:
            return parts[0]
        logits, values = zip(*parts, strict=True)
        return torch.cat(logits), torch.cat(values)


def _store(rows_TE: Tensor, t: int, row: np.ndarray[Any, Any]) -> None:
    rows_TE[t].copy_(torch.from_numpy(row), non_blocking=True)
