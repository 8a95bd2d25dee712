"""What the network says of a rollout's rows, made again or taken over from acting, a micro-batch at a time.

Shapes: T rows, E environments, B samples of a chunk, P numbers of a distribution, S of a memory's state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor

from fasta2c.models.distributions import Distribution
from fasta2c.rollout.buffer import Chunk, Forward, RolloutBuffer, env_slices
from fasta2c.rollout.passes import Passes


class Forwards:
    """Makes the network's outputs for the rows of a rollout.

    Args:
        passes: what the network is called by. Where rollouts come without values, these are made here, many rows at
            once, and the very ones that advantages are made of are differentiated.
        distribution: of the actions.
        micro_batch: samples made at once.
        keep_recomputed: keep the graphs of forward passes that V-trace needs complete; else they are made twice.
    """

    def __init__(
        self, passes: Passes, distribution: Distribution, *, micro_batch: int, keep_recomputed: bool = True
    ) -> None:
        self._passes = passes
        self._distribution = distribution
        self._micro_batch = micro_batch
        self._keep_recomputed = keep_recomputed

    def acted(self, rollout: RolloutBuffer, envs: slice) -> Iterator[Forward]:
        """The model's outputs for `envs`, made when asked for; the values it acted by, complete on return."""
        if rollout.forwards:
            return _popped(rollout.forwards)
        chunks = list(rollout.chunks(self._micro_batch, envs))
        policy, critic = self._passes.policy, self._passes.critic
        if policy is None:
            return self._made_when_asked(rollout, chunks)
        values = []
        for chunk in chunks:
            values.append(critic(rollout.observations(*chunk)))
            rollout.values_T1E[chunk] = values[-1].detach().view_as(rollout.values_T1E[chunk])
        last = slice(rollout.num_steps, rollout.num_steps + 1)
        with self._passes.aside():
            for part in env_slices(envs, self._micro_batch):
                rollout.values_T1E[last, part] = critic(rollout.observations(last, part))
        return (
            Forward(chunk, policy(rollout.observations(*chunk)), values_B)
            for chunk, values_B in zip(chunks, values, strict=True)
        )

    def recomputed(self, rollout: RolloutBuffer, envs: slice) -> tuple[Iterator[Forward], Tensor]:
        """The model's outputs for `envs` since it has changed, its values of T + 1 rows written into the rollout.

        Returns:
            the outputs, their graphs kept if there is room, and the ratios [T, envs] of the actions' probabilities by
            now to those when they were drawn.
        """
        chunks = list(rollout.chunks(self._micro_batch, envs))
        kept, ratios_TE = [], torch.empty_like(rollout.log_probs_TE)
        for chunk in chunks:
            with nullcontext() if self._keep_recomputed else self._passes.aside():
                policy_BP, values_B, state = self._passes.recompute(rollout, chunk, rollout.first_state_ES[chunk[1]])
            with torch.no_grad():
                actions = rollout.actions_TE[chunk].flatten(0, 1)
                log_probs_B = self._distribution.log_prob(policy_BP, actions)
                ratios_TE[chunk] = (log_probs_B.view_as(ratios_TE[chunk]) - rollout.log_probs_TE[chunk]).exp()
                rollout.values_T1E[chunk] = values_B.view_as(ratios_TE[chunk])
            self._write_last(rollout, chunk, state, rollout.values_T1E)
            if self._keep_recomputed:
                kept.append(Forward(chunk, policy_BP, values_B))
        return _popped(kept) if self._keep_recomputed else self._made_when_asked(rollout, chunks), ratios_TE[:, envs]

    def _made_when_asked(self, rollout: RolloutBuffer, chunks: Iterable[Chunk]) -> Iterator[Forward]:
        for chunk in chunks:
            policy_BP, values_B, _ = self._passes.recompute(rollout, chunk, rollout.first_state_ES[chunk[1]])
            yield Forward(chunk, policy_BP, values_B)

    def write_values(self, rollout: RolloutBuffer, chunk: Chunk, values_T1E: Tensor) -> None:
        """Write the values of some rows by now, and of the one after the rollout's last, into `values_T1E`."""
        with self._passes.aside():
            values_B, state = self._passes.values(rollout, chunk, rollout.first_state_ES[chunk[1]])
            values_T1E[chunk] = values_B.view_as(values_T1E[chunk])
        self._write_last(rollout, chunk, state, values_T1E)

    def _write_last(self, rollout: RolloutBuffer, chunk: Chunk, state_BS: Tensor, values_T1E: Tensor) -> None:
        """Write the values after the rollout's last row into `values_T1E`, where `chunk` ends with that."""
        rows, envs = chunk
        if rows.stop == rollout.num_steps:
            last = slice(rows.stop, rows.stop + 1), envs
            with self._passes.aside():
                values_T1E[last] = self._passes.values(rollout, last, state_BS)[0]

    def values(self, rollout: RolloutBuffer, chunk: Chunk) -> Tensor:
        """The critic's values [B] for some rows by now, differentiable."""
        return self._passes.values(rollout, chunk, rollout.first_state_ES[chunk[1]])[0]


def _popped(forwards: list[Forward]) -> Iterator[Forward]:
    """Each let go when done with."""
    while forwards:
        yield forwards.pop(0)
