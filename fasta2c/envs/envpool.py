"""EnvPool behind the row contract: one synchronous pool, explicit seeds, single frames.

The facts this relies on are those of EnvPool 1.2.5; `tests/envs/test_envpool.py` checks each on the installed wheel.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from fasta2c import accel
from fasta2c.envs.base import USUAL_PACE, HostEnvs, Row
from fasta2c.envs.ids import EnvId
from fasta2c.errors import UserError, did_you_mean, one_line
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
# Where `max_episode_steps` cuts no game; yet those of them that end after so many steps are said to be cut.
_KEEP_NO_LIMIT = re.compile(
    r"(Highway|Jumanji(?!/Sokoban$)|PGX|Procgen)/|ToyText/(tabular/)?(Blackjack|Catch|CliffWalking)"
)
# Maps without a start for a single player: the game would end the process.
_NEEDED = dict.fromkeys(("Cig-v1", "MultiDuel-v1"), {"game_args": "-deathmatch"})
# What an environment's own spaces may depend on.
_FILES = ("cfg_path", "wad_path")
# Where an info tells the legal actions (PGX), it joins the observation.
_LEGAL = "info:legal_action_mask"
# Env steps that make a second in a film.
_FPS = {"Classic": 50, "Box2D": 50, "MiniGrid": 8, "Jumanji": 5, "PGX": 2, "ToyText": 4, "Procgen": 15, "Highway": 15}
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
        render: draw pictures when asked. EnvPool's MuJoCo ends the process where it finds no OpenGL.

    Raises:
        UserError: an option the environment does not take, spaces fasta2c does not, or EnvPool's own refusal.
    """

    in_turn = False

    def __init__(
        self,
        env_id: EnvId,
        num_envs: int,
        *,
        seeds: list[int],
        options: dict[str, Any],
        num_threads: int = 0,
        render: bool = False,
    ) -> None:
        import envpool

        self.spec: EnvSpec = look_up_spec(env_id, options)
        self._env_id = env_id
        self._atari = env_id.family == "Atari"
        self._drawn_in_python = render and env_id.family == "Jumanji"
        self.num_envs = num_envs
        self.seeds = seeds
        self.options = {
            **_NEEDED.get(env_id.backend_id, {}),
            **options,
            **({"stack_num": 1} if self._atari else {}),
            # EnvPool looks for Jumanji's files among its assets, but ships them with its code.
            **({"base_path": str(Path(envpool.__file__).parent)} if env_id.family == "Jumanji" else {}),
            "num_threads": min(num_threads or accel.cores(), num_envs),
        }
        drawn = {"render_mode": "rgb_array"} if render else {}
        with _quiet():
            try:
                self._pool: Any = envpool.make(
                    env_id.backend_id, env_type="gymnasium", num_envs=num_envs, seed=seeds, **self.options, **drawn
                )
            except (AssertionError, RuntimeError, ValueError, TypeError, ImportError, OSError) as error:
                raise UserError(f"{env_id.backend_id}: EnvPool cannot make it: {one_line(error)}") from None
            # Ends after a limit that is not kept are said to be cuts. (Of one on that very step nothing tells.)
            self._limit = None if _keeps_limit(env_id) else self._pool.config["max_episode_steps"]
            self.action_space: gymnasium.Space[Any] = self._pool.spec.action_space
        self._keys: list[str] = list(self._pool._state_keys)
        self._layout = self.spec.frames
        self._observed = [_state_key(leaf.path, self._keys) for leaf in self._layout.leaves]
        self._ids = np.arange(num_envs, dtype=np.int32)
        self._action_dtype = self._pool._spec._action_spec[-1][0]
        self._previous_done = np.zeros(num_envs, dtype=np.bool_)

    def reset(self) -> NDArray[Any]:
        """Start every episode anew; returns the first frames [E, ...]."""
        self._pool._reset(self._ids)
        self._previous_done = np.zeros(self.num_envs, dtype=np.bool_)
        return self._observations(self._receive(reset=True))

    def send(self, actions: NDArray[Any]) -> None:
        """Hand `actions` [E, *shape of one] to EnvPool's threads, which begin at once."""
        # EnvPool's own `step` does the same through a tree library, at a cost that cheap environments feel.
        self._pool._send([self._ids, self._ids, self.spec.actions.within_bounds(actions.astype(self._action_dtype))])

    def receive(self) -> Row:
        """Wait for the step that was sent."""
        state = self._receive()
        done, truncated, rewards = state["done"], state["trunc"], state["reward"]
        if self._limit is not None:
            truncated = truncated & (state["elapsed_step"] <= self._limit)
        terminated = done & ~truncated
        scores, game_over = rewards, done
        if self._atari:
            # A game over on the very step of the time limit shows as truncated only.
            over = state["info:terminated"].astype(np.bool_) & done
            terminated |= over
            scores, game_over = state["info:reward"], over | truncated
        opens = self._previous_done & (state["elapsed_step"] == 0)
        valid = ~self._previous_done
        self._previous_done = done
        return Row(self._observations(state), rewards, terminated, truncated, valid, opens, scores, game_over)

    @property
    def fps(self) -> float:
        """Of the real game, or a pace that can be followed."""
        if self._atari:
            return 60 / self._pool.config["frame_skip"]
        return _FPS.get(self._env_id.family, USUAL_PACE)

    def render(self) -> NDArray[np.uint8]:
        """Pictures [E, height, width, 3]; raises `UserError` where EnvPool has none."""
        try:
            return np.asarray(self._pool.render(env_ids=self._ids))
        except RuntimeError as error:
            raise UserError(f"{self._env_id.backend_id}: EnvPool cannot draw it: {one_line(error)}.") from None

    def close(self) -> None:
        """End EnvPool's threads."""
        self._pool.close()
        self._pool = None

    def _receive(self, *, reset: bool = False) -> dict[str, NDArray[Any]]:
        arrays = self._pool._recv()
        if self._drawn_in_python:  # by what EnvPool's public calls have returned, which are not used here
            from envpool.jumanji.jumanji_render import _cache_gymnasium_output

            _cache_gymnasium_output(self._pool, self._pool._to(arrays, reset, True), reset)
        return dict(zip(self._keys, arrays, strict=True))

    def _observations(self, state: dict[str, NDArray[Any]]) -> NDArray[Any]:
        return self._layout.pack([state[key] for key in self._observed])


def look_up_spec(env_id: EnvId, options: dict[str, Any]) -> EnvSpec:
    """What an id of EnvPool observes and takes under `options`, found without making an environment.

    Raises:
        UserError: an option it does not take, spaces fasta2c does not, several players, or EnvPool's own refusal.
    """
    defaults = _envpool_spec(env_id, {k: v for k, v in options.items() if k in _FILES}).config._asdict()
    if defaults["max_num_players"] > 1:
        raise UserError(f"{env_id.backend_id}: several players share this environment; fasta2c trains one agent.")
    _check_options(env_id, options, defaults)
    stack = 1
    if env_id.family == "Atari":
        # The stack is kept on the device: a quarter of the bytes to copy and to store.
        stack = int(options.get("stack_num", defaults["stack_num"]))
        options = {**options, "stack_num": 1}
    spec = _envpool_spec(env_id, options)
    with _quiet():
        return spec_of(_observation_space(env_id, spec), spec.action_space, env_id=env_id.backend_id, stack=stack)


def _envpool_spec(env_id: EnvId, options: dict[str, Any]) -> Any:
    import envpool

    if env_id.name == "VizdoomCustom" and not all(options.get(key) for key in _FILES):
        files = """--env-kwargs '{"cfg_path": "my.cfg", "wad_path": "my.wad"}'"""
        raise UserError(f"{env_id.backend_id}: it plays a scenario of yours; name its files: {files}.")
    try:
        with _quiet():
            return envpool.make_spec(env_id.backend_id, **options)
    except (AssertionError, RuntimeError, ValueError, TypeError, ImportError, OSError) as error:
        raise UserError(f"{env_id.backend_id}: EnvPool cannot make it: {one_line(error)}") from None


def _observation_space(env_id: EnvId, spec: Any) -> gymnasium.Space[Any]:
    """What EnvPool says is observed, corrected, and the legal actions beside it if it tells them apart."""
    space: gymnasium.Space[Any] = spec.observation_space
    if env_id.family == "MiniGrid" and isinstance(space, spaces.Dict) and space["image"].shape == _CELLS.shape:
        space = spaces.Dict({**space.spaces, "image": _CELLS})
    if _LEGAL in spec._state_keys:
        space = spaces.Dict({"observation": space, "action_mask": spaces.MultiBinary(int(spec.action_space.n))})
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
        if key == "max_episode_steps" and not _keeps_limit(env_id):
            raise UserError(
                f"{where}: EnvPool's {env_id.backend_id} does not keep to it; its games have ends of their own."
            )
        if key == "zero_discount_on_life_loss" and value:  # the row that it is of would have no reset row after it
            raise UserError(f"{where}: a lost life ends an episode by episodic_life here; set that instead.")


def _keeps_limit(env_id: EnvId) -> bool:
    """Whether a game is cut after `max_episode_steps`."""
    return _KEEP_NO_LIMIT.match(f"{env_id.family}/{env_id.name}") is None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Inside, Gymnasium does not complain that EnvPool's bounds are no numbers of their dtype."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered.*")
        yield
