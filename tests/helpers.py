"""What tests share."""

import os

import numpy as np
from gymnasium.spaces import Box, Discrete

from fasta2c.spaces import EnvSpec, spec_of


def examples(count: int) -> int:
    """How many cases a fuzzing test tries: `count`, or FUZZ times as many where the environment sets that."""
    return count * int(os.environ.get("FUZZ", "1"))


def env_spec(shape: tuple[int, ...], dtype: str, *, stack: int = 1, actions: int = 2) -> EnvSpec:
    """The spec of environments that observe one array and choose one of `actions`."""
    low, high = (0, 255) if dtype == "uint8" else (-np.inf, np.inf)
    return spec_of(Box(low, high, shape, np.dtype(dtype).type), Discrete(actions), env_id="test", stack=stack)


def vtrace_reference(rewards, values, terminated, truncated, ratios, gamma, lam):
    """Espeholt et al.'s equation 1 with lambda c: each target as a sum, in float64 and without recursion."""
    T, E = rewards.shape
    advantages = np.zeros((T, E))
    for e in range(E):
        for t in range(T):
            weight = 1.0
            for k in range(t, T):
                future = 0.0 if terminated[k, e] else gamma * values[k + 1, e]
                rho = min(1.0, ratios[k, e])
                advantages[t, e] += weight * rho * (rewards[k, e] + future - values[k, e])
                if terminated[k, e] or truncated[k, e]:
                    break
                weight *= gamma * lam * rho
    return advantages
