"""What the benchmarks share: presets, replayed environments, rates, medians, hardware."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fasta2c import accel  # isort: skip  (before torch, so that OpenMP waits as it does in training)
import torch
from gymnasium.vector.utils import batch_space

from fasta2c.config import TrainConfig
from fasta2c.envs.base import HostEnvs, Row
from fasta2c.envs.ids import resolve
from fasta2c.presets import load_preset
from fasta2c.run.files import finite

# What speed is measured by, and compared with others': one optimizer step of a rollout, whatever the preset has.
PLAIN_A2C: dict[str, Any] = {"num_minibatches": 1, "num_epochs": 1, "optimizer": "rmsprop"}


class Replay(HostEnvs):
    """Environments that cost nothing: they return recorded rows over and over, whatever is done."""

    def __init__(self, envs: HostEnvs, rows: int) -> None:
        self.spec, self.num_envs, self.seeds, self.options = envs.spec, envs.num_envs, envs.seeds, envs.options
        self.action_space = envs.action_space
        self._first = envs.reset()
        self._rows = [envs.step(random_actions(envs, n)) for n in range(rows)]
        self._next = 0

    def reset(self) -> np.ndarray[Any, Any]:
        """The first recorded frames."""
        return self._first

    def send(self, actions: np.ndarray[Any, Any]) -> None:
        """Nothing to do."""

    def receive(self) -> Row:
        """The next recorded row."""
        self._next = (self._next + 1) % len(self._rows)
        return self._rows[self._next]

    def close(self) -> None:
        """Nothing to give back."""


def positive_seconds(text: str) -> float:
    """A flag's time to measure for."""
    if math.isfinite(value := float(text)) and value > 0:
        return value
    raise argparse.ArgumentTypeError(f"{text} is no time; give seconds above 0")


def turns(text: str) -> int:
    """A flag's number of turns."""
    if (value := int(text)) >= 1:
        return value
    raise argparse.ArgumentTypeError(f"{text} is too few; give at least 1")


def with_preset(**given: Any) -> TrainConfig:
    """The configuration `fasta2c train` would use for these flags."""
    config = TrainConfig(**given)
    env_id = resolve(config.env)
    return config.with_preset(load_preset(env_id.family, env_id.name))


def random_actions(envs: HostEnvs, seed: int) -> np.ndarray[Any, Any]:
    """Actions [E, ...] drawn evenly from the action space, legal or not."""
    space = batch_space(envs.action_space, envs.num_envs)
    space.seed(seed)
    return np.asarray(space.sample())


def rate(work: Callable[[], int], seconds: float, device: torch.device) -> float:
    """Env steps a second of `work`, which does some and returns how many, repeated for about `seconds`."""
    synchronize(device)
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        done += work()
    synchronize(device)
    return done / (time.perf_counter() - start)


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def hardware(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "bf16": accel.has_fast_bf16(torch.device("cpu")),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def write_json(path: Path | None, result: dict[str, Any]) -> None:
    """Write `result` to `path`, if given, and a note of it to stderr."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(finite(result), indent=2, allow_nan=False) + "\n")
        print(f"written: {path}", file=sys.stderr)
