"""The ways in which a rollout's observations go through the network, each compiled or not.

Shapes: T rows and B environments of a chunk, P numbers of a distribution, S of a memory's state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fasta2c import accel
from fasta2c.models.actor_critic import ActorCritic
from fasta2c.rollout.buffer import Chunk, RolloutBuffer


@dataclass(frozen=True)
class Passes:
    """What acting and learning call the network by."""

    whole: Callable[[Tensor], tuple[Tensor, Tensor]]
    """Observations to distributions and values."""
    critic: Callable[[Tensor], Tensor]
    """Observations to values alone."""
    policy: Callable[[Tensor], Tensor] | None = None
    """Observations to distributions alone: where it is given, rows are acted for without values, which `critic` makes
    of many rows at once when the rollout is complete."""
    unroll: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]] | None = None
    """`ActorCritic.unroll`, where the network has memory: called in place of the others."""
    set_learning: Callable[[bool], None] = lambda learning: None
    """`ActorCritic.set_learning`."""

    @classmethod
    def of(cls, model: ActorCritic, *, compiled: bool = False, values_later: bool = False) -> Passes:
        """Those of `model`; `values_later` where it has a critic of its own, which acts for nobody."""
        made = partial(accel.maybe_compile, enabled=compiled)
        return cls(
            made(model),
            made(model.values),
            policy=made(model.policy) if values_later else None,
            unroll=made(model.unroll) if model.memory is not None else None,
            set_learning=model.set_learning,
        )

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Inside an update: what is computed here is not learnt from, and made as in acting, without gradients."""
        self.set_learning(False)
        try:
            with torch.no_grad():
                yield
        finally:
            self.set_learning(True)

    def act(self, rollout: RolloutBuffer, chunk: Chunk) -> tuple[Tensor, Tensor | None]:
        """Distributions [B, P] and values [B] of a row's observations; no values where these are made later.

        What a memory holds after the row is kept in the rollout for the next one.
        """
        observations = rollout.observations(*chunk)
        if torch.is_grad_enabled() and rollout.stack == 1:
            observations = observations.clone()  # a view of the frames, which change before the graph is used
        if self.policy is not None:
            return self.policy(observations), None
        if self.unroll is None:
            return self.whole(observations)
        rows, envs = chunk
        policy_BP, values_B, state_BS = self.unroll(observations, rollout.state_ES[envs], rollout.opens(*chunk))
        if rows.start < rollout.num_steps:  # observation T is acted on in the next rollout
            # What is remembered of a number that is not finite must not last as long as the game.
            rollout.state_ES[envs] = torch.where(torch.isfinite(state_BS), state_BS, 0.0)
        return policy_BP, values_B

    def recompute(self, rollout: RolloutBuffer, chunk: Chunk, state_BS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Distributions [T * B, P] and values [T * B] of some rows, and what is remembered after them.

        Args:
            rollout: what they are rows of.
            chunk: which.
            state_BS: what was remembered before them; without memory it is returned as it is.
        """
        observations = rollout.observations(*chunk)
        if self.unroll is None:
            return *self.whole(observations), state_BS
        return self.unroll(observations, state_BS, rollout.opens(*chunk))

    def values(self, rollout: RolloutBuffer, chunk: Chunk, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        """As `recompute`, of the critic alone."""
        if self.unroll is None:
            return self.critic(rollout.observations(*chunk)), state_BS
        return self.recompute(rollout, chunk, state_BS)[1:]
