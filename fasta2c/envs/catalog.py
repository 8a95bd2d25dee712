"""What environments there are: ids, spaces, and whether they train here."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import gymnasium

from fasta2c.envs.ids import EnvId, registered, resolve
from fasta2c.envs.make import look_up_spec
from fasta2c.errors import UserError
from fasta2c.presets import load_preset
from fasta2c.spaces import Actions, Continuous, EnvSpec


@dataclass(frozen=True)
class Entry:
    """One environment."""

    id: str
    """As `--env` takes it and nobody else has it."""
    name: str
    """Family/Name, which is the newest version's."""
    family: str
    backend: str
    observations: str | None
    actions: str | None
    """What the spaces hold, in brief; None where that cannot be found out here."""
    trains: bool
    reason: str | None
    """Why it does not."""


def catalog(pattern: str = "*") -> Iterator[Entry]:
    """The environments whose id or Family/Name matches `pattern`, case ignored; * stands for anything.

    A pattern without * matches wherever it stands. EnvPool's are listed; after "gymnasium:" Gymnasium's, each of which
    has to be made for it. A whole name of yours, `gymnasium:module:ID` or `torch:module:Class`, stands for itself.
    """
    scheme, colon, rest = pattern.lower().partition(":")
    if colon and (scheme == "torch" or ":" in rest):
        yield _describe(pattern, pattern)
        return
    if colon and scheme == "gymnasium":
        wanted = _wildcard(rest)
        for name in sorted(gymnasium.registry):
            if fnmatch.fnmatchcase(name.lower(), wanted):
                yield _describe(f"gymnasium:{name}", f"gymnasium:{name}")
        return
    wanted = _wildcard(pattern.lower())
    for family, ids in sorted(registered().items()):
        for backend_id in ids:
            name = f"{family}/{resolve(backend_id).name}"
            if any(fnmatch.fnmatchcase(text.lower(), wanted) for text in (name, backend_id, family)):
                yield _describe(backend_id, name)


def _wildcard(pattern: str) -> str:
    return pattern if "*" in pattern or "?" in pattern else f"*{pattern}*"


def _describe(env: str, name: str) -> Entry:
    env_id = resolve(env)
    observations = actions = reason = None
    try:
        spec = _spec(env_id)
        observations = "; ".join(
            f"{'.'.join(leaf.path)} {leaf.dtype}{list(leaf.shape)}".strip() for leaf in spec.leaves
        )
        actions = _brief(spec.actions) + (", some legal" if spec.mask is not None else "")
    except UserError as error:
        reason = str(error).removeprefix(f"{env}: ")
    return Entry(env, name, env_id.family, env_id.backend, observations, actions, reason is None, reason)


def _brief(actions: Actions) -> str:
    if isinstance(actions, Continuous):
        return f"{len(actions.low)} real number{'s' if len(actions.low) > 1 else ''}"
    sizes = sorted(set(actions.sizes))
    options = f"{sizes[0]} choices" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} choices"
    return options if len(actions.sizes) == 1 else f"{len(actions.sizes)} times {options}"


def _spec(env_id: EnvId) -> EnvSpec:
    options = load_preset(env_id.family, env_id.name).get("env_kwargs", {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # versions out of date, say
        return look_up_spec(env_id, options)
