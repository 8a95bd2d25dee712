"""What the network says of a rollout's rows, made again or taken over from acting, a micro-batch at a time.

Shapes: T rows, E environments, B samples of a chunk, P numbers of a distribution, S of a memory's state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from fasta2c.models.actor_critic import ActorCritic
from fasta2c.rollout.buffer import Chunk, Forward, RolloutBuffer, Unroll, env_slices


class Forwards:
    """Makes the model's outputs for the rows of a rollout.

    Args:
        model: what learns.
        forward: its forward pass, compiled or not.
        micro_batch: samples made at once.
        policy_and_values: observations to action distributions, and to values, if rollouts come without values: these
            are made here then, many rows at once, and the very ones that advantages are made of are differentiated.
        unroll: what a network with memory is called by instead of `forward`.
        keep_graph: keep the graphs of forward passes that V-trace needs complete; else they are made twice.
    """

    def __init__(
        self,
        model: ActorCritic,
        *,
        forward: torch.nn.Module,
        micro_batch: int,
        policy_and_values: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None = None,
        unroll: Unroll | None = None,
        keep_graph: bool = True,
    ) -> None:
        self._model = model
        self._forward = forward
        self._micro_batch = micro_batch
        self._policy_and_values = policy_and_values
        self._unroll = unroll
        self._keep_graph = keep_graph

    def acted(self, rollout: RolloutBuffer, envs: slice) -> Iterator[Forward]:
        """The model's outputs for `envs`, made when asked for; the values it acted by, complete on return."""
        if rollout.forwards:
            return _popped(rollout.forwards)
        chunks = list(rollout.chunks(self._micro_batch, envs))
        if self._policy_and_values is None:
            return self._made_when_asked(rollout, chunks)
        policy, critic = self._policy_and_values
        values = []
        for chunk in chunks:
            values.append(critic(rollout.observations(*chunk)))
            rollout.values_T1E[chunk] = values[-1].detach().view_as(rollout.values_T1E[chunk])
        last = slice(rollout.num_steps, rollout.num_steps + 1)
        with torch.no_grad():
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
            rows, part = chunk
            with torch.set_grad_enabled(self._keep_graph):
                policy_BP, values_B, state = self._outputs(rollout, *chunk, rollout.first_state_ES[part])
            with torch.no_grad():
                actions = rollout.actions_TE[chunk].flatten(0, 1)
                log_probs_B = self._model.distribution.log_prob(policy_BP, actions)
                ratios_TE[chunk] = (log_probs_B.view_as(ratios_TE[chunk]) - rollout.log_probs_TE[chunk]).exp()
                rollout.values_T1E[chunk] = values_B.view_as(ratios_TE[chunk])
                if rows.stop == rollout.num_steps:
                    last = slice(rows.stop, rows.stop + 1)
                    rollout.values_T1E[last, part] = self._outputs(rollout, last, part, state)[1]
            if self._keep_graph:
                kept.append(Forward(chunk, policy_BP, values_B))
        return _popped(kept) if self._keep_graph else self._made_when_asked(rollout, chunks), ratios_TE[:, envs]

    def _made_when_asked(self, rollout: RolloutBuffer, chunks: Iterable[Chunk]) -> Iterator[Forward]:
        for chunk in chunks:
            policy_BP, values_B, _ = self._outputs(rollout, *chunk, rollout.first_state_ES[chunk[1]])
            yield Forward(chunk, policy_BP, values_B)

    def write_values(self, rollout: RolloutBuffer, rows: slice, envs: slice, values_T1E: Tensor) -> None:
        """Write the values of some rows by now, and of the one after the rollout's last, into `values_T1E`."""
        values_B, state = self.values(rollout, rows, envs, rollout.first_state_ES[envs])
        values_T1E[rows, envs] = values_B.view_as(values_T1E[rows, envs])
        if rows.stop == rollout.num_steps:
            last = slice(rows.stop, rows.stop + 1)
            values_T1E[last, envs] = self.values(rollout, last, envs, state)[0]

    def values(self, rollout: RolloutBuffer, rows: slice, envs: slice, state_ES: Tensor) -> tuple[Tensor, Tensor]:
        """The critic's values for some rows, and what it remembers after them."""
        if self._unroll is None:
            return self._model.values(rollout.observations(rows, envs)), state_ES
        return self._outputs(rollout, rows, envs, state_ES)[1:]

    def _outputs(
        self, rollout: RolloutBuffer, rows: slice, envs: slice, state_ES: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The model's distributions and values for some rows, and what it remembers after them."""
        observations = rollout.observations(rows, envs)
        if self._unroll is None:
            return *self._forward(observations), state_ES
        return self._unroll(observations, state_ES, rollout.opens(rows, envs))


def _popped(forwards: list[Forward]) -> Iterator[Forward]:
    """Each let go when done with."""
    while forwards:
        yield forwards.pop(0)
