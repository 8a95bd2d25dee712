"""A single environment of Gymnasium's, brought to what its vectors can be trusted with."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from fasta2c.spaces import Layout, observation_leaves


class Single(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Hands on observations of the shapes that its space says, rewards and flags as numbers, and no infos.

    A vector in other processes writes an observation of another shape into shared memory as if it were right; some
    rewards are arrays of one number; and infos, which nobody asks for here, may be anything from step to step, which a
    vector fails to gather.
    """

    _layout: Layout | None = None
    _shape: tuple[int, ...] | None = None
    """Of an observation that is a single array."""

    def reset(self, **given: Any) -> tuple[Any, dict[str, Any]]:
        """As the environment does."""
        observation, _ = self.env.reset(**given)
        return self._checked(observation), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """As the environment does; raises `TypeError` or `ValueError` for a reward that is not one number."""
        observation, reward, terminated, truncated, _ = self.env.step(action)
        paid = reward if type(reward) is float else float(np.asarray(reward).item())
        if self._shape is None or getattr(observation, "shape", None) != self._shape:
            self._checked(observation)
        return observation, paid, bool(terminated), bool(truncated), {}

    def _checked(self, observation: Any) -> Any:
        """`observation`; raises `ValueError` where it is not of the shapes that the space says."""
        if self._layout is None:
            self._layout = Layout(observation_leaves(self.observation_space, str(self.spec and self.spec.id)))
            only = self._layout.leaves[0]
            self._shape = only.shape or None if only.path == () else None
        for leaf, value in zip(self._layout.leaves, self._layout.flatten(observation), strict=True):
            if leaf.shape and np.shape(value) != leaf.shape:
                raise ValueError(f"its space says {leaf}, it gave {list(np.shape(value))}")
        return observation
