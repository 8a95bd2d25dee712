"""Observation spaces as leaves: arrays of a fixed shape, dtype and range."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from fasta2c.errors import UserError


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
    huge: bool = False
    """Whether they are whole numbers of more than 32 bits, stored as float32."""

    @property
    def real(self) -> bool:
        """Whether they are real numbers."""
        return self.dtype == "float32" and not self.huge

    @property
    def meaning(self) -> tuple[Any, ...]:
        """What a network takes its numbers for, however many bytes each is stored in."""
        return self.path, self.shape, self.real, self.low, self.high, self.categorical, self.huge

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


def observation_leaves(space: gymnasium.Space[Any], env_id: str) -> tuple[Leaf, ...]:
    """The leaves of an observation space, in its order.

    Raises:
        UserError: a space without a fixed number of elements, or with none, named.
    """
    found = tuple(_leaves(space, (), env_id))
    if not sum(leaf.size for leaf in found):
        raise UserError(f"{env_id}: its observations are empty ({space}).")
    for leaf in found:
        if leaf.huge and leaf.low < leaf.high and np.float32(leaf.low) == np.float32(leaf.high):
            told = f"whole numbers from {leaf.low:,.0f} to {leaf.high:,.0f}, which are all one in 32 bits"
            raise UserError(f"{env_id}: its {leaf} has {told}; let them begin at 0.")
    return found


def _leaves(space: gymnasium.Space[Any], path: tuple[str, ...], env_id: str) -> list[Leaf]:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        items = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        if isinstance(space, spaces.Dict) and not all(isinstance(key, str) for key in space.spaces):
            raise UserError(f"{env_id}: the keys of its observations must be text, not {list(space.spaces)}.")
        return [leaf for key, inner in items for leaf in _leaves(inner, (*path, str(key)), env_id)]
    if isinstance(space, spaces.Discrete):
        return [_integers(path, (), int(space.start), int(space.start + space.n - 1), categorical=True)]
    if isinstance(space, spaces.MultiDiscrete):
        if not space.nvec.size:
            return [_integers(path, space.shape, 0, 0, categorical=True)]
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
    return Leaf(path, shape, "int32" if fits else "float32", *bounds, categorical and fits, huge=not fits)
