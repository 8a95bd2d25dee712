"""Environments that draw pictures: EnvPool's, or where its renderer does not work here, Gymnasium's of the same id."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import asdict
from typing import Any

import gymnasium

from fasta2c.envs.base import HostEnvs
from fasta2c.envs.ids import EnvId, load_opengl
from fasta2c.envs.make import look_up_spec, make_host_envs
from fasta2c.envs.torch import TorchEnvs
from fasta2c.errors import UserError

# Families that MuJoCo draws, which ends the process where it finds no OpenGL: one of its own must try first.
_OPENGL = frozenset({"MuJoCo", "DMC", "MetaWorld", "MyoSuite", "Playground", "Robotics"})
# How Gymnasium's MuJoCo can draw without a screen, by MUJOCO_GL.
_WITHOUT_A_SCREEN = ("egl", "osmesa")
_TRY = "import sys, fasta2c.envs.pictures as pictures; pictures.tell_refusal(sys.argv[1])"


def make_drawn_envs(env_id: EnvId, num_envs: int, *, options: dict[str, Any], **given: Any) -> HostEnvs | TorchEnvs:
    """Environments as `make_host_envs` makes them, given all that it takes, whose `render` works.

    Where EnvPool's draws nothing, Gymnasium's environment of the same id stands in, if that draws and has the same
    spaces.

    Raises:
        UserError: nothing draws this environment here; it says what to install.
    """
    if env_id.backend == "envpool" and (reason := _refusal_of(env_id, options)):
        env_id = _stand_in(env_id, options, reason)
    elif env_id.backend == "gymnasium" and not _has_a_screen():
        _take_gl(_WITHOUT_A_SCREEN[0])
    return make_host_envs(env_id, num_envs, options=options, render=True, **given)


def _stand_in(env_id: EnvId, options: dict[str, Any], reason: str) -> EnvId:
    """Gymnasium's environment in place of EnvPool's, which draws none for this `reason`."""
    name = env_id.backend_id
    if name not in gymnasium.registry:
        raise UserError(f"{reason} Gymnasium has no environment of that id to stand in.")
    stand_in = EnvId("gymnasium", "Gymnasium", env_id.name, name)
    opengl = env_id.family in _OPENGL
    if opengl and importlib.util.find_spec("mujoco") is None:
        raise UserError(f"{reason} Or let Gymnasium's stand in: pip install '.[mujoco]' in its source folder.")
    if not opengl:
        refusal = _refusal(stand_in, options)
    else:
        given = os.environ.get("MUJOCO_GL")
        for gl in (given,) if given else _WITHOUT_A_SCREEN:
            refusal = _refusal_elsewhere(stand_in, options, gl)
            if refusal is None:
                _take_gl(gl)
                break
    if refusal is not None:
        raise UserError(f"{reason} Gymnasium's does not stand in: {refusal}")
    if not look_up_spec(stand_in, options).fits(look_up_spec(env_id, options)):
        raise UserError(f"{reason} Gymnasium's does not stand in, as it has other spaces.")
    return stand_in


def _has_a_screen() -> bool:
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _take_gl(gl: str) -> None:
    """Let Gymnasium's MuJoCo draw by `gl` unless the user has chosen; it looks when it draws its first picture."""
    os.environ.setdefault("MUJOCO_GL", gl)
    os.environ.setdefault("EGL_PLATFORM", "surfaceless")


def _refusal_of(env_id: EnvId, options: dict[str, Any]) -> str | None:
    """Why EnvPool's environment draws no picture here; None where it does."""
    if env_id.family not in _OPENGL:
        return _refusal(env_id, options)
    if not load_opengl():
        return f"{env_id.backend_id}: MuJoCo draws only where EnvPool is not imported before fasta2c's environments."
    return _refusal_elsewhere(env_id, options, os.environ.get("MUJOCO_GL", ""))


def _refusal(env_id: EnvId, options: dict[str, Any]) -> str | None:
    """Why an environment draws no picture in this process; None where it does."""
    envs = make_host_envs(env_id, 1, seeds=[0], options=options, render=True)
    try:
        envs.reset()
        envs.render()
    except UserError as error:
        return str(error)
    finally:
        envs.close()
    return None


def _refusal_elsewhere(env_id: EnvId, options: dict[str, Any], gl: str) -> str | None:
    """`_refusal` in a process of its own, with `gl` as MUJOCO_GL."""
    return _asked_elsewhere(json.dumps({"env_id": asdict(env_id), "options": options}), gl)


@functools.cache
def _asked_elsewhere(asked: str, gl: str) -> str | None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **({"MUJOCO_GL": gl} if gl else {})}
    done = subprocess.run([sys.executable, "-c", _TRY, asked], env=environment, capture_output=True, check=False)
    if done.returncode:
        name = json.loads(asked)["env_id"]["backend_id"]
        return f"{name}: MuJoCo finds no OpenGL to draw it with; install libEGL (Debian: libegl1)."
    return json.loads(done.stdout.splitlines()[-1])


def tell_refusal(asked: str) -> None:
    """Print, as JSON, why the environment `asked` for (JSON) draws no picture, or null."""
    load_opengl()
    values = json.loads(asked)
    try:
        refusal = _refusal(EnvId(**values["env_id"]), values["options"])
    except UserError as error:  # it cannot even be made
        refusal = str(error)
    print(json.dumps(refusal))
