"""fasta2c trains A2C agents as fast as the environments can run; the names below are its Python API."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# GNU OpenMP reads these once, when torch loads it, and so they are set here; why: `fasta2c/accel.py`.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

if TYPE_CHECKING:
    from fasta2c.callbacks import Callback
    from fasta2c.config import TrainConfig
    from fasta2c.envs.make import make_envs
    from fasta2c.evaluation import evaluate
    from fasta2c.launch import train
    from fasta2c.policy import load_policy
    from fasta2c.records import TrainResult

__version__ = "0.1.0"
__all__ = ["Callback", "TrainConfig", "TrainResult", "evaluate", "load_policy", "make_envs", "train"]

# Imported on first use: torch and EnvPool take seconds, which `fasta2c --help` should not.
_HOME = {
    "Callback": "fasta2c.callbacks",
    "TrainConfig": "fasta2c.config",
    "TrainResult": "fasta2c.records",
    "evaluate": "fasta2c.evaluation",
    "load_policy": "fasta2c.policy",
    "make_envs": "fasta2c.envs.make",
    "train": "fasta2c.launch",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    globals()[name] = getattr(import_module(_HOME[name]), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
