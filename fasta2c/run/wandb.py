"""Weights & Biases gets what TensorBoard gets, by its own means."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fasta2c.errors import UserError


def check() -> None:
    """Raise `UserError` where it is not installed."""
    if importlib.util.find_spec("wandb") is None:
        raise UserError("wandb: it is not installed; pip install wandb, or leave --wandb out.")


def sync(run_dir: Path, config: Mapping[str, Any]) -> Callable[[], None]:
    """Send along what is written to TensorBoard in `run_dir` from now on; returns what ends that.

    Project and entity, and whether it is offline, are what its own environment variables say (WANDB_PROJECT, …).

    Raises:
        UserError: it refuses, for nobody is logged in, say.
    """
    wandb: Any = importlib.import_module("wandb")
    project = {} if "WANDB_PROJECT" in os.environ else {"project": "fasta2c"}
    try:
        run = wandb.init(
            dir=run_dir.resolve(), name=run_dir.resolve().name, config=dict(config), sync_tensorboard=True, **project
        )
    except wandb.errors.Error as error:
        raise UserError(f"wandb: {' '.join(str(error).split())}") from None
    return run.finish
