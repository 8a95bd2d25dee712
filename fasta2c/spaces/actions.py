"""Action spaces: choices and real numbers, and which observation says what is legal."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from fasta2c.errors import UserError
from fasta2c.spaces.leaves import Leaf

# Bounds beyond are none: EnvPool and Gymnasium write "unbounded" as infinity, as the largest float, or as 1e10.
UNBOUNDED = 1e6
# The leaf that says which actions are legal, where its shape fits the actions.
MASK = ("action_mask",)


@dataclass(frozen=True)
class Choices:
    """Actions that choose: one of `sizes[0]`, or one of each of `sizes` at once."""

    shape: tuple[int, ...]
    """Of one action as the environment takes it; () for a single number."""
    sizes: tuple[int, ...]
    starts: tuple[int, ...]
    """The number of each first choice."""
    joint: bool = False
    """Whether legality is known only of whole combinations, so that these are what is chosen from."""

    @property
    def drawn(self) -> tuple[int, ...]:
        """Shape of one action as it is drawn and kept: indices, () where there is one."""
        return () if self.joint or len(self.sizes) == 1 else (len(self.sizes),)

    def within_bounds(self, actions: NDArray[Any]) -> NDArray[Any]:
        """`actions` themselves: choices cannot be out of bounds."""
        return actions


@dataclass(frozen=True)
class Continuous:
    """Actions that are real numbers, elements in row-major order."""

    shape: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    """Bounds, infinite where there are none."""

    @property
    def drawn(self) -> tuple[int, ...]:
        """Shape of one action as it is drawn and kept."""
        return (len(self.low),)

    def within_bounds(self, actions: NDArray[Any]) -> NDArray[Any]:
        """`actions` [E, *shape], in place, no longer out of bounds by what their dtype rounds."""
        low, high = self._limits
        return np.clip(actions, low, high, out=actions)

    @functools.cached_property
    def _limits(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """`low` and `high` as arrays, made once: they are wanted at every row."""
        return np.reshape(self.low, self.shape), np.reshape(self.high, self.shape)


Actions = Choices | Continuous


def action_spec(space: gymnasium.Space[Any], leaves: Sequence[Leaf], env_id: str) -> Actions:
    """What an action space takes, and if the observations hold a mask, what that mask is of.

    Raises:
        UserError: another kind of space, or one without choices, named.
    """
    if isinstance(space, spaces.Discrete):
        return Choices((), (int(space.n),), (int(space.start),))
    low: NDArray[Any]
    high: NDArray[Any]
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.size:
        low, high = space.start, space.start + space.nvec - 1
    elif isinstance(space, spaces.MultiBinary):
        low, high = np.zeros(space.shape, np.int64), np.ones(space.shape, np.int64)
    elif isinstance(space, spaces.Box) and space.low.size:
        low, high = space.low, space.high
    else:
        raise UserError(f"{env_id}: action space {space} is not supported; fasta2c takes choices and real numbers.")
    shape = tuple(int(n) for n in low.shape)
    if np.issubdtype(space.dtype, np.floating):
        bounds = [_bounds(float(a), float(b)) for a, b in zip(low.flat, high.flat, strict=True)]
        return Continuous(shape, tuple(a for a, _ in bounds), tuple(b for _, b in bounds))
    sizes = tuple(int(b) - int(a) + 1 for a, b in zip(low.flat, high.flat, strict=True))
    if sum(sizes) > 2**20:
        raise UserError(f"{env_id}: {sum(sizes):,} choices in action space {space}; a million are the most.")
    mask = next((leaf for leaf in leaves if leaf.path == MASK), None)
    joint = mask is not None and len(sizes) > 1 and mask.shape == sizes
    return Choices(shape, sizes, tuple(int(a) for a in low.flat), joint)


def _bounds(low: float, high: float) -> tuple[float, float]:
    """The bounds of one number, infinite where there are none."""
    # EnvPool writes the smallest positive number for a lower bound that is none.
    return (
        low if low > -UNBOUNDED and not 0 < low < 1e-37 else -math.inf,
        high if high < UNBOUNDED else math.inf,
    )


def mask_of(leaves: Sequence[Leaf], actions: Actions, env_id: str = "") -> int | None:
    """Which of `leaves` says what actions are legal: the one called action_mask, beside choices.

    Its shape says what it is of: whole combinations (the sizes of all choices), each choice (choices x options), or
    the options of all choices one after another.

    Raises:
        UserError: another shape.
    """
    found = next((i for i, leaf in enumerate(leaves) if leaf.path == MASK), None)
    if found is None or isinstance(actions, Continuous):
        return None
    shape, sizes = leaves[found].shape, actions.sizes
    if actions.joint or shape == (len(sizes), max(sizes)) or leaves[found].size == sum(sizes):
        return found
    raise UserError(
        f"{env_id}: an action_mask of shape {list(shape)} does not fit its actions, whose choices have "
        f"{', '.join(map(str, sizes))} options; give it another name if it is something else."
    )
