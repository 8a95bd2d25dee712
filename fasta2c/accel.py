"""How the machine is used: device, precision, threads, memory and compilation.

Threads. EnvPool's and torch's take the same cores in turn. torch's spin a few tens of microseconds for their next work,
the length of a small operation, and then sleep (`fasta2c/__init__.py` tells OpenMP so before torch is imported). On two
cores, CartPole with two threads in the update: never to spin costs a third of the speed at 4,096 environments, as each
operation wakes a thread; to spin as long as OpenMP would by itself, a quarter at 256, as the environments wait.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from fasta2c.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])

# Where control groups of version 2 and of version 1 tell of memory: the files of the limit and of what is used, and
# what memory.stat calls that part of it which files take.
CONTROL_GROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", ("inactive_file", "active_file")),
    (
        Path("/sys/fs/cgroup/memory"),
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
)

# Of the machine, what other ranks of the run leave to this process; see `share_machine`.
_sharing = {"cores": 0, "processes": 1}


def resolve_device(name: str, *, local_rank: int = 0, local_world_size: int = 1) -> torch.device:
    """The device called `name`: "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:N".

    Args:
        name: of several ranks on a machine, each takes a GPU of its own by "auto" or "cuda".
        local_rank: which of them this is.
        local_world_size: how many there are.

    Raises:
        UserError: the device is not there.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if local_world_size > 1 and name != "cpu" and (count or name != "auto"):
        if name.startswith("cuda:"):
            raise UserError(f"device: {name!r} is one GPU, for {local_world_size} ranks; use --device cuda or cpu.")
        if local_world_size > count:
            raise UserError(
                f"device: {local_world_size} ranks need a GPU each, {count} found; start fewer or --device cpu."
            )
        return torch.device("cuda", local_rank)
    if name == "auto":
        return torch.device("cuda:0" if count else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"device: {name!r} is not one of auto, cpu, cuda, cuda:N.")
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


def cores() -> int:
    """Cores this process may use: its part of them where others of its run may use the same."""
    return _sharing["cores"] or len(own_cores())


def own_cores() -> set[int]:
    """The cores that the system lets this process run on, by number."""
    return os.sched_getaffinity(0)


def share_machine(cores_of_each: Collection[Collection[int]]) -> None:
    """Share cores and memory with processes on this machine, this one among them, which may run on such cores.

    A core counts for as many parts as may use it: where each process has cores of its own, it keeps all of them.
    """
    parts = sum(1 / sum(core in cores for cores in cores_of_each) for core in own_cores())
    _sharing.update(cores=max(1, int(parts + 1e-9)), processes=len(cores_of_each))


def set_threads(*, convolutional: bool) -> None:
    """Give torch one thread for each core, or a single one for small networks, which `threads` adds to for updates.

    Measured on two cores with CartPole: a second thread for the small batches that act takes from the environments
    more than it gives.
    """
    torch.set_num_threads(cores() if convolutional else 1)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Inside, torch has `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def update_threads(samples: int, *, convolutional: bool) -> int:
    """torch's threads for a gradient of `samples` at once: one for each core, or for each 1,024 of a small network.

    Measured on two cores with CartPole: a second thread makes the update 1.2 times as fast at 4,096 samples, 1.4 times
    at 65,536.
    """
    return cores() if convolutional else max(1, min(cores(), samples // 1024))


def env_groups(num_envs: int, device: torch.device, *, convolutional: bool) -> int:
    """Groups of environments that should take turns, where they step on threads of their own.

    Two, unless the network would take the cores that the environments are to step on: on a CPU a small network acts on
    one core while the others step. Measured on two cores: CartPole 1.04 times the speed of one group at E = 32, 1.2 at
    128, 1.4 at 4,096; Pong, whose network takes all cores, 0.8. Below 32 environments hand-overs cost more than they
    save. Not measured yet on a GPU, which leaves the cores alone.
    """
    return 2 if num_envs >= 32 and not (convolutional and device.type == "cpu") else 1


def prepare_training(device: torch.device, *, deterministic: bool = False) -> None:
    """Settings of the whole process that pay where the same work is done over and over.

    With `deterministic`, an operation that could give another result the next time raises `RuntimeError` instead.
    """
    _keep_freed_memory()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
        torch.use_deterministic_algorithms(True)
    select(device)
    if device.type == "cuda":
        # Few shapes occur: the convolutions' algorithms are tried once for each.
        torch.backends.cudnn.benchmark = not deterministic


def select(device: torch.device) -> None:
    """Make a GPU the one for events, streams, Triton's kernels and a user's own tensors, which are not told of any."""
    if device.type == "cuda" and device.index is not None:  # torch takes no other; "cuda" is the one selected already
        torch.cuda.set_device(device)


def _keep_freed_memory() -> None:
    """Have the C library keep memory that is freed, rather than hand it back and ask again for zeroed pages.

    Otherwise each large tensor costs a page fault every 4 KiB: a third of an update of CartPole with 256 environments,
    and of Pong's 256 about a tenth. Only GNU's C library takes these settings (`man mallopt`).
    """
    trim_threshold, mmap_threshold = -1, -3
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 32 << 20)
        mallopt(trim_threshold, 2**31 - 1)


def micro_batch(requested: int, device: torch.device, *, convolutional: bool) -> int:
    """Samples a forward and backward pass takes at once, unless `requested` says.

    Measured on two cores: NatureCNN has half the speed at 2,048 that it has at 256, because these batches outgrow the
    cache; a 64 x 64 MLP three quarters of it at 512 that it has at 4,096 and more. A GPU wants them large; 16,384
    frames of NatureCNN keep about 1 GB of activations.
    """
    return requested or (256 if device.type == "cpu" and convolutional else 16_384)


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take on `device`, as far as the system tells: what it may ever, otherwise."""
    if device.type == "cuda":
        return (
            torch.cuda.mem_get_info(device)[0]
            + torch.cuda.memory_reserved(device)
            - torch.cuda.memory_allocated(device)
        )
    free = _host_memory()
    with contextlib.suppress(OSError, ValueError, StopIteration):
        told = Path("/proc/meminfo").read_text().splitlines()
        free = min(free, 1024 * next(int(line.split()[1]) for line in told if line.startswith("MemAvailable:")))
    if (group := _control_group()) is not None:
        free = min(free, group.free)
    return free // _sharing["processes"]


def graph_budget(device: torch.device) -> int:
    """Bytes that kept graphs may take on `device`: a quarter of the memory this process may use there."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory // 4
    return _host_memory() // 4 // _sharing["processes"]


def _host_memory() -> int:
    """Bytes of this machine, or of this container."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    group = _control_group()
    return total if group is None else min(total, group.limit)


class _ControlGroup(NamedTuple):
    """Bytes that a container may use, and those that it still may."""

    limit: int
    free: int


def _control_group() -> _ControlGroup | None:
    """This container's; None where there is none, or one without a limit."""
    for folder, limit, usage, cache in CONTROL_GROUPS:
        with contextlib.suppress(OSError, ValueError, KeyError):  # a limit of "max" is none
            most, used = (int((folder / name).read_text()) for name in (limit, usage))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            # Files that were read or written count as used, and give way to whoever needs the memory.
            return _ControlGroup(most, most - used + sum(int(stat[name]) for name in cache))
    return None


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
