"""How torch uses the machine: device, precision, threads and compilation, each decided in this one place."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from fasta2c.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])


def resolve_device(name: str) -> torch.device:
    """The device called `name`: "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:N".

    Raises:
        UserError: the device is not there.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda:0" if count else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= count:
        found = f"{count} CUDA device{'s' if count != 1 else ''}" if count else "no CUDA device"
        raise UserError(f"device: {name!r} is not there ({found} found); use --device cpu or auto.")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the processor itself multiplies bfloat16 (on a CPU: AVX-512 BF16 or AMX)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def resolve_precision(name: str, device: torch.device, *, convolutional: bool) -> torch.dtype:
    """The dtype of the encoders' arithmetic for "auto", "fp32" or "bf16".

    auto takes bfloat16 for convolutional encoders where the processor has it; small ones gain nothing from it.
    """
    if name == "auto":
        name = "bf16" if convolutional and has_fast_bf16(device) else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    """Run matrix products in `dtype`; does nothing for float32."""
    if dtype is torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


def maybe_compile(function: F, *, enabled: bool) -> F:
    """`function`, compiled for static shapes if `enabled`."""
    return torch.compile(function, dynamic=False) if enabled else function  # type: ignore[return-value]


def set_threads(*, convolutional: bool) -> None:
    """Give torch one thread for each core this process may use, or a single one for small networks.

    Measured on two cores with CartPole: handing the layers of a 64 x 64 MLP to a second thread halves the speed.
    EnvPool's threads take the same cores in turn: while they step, torch's wait without spinning, because
    `fasta2c/__init__.py` sets OMP_WAIT_POLICY before torch is imported.
    """
    torch.set_num_threads(len(os.sched_getaffinity(0)) if convolutional else 1)


def env_groups(requested: int | str, num_envs: int, device: torch.device) -> int:
    """Groups the environments take turns in, unless `requested` says."""
    return 1 if isinstance(requested, str) else requested


def micro_batch(requested: int, device: torch.device, *, convolutional: bool) -> int:
    """Samples a forward and backward pass takes at once, unless `requested` says.

    Measured on two cores: NatureCNN has half the speed at 2,048 that it has at 256, because these batches outgrow the
    cache; a 64 x 64 MLP three quarters of it at 512 that it has at 4,096 and more. A GPU wants them large; 16,384
    frames of NatureCNN keep about 1 GB of activations.
    """
    return requested or (256 if device.type == "cpu" and convolutional else 8_192 if device.type == "cpu" else 16_384)


def graph_budget(device: torch.device) -> int:
    """Bytes that kept graphs may take on `device`: a quarter of the memory this process may use there."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory // 4
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # In a container the limit is the control group's, "max" where there is none.
    with contextlib.suppress(OSError, ValueError):
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total // 4


class Download:
    """Brings tensors like `like` to the host, where they are waited for by an event of their own."""

    def __init__(self, like: Tensor) -> None:
        self._pinned = torch.empty_like(like, device="cpu", pin_memory=True) if like.is_cuda else None
        self._arrived = torch.cuda.Event() if like.is_cuda else None

    def __call__(self, tensor: Tensor) -> NDArray[Any]:
        """`tensor` as an array: its own memory on a CPU, else memory that the next call overwrites."""
        if self._pinned is None or self._arrived is None:
            return tensor.numpy()
        self._pinned.copy_(tensor, non_blocking=True)
        self._arrived.record()
        self._arrived.synchronize()
        return self._pinned.numpy()
