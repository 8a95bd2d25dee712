"""Environments that Gymnasium knows by their ids, and the options with which it makes them."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
from gymnasium.vector import AutoresetMode

from fasta2c import custom
from fasta2c.envs.single import Single
from fasta2c.envs.workers import none_left, worker
from fasta2c.errors import UserError, did_you_mean, one_line

# What `gymnasium.make` itself takes, beside the environment's own arguments.
_MAKE_OPTIONS = ("max_episode_steps", "disable_env_checker")
# What `gymnasium.make_vec` takes for itself, whatever the environment is called with.
_TAKEN = ("id", "num_envs", "vector_kwargs")
# What `gymnasium.make_vec` takes: "sync" or "async" (a process for each environment), and wrappers, innermost first.
_VECTOR_OPTIONS = ("vectorization_mode", "wrappers")


def maker(backend_id: str, options: dict[str, Any], *, render: bool) -> Callable[[Sequence[int]], Any]:
    """What makes a vector of environments of `backend_id` (`ID` or `module:ID`) with such seeds, NEXT_STEP autoreset.

    Args:
        backend_id: as Gymnasium knows it.
        options: of each environment, and of the vector.
        render: draw pictures when asked.

    Raises:
        UserError: an id or a wrapper that is not known, or an option that is not taken.
    """
    registered = _find(backend_id)
    own = {key: value for key, value in options.items() if key not in _VECTOR_OPTIONS}
    _check_options(backend_id, registered, own)
    mode = options.get("vectorization_mode", "sync")
    if mode not in ("sync", "async"):
        raise UserError(f"env_kwargs.vectorization_mode: {mode!r} is not one of sync, async.")
    wrappers = _wrappers(options.get("wrappers", []))

    def make(seeds: Sequence[int]) -> Any:
        vector_kwargs: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        if mode == "async":
            vector_kwargs["worker"] = worker(seeds)
        with warnings.catch_warnings(), none_left():
            warnings.filterwarnings("ignore", category=UserWarning)
            return gymnasium.make_vec(
                backend_id,
                num_envs=len(seeds),
                vectorization_mode=mode,
                vector_kwargs=vector_kwargs,
                wrappers=[*wrappers, Single],
                **own | ({"render_mode": "rgb_array"} if render else {}),
            )

    return make


def _find(backend_id: str) -> gymnasium.envs.registration.EnvSpec:
    """Gymnasium's registration of `ID` or `module:ID` (the module is imported, so that it can register)."""
    module, _, name = backend_id.rpartition(":")
    if module:
        custom.imported(module, f"gymnasium:{backend_id}")
    try:
        return gymnasium.spec(name)
    except gymnasium.error.Error:
        hint = did_you_mean(name, gymnasium.registry) or " Name its module: gymnasium:module:ID."
        raise UserError(f"env: Gymnasium knows no environment {name!r}.{hint}") from None


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
        wrapper = custom.load(name, where)
        if not callable(wrapper):
            raise UserError(f"{where}: {name} is no wrapper, but a {type(wrapper).__name__}.")
        found.append(functools.partial(wrapper, **arguments))
    return found


def _check_options(backend_id: str, registered: gymnasium.envs.registration.EnvSpec, options: dict[str, Any]) -> None:
    for key in options:
        if key in _TAKEN:
            raise UserError(f"env_kwargs.{key}: Gymnasium has this name for itself; {backend_id} cannot be told.")
    entry: Any = registered.entry_point
    if isinstance(entry, str):
        try:
            entry = gymnasium.envs.registration.load_env_creator(entry)
        except custom.RAISED as error:
            raise UserError(f"gymnasium:{backend_id}: cannot be imported: {one_line(error)}") from None
    if entry is None:
        return
    try:
        parameters = inspect.signature(entry).parameters
    except (TypeError, ValueError):  # of a class in C, say, that tells nothing
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    known = {*parameters, *_MAKE_OPTIONS, *_VECTOR_OPTIONS}
    for key in options:
        if key not in known:
            hint = did_you_mean(key, known) or f" It takes {', '.join(sorted(known))}."
            raise UserError(f"env_kwargs.{key}: gymnasium:{backend_id} has no such option.{hint}")
