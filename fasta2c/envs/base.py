"""The contract every environment backend is brought to: what one lockstep row holds, and what is known beforehand.

Shapes: E environments; `...` is the shape of one observation, or of one frame where frames are stacked.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from fasta2c.errors import UserError


class Row(NamedTuple):
    """What happened after one batch of actions, on the host. Row t is a dummy where row t-1 was done.

    The environment behind a dummy row ignored its action and returned the first observation of its next episode;
    nothing of a dummy row may reach the loss, the statistics or a step count.
    """

    observations: NDArray[Any]
    """[E, ...] the observation after the action; of a done row, the true last one. The newest frame if stacked."""
    rewards: NDArray[np.float32]
    """[E] what the agent learns from (clipped where the environment was told to)."""
    terminated: NDArray[np.bool_]
    """[E] the episode ended by its own rules: nothing to bootstrap from. Wins where both flags are set."""
    truncated: NDArray[np.bool_]
    """[E] the episode was cut: the value of `observations` stands for what would have followed."""
    valid: NDArray[np.bool_]
    """[E] not a dummy."""
    first: NDArray[np.bool_]
    """[E] `observations` opens a game: a frame stack is filled with it."""
    scores: NDArray[np.float32]
    """[E] the game's own reward, never clipped."""
    game_over: NDArray[np.bool_]
    """[E] the real game ended or was cut here (a lost life is not the end of a game)."""


@dataclass(frozen=True)
class EnvSpec:
    """What a network must know of an environment; plain values, so that a checkpoint can carry it."""

    frame_shape: tuple[int, ...]
    """Shape of what one step returns: a vector, or one image as (channels, height, width)."""
    dtype: str
    """"uint8" (images, 0 to 255) or "float32"."""
    stack: int
    """Frames stacked into one observation, along the first axis of an image; 1 where none are."""
    num_actions: int

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Shape of one observation, frames stacked."""
        if self.stack == 1:
            return self.frame_shape
        return (self.stack * self.frame_shape[0], *self.frame_shape[1:])

    def to_plain(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {**asdict(self), "frame_shape": list(self.frame_shape)}

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> EnvSpec:
        """The spec that `to_plain` wrote."""
        return cls(**{**values, "frame_shape": tuple(values["frame_shape"])})


class HostEnvs(Protocol):
    """A batch of environments stepped together on the host.

    A backend may step between `send` and `receive`, while the caller does something else.
    """

    spec: EnvSpec
    num_envs: int
    seeds: list[int]
    """The seed of each environment."""
    options: dict[str, Any]
    """What the backend was made with, enough to rebuild it beside."""

    def reset(self) -> NDArray[Any]:
        """Start every episode anew; returns the first observations (frames) [E, ...]."""

    def send(self, actions: NDArray[np.int64]) -> None:
        """Begin to step every environment with `actions` [E], which must not change until `receive`."""

    def receive(self) -> Row:
        """What the step that was sent brought; the returned arrays are the caller's to keep."""

    def step(self, actions: NDArray[np.int64]) -> Row:
        """Step every environment with `actions` [E], and wait."""
        self.send(actions)
        return self.receive()

    def close(self) -> None:
        """Give back threads and windows."""


def spread_seeds(seed: int, num_envs: int, *, stream: int = 0) -> list[int]:
    """`num_envs` seeds below 2**31 that neighbouring `seed`s (and other `stream`s of one seed) do not share."""
    sequence = np.random.SeedSequence(seed, spawn_key=(stream,) if stream else ())
    return [int(s) for s in sequence.generate_state(num_envs) >> 1]


def spec_of(
    observations: gymnasium.Space[Any], actions: gymnasium.Space[Any], *, env_id: str, stack: int = 1
) -> EnvSpec:
    """The `EnvSpec` of a Box observation space and a Discrete action space.

    Raises:
        UserError: another kind of space, named.
    """
    if not isinstance(observations, gymnasium.spaces.Box):
        raise UserError(f"{env_id}: observation space {observations} is not supported; fasta2c takes Box observations.")
    if not isinstance(actions, gymnasium.spaces.Discrete):
        raise UserError(f"{env_id}: action space {actions} is not supported; fasta2c takes Discrete actions.")
    dtype = "uint8" if observations.dtype == np.uint8 else "float32"
    return EnvSpec(tuple(observations.shape), dtype, stack, int(actions.n))
