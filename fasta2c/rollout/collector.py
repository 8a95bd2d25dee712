"""Fills a rollout: T lockstep rows of acting, stepping and storing.

Shapes: T rows, E environments, G of them in one group, P numbers of an action distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fasta2c import accel
from fasta2c.envs.base import HostEnvs
from fasta2c.envs.torch import TensorRow, TorchEnvs
from fasta2c.errors import UserError
from fasta2c.graphs import Graphs
from fasta2c.models.distributions import Distribution
from fasta2c.rollout.buffer import Forward, RolloutBuffer, env_slices
from fasta2c.rollout.counts import Counts
from fasta2c.rollout.passes import Passes
from fasta2c.timing import PhaseTimer


class Collector:
    """Steps environments with the network's actions and keeps what comes back in one buffer, filled anew each time.

    Groups of environments take turns: while one steps, the network acts for the next. Every row of every group is
    acted for with the same parameters, and is there when `collect` returns, so that A2C stays synchronous.

    Args:
        groups: the environments, on the host or on the device, in the order of the buffer's columns. They are reset.
        passes: what the network is called by. Where it makes no values, they are left to the learner.
        distribution: draws actions.
        buffer: the rollout to fill.
        generator: where the actions' randomness comes from, on the buffer's device.
        micro_batch: the most observations the model is called with at once.
        timer: counts the phases "act", "env" (waiting for environments) and "copy".
        graphs: record the network's part of each row on a GPU.
        sde_interval: rows between drawings of the exploration that several rows share, where actions have one; 0 draws
            it once a rollout.
        keep_log_probs: keep the actions' log-probabilities in the buffer, for updates by other parameters than acted.
        keep_graph: act with gradients and keep the graphs in the buffer, for an update that needs no second forward
            pass. The parameters must not change before that update.
        counts: where env steps and games are counted; those of this process alone unless given.
    """

    def __init__(
        self,
        groups: Sequence[HostEnvs | TorchEnvs],
        passes: Passes,
        distribution: Distribution,
        buffer: RolloutBuffer,
        *,
        generator: torch.Generator,
        micro_batch: int,
        timer: PhaseTimer,
        graphs: Graphs,
        sde_interval: int = 0,
        keep_log_probs: bool = False,
        keep_graph: bool = False,
        counts: Counts | None = None,
    ) -> None:
        self._passes = passes
        self._distribution = distribution
        self._buffer = buffer
        self._generator = generator
        self._micro_batch = micro_batch
        self._timer = timer
        self._keep_log_probs = keep_log_probs
        self._keep_graph = keep_graph
        self.counts = counts or Counts(buffer.num_envs)
        taken = distribution.env_actions(buffer.actions_TE[0])
        self._downloads: list[Callable[[Tensor], Any]] = [
            torch.clone if envs.on_device else accel.Download(taken[: envs.num_envs]) for envs in groups
        ]
        self._on_device = groups[0].on_device
        ends = np.cumsum([envs.num_envs for envs in groups])
        self._groups = [
            (envs, slice(int(end) - envs.num_envs, int(end))) for envs, end in zip(groups, ends, strict=True)
        ]
        own_slices = [columns for _, columns in self._groups]
        # Each row has memory of its own in the buffer, and so a function, on a GPU a graph, of its own.
        self._acts = [[graphs.wrap(partial(self._act, t, own)) for own in own_slices] for t in range(buffer.num_steps)]
        self._value_last = [graphs.wrap(partial(self._forward, buffer.num_steps, own)) for own in own_slices]
        self._sde_rows = range(0, buffer.num_steps, sde_interval or buffer.num_steps)
        self._exploration = distribution.explore(buffer.num_envs, generator)
        for envs, columns in self._groups:
            buffer.start(envs.reset(), columns)

    @torch.no_grad()
    def collect(self) -> RolloutBuffer:
        """Fill the buffer with the next T rows, and the values of T + 1 observations unless the learner makes them."""
        buffer, timer = self._buffer, self._timer
        buffer.carry_over()
        buffer.forwards.clear()
        for t in range(buffer.num_steps):
            if self._exploration is not None and t in self._sde_rows:
                drawn = self._distribution.explore(buffer.num_envs, self._generator)
                assert drawn is not None
                self._exploration.copy_(drawn)
            for n, (envs, columns) in enumerate(self._groups):
                if t > 0:
                    self._receive(t - 1, envs, columns)
                with timer("act"):
                    actions = self._downloads[n](self._acts[t][n]())
                with timer("env"):
                    envs.send(actions)
        for (envs, columns), value_last in zip(self._groups, self._value_last, strict=True):
            self._receive(buffer.num_steps - 1, envs, columns)
            if self._passes.policy is None:
                with timer("act"):
                    value_last()
        if self._on_device:
            with timer("copy"):
                self._count_on_device()
        else:
            buffer.upload()
        self.counts.end_rollout()
        return buffer

    def state_dict(self) -> dict[str, Any]:
        """Counters, statistics, and the games under way if the environments can be saved: tensors and plain values."""
        envs = [group.state_dict() for group, _ in self._groups if isinstance(group, TorchEnvs) and group.can_be_saved]
        whole = len(envs) == len(self._groups)
        # Copies: of a view, torch would save all that it is a view of, which is the whole rollout.
        carried = {name: x.clone() for name, x in self._buffer.carried().items()} if whole else {}
        games = {"envs": envs, "buffer": carried} if whole else None
        return {**self.counts.state_dict(), "games": games}

    def load_state_dict(self, states: Sequence[dict[str, Any]], own: int | None = 0) -> None:
        """Go on from what `state_dict` returned; games that were not saved are dropped, and new ones have begun.

        Args:
            states: of all ranks of the run that was saved.
            own: which of them to go on from; None has new games.

        Raises:
            UserError: there are other groups than the saved games had.
        """
        games = None if own is None else states[own]["games"]
        if games is not None and len(games["envs"]) != len(self._groups):
            saved = len(games["envs"])
            raise UserError(f"env_groups: the games were saved in {saved} groups; go on with --env-groups {saved}.")
        self.counts.load_state_dict(states, own if games is not None else None)
        if games is None:
            return
        self._buffer.load_carried(games["buffer"])
        for (group, _), saved in zip(self._groups, games["envs"], strict=True):
            assert isinstance(group, TorchEnvs)
            group.load_state_dict(saved)

    def _receive(self, t: int, envs: HostEnvs | TorchEnvs, columns: slice) -> None:
        with self._timer("env"):
            row = envs.receive()
        with self._timer("copy"):
            if isinstance(row, TensorRow):
                self._buffer.store_tensors(t, columns, row)
                return
            self._buffer.store(t, columns, row)
        self.counts.add(row.valid, row.scores, row.game_over, columns)
        if row.lost is not None:
            self.counts.lose(columns.start + np.flatnonzero(row.lost))

    def _count_on_device(self) -> None:
        """Count a rollout of rows that were never on the host, which the device is waited for.

        On the device rewards are the scores, and every end is the game's.
        """
        buffer = self._buffer
        over_TE = buffer.terminated_TE | buffer.truncated_TE
        told = torch.stack([buffer.valid_TE.float(), buffer.rewards_TE, over_TE.float()]).cpu().numpy()
        for valid, scores, game_over in zip(*told, strict=True):
            self.counts.add(valid != 0, scores, game_over != 0, slice(0, buffer.num_envs))

    def _act(self, t: int, columns: slice) -> Tensor:
        """Choose and keep the actions of row t; returns them as the environments take them, [G, ...]."""
        policy_GP = self._forward(t, columns, keep_graph=self._keep_graph)
        exploration = None if self._exploration is None else self._exploration[columns]
        drawn = self._distribution.sample(policy_GP, self._generator, exploration)
        if self._keep_log_probs:
            self._buffer.log_probs_TE[t, columns] = self._distribution.log_prob(policy_GP, drawn)
        return self._distribution.env_actions(self._buffer.actions_TE[t, columns].copy_(drawn))

    def _forward(self, t: int, columns: slice, *, keep_graph: bool = False) -> Tensor:
        """Keep the values of observation t, if they are made; returns its distributions [G, P], without their graph."""
        buffer = self._buffer
        parts = []
        for part in env_slices(columns, self._micro_batch):
            chunk = slice(t, t + 1), part
            with torch.set_grad_enabled(keep_graph):
                policy, values = self._passes.act(buffer, chunk)
            if values is not None:
                buffer.values_T1E[t, part] = values.detach()
                if keep_graph:
                    buffer.forwards.append(Forward(chunk, policy, values))
            parts.append(policy.detach())
        return parts[0] if len(parts) == 1 else torch.cat(parts)
