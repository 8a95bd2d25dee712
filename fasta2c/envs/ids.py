"""Environment ids: from what a user types to a backend, a family and the backend's own id."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

from fasta2c.errors import UserError, did_you_mean

# EnvPool's modules, and the family each is called here.
FAMILIES = {
    "envpool.atari": "Atari",
    "envpool.box2d": "Box2D",
    "envpool.classic_control": "Classic",
    "envpool.gfootball": "GFootball",
    "envpool.highway": "Highway",
    "envpool.jumanji": "Jumanji",
    "envpool.minigrid": "MiniGrid",
    "envpool.mujoco.dmc": "DMC",
    "envpool.mujoco.gym": "MuJoCo",
    "envpool.mujoco.metaworld": "MetaWorld",
    "envpool.mujoco.myosuite": "MyoSuite",
    "envpool.mujoco.playground": "Playground",
    "envpool.mujoco.robotics": "Robotics",
    "envpool.pgx": "PGX",
    "envpool.procgen": "Procgen",
    "envpool.toy_text": "ToyText",
    "envpool.vizdoom": "Vizdoom",
}
_VERSION = re.compile(r"-v(\d+)$")


@dataclass(frozen=True)
class EnvId:
    """A resolved environment id."""

    backend: Literal["envpool", "gymnasium", "torch"]
    family: str
    """One of `FAMILIES`' values, "Gymnasium" or "Torch"."""
    name: str
    """The id without prefix and version: what presets are named by."""
    backend_id: str
    """The id the backend knows it by."""

    @property
    def pooled(self) -> bool:
        """Whether EnvPool steps its environments: on threads of its own, their spaces known before they are made."""
        return self.backend == "envpool"


def resolve(env_id: str) -> EnvId:
    """What `env_id` stands for: `Family/Name` (case ignored, the newest version unless one is given), an EnvPool id,
    `gymnasium:ID`, `gymnasium:module:ID` or `torch:module:Class`.

    Raises:
        UserError: no such environment; the nearest ids are named.
    """
    scheme, colon, rest = env_id.partition(":")
    if colon and scheme.lower() == "gymnasium":
        if not rest.strip():
            raise UserError(f"env: {env_id!r} names no environment; write gymnasium:ID or gymnasium:module:ID.")
        return EnvId("gymnasium", "Gymnasium", _VERSION.sub("", rest.rpartition(":")[2]), rest)
    if colon and scheme.lower() == "torch":
        module, _, name = rest.rpartition(":")
        if not (module.strip() and name.isidentifier()):
            raise UserError(f"env: {env_id!r} names no class; write torch:module:Class.")
        return EnvId("torch", "Torch", name, rest)
    families = registered()
    for family, ids in families.items():
        if env_id in ids:
            return EnvId("envpool", family, _base_name(env_id, family), env_id)
    wanted_family, slash, wanted_name = env_id.partition("/")
    by_lower = {f.lower(): f for f in families}
    if slash and wanted_family.lower() in by_lower:
        family = by_lower[wanted_family.lower()]
        match = _match(wanted_name, family, families[family])
        if match:
            return EnvId("envpool", family, _base_name(match, family), match)
        known = {f"{family}/{_base_name(i, family)}" for i in families[family]}
        hint = did_you_mean(f"{family}/{wanted_name}", known)
        raise UserError(f"env: {family} has no environment {wanted_name!r}.{hint}")
    known = {name for family, ids in families.items() for i in ids for name in (i, f"{family}/{_base_name(i, family)}")}
    hint = did_you_mean(env_id, known) or f" Write Family/Name with a family of {', '.join(sorted(families))}."
    raise UserError(f"env: unknown environment {env_id!r}.{hint}")


def _match(wanted: str, family: str, ids: list[str]) -> str | None:
    """The id of `family` that `wanted` names, with or without prefix and version; the newest version of several."""
    version = _VERSION.search(wanted)
    base = _VERSION.sub("", wanted).lower()
    found = [i for i in ids if base in (_base_name(i, family).lower(), _VERSION.sub("", i).lower())]
    if version:
        found = [i for i in found if i.endswith(version.group())]
    return max(found, key=_version_of, default=None)


def _version_of(backend_id: str) -> int:
    version = _VERSION.search(backend_id)
    return int(version.group(1)) if version else 0


def _base_name(backend_id: str, family: str) -> str:
    """The id without its version and the prefix that repeats its family (`MiniGrid-Empty-5x5-v0` is `Empty-5x5`)."""
    name = _VERSION.sub("", backend_id)
    for prefix in (f"{family}/", f"{family}-", "MuJoCoPlayground/", "Procgen"):
        if name.lower().startswith(prefix.lower()) and len(name) > len(prefix):
            return name[len(prefix) :]
    return name


@functools.cache
def load_opengl() -> bool:
    """Load the system's OpenGL, if it has one: EnvPool's MuJoCo draws nothing by the one that it brings.

    Returns:
        whether EnvPool had not been imported yet; else it came too late.
    """
    in_time = "envpool" not in sys.modules
    for name in ("libEGL.so.1", "libOpenGL.so.0", "libGL.so.1"):
        with contextlib.suppress(OSError):
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
            break
    return in_time


@functools.cache
def registered() -> dict[str, list[str]]:
    """EnvPool's ids by family. Imports EnvPool (over a second), so it waits until an id is asked for."""
    load_opengl()
    from envpool.registration import registry

    families: dict[str, list[str]] = defaultdict(list)
    for backend_id, (module, _, _) in registry.specs.items():
        families[FAMILIES.get(module, module.rpartition(".")[2])].append(backend_id)
    return dict(families)
