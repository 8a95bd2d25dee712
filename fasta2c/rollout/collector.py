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
from fasta2c.rollout.buffer import Forward, RolloutBuffer, env_slices
from fasta2c.timing import PhaseTimer


class Collector:
    """Steps `envs` with the actions of `model` and keeps what comes back in one buffer, filled anew each time.

    Args:
        envs: the environments, on the host.
        model: observations to (logits, values).
        buffer: the rollout to fill.
        generator: where the actions' randomness comes from, on the buffer's device.
        samples: the most observations the model is called with at once.
        timer: counts the phases "act", "env" and "copy".
        keep_graph: act with gradients and keep the graphs in the buffer, for an update that needs no second forward
            pass. The parameters must not change before that update.
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
        keep_graph: bool = False,
    ) -> None:
        self._envs = envs
        self._model = model
        self._buffer = buffer
        self._generator = generator
        self._slices = list(env_slices(buffer.num_envs, samples))
        self._timer = timer
        self._keep_graph = keep_graph
        self.episodes = EpisodeStatistics(envs.num_envs)
        self.env_steps = 0
        """Valid rows of all rollouts so far; a resumed run sets what it begins with."""
        buffer.start(torch.from_numpy(envs.reset()))

    @torch.no_grad()
    def collect(self) -> RolloutBuffer:
        """Fill the buffer with the next T rows and the values of T + 1 observations."""
        buffer, timer = self._buffer, self._timer
        buffer.carry_over()
        buffer.forwards.clear()
        for t in range(buffer.num_steps):
            with timer("act"):
                logits_EA, buffer.values_T1E[t] = self._forward(t, keep_graph=self._keep_graph)
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
            _, buffer.values_T1E[buffer.num_steps] = self._forward(buffer.num_steps, keep_graph=False)
        return buffer

    def _forward(self, t: int, *, keep_graph: bool) -> tuple[Tensor, Tensor]:
        """Logits [E, A] and values [E] of observation t, without their graph."""
        parts = []
        for envs in self._slices:
            chunk = slice(t, t + 1), envs
            observations = self._buffer.observations(*chunk)
            if keep_graph and self._buffer.stack == 1:
                observations = observations.clone()  # a view of the frames, which change before the graph is used
            with torch.set_grad_enabled(keep_graph):
                logits, values = self._model(observations)
            if keep_graph:
                self._buffer.forwards.append(Forward(chunk, logits, values))
            parts.append((logits.detach(), values.detach()))
        if len(parts) == 1:
            return parts[0]
        logits, values = zip(*parts, strict=True)
        return torch.cat(logits), torch.cat(values)


def _store(rows_TE: Tensor, t: int, row: np.ndarray[Any, Any]) -> None:
    rows_TE[t].copy_(torch.from_numpy(row), non_blocking=True)
