"""EnvPool behind the row contract: one synchronous pool, explicit seeds, single frames.

The facts this relies on are those of EnvPool 1.2.5; `tests/envs/test_envpool.py` checks each on the installed wheel.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from fasta2c import accel
from fasta2c.envs.base import HostEnvs, Row
from fasta2c.envs.ids import EnvId
from fasta2c.errors import UserError, did_you_mean
from fasta2c.spaces import EnvSpec, spec_of

# Options that are ours to set, or that would break the row contract.
_RESERVED = frozenset(
    {"num_envs", "batch_size", "num_threads", "max_num_players", "thread_affinity_offset", "base_path", "seed"}
    | {"env_seed", "gym_reset_return_info", "task"}
)
# EnvPool hands these on unchecked, and some values end the process or fill the memory: what works.
_RANGES = {
    "max_episode_steps": (1, 2**31 - 1),
    "stack_num": (1, 64),
    "frame_skip": (1, 1000),
    "img_height": (1, 1000),
    "img_width": (1, 1000),
    "noop_max": (1, 1000),
}
# Where an info tells the legal actions (PGX), it joins the observation.
_LEGAL = "info:legal_action_mask"
# MiniGrid declares bytes, but its cells hold the numbers of few objects, colours and states.
_CELLS = spaces.Box(0, 10, (7, 7, 3), np.uint8)


class EnvPoolEnvs(HostEnvs):
    """`num_envs` environments of one EnvPool id, stepped in lockstep.

    Args:
        env_id: an id of the EnvPool backend.
        num_envs: E.
        seeds: one seed below 2**31 for each environment (EnvPool ignores a seed given to `reset`).
        options: EnvPool's own options, checked here.
        num_threads: EnvPool's threads; 0 takes one for each core this process may use.

    Raises:
        UserError: an option the environment does not take, spaces fasta2c does not, or EnvPool's own refusal.
    """

    def __init__(
        self, env_id: EnvId, num_envs: int, *, seeds: list[int], options: dict[str, Any], num_threads: int = 0
    ) -> None:
        import envpool

        defaults = _defaults(env_id, options)
        _check_options(env_id, options, defaults)
        self._atari = env_id.family == "Atari"
        # The stack is kept on the device: a quarter of the bytes to copy and to store.
        stack = int(options.get("stack_num", defaults["stack_num"])) if self._atari else 1
        self.num_envs = num_envs
        self.seeds = seeds
        self.options = {
            **options,
            **({"stack_num": 1} if self._atari else {}),
            # EnvPool looks for Jumanji's files among its assets, but ships them with its code.
            **({"base_path": str(Path(envpool.__file__).parent)} if env_id.family == "Jumanji" else {}),
            "num_threads": min(num_threads or accel.cores(), num_envs),
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*precision lowered.*")
            try:
                self._pool: Any = envpool.make(
                    env_id.backend_id, env_type="gymnasium", num_envs=num_envs, seed=seeds, **self.options
                )
            except (AssertionError, RuntimeError, ValueError, TypeError, ImportError, OSError) as error:
                raise UserError(f"{env_id.backend_id}: EnvPool cannot make it: {_one_line(error)}") from None
            self._keys: list[str] = list(self._pool._state_keys)
            self.action_space: gymnasium.Space[Any] = self._pool.spec.action_space
            self.observation_space = _observation_space(env_id, self._pool, masked=_LEGAL in self._keys)
        self.spec: EnvSpec = spec_of(self.observation_space, self.action_space, env_id=env_id.backend_id, stack=stack)
        self._layout = self.spec.frames
        self._observed = [_state_key(leaf.path, self._keys) for leaf in self._layout.leaves]
        self._ids = np.arange(num_envs, dtype=np.int32)
        self._action_dtype = self._pool._spec._action_spec[-1][0]
        self._previous_done = np.zeros(num_envs, dtype=np.bool_)

    def reset(self) -> NDArray[Any]:
        """Start every episode anew; returns the first frames [E, ...]."""
        self._pool._reset(self._ids)
        self._previous_done = np.zeros(self.num_envs, dtype=np.bool_)
        return self._observations(self._receive())

    def send(self, actions: NDArray[Any]) -> None:
        """Hand `actions` [E, *shape of one] to EnvPool's threads, which begin at once."""
        # EnvPool's own `step` does the same through a tree library, at a cost that cheap environments feel.
        self._pool._send([self._ids, self._ids, actions.astype(self._action_dtype)])

    def receive(self) -> Row:
        """Wait for the step that was sent."""
        state = self._receive()
        done, truncated, rewards = state["done"], state["trunc"], state["reward"]
        terminated = done & ~truncated
        scores, game_over = rewards, done
        if self._atari:
            # A game over on the very step of the time limit shows as truncated only.
            over = state["info:terminated"].astype(np.bool_) & done
            terminated |= over
            scores, game_over = state["info:reward"], over | truncated
        first = self._previous_done & (state["elapsed_step"] == 0)
        valid = ~self._previous_done
        self._previous_done = done
        return Row(self._observations(state), rewards, terminated, truncated, valid, first, scores, game_over)

    def close(self) -> None:
        """End EnvPool's threads."""
        self._pool.close()
        self._pool = None

    def _receive(self) -> dict[str, NDArray[Any]]:
        return dict(zip(self._keys, self._pool._recv(), strict=True))

    def _observations(self, state: dict[str, NDArray[Any]]) -> NDArray[Any]:
        return self._layout.pack([state[key] for key in self._observed])


def _defaults(env_id: EnvId, options: dict[str, Any]) -> dict[str, Any]:
    """EnvPool's own configuration of an environment; raises `UserError` where there can be none here."""
    import envpool

    files = {key: options[key] for key in ("cfg_path", "wad_path") if isinstance(options.get(key), str)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            defaults: dict[str, Any] = envpool.make_spec(env_id.backend_id, **files).config._asdict()
    except (AssertionError, RuntimeError, ValueError, TypeError, ImportError, OSError) as error:
        hint = ""
        if env_id.backend_id.startswith("VizdoomCustom"):
            hint = """ Name a scenario of yours: --env-kwargs '{"cfg_path": "my.cfg", "wad_path": "my.wad"}'."""
        raise UserError(f"{env_id.backend_id}: EnvPool cannot make it: {_one_line(error)}{hint}") from None
    if defaults["max_num_players"] > 1:
        raise UserError(f"{env_id.backend_id}: several players share this environment; fasta2c trains one agent.")
    return defaults


def _observation_space(env_id: EnvId, pool: Any, *, masked: bool) -> gymnasium.Space[Any]:
    """What a pool observes: EnvPool's own space, corrected, and the legal actions beside it if it tells them apart."""
    space: gymnasium.Space[Any] = pool.spec.observation_space
    if env_id.family == "MiniGrid" and isinstance(space, spaces.Dict) and space["image"].shape == _CELLS.shape:
        space = spaces.Dict({**space.spaces, "image": _CELLS})
    if masked:
        actions = pool.spec.action_space.n
        space = spaces.Dict({"observation": space, "action_mask": spaces.MultiBinary(int(actions))})
    return space


def _state_key(path: tuple[str, ...], keys: list[str]) -> str:
    """The key of a leaf in what EnvPool returns; it joins those of nested dicts by a point or a colon."""
    if _LEGAL in keys:
        return _LEGAL if path == ("action_mask",) else "obs"
    if not path:  # called obs, or obs:state where Playground has nothing beside it
        return next(key for key in keys if key.partition(":")[0] == "obs")
    return next(key for key in keys if key.replace(":", ".") == ".".join(("obs", *path)))


def _check_options(env_id: EnvId, options: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Raise `UserError` for an option the environment does not take, of the wrong type or out of range."""
    open_options = {k: v for k, v in defaults.items() if k not in _RESERVED}
    for key, value in options.items():
        where = f"env_kwargs.{key}"
        if key in _RESERVED:
            raise UserError(f"{where}: set by fasta2c (see --num-envs, --seed, --env-threads), not by --env-kwargs.")
        if key not in open_options:
            hint = did_you_mean(key, open_options) or f" It takes {', '.join(sorted(open_options))}."
            raise UserError(f"{where}: {env_id.backend_id} has no such option.{hint}")
        default = open_options[key]
        kinds = (int, float) if isinstance(default, float) else (type(default),)
        if not isinstance(value, kinds) or (isinstance(value, bool) and not isinstance(default, bool)):
            raise UserError(f"{where}: expected a value like {default!r}, found {value!r}.")
        low, high = _RANGES.get(key, (0, 1) if key.endswith("_probability") else (-(2**31), 2**31 - 1))
        if isinstance(value, int | float) and not low <= value <= high:
            raise UserError(f"{where}: {value} is out of range; it must be from {low} to {high}.")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
