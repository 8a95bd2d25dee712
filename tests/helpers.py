"""What tests share."""

import numpy as np
from gymnasium.spaces import Box, Discrete

from fasta2c.spaces import EnvSpec, spec_of


def env_spec(shape: tuple[int, ...], dtype: str, *, stack: int = 1, actions: int = 2) -> EnvSpec:
    """The spec of environments that observe one array and choose one of `actions`."""
    low, high = (0, 255) if dtype == "uint8" else (-np.inf, np.inf)
    return spec_of(Box(low, high, shape, np.dtype(dtype).type), Discrete(actions), env_id="test", stack=stack)
