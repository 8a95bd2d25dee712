"""From an environment id to environments: on the host as the rollout steps them, or as tensors for everyone else."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fasta2c import accel
from fasta2c.envs import envpool
from fasta2c.envs.base import HostEnvs, spread_seeds
from fasta2c.envs.frames import FrameWindow
from fasta2c.envs.gymnasium import GymnasiumEnvs
from fasta2c.envs.ids import EnvId, resolve
from fasta2c.envs.torch import TorchEnvs
from fasta2c.errors import UserError
from fasta2c.fields import Count, Seed, checked
from fasta2c.spaces import Choices, EnvSpec, as_tensor, observation_space

CPU = torch.device("cpu")
# A tensor, or dicts of them as the observation space nests them.
Observations = Any
# What presets switch on for training, and evaluation switches off: it plays whole games for their own score.
TRAINING_ONLY = ("reward_clip", "episodic_life", "zero_discount_on_life_loss")  # the last in older runs alone


def make_host_envs(
    env_id: EnvId,
    num_envs: int,
    *,
    seeds: list[int],
    options: dict[str, Any],
    num_threads: int = 0,
    device: torch.device = CPU,
    timeout: float = 0.0,
    restart: bool = False,
    render: bool = False,
) -> HostEnvs | TorchEnvs:
    """The environments of `env_id`, any tensors of theirs on `device`; raises `UserError` as the backends say."""
    if restart and env_id.backend != "gymnasium":
        raise UserError("restart_envs: only an environment of Gymnasium can be made anew.")
    if env_id.backend == "torch":
        return TorchEnvs(env_id, num_envs, seeds=seeds, options=options, device=device)
    if env_id.backend == "gymnasium":
        return GymnasiumEnvs(
            env_id, num_envs, seeds=seeds, options=options, timeout=timeout, restart=restart, render=render
        )
    return envpool.EnvPoolEnvs(env_id, num_envs, seeds=seeds, options=options, num_threads=num_threads, render=render)


def look_up_spec(env_id: EnvId, options: dict[str, Any], device: torch.device = CPU) -> EnvSpec:
    """What `env_id` observes and takes, its tensors on `device`; raises `UserError` as the backends say."""
    if env_id.backend == "envpool":
        return envpool.look_up_spec(env_id, options)
    envs = make_host_envs(env_id, 1, seeds=[0], options=options, device=device)
    try:
        return envs.spec
    finally:
        envs.close()


def make_env_groups(
    env_id: EnvId, num_envs: int, *, groups: int, seeds: list[int], num_threads: int = 0, **given: Any
) -> list[HostEnvs | TorchEnvs]:
    """The environments of `env_id` in `groups` parts of nearly equal size, each stepped by itself.

    Environment i has the i-th seed whatever the parts. They share `num_threads` threads, rounded up (0: as many as
    cores): while some of them wait for the network, the others step. All else is `given` as `make_host_envs` takes it.

    Raises:
        UserError: as the backends say.
    """
    threads = -(-(num_threads or accel.cores()) // groups)
    made: list[HostEnvs | TorchEnvs] = []
    try:
        for part in np.array_split(np.arange(num_envs), min(groups, num_envs)):
            own = seeds[part[0] : part[-1] + 1]
            made.append(make_host_envs(env_id, len(own), seeds=own, num_threads=threads, **given))
            if made[-1].spec != made[0].spec:
                raise UserError(f"{env_id.backend_id}: its environments do not all have the same spaces.")
    except BaseException:
        for envs in made:
            envs.close()
        raise
    return made


def make_envs(env_id: str, num_envs: int, *, seed: int, device: str = "cpu", **options: Any) -> VectorEnvs:
    """The environments that training uses, frames stacked, as tensors on `device`.

    Args:
        env_id: as `--env` takes it.
        num_envs: E.
        seed: every environment gets a seed of its own from it.
        device: where the tensors are.
        options: the environment's own options, as `--env-kwargs` takes them. No preset is applied.

    Raises:
        UserError: an unknown environment, option or device, a number or seed that cannot be, or spaces fasta2c does not
            take.
    """
    num_envs, seed = checked("num_envs", num_envs, Count), checked("seed", seed, Seed)
    target = accel.resolve_device(device)
    seeds = spread_seeds(seed, num_envs)
    return VectorEnvs(make_host_envs(resolve(env_id), num_envs, seeds=seeds, options=options, device=target), target)


class VectorEnvs:
    """Environments stepped in lockstep as tensors: Gymnasium's order, NEXT_STEP autoreset.

    After a done, the next step ignores that environment's action, pays 0 and returns the first observation of its
    next episode; `infos["valid"]` is False on such a row.
    """

    def __init__(self, envs: HostEnvs | TorchEnvs, device: torch.device) -> None:
        self._envs = envs
        self._device = device
        self._window: FrameWindow | None = None
        self.rows = 0
        """Steps so far."""
        self.spec = envs.spec
        self.num_envs = envs.num_envs
        self.seeds = envs.seeds
        self.options = envs.options
        self._layout = self.spec.layout
        self.observation_space = observation_space(self._layout)
        self.action_space = envs.action_space
        if isinstance(self.spec.actions, Choices):
            self._first = np.reshape(self.spec.actions.starts, self.spec.actions.shape)
            self._last = self._first + np.reshape(self.spec.actions.sizes, self.spec.actions.shape) - 1
        self._size: tuple[int, ...] | None = None
        self._closed = False

    def reset(self) -> Observations:
        """Start every episode anew; returns observations [E, ...]: a tensor, or a dict of them."""
        self._check_open()
        frames = self.spec.frames
        self._window = FrameWindow(
            self.num_envs, frames.shape, self.spec.stack, dtype=getattr(torch, frames.dtype), device=self._device
        )
        return self._push(self._envs.reset(), torch.ones(self.num_envs, dtype=torch.bool))

    def step(self, actions: Any) -> tuple[Observations, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Step with `actions` [E, *shape of one], as `action_space` has them: a tensor, an array or a list.

        Returns observations [E, ...] (a tensor, or a dict of them), rewards, terminated, truncated and infos, all [E].

        `infos` holds `valid` (not a reset row), `score` (the game's own reward), `game_over` and `opens` (the
        observation is a game's first).

        Raises:
            ValueError: actions of another shape, or choices that there are not.
        """
        self._check_open()
        if self._window is None:
            raise RuntimeError("reset() must be called before the first step.")
        row: Any = self._envs.step(self._taken(actions))
        self.rows += 1
        observations = self._push(row.observations, row.opens)
        valid = self._tensor(row.valid)
        rewards, scores = (torch.where(valid, self._tensor(paid), 0) for paid in (row.rewards, row.scores))
        infos = {
            "valid": valid,
            "score": scores,
            "game_over": self._tensor(row.game_over),
            "opens": self._tensor(row.opens),
        }
        return observations, rewards, self._tensor(row.terminated), self._tensor(row.truncated), infos

    @property
    def fps(self) -> float:
        """Env steps that make a second to somebody who watches."""
        return self._envs.fps

    def render(self) -> NDArray[np.uint8]:
        """Pictures [E, height, width, 3] of what is now, on the host, always of one size.

        Raises:
            UserError: there are none, or of another size than before.
        """
        self._check_open()
        pictures = self._envs.render()
        size, self._size = self._size, pictures.shape
        if size is not None and size != self._size:
            sizes = " to ".join(f"{width} x {height}" for _, height, width, _ in (size, pictures.shape))
            raise UserError(f"the environment's pictures change from {sizes}, which no film can show.")
        return pictures

    def close(self) -> None:
        """Give the environments back; a second time does nothing."""
        if not self._closed:
            self._closed = True
            self._envs.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("these environments are closed.")

    def _taken(self, actions: Any) -> Any:
        """`actions` as the environments take them; EnvPool would end the process over too few of them."""
        tensor, kind = as_tensor(actions), self.spec.actions
        if tuple(tensor.shape) != (self.num_envs, *kind.shape):
            raise ValueError(f"expected actions of shape {[self.num_envs, *kind.shape]}, got {list(tensor.shape)}")
        if isinstance(kind, Choices):
            array = tensor.cpu().numpy()
            if array.dtype.kind not in "iub" or (array < self._first).any() or (array > self._last).any():
                raise ValueError(f"expected actions that are in {self.action_space}, got {array.tolist()}")
        elif tensor.is_complex():
            raise ValueError(f"expected real numbers, got {tensor.dtype}")
        elif not tensor.is_floating_point():
            tensor = tensor.float()
        # A user's class may write into what it is given, and give the same memory anew in the next row.
        return tensor.to(self._device, copy=True) if self._envs.on_device else tensor.cpu().numpy()

    def _push(self, frames: Any, first: Any) -> Observations:
        assert self._window is not None
        packed = self._window.push(self._tensor(frames), self._tensor(first))
        return self._layout.nest(self._layout.unpack(packed))

    def _tensor(self, array: Any) -> Tensor:
        return torch.as_tensor(array).to(self._device, copy=self._envs.on_device)
