"""What environments observe and take, brought to plain values that a network can be built from.

An observation is one leaf, or several (of a Dict, nested or not); several are packed into one row of bytes, so that
a rollout stores and copies one tensor whatever is observed.

Shapes: E environments, B samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from fasta2c.errors import UserError

# Bounds beyond are none: EnvPool and Gymnasium write "unbounded" as infinity, as the largest float, or as 1e10.
UNBOUNDED = 1e6
# The leaf that says which actions are legal, where its shape fits the actions.
MASK = ("action_mask",)


@dataclass(frozen=True)
class Leaf:
    """One array of an observation."""

    path: tuple[str, ...]
    """Its keys in the Dict; empty where the whole observation is one array."""
    shape: tuple[int, ...]
    dtype: str
    """As it is stored: "uint8", "int32" or "float32"."""
    low: float
    high: float
    """The least and the greatest value of any element, infinite where there are none."""
    categorical: bool = False
    """Whether its numbers name things (Discrete, MultiDiscrete) rather than count or measure."""

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def classes(self) -> int | None:
        """How many values an element can have; None if it is no integer or not bounded."""
        if self.dtype == "float32" or not math.isfinite(self.high - self.low):
            return None
        return int(self.high - self.low) + 1

    def __str__(self) -> str:
        return f"{'.'.join(self.path) or 'observation'} {list(self.shape)} of {self.dtype}"


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


Actions = Choices | Continuous


def observation_leaves(space: gymnasium.Space[Any], env_id: str) -> tuple[Leaf, ...]:
    """The leaves of an observation space, in its order.

    Raises:
        UserError: a space without a fixed number of elements, or with none, named.
    """
    found = tuple(_leaves(space, (), env_id))
    if not sum(leaf.size for leaf in found):
        raise UserError(f"{env_id}: its observations are empty ({space}).")
    return found


def _leaves(space: gymnasium.Space[Any], path: tuple[str, ...], env_id: str) -> list[Leaf]:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        items = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        return [leaf for key, inner in items for leaf in _leaves(inner, (*path, str(key)), env_id)]
    if isinstance(space, spaces.Discrete):
        return [_integers(path, (), int(space.start), int(space.start + space.n - 1), categorical=True)]
    if isinstance(space, spaces.MultiDiscrete):
        high = space.start + space.nvec - 1
        return [_integers(path, space.shape, int(space.start.min()), int(high.max()), categorical=True)]
    if isinstance(space, spaces.MultiBinary):
        return [_integers(path, space.shape, 0, 1)]
    if isinstance(space, spaces.Box):
        shape = tuple(int(n) for n in space.shape)
        if space.dtype == np.bool_:
            return [_integers(path, shape, 0, 1)]
        if not np.issubdtype(space.dtype, np.integer):
            return [Leaf(path, shape, "float32", -math.inf, math.inf)]
        least, most = (int(bound) for bound in (space.low.min(initial=0), space.high.max(initial=0)))
        if space.low.size:
            least, most = int(space.low.min()), int(space.high.max())
        return [_integers(path, shape, least, most)]
    where = f"observation {'.'.join(path)!r}" if path else "observation space"
    raise UserError(f"{env_id}: {where} is {space}, which has no fixed shape; fasta2c cannot take it.")


def _integers(path: tuple[str, ...], shape: tuple[int, ...], low: int, high: int, *, categorical: bool = False) -> Leaf:
    bounded = high - low < 2**24  # what float32 tells apart
    bounds = (float(low), float(high)) if bounded else (-math.inf, math.inf)
    if low >= 0 and high <= 255:
        return Leaf(path, shape, "uint8", *bounds, categorical)
    fits = low >= -(2**31) and high < 2**31
    return Leaf(path, shape, "int32" if fits else "float32", *bounds, categorical and fits)


def action_spec(space: gymnasium.Space[Any], leaves: Sequence[Leaf], env_id: str) -> Actions:
    """What an action space takes, and if the observations hold a mask, what that mask is of.

    Raises:
        UserError: another kind of space, or one without choices, named.
    """
    if isinstance(space, spaces.Discrete):
        return Choices((), (int(space.n),), (int(space.start),))
    low: NDArray[Any]
    high: NDArray[Any]
    if isinstance(space, spaces.MultiDiscrete):
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
    return Choices(shape, sizes, tuple(int(a) for a in low.flat), joint=mask is not None and mask.shape == sizes)


def _bounds(low: float, high: float) -> tuple[float, float]:
    """The bounds of one number, infinite where there are none."""
    # EnvPool writes the smallest positive number for a lower bound that is none.
    return (
        low if low > -UNBOUNDED and not 0 < low < 1e-37 else -math.inf,
        high if high < UNBOUNDED else math.inf,
    )


def mask_of(leaves: Sequence[Leaf], actions: Actions) -> int | None:
    """Which of `leaves` says what actions are legal: the one called action_mask, if its shape fits."""
    if isinstance(actions, Continuous):
        return None
    several = (len(actions.sizes), max(actions.sizes))
    fitting = {actions.sizes} if actions.joint or len(actions.sizes) == 1 else {several}
    return next((i for i, leaf in enumerate(leaves) if leaf.path == MASK and leaf.shape in fitting), None)


class Layout:
    """Where each leaf lies in a row of a packed observation.

    A single leaf is stored as it is; several become [E, bytes] of uint8, four-byte numbers first.
    """

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        self.leaves = tuple(leaves)
        self.packed = len(self.leaves) > 1
        self.shape, self.dtype = self.leaves[0].shape, self.leaves[0].dtype
        if self.packed:
            self._spans: list[slice] = [slice(0, 0)] * len(self.leaves)
            end = 0
            for i in sorted(range(len(self.leaves)), key=lambda i: self.leaves[i].dtype == "uint8"):
                width = self.leaves[i].size * np.dtype(self.leaves[i].dtype).itemsize
                self._spans[i] = slice(end, end + width)
                end += width
            # Rows of whole fours, so that a single row too is aligned for the numbers in it.
            self.shape, self.dtype = (-(-end // 4) * 4,), "uint8"

    def pack(self, arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """The leaves' batches [E, ...], of any numeric dtypes, as one array [E, *shape]."""
        if not self.packed:
            return np.asarray(arrays[0]).reshape(-1, *self.shape).astype(self.dtype, copy=False)
        rows = np.zeros((len(arrays[0]), *self.shape), dtype=np.uint8)
        for leaf, span, array in zip(self.leaves, self._spans, arrays, strict=True):
            if leaf.size:
                rows[:, span].view(leaf.dtype)[...] = np.asarray(array).reshape(len(rows), leaf.size)
        return rows

    def pack_tensors(self, leaves: Sequence[Tensor]) -> Tensor:
        """What `pack` does, of tensors on one device."""
        typed = [x.to(getattr(torch, leaf.dtype)) for leaf, x in zip(self.leaves, leaves, strict=True)]
        if not self.packed:
            return typed[0].reshape(-1, *self.shape)
        rows = torch.zeros((len(typed[0]), *self.shape), dtype=torch.uint8, device=typed[0].device)
        for leaf, span, tensor in zip(self.leaves, self._spans, typed, strict=True):
            if leaf.size:
                rows[:, span] = tensor.reshape(len(rows), leaf.size).contiguous().view(torch.uint8)
        return rows

    def unpack(self, packed: Tensor) -> list[Tensor]:
        """The leaves [B, ...] of packed observations [B, *shape]."""
        if not self.packed:
            return [packed]
        return [
            packed[:, span].contiguous().view(getattr(torch, leaf.dtype)).view(len(packed), *leaf.shape)
            for leaf, span in zip(self.leaves, self._spans, strict=True)
        ]

    def nest(self, leaves: Sequence[Any]) -> Any:
        """The leaves in the order and nesting of the observation space (dicts by key), or the only one itself."""
        if self.leaves[0].path == ():
            return leaves[0]
        nested: dict[str, Any] = {}
        for leaf, value in zip(self.leaves, leaves, strict=True):
            inner = nested
            for key in leaf.path[:-1]:
                inner = inner.setdefault(key, {})
            inner[leaf.path[-1]] = value
        return nested

    def flatten(self, observations: Any) -> list[Any]:
        """What `nest` was given; raises `ValueError` where a leaf is missing."""
        found = []
        for leaf in self.leaves:
            value = observations
            for key in leaf.path:
                if isinstance(value, tuple) and key.isdecimal() and int(key) < len(value):
                    value = value[int(key)]
                elif isinstance(value, Mapping) and key in value:
                    value = value[key]
                else:
                    raise ValueError(f"the observation {'.'.join(leaf.path)!r} is missing")
            found.append(value)
        return found


def observation_space(layout: Layout) -> spaces.Space[Any]:
    """The space of observations as `layout` stores their leaves: a Box, or Dicts of them."""

    def to_space(nested: Any) -> spaces.Space[Any]:
        if isinstance(nested, dict):
            return spaces.Dict({key: to_space(inner) for key, inner in nested.items()})
        return spaces.Box(nested.low, nested.high, nested.shape, np.dtype(nested.dtype).type)

    return to_space(layout.nest(layout.leaves))


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
    return EnvSpec(leaves, stack, action_spec(actions, leaves, env_id))
