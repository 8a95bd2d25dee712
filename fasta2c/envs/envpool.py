"""EnvPool behind the row contract: one synchronous pool, explicit seeds, single frames.

The facts this relies on are those of EnvPool 1.2.5; `tests/envs/test_envpool.py` checks each on the installed wheel.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fasta2c import accel
from fasta2c.envs.base import EnvSpec, HostEnvs, Row, spec_of
from fasta2c.envs.ids import EnvId
from fasta2c.errors import UserError, did_you_mean

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

        defaults = envpool.make_spec(env_id.backend_id).config._asdict()
        _check_options(env_id, options, defaults)
        self._atari = env_id.family == "Atari"
        # The stack is kept on the device: a quarter of the bytes to copy and to store.
        stack = int(options.get("stack_num", defaults["stack_num"])) if self._atari else 1
        self.num_envs = num_envs
        self.seeds = seeds
        self.options = {
            **options,
            **({"stack_num": 1} if self._atari else {}),
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
            self.spec: EnvSpec = spec_of(
                self._pool.spec.observation_space, self._pool.spec.action_space, env_id=env_id.backend_id, stack=stack
            )
        if self._pool.config["max_num_players"] > 1:
            raise UserError(f"{env_id.backend_id}: several players share this environment; fasta2c trains one agent.")
        self._ids = np.arange(num_envs, dtype=np.int32)
        self._keys: list[str] = list(self._pool._state_keys)
        self._action_dtype = self._pool._spec._action_spec[-1][0]
        self._dtype = np.dtype(self.spec.dtype)
        self._previous_done = np.zeros(num_envs, dtype=np.bool_)

    def reset(self) -> NDArray[Any]:
        """Start every episode anew; returns the first frames [E, ...]."""
        self._pool._reset(self._ids)
        self._previous_done = np.zeros(self.num_envs, dtype=np.bool_)
        return self._observations(self._receive())

    def send(self, actions: NDArray[np.int64]) -> None:
        """Hand `actions` [E] to EnvPool's threads, which begin at once."""
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
        return state["obs"].astype(self._dtype, copy=False)


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
