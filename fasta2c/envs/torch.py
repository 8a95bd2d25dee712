"""A user's own batch of environments, whose tensors are on the device already: nothing crosses to the host.

What such a class must have, for E environments stepped in lockstep:

- `__init__(self, num_envs, *, device, seed, **options)`, `options` being `--env-kwargs`;
- `observation_space` and `action_space`, Gymnasium's, of one environment;
- `reset()`, which gives the first observations: a tensor [E, ...], or dicts of them as the space nests them;
- `step(actions)`, which gives observations, rewards [E], terminated [E] and truncated [E] (bool).

Both are called without gradients, and what they give is on `device`; a class that differentiates something of its own
does so under `torch.enable_grad()`.

It may have `render()`, which gives pictures [E, height, width, 3] of bytes, and `fps`, how many steps make a second of
a film (30).

It may also have `state_dict()`, which gives all it needs to go on elsewhere (tensors and plain values, randomness
included), and `load_state_dict(state)`, which takes that, its tensors on the CPU: a resumed run then goes on in the
middle of its games.

Ends are as everywhere here: the observation of a done row is the true last one; the next step ignores that
environment's action, pays 0, and gives the first observation of its next episode.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fasta2c import custom
from fasta2c.envs.base import pace
from fasta2c.envs.ids import EnvId
from fasta2c.errors import Fasta2cError, RunError, UserError, warn
from fasta2c.spaces import EnvSpec, spec_of


class TensorRow(NamedTuple):
    """A `Row` of tensors on the device, its fields the same."""

    observations: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor
    opens: Tensor
    scores: Tensor
    game_over: Tensor


class TorchEnvs:
    """`num_envs` environments of a user's class, behind the row contract.

    Args:
        env_id: `torch:module:Class`.
        num_envs: E.
        seeds: the first is the seed of them all.
        options: keyword arguments for the class.
        device: where its tensors are.

    Raises:
        UserError: a class that cannot be had or made, lacks what it needs, or gives other shapes than its spaces say.
            What its methods raise later is a `RunError`.
    """

    on_device = True
    in_turn = False
    times_out = False
    restarts = 0

    def __init__(
        self, env_id: EnvId, num_envs: int, *, seeds: list[int], options: dict[str, Any], device: torch.device
    ) -> None:
        self._name = f"torch:{env_id.backend_id}"
        made = custom.load(env_id.backend_id, self._name)
        try:
            self._envs: Any = made(num_envs, device=device, seed=seeds[0], **options)
        except custom.RAISED as error:  # the user's constructor can raise anything
            raise UserError(f"{self._name}: cannot be made: {custom.told(error)}") from None
        for name in ("observation_space", "action_space", "reset", "step"):
            try:
                there = hasattr(self._envs, name)
            except custom.RAISED as error:  # a property of the user's can raise anything
                raise UserError(f"{self._name}: {name} raised {custom.told(error)}") from None
            if not there:
                raise UserError(f"{self._name}: has no {name}.")
        self.action_space: gymnasium.Space[Any] = self._envs.action_space
        self.spec: EnvSpec = spec_of(self._envs.observation_space, self.action_space, env_id=self._name)
        self.num_envs = num_envs
        self.seeds = seeds
        self.options = dict(options)
        self._layout = self.spec.frames
        self._device = device
        self._previous_done = torch.zeros(num_envs, dtype=torch.bool, device=device)
        self._actions: Tensor | None = None

    def reset(self) -> Tensor:
        """Start every episode anew; returns the first observations [E, ...]."""
        self._previous_done = torch.zeros_like(self._previous_done)
        with self._failing("reset"):
            observations = self._envs.reset()
        return self._packed(observations)

    def send(self, actions: Tensor) -> None:
        """Keep `actions` [E, *shape of one] for `receive`."""
        self._actions = actions

    def receive(self) -> TensorRow:
        """Step with the actions that were sent."""
        with self._failing("step"):
            observations, rewards, terminated, truncated, *_ = self._envs.step(self._actions)
        for name, flags in (("terminated", terminated), ("truncated", truncated), ("rewards", rewards)):
            if not isinstance(flags, Tensor) or flags.shape != self._previous_done.shape or not self._is_here(flags):
                where = f"of shape [{self.num_envs}] on {self._device}"
                raise RunError(f"{self._name}: step must give {name} as a tensor {where}.")
        terminated, truncated, rewards = terminated.bool(), truncated.bool(), rewards.detach().float()
        done = terminated | truncated
        previous, self._previous_done = self._previous_done, done
        try:
            packed = self._packed(observations)
        except UserError as error:  # too late to be a mistake that costs nothing
            raise RunError(str(error)) from None
        return TensorRow(packed, rewards, terminated, truncated, ~previous, previous, rewards, done)

    def step(self, actions: Tensor) -> TensorRow:
        """Step every environment with `actions`."""
        self.send(actions)
        return self.receive()

    @property
    def fps(self) -> float:
        """What the class says, or 30."""
        return pace(getattr(self._envs, "fps", None))

    def render(self) -> NDArray[np.uint8]:
        """Pictures [E, height, width, 3]; raises `UserError` where the class draws none."""
        if not hasattr(self._envs, "render"):
            raise UserError(f"{self._name}: it cannot be drawn, as the class has no render().")
        with self._failing("render"):
            pictures = np.asarray(torch.as_tensor(self._envs.render()).cpu())
        if pictures.shape[:1] + pictures.shape[3:] != (self.num_envs, 3):
            expected = f"[{self.num_envs}, height, width, 3]"
            raise UserError(f"{self._name}: render must give pictures {expected}, it gave {list(pictures.shape)}.")
        return pictures.astype(np.uint8)

    @property
    def can_be_saved(self) -> bool:
        """Whether the class can put its games under way into a checkpoint."""
        return hasattr(self._envs, "state_dict") and hasattr(self._envs, "load_state_dict")

    def state_dict(self) -> dict[str, Any]:
        """The games under way."""
        with self._failing("state_dict"):
            return {"envs": self._envs.state_dict(), "previous_done": self._previous_done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the games that `state_dict` told."""
        with self._failing("load_state_dict"):
            self._envs.load_state_dict(state["envs"])
        self._previous_done = state["previous_done"].to(self._device)

    def close(self) -> None:
        """Tell the class, if it wants to know. What goes wrong with that is told, and fails nothing."""
        if hasattr(self._envs, "close"):
            try:
                self._envs.close()
            except custom.RAISED as error:
                warn(f"{self._name}: close raised {custom.told(error)}")

    @contextlib.contextmanager
    def _failing(self, what: str) -> Iterator[None]:
        """Inside, what the user's class raises is an error of the run, told in words; nothing is differentiated."""
        try:
            with torch.no_grad():
                yield
        except (Fasta2cError, torch.OutOfMemoryError):
            raise
        except custom.RAISED as error:
            raise RunError(f"{self._name}: {what} raised {custom.told(error)}") from error

    def _packed(self, observations: Any) -> Tensor:
        try:
            leaves = self._layout.flatten(observations)
        except ValueError as error:
            raise UserError(f"{self._name}: {error}.") from None
        for leaf, tensor in zip(self._layout.leaves, leaves, strict=True):
            if not isinstance(tensor, Tensor) or tuple(tensor.shape) != (self.num_envs, *leaf.shape):
                found = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
                raise UserError(f"{self._name}: its space says {leaf} for each environment, it gave {found} for all.")
            if not self._is_here(tensor):
                raise UserError(f"{self._name}: its observations are on {tensor.device}, not on {self._device}.")
        return self._layout.pack_tensors([tensor.detach() for tensor in leaves])

    def _is_here(self, tensor: Tensor) -> bool:
        """Whether `tensor` is on the device that the class was told of."""
        return tensor.device == self._previous_done.device
