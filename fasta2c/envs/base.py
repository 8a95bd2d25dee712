"""The contract every environment backend is brought to: what one lockstep row holds, and what is known beforehand.

Shapes: E environments; `...` behind E is the shape of an observation, or of one frame where frames are stacked, as
`EnvSpec.frames` packs it.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from fasta2c.fields import Range
from fasta2c.spaces import EnvSpec

# Pictures a second that a film can have, and those that it has where nobody says.
PACES, USUAL_PACE = Range(0.1, 240), 30.0


class Row(NamedTuple):
    """What happened after one batch of actions, on the host. Row t is a reset row where row t-1 was done.

    In a reset row the environment ignored its action and returned the first observation of its next episode;
    nothing of a reset row may reach the loss, the statistics or a step count.
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
    """[E] no reset row."""
    opens: NDArray[np.bool_]
    """[E] `observations` opens a game: a frame stack is filled with it."""
    scores: NDArray[np.floating[Any]]
    """[E] the game's own reward, never clipped."""
    game_over: NDArray[np.bool_]
    """[E] the real game ended or was cut here (a lost life is not the end of a game)."""
    lost: NDArray[np.bool_] | None = None
    """[E] the environment failed and the game is lost: not valid, cut, yet no reset row; None where none failed."""


class HostEnvs(Protocol):
    """A batch of environments stepped together on the host.

    A backend may step between `send` and `receive`, while the caller does something else.
    """

    spec: EnvSpec
    action_space: gymnasium.Space[Any]
    """Of one environment, as the backend declares it."""
    on_device: bool = False
    """Whether actions and rows are tensors on the network's device (`TorchEnvs`), rather than arrays."""
    in_turn: bool
    """Whether they step one after another, while the caller waits in `receive`."""
    times_out: bool = False
    """Whether `receive` itself knows how long it may wait."""
    restarts: int = 0
    """Environments that failed and were made anew so far."""
    num_envs: int
    seeds: list[int]
    """The seed of each environment."""
    options: dict[str, Any]
    """What the backend was made with, enough to rebuild it beside."""

    def reset(self) -> NDArray[Any]:
        """Start every episode anew; returns the first observations (frames) [E, ...]."""

    def send(self, actions: NDArray[Any]) -> None:
        """Begin to step every environment with `actions` [E, *shape of one], which must not change until `receive`."""

    def receive(self) -> Row:
        """What the step that was sent brought; the returned arrays are the caller's to keep."""

    def step(self, actions: NDArray[Any]) -> Row:
        """Step every environment with `actions` [E, *shape of one], and wait."""
        self.send(actions)
        return self.receive()

    @property
    def fps(self) -> float:
        """Env steps that make a second to somebody who watches."""

    def render(self) -> NDArray[np.uint8]:
        """Pictures [E, height, width, 3] of what is now, if made with `render`.

        Raises:
            UserError: there are none of this environment.
        """

    def close(self) -> None:
        """Give back threads and windows."""


def pace(told: Any) -> float:
    """What an environment tells as its pictures a second, if a film can have that many; else 30."""
    try:
        return float(told) if PACES.holds(float(told)) else USUAL_PACE
    except (TypeError, ValueError):
        return USUAL_PACE


def spread_seeds(seed: int, num_envs: int, *, stream: int = 0) -> list[int]:
    """`num_envs` seeds below 2**31 that neighbouring `seed`s (and other `stream`s of one seed) do not share."""
    sequence = np.random.SeedSequence(seed, spawn_key=(stream,) if stream else ())
    return [int(s) for s in sequence.generate_state(num_envs) >> 1]
