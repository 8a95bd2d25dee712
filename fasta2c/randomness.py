"""The random generators that environments may draw from, torch's, NumPy's and Python's own: seeded, saved, restored."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed(number: int) -> None:
    """Begin each generator anew, torch's on every device."""
    random.seed(number)
    np.random.seed(np.random.SeedSequence(number).generate_state(8))
    torch.manual_seed(number)


def capture(device: torch.device) -> dict[str, Any]:
    """The state of each generator, that of a CUDA `device` included, as tensors and plain values."""
    numpy: Any = np.random.get_state()
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (numpy[0], numpy[1].tolist(), *numpy[2:]),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore(states: dict[str, Any], device: torch.device) -> None:
    """Set the generators as `capture` found them; one that this device lacks is left out."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


@contextmanager
def kept(device: torch.device) -> Iterator[None]:
    """Whatever is drawn inside, the generators go on as if nothing had been."""
    states = capture(device)
    try:
        yield
    finally:
        restore(states, device)
