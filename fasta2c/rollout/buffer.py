"""The T x E tensors of one rollout, allocated once on the device.

Shapes: T rows, E environments, S frames a stack; `TE` in a name is [T, E], `T1E` is [T + 1, E].
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from fasta2c.envs.base import Row
from fasta2c.envs.frames import stack_frames
from fasta2c.envs.torch import TensorRow
from fasta2c.spaces import Choices, EnvSpec

Chunk = tuple[slice, slice]
"""Rows and environments of a rectangle of the rollout."""


class Forward(NamedTuple):
    """The model's differentiable output for one chunk."""

    chunk: Chunk
    policy_BP: Tensor
    values_B: Tensor


class _Mirror(NamedTuple):
    """A tensor, and the array through which the host fills it."""

    device: Tensor
    host: Tensor | None
    """Pinned memory beside a GPU; None on a CPU, where `array` is the tensor's own memory."""
    array: NDArray[Any]

    @classmethod
    def of(cls, tensor: Tensor, like: Tensor) -> _Mirror:
        """`tensor` with pinned memory as large as `like`, if it needs any."""
        host = torch.zeros_like(like, device="cpu", pin_memory=True) if tensor.is_cuda else None
        return cls(tensor, host, (tensor if host is None else host).numpy())


class RolloutBuffer:
    """T rows of E environments. Observation t is what action t was taken at; observation T follows the last row.

    Frames are kept singly, T + S of them; `carry_over` moves the last S to the front for the next rollout. On a CPU
    the tensors are filled in place. Beside a GPU they are filled through pinned memory that is used again and again,
    never waiting: whoever stores a row has waited for the actions that led to it, and so for the copies before.

    Args:
        num_steps: T.
        num_envs: E.
        spec: what is observed, and what actions there are.
        device: where the tensors are.
        state_size: numbers that the network remembers from row to row.
    """

    def __init__(
        self, num_steps: int, num_envs: int, spec: EnvSpec, device: torch.device, *, state_size: int = 0
    ) -> None:
        self.num_steps = num_steps
        self.num_envs = num_envs
        self.stack = spec.stack
        self._layout = spec.frames
        kept = num_steps + spec.stack
        grid = (num_steps, num_envs)
        frame, dtype = self._layout.shape, getattr(torch, self._layout.dtype)
        self.frames = torch.zeros((kept, num_envs, *frame), dtype=dtype, device=device)
        self.fills = torch.zeros((kept, num_envs), dtype=torch.bool, device=device)
        drawn = torch.int64 if isinstance(spec.actions, Choices) else torch.float32
        self.actions_TE = torch.zeros((*grid, *spec.actions.drawn), dtype=drawn, device=device)
        """As they were drawn; [T, E, ...] where one action is several numbers."""
        self.rewards_TE = torch.zeros(grid, device=device)
        self.terminated_TE = torch.zeros(grid, dtype=torch.bool, device=device)
        self.truncated_TE = torch.zeros(grid, dtype=torch.bool, device=device)
        self.valid_TE = torch.zeros(grid, dtype=torch.bool, device=device)
        self.values_T1E = torch.zeros((num_steps + 1, num_envs), device=device)
        self.log_probs_TE = torch.zeros(grid, device=device)
        """Of the actions, by the policy that took them, if the collector keeps them."""
        self.state_ES = torch.zeros((num_envs, state_size), device=device)
        """What the network remembers after the rows acted for so far."""
        self.first_state_ES = torch.zeros_like(self.state_ES)
        """What it remembered before row 0."""
        returned = (self.rewards_TE, self.terminated_TE, self.truncated_TE, self.valid_TE)
        self._returned = [_Mirror.of(x, x) for x in returned]
        _, _, self._truncated, _ = self._returned
        self._frames = [_Mirror.of(x, x[:1]) for x in (self.frames, self.fills)]
        self.forwards: list[Forward] = []
        """The forward passes that acted, with their graphs, if the collector keeps them; the learner takes them."""

    def start(self, frames: NDArray[Any] | Tensor, envs: slice) -> None:
        """Take the `frames` of `envs`, each opening a game, as what the first `carry_over` brings to the front."""
        self.frames[-1, envs] = torch.as_tensor(frames).to(self.frames.device)
        self.fills[-1, envs] = True

    def store(self, t: int, envs: slice, row: Row) -> None:
        """Keep what row t brought for `envs`: frames at once, rewards and flags on the device from `upload` on.

        The last observation of an episode that is over is acted on in a reset row alone. Its real numbers are made 0:
        masked or not, NaN times a gradient of 0 is NaN, and so is what a network makes too large of them.
        """
        values = (row.rewards, row.terminated, row.truncated, row.valid)
        for mirror, value in zip(self._returned, values, strict=True):
            mirror.array[t, envs] = value
        if row.lost is not None and t > 0:  # row t tells nothing: the game was cut after the one before
            self._truncated.array[t - 1, envs] |= row.lost
        frames, fills = self._frames
        at = self.stack + t
        slot = at if frames.host is None else 0
        frames.array[slot, envs], fills.array[slot, envs] = row.observations, row.opens
        over = row.terminated if row.lost is None else row.terminated | row.lost  # lost: the observation is that again
        self._layout.blank(frames.array[slot, envs], over)
        for mirror in self._frames:
            if mirror.host is not None:
                mirror.device[at, envs].copy_(mirror.host[slot, envs], non_blocking=True)

    def store_tensors(self, t: int, envs: slice, row: TensorRow) -> None:
        """Keep what row t brought for `envs`, on the device already; an episode's end as in `store`."""
        for mirror, value in zip(self._returned, (row.rewards, row.terminated, row.truncated, row.valid), strict=True):
            mirror.device[t, envs] = value
        observations = self._layout.blank_tensors(row.observations, row.terminated)
        for mirror, value in zip(self._frames, (observations, row.opens), strict=True):
            mirror.device[self.stack + t, envs] = value

    def upload(self) -> None:
        """Bring the rewards and flags of all rows to the device."""
        for mirror in self._returned:
            if mirror.host is not None:
                mirror.device.copy_(mirror.host, non_blocking=True)

    def observations(self, rows: slice, envs: slice) -> Tensor:
        """Observations of some rows (0 to T) and environments, flattened to [rows * envs, ...]."""
        return stack_frames(self.frames, self.fills, self.stack, rows, envs)

    def real_observations(self) -> list[Tensor]:
        """Those parts of observations 0 to T that are real numbers, each [T + 1, E, numbers]."""
        if not self._layout.has_reals:
            return []
        newest = self.frames[self.stack - 1 :]
        leaves = zip(self._layout.leaves, self._layout.unpack(newest.flatten(0, 1)), strict=True)
        return [x.reshape(*newest.shape[:2], -1) for leaf, x in leaves if leaf.real]

    def opens(self, rows: slice, envs: slice) -> Tensor:
        """Whether an observation (0 to T) opens a game, [rows, envs]."""
        return self.fills[rows.start + self.stack - 1 : rows.stop + self.stack - 1, envs]

    def carry_over(self) -> None:
        """Make the last observation of this rollout the first of the next, and what is remembered where that begins."""
        self.first_state_ES.copy_(self.state_ES)
        for kept in (self.frames, self.fills):
            last = kept[self.num_steps :]
            kept[: self.stack] = last.clone() if self.num_steps < self.stack else last  # the two may overlap
        if self._layout.has_reals:  # what is not finite has been learnt of, or refused, where it was the last
            carried = self.frames[: self.stack].flatten(0, 1)
            carried.copy_(self._layout.finite_tensors(carried))

    def carried(self) -> dict[str, Tensor]:
        """What the next rollout begins with: the last observations, and what is remembered of those before."""
        last = slice(self.num_steps, None)
        return {"frames": self.frames[last], "fills": self.fills[last], "state": self.state_ES}

    def load_carried(self, carried: dict[str, Tensor]) -> None:
        """Begin the next rollout with what `carried` told."""
        for name, tensor in self.carried().items():
            tensor.copy_(carried[name])

    def minibatches(self, count: int) -> Iterator[slice]:
        """`count` shares of the environments, as equal as can be."""
        bounds = [self.num_envs * n // count for n in range(count + 1)]
        return (slice(start, stop) for start, stop in itertools.pairwise(bounds))

    def chunks(self, samples: int, envs: slice | None = None) -> Iterator[Chunk]:
        """Rectangles of at most `samples` samples (at least one) that cover `envs`, or the whole rollout, once.

        A network that remembers needs all rows of an environment at once.
        """
        envs = envs or slice(0, self.num_envs)
        num_envs = envs.stop - envs.start
        if self.state_ES.shape[1]:
            for part in env_slices(envs, max(1, samples // self.num_steps)):
                yield slice(0, self.num_steps), part
        elif samples >= num_envs:
            rows = samples // num_envs
            for t in range(0, self.num_steps, rows):
                yield slice(t, min(t + rows, self.num_steps)), envs
        else:
            for t in range(self.num_steps):
                for part in env_slices(envs, samples):
                    yield slice(t, t + 1), part


def rollout_bytes(num_steps: int, num_envs: int, spec: EnvSpec, state_size: int = 0) -> int:
    """What a `RolloutBuffer` of this size takes on its device."""
    frame = math.prod(spec.frames.shape) * getattr(torch, spec.frames.dtype).itemsize + 1  # whether it fills a stack
    drawn = math.prod(spec.actions.drawn) * (8 if isinstance(spec.actions, Choices) else 4)
    row = drawn + 3 * 4 + 3  # rewards, values and log-probabilities; three flags
    return num_envs * ((num_steps + spec.stack) * frame + num_steps * row + 4 + 2 * 4 * state_size)


def env_slices(envs: slice, samples: int) -> Iterator[slice]:
    """Slices of at most `samples` environments that cover `envs`."""
    for e in range(envs.start, envs.stop, samples):
        yield slice(e, min(e + samples, envs.stop))
