"""Several leaves in one row of bytes, so that a rollout stores and copies one tensor whatever is observed.

Shapes: E environments, B samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from fasta2c.spaces.leaves import Leaf


class Layout:
    """Where each leaf lies in a row of a packed observation.

    A single leaf is stored as it is; several become [E, bytes] of uint8, four-byte numbers first.
    """

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        self.leaves = tuple(leaves)
        self.packed = len(self.leaves) > 1
        self.has_reals = any(leaf.real for leaf in self.leaves)
        """Whether anything is observed that can be NaN or infinite."""
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

    def blank(self, rows: NDArray[Any], which: NDArray[np.bool_]) -> None:
        """Make the real numbers 0, in place, in those packed observations [E, *shape] that are `which` [E]."""
        if not (self.has_reals and which.any()):
            return
        if not self.packed:
            rows[which] = 0
            return
        for leaf, span in zip(self.leaves, self._spans, strict=True):
            if leaf.real:
                rows[which, span] = 0

    def blank_tensors(self, rows: Tensor, which: Tensor) -> Tensor:
        """What `blank` leaves, of a tensor, which stays as it is."""
        return self._without(rows, lambda leaf: which.view(-1, *[1] * (leaf.dim() - 1)))

    def finite_tensors(self, rows: Tensor) -> Tensor:
        """Packed observations, 0 for what is not finite."""
        return self._without(rows, lambda leaf: ~torch.isfinite(leaf))

    def _without(self, rows: Tensor, which: Callable[[Tensor], Tensor]) -> Tensor:
        """`rows` with 0 for those real numbers that are `which` of a leaf."""
        if not self.has_reals:
            return rows
        leaves = zip(self.leaves, self.unpack(rows), strict=True)
        return self.pack_tensors([torch.where(which(x), 0.0, x) if leaf.real else x for leaf, x in leaves])

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
                if isinstance(value, tuple | list) and key.isdecimal() and int(key) < len(value):
                    value = value[int(key)]
                elif isinstance(value, Mapping) and key in value:
                    value = value[key]
                else:
                    raise ValueError(f"the observation {'.'.join(leaf.path)!r} is missing")
            found.append(value)
        return found


def as_tensor(values: Any) -> Tensor:
    """A tensor of `values`: a tensor, a list or an array, one that is read backwards too, which torch refuses."""
    return torch.as_tensor(np.ascontiguousarray(values) if isinstance(values, np.ndarray) else values)


def observation_space(layout: Layout) -> spaces.Space[Any]:
    """The space of observations as `layout` stores their leaves: a Box, or Dicts of them."""

    def to_space(nested: Any) -> spaces.Space[Any]:
        if isinstance(nested, dict):
            return spaces.Dict({key: to_space(inner) for key, inner in nested.items()})
        return spaces.Box(nested.low, nested.high, nested.shape, np.dtype(nested.dtype).type)

    return to_space(layout.nest(layout.leaves))
