"""Gymnasium's vector environments behind the row contract (NEXT_STEP autoreset), in this process or in others."""

from __future__ import annotations

import contextlib
import functools
import inspect
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from numpy.typing import NDArray

from fasta2c import custom
from fasta2c.envs.base import HostEnvs, Row
from fasta2c.envs.ids import EnvId
from fasta2c.errors import RunError, UserError, did_you_mean
from fasta2c.spaces import EnvSpec, spec_of

# What `gymnasium.make` itself takes, beside the environment's own arguments.
_MAKE_OPTIONS = ("max_episode_steps", "disable_env_checker")
# What `gymnasium.make_vec` takes: "sync" or "async" (a process for each environment), and wrappers, innermost first.
_VECTOR_OPTIONS = ("vectorization_mode", "wrappers")


class GymnasiumEnvs(HostEnvs):
    """`num_envs` environments of one Gymnasium id (`ID` or `module:ID`), stepped in lockstep.

    Args:
        env_id: an id of the Gymnasium backend.
        num_envs: E.
        seeds: one seed for each environment.
        options: keyword arguments for `gymnasium.make`, checked against the environment's constructor;
            `vectorization_mode`, "sync" (in this process) or "async" (each in its own), and `wrappers`, a list of
            "module:Class" or {"module:Class": {its keyword arguments}}, innermost first.

    Raises:
        UserError: an id Gymnasium does not know, an option the environment does not take, or spaces fasta2c does not.
    """

    def __init__(self, env_id: EnvId, num_envs: int, *, seeds: list[int], options: dict[str, Any]) -> None:
        registered = _find(env_id.backend_id)
        own = {key: value for key, value in options.items() if key not in _VECTOR_OPTIONS}
        _check_options(env_id.backend_id, registered, own)
        mode = options.get("vectorization_mode", "sync")
        if mode not in ("sync", "async"):
            raise UserError(f"env_kwargs.vectorization_mode: {mode!r} is not one of sync, async.")
        wrappers = _wrappers(options.get("wrappers", []))
        self.in_turn = mode == "sync"
        self.num_envs = num_envs
        self.seeds = seeds
        self.options = dict(options)
        with warnings.catch_warnings(), _no_signals(mode):
            warnings.filterwarnings("ignore", category=UserWarning)
            try:
                self._envs = gymnasium.make_vec(
                    env_id.backend_id,
                    num_envs=num_envs,
                    vectorization_mode=mode,
                    vector_kwargs={"autoreset_mode": AutoresetMode.NEXT_STEP},
                    wrappers=wrappers,
                    **own,
                )
            except Exception as error:  # the environment's own constructor can raise anything
                reason = " ".join(str(error).split())[:300] or type(error).__name__
                raise UserError(f"gymnasium:{env_id.backend_id}: cannot be made: {reason}") from None
        name = f"gymnasium:{env_id.backend_id}"
        self.action_space: gymnasium.Space[Any] = self._envs.single_action_space
        self.spec: EnvSpec = spec_of(self._envs.single_observation_space, self.action_space, env_id=name)
        self._layout = self.spec.frames
        self._action_dtype = np.dtype(self.action_space.dtype)
        self._seeded = False
        self._previous_done = np.zeros(num_envs, dtype=np.bool_)
        self._sent: NDArray[Any] | None = None

    def reset(self) -> NDArray[Any]:
        """Start every episode anew, from the seeds the first time; returns the first observations [E, ...]."""
        seeds: Any = None if self._seeded else self.seeds
        observations, _ = self._envs.reset(seed=seeds)
        self._seeded = True
        self._previous_done = np.zeros(self.num_envs, dtype=np.bool_)
        return self._packed(observations)

    def send(self, actions: NDArray[Any]) -> None:
        """Send `actions` [E, *shape of one] to other processes; in this one they are kept until `receive`."""
        taken = self.spec.actions.within_bounds(actions.astype(self._action_dtype))
        if isinstance(self._envs, AsyncVectorEnv):
            with _lost_processes():
                self._envs.step_async(taken)
        else:
            self._sent = taken

    def receive(self) -> Row:
        """What the actions that were sent brought."""
        if isinstance(self._envs, AsyncVectorEnv):
            with _lost_processes():
                observations, rewards, terminated, truncated, _ = self._envs.step_wait()
        else:
            observations, rewards, terminated, truncated, _ = self._envs.step(self._sent)
        paid = np.asarray(rewards, dtype=np.float32)
        done = terminated | truncated
        row = Row(
            observations=self._packed(observations),
            rewards=paid,
            terminated=terminated,
            truncated=truncated,
            valid=~self._previous_done,
            first=self._previous_done,
            scores=paid,
            game_over=done,
        )
        self._previous_done = done
        return row

    def close(self) -> None:
        """Close every environment."""
        self._envs.close()

    def _packed(self, observations: Any) -> NDArray[Any]:
        return self._layout.pack(self._layout.flatten(observations))


def _find(backend_id: str) -> gymnasium.envs.registration.EnvSpec:
    """Gymnasium's registration of `ID` or `module:ID` (the module is imported, so that it can register)."""
    module, _, name = backend_id.rpartition(":")
    try:
        if module:
            __import__(module)
        return gymnasium.spec(name)
    except ModuleNotFoundError as error:
        raise UserError(f"gymnasium:{backend_id}: no module named {error.name!r} can be imported.") from None
    except gymnasium.error.Error:
        hint = did_you_mean(name, gymnasium.registry) or " Name its module: gymnasium:module:ID."
        raise UserError(f"env: Gymnasium knows no environment {name!r}.{hint}") from None
    except Exception as error:  # the user's module can raise anything while it is imported
        raise UserError(f"gymnasium:{backend_id}: importing {module} failed: {type(error).__name__}: {error}") from None


@contextlib.contextmanager
def _no_signals(mode: str) -> Iterator[None]:
    """Processes started inside ignore what a terminal sends to all of them: ours decides when they end."""
    if mode != "async" or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _lost_processes() -> Iterator[None]:
    """Inside, an environment's process that is gone is an error of the run."""
    try:
        yield
    except (BrokenPipeError, EOFError, ConnectionResetError):
        raise RunError("the process of an environment has ended; see what it printed, or use sync.") from None


def _wrappers(listed: Any) -> list[Callable[[gymnasium.Env[Any, Any]], gymnasium.Wrapper[Any, Any, Any, Any]]]:
    """The wrappers named in an option; raises `UserError` for one that cannot be had."""
    where = "env_kwargs.wrappers"
    example = """["gymnasium.wrappers:TimeAwareObservation", {"gymnasium.wrappers:ClipReward": {"max_reward": 1}}]"""
    if not isinstance(listed, list):
        raise UserError(f"{where}: expected a list such as {example}.")
    found: list[Any] = []
    for item in listed:
        named = {item: {}} if isinstance(item, str) else item
        if not isinstance(named, dict) or len(named) != 1 or not all(isinstance(v, dict) for v in named.values()):
            raise UserError(f"{where}: {item!r} is no wrapper; write a list such as {example}.")
        (name, arguments), *_ = named.items()
        found.append(functools.partial(custom.load(name, where), **arguments))
    return found


def _check_options(backend_id: str, registered: gymnasium.envs.registration.EnvSpec, options: dict[str, Any]) -> None:
    entry: Any = registered.entry_point
    if isinstance(entry, str):
        try:
            entry = gymnasium.envs.registration.load_env_creator(entry)
        except Exception as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise UserError(f"gymnasium:{backend_id}: cannot be imported: {reason}") from None
    if entry is None:
        return
    parameters = inspect.signature(entry).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    known = {*parameters, *_MAKE_OPTIONS, *_VECTOR_OPTIONS}
    for key in options:
        if key not in known:
            hint = did_you_mean(key, known) or f" It takes {', '.join(sorted(known))}."
            raise UserError(f"env_kwargs.{key}: gymnasium:{backend_id} has no such option.{hint}")
