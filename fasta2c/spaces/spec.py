"""What a network must know of an environment."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import gymnasium
import numpy as np

from fasta2c.errors import UserError
from fasta2c.spaces.actions import Actions, Choices, Continuous, action_spec, mask_of
from fasta2c.spaces.layout import Layout
from fasta2c.spaces.leaves import Leaf, observation_leaves


@dataclass(frozen=True)
class EnvSpec:
    """What a network must know of an environment; plain values, so that a checkpoint can carry it."""

    frame_leaves: tuple[Leaf, ...]
    """What one step returns."""
    stack: int
    """Frames stacked into one observation, along the first axis of an image; 1 where none are."""
    actions: Actions

    @property
    def frames(self) -> Layout:
        """How what one step returns is stored."""
        return Layout(self.frame_leaves)

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """What one observation holds, frames stacked."""
        if self.stack == 1:
            return self.frame_leaves
        (frame,) = self.frame_leaves
        stacked = (self.stack * frame.shape[0], *frame.shape[1:])
        return (Leaf(frame.path, stacked, frame.dtype, frame.low, frame.high),)

    @property
    def layout(self) -> Layout:
        """How an observation, frames stacked, is stored."""
        return Layout(self.leaves)

    @property
    def mask(self) -> int | None:
        """Which leaf says what actions are legal."""
        return mask_of(self.frame_leaves, self.actions)

    def fits(self, other: EnvSpec) -> bool:
        """Whether a network for `other` environments can play these: the same numbers in, the same actions out."""
        if [leaf.meaning for leaf in self.leaves] != [leaf.meaning for leaf in other.leaves]:
            return False
        if not isinstance(self.actions, Continuous) or not isinstance(other.actions, Continuous):
            return self.actions == other.actions
        ours, theirs = (np.array([actions.low, actions.high]) for actions in (self.actions, other.actions))
        return ours.shape == theirs.shape and np.allclose(ours, theirs)  # one backend may have rounded them

    def to_plain(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {
            "leaves": [asdict(leaf) for leaf in self.frame_leaves],
            "stack": self.stack,
            "actions": {"kind": type(self.actions).__name__, **asdict(self.actions)},
        }

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> EnvSpec:
        """The spec that `to_plain` wrote."""
        actions = dict(values["actions"])
        kind = {"Choices": Choices, "Continuous": Continuous}[actions.pop("kind")]
        return cls(tuple(Leaf(**leaf) for leaf in values["leaves"]), values["stack"], kind(**actions))


def spec_of(
    observations: gymnasium.Space[Any], actions: gymnasium.Space[Any], *, env_id: str, stack: int = 1
) -> EnvSpec:
    """The `EnvSpec` of two spaces; raises `UserError` for one that fasta2c cannot take."""
    leaves = observation_leaves(observations, env_id)
    taken = action_spec(actions, leaves, env_id)
    mask_of(leaves, taken, env_id)  # or it says what does not fit
    if stack > 1 and not leaves[0].shape:
        raise UserError(f"{env_id}: frames of a single pixel cannot be stacked; make them larger.")
    return EnvSpec(leaves, stack, taken)
