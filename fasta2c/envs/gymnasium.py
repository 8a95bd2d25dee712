"""Gymnasium's vector environments behind the row contract (NEXT_STEP autoreset), in this process or in others."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import multiprocessing
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from numpy.typing import NDArray

from fasta2c import custom
from fasta2c.envs.base import HostEnvs, Row
from fasta2c.envs.ids import EnvId
from fasta2c.errors import RunError, UserError, did_you_mean, warn
from fasta2c.spaces import EnvSpec, spec_of

# What `gymnasium.make` itself takes, beside the environment's own arguments.
_MAKE_OPTIONS = ("max_episode_steps", "disable_env_checker")
# What `gymnasium.make_vec` takes: "sync" or "async" (a process for each environment), and wrappers, innermost first.
_VECTOR_OPTIONS = ("vectorization_mode", "wrappers")
# An environment that fails so often without a step in between is not made anew again.
FAILURES_IN_A_ROW = 3


class GymnasiumEnvs(HostEnvs):
    """`num_envs` environments of one Gymnasium id (`ID` or `module:ID`), stepped in lockstep.

    Args:
        env_id: an id of the Gymnasium backend.
        num_envs: E.
        seeds: one seed for each environment.
        options: keyword arguments for `gymnasium.make`, checked against the environment's constructor;
            `vectorization_mode`, "sync" (in this process) or "async" (each in its own), and `wrappers`, a list of
            "module:Class" or {"module:Class": {its keyword arguments}}, innermost first.
        timeout: seconds that those in processes of their own may take for a row; 0 waits for ever.
        restart: make an environment that fails anew, its game lost, rather than end the run.
        render: draw pictures when asked.

    Raises:
        UserError: an id Gymnasium does not know, an option the environment does not take, or spaces fasta2c does not.
    """

    def __init__(
        self,
        env_id: EnvId,
        num_envs: int,
        *,
        seeds: list[int],
        options: dict[str, Any],
        timeout: float = 0.0,
        restart: bool = False,
        render: bool = False,
    ) -> None:
        registered = _find(env_id.backend_id)
        own = {key: value for key, value in options.items() if key not in _VECTOR_OPTIONS}
        _check_options(env_id.backend_id, registered, own)
        mode = options.get("vectorization_mode", "sync")
        if mode not in ("sync", "async"):
            raise UserError(f"env_kwargs.vectorization_mode: {mode!r} is not one of sync, async.")
        wrappers = _wrappers(options.get("wrappers", []))
        self.in_turn = mode == "sync"
        self.times_out = mode == "async"
        self.num_envs = num_envs
        self.seeds = seeds
        self.options = dict(options)
        self.restarts = 0
        self._name = f"gymnasium:{env_id.backend_id}"
        self._timeout = timeout or math.inf
        self._restart = restart

        def make(count: int) -> Any:
            with warnings.catch_warnings(), _no_signals(mode):
                warnings.filterwarnings("ignore", category=UserWarning)
                return gymnasium.make_vec(
                    env_id.backend_id,
                    num_envs=count,
                    vectorization_mode=mode,
                    vector_kwargs={"autoreset_mode": AutoresetMode.NEXT_STEP},
                    wrappers=wrappers,
                    **own,
                    **({"render_mode": "rgb_array"} if render else {}),
                )

        # Of a vector that has lost one of its environments Gymnasium gives back nothing: then each is one of its own.
        self._parts: list[_Part] = []
        try:
            for columns in [slice(e, e + 1) for e in range(num_envs)] if restart else [slice(0, num_envs)]:
                self._parts.append(_Part(make, columns, seeds[columns]))
        except Exception as error:  # the environment's own constructor can raise anything
            self.close()
            raise UserError(f"{self._name}: cannot be made: {custom.told(error)}") from None
        first = self._parts[0].envs
        self.action_space: gymnasium.Space[Any] = first.single_action_space
        self.spec: EnvSpec = spec_of(first.single_observation_space, self.action_space, env_id=self._name)
        self._layout = self.spec.frames
        self._action_dtype = np.dtype(self.action_space.dtype)
        self._previous_done = np.zeros(num_envs, dtype=np.bool_)
        self._last: NDArray[Any] | None = None

    def reset(self) -> NDArray[Any]:
        """Start every episode anew, from the seeds the first time; returns the first observations [E, ...]."""
        for part in self._parts:
            part.begins = True
            part.send(np.zeros(0))
        self._previous_done = np.ones(self.num_envs, dtype=np.bool_)
        return self.receive().observations

    def send(self, actions: NDArray[Any]) -> None:
        """Send `actions` [E, *shape of one] to other processes; in this one they are kept until `receive`."""
        taken = self.spec.actions.within_bounds(actions.astype(self._action_dtype))
        for part in self._parts:
            part.send(taken[part.columns])

    def receive(self) -> Row:
        """What the actions that were sent brought.

        Where an environment has failed and is made anew, the row is none of its game: not valid, cut, its observation
        the one before.
        """
        deadline = time.monotonic() + self._timeout
        lost = np.zeros(self.num_envs, dtype=np.bool_)
        brought = []
        for part in self._parts:
            try:
                observations, *rest = part.receive(deadline)
                brought.append((self._layout.pack(self._layout.flatten(observations)), *rest))
            except Exception as error:  # the environment can raise anything
                self._make_anew(part, error)
                lost[part.columns] = True
                assert self._last is not None
                brought.append((self._last[part.columns], np.zeros(1), np.zeros(1, bool), np.ones(1, bool)))
        observations, rewards, terminated, truncated = (
            columns[0] if len(columns) == 1 else np.concatenate(columns) for columns in zip(*brought, strict=True)
        )
        paid = np.asarray(rewards, dtype=np.float32)
        done = terminated | truncated
        row = Row(
            observations=observations,
            rewards=paid,
            terminated=terminated,
            truncated=truncated,
            valid=~self._previous_done & ~lost,
            first=self._previous_done & ~lost,
            scores=paid,
            game_over=done & ~lost,
            lost=lost if lost.any() else None,
        )
        self._previous_done, self._last = done, observations
        return row

    @property
    def fps(self) -> float:
        """What the environment says, or 30."""
        return float(self._parts[0].envs.metadata.get("render_fps") or 30)

    def render(self) -> NDArray[np.uint8]:
        """Pictures [E, height, width, 3]; raises `UserError` where the environment draws none."""
        try:
            pictures = [np.asarray(picture) for part in self._parts for picture in part.envs.render() or [None]]
        except Exception as error:  # the environment can raise anything
            raise UserError(f"{self._name}: it cannot be drawn: {custom.told(error)}") from None
        if any(picture.shape != pictures[0].shape or picture.shape[2:] != (3,) for picture in pictures):
            raise UserError(f"{self._name}: it cannot be drawn, as it has no render mode rgb_array.")
        return np.stack(pictures).astype(np.uint8)

    def close(self) -> None:
        """Close every environment."""
        for part in self._parts:
            part.close()

    def _make_anew(self, part: _Part, error: Exception) -> None:
        """Replace the environment of `part`, which failed with `error`; raises `RunError` where the run is to end."""
        told = f"{self._name}: {part.told(error, self._timeout)}"
        if not self._restart or self._last is None or part.failures >= FAILURES_IN_A_ROW:
            part.abandon()
            again = f" It has failed {part.failures + 1} times in a row." if part.failures else ""
            raise RunError(f"{told}.{again}") from error
        warn(f"{told}; it is made anew, its game is lost.")
        self.restarts += 1
        try:
            part.make_anew()
        except Exception as another:
            raise RunError(f"{told}, and cannot be made anew: {custom.told(another)}.") from another


class _Part:
    """Some of the environments in one of Gymnasium's vectors.

    Args:
        make: makes a vector of so many.
        columns: which these are.
        seeds: theirs.
    """

    def __init__(self, make: Callable[[int], Any], columns: slice, seeds: list[int]) -> None:
        self.columns = columns
        self.failures = 0
        """How often they failed since they last stepped."""
        self.begins = True
        """Whether the next step begins all games, rather than acts in them."""
        self._make = make
        self._seeds: Any = seeds
        self._first_seed, self._made = seeds[0], 0
        self._actions: NDArray[Any] | None = None
        self._failed: Exception | None = None
        self._alive = True
        self.envs: Any = make(len(seeds))

    def send(self, actions: NDArray[Any]) -> None:
        """Begin to step, or to reset, in other processes."""
        self._actions = actions
        if isinstance(self.envs, AsyncVectorEnv):
            try:
                self.envs.reset_async(seed=self._seeds) if self.begins else self.envs.step_async(actions)
            except Exception as error:  # told where it can be dealt with
                self._failed = error

    def receive(self, deadline: float) -> tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Observations, rewards, terminated and truncated; raises what the environments do, or `TimeoutError`."""
        error, self._failed = self._failed, None
        if error is not None:
            raise error
        timeout = max(deadline - time.monotonic(), 0.0) if deadline < math.inf else None
        elsewhere = isinstance(self.envs, AsyncVectorEnv)
        if not self.begins:
            step = self.envs.step_wait(timeout) if elsewhere else self.envs.step(self._actions)
            self.failures = 0
            return step[:4]
        observations, _ = self.envs.reset_wait(timeout) if elsewhere else self.envs.reset(seed=self._seeds)
        self.begins, self._seeds = False, None
        count = self.envs.num_envs
        return observations, np.zeros(count), np.zeros(count, bool), np.zeros(count, bool)

    def told(self, error: Exception, timeout: float) -> str:
        """What has happened to which environment."""
        processes, pipes = (
            (self.envs.processes, self.envs.parent_pipes) if isinstance(self.envs, AsyncVectorEnv) else ([], [])
        )

        def first(those: Iterable[bool]) -> str:
            number = next((n for n, found in enumerate(those) if found), 0 if self.envs.num_envs == 1 else None)
            return "an environment" if number is None else f"environment {self.columns.start + number}"

        if isinstance(error, multiprocessing.TimeoutError | RunError):  # the latter is the watchdog's
            return f"{first(not pipe.poll() for pipe in pipes)} has not answered within {timeout:g} s (--env-timeout)"
        raised = [pipe is None for pipe in pipes]  # Gymnasium closes the pipe of one that did
        if pipes and not any(raised) and isinstance(error, BrokenPipeError | EOFError | ConnectionResetError):
            for process in processes:
                process.join(0.1)  # it may be about to end
            codes = [process.exitcode for process in processes]
            code = next((code for code in codes if code is not None), 0)
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            return f"the process of {first(code is not None for code in codes)} was ended {how}"
        return f"{first(raised)} raised {custom.told(error)}"

    def make_anew(self) -> None:
        """Replace all of it, with other seeds."""
        self.abandon()
        self._made += 1
        self.failures += 1
        self.begins = True
        sequence = np.random.SeedSequence(self._first_seed, spawn_key=(self._made,))
        count = self.columns.stop - self.columns.start
        self._seeds = [int(s) for s in sequence.generate_state(count) >> 1]
        self.envs, self._alive = self._make(count), True

    def abandon(self) -> None:
        """Let go of environments that do not answer any more, or may not."""
        self._alive = False
        if isinstance(self.envs, AsyncVectorEnv):  # whose own close would wait for what they were last asked
            for process in self.envs.processes:
                process.kill()
                process.join()
            for pipe in self.envs.parent_pipes:
                if pipe is not None:
                    pipe.close()
        else:
            with contextlib.suppress(Exception):
                self.envs.close()
        self.envs.closed = True

    def close(self) -> None:
        """Close them, if they are there."""
        if self._alive:
            self._alive = False
            self.envs.close()


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
