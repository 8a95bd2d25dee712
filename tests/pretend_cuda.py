"""A CUDA device played by the CPU: it refuses much of what a real one refuses, so that tests find it without one.

`python -m pytest -p pretend_cuda -m gpu` (with `tests` in PYTHONPATH) runs the GPU's tests by it. Refused are

- operations on tensors of both sides, a host's generator for a device's numbers, and `numpy` of a device's tensor;
- to wait for the device while that is forbidden (`torch.cuda.set_sync_debug_mode`) or while a graph is recorded, to
  copy from memory that is not pinned then, and to draw from a generator that the graph does not know;
- to write host memory while a copy from it is under way. What a copy brings to the host is garbage until waited for.

A tensor "on the device" is a CPU's of the class `OnDevice`, and a graph replays the tensor operations of one call, in
which a host's tensor of no dimension is a constant. Not played are streams, the device's arithmetic, memory and speed,
copies between host and device in a graph once it is replayed, what waits inside one of torch's own functions, and
threads but the one that `install` was called in.
"""

from __future__ import annotations

import contextlib
import functools
import os
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from recording import Recording
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
# What waits for a device whose tensor it is given; `torch.where` does with one argument.
WAITS = {
    *(getattr(Tensor, f"__{name}__") for name in ("bool", "float", "int", "index", "contains", "format")),
    *(getattr(Tensor, name) for name in ("item", "tolist")),
    *(
        getattr(home, name)
        for name in ("nonzero", "argwhere", "masked_select", "unique", "equal", "allclose", "bincount")
        for home in (Tensor, torch)
    ),
    *(torch.is_nonzero, torch.unique_consecutive, torch.repeat_interleave, Tensor.repeat_interleave),
}
# What takes tensors of both sides, and what does so if the host's has no dimension; as much as is needed here.
MIXES = {Tensor.copy_, Tensor.to, Tensor.__getitem__, Tensor.__setitem__, torch._has_compatible_shallow_copy_type}
MIXES_SCALARS = {"add", "sub", "mul", "div", "where", "fill_", "mul_", "_foreach_mul_", "__add__", "__mul__", "__eq__"}
GARBAGE = 0x5A


class OnDevice(Tensor):
    """A tensor that says it is on the device; saved as any other."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return plain(self.detach()).__reduce_ex__(protocol)


class Copy(NamedTuple):
    """Between host and device, under way."""

    since: int
    """The moment at which it was asked for."""
    host: Tensor
    expected: Tensor
    """What `host` must hold until it has been copied to the device, or will when it has been copied from there."""
    to_device: bool


class Device:
    """What the driver of the one device knows."""

    def __init__(self) -> None:
        self.graph: CUDAGraph | None = None
        """That is being recorded."""
        self.on_host = False
        """Whether what is done just now is no work of the device."""
        self.forbids_waiting = False
        self.moment = 0
        """Goes on with every event."""
        self.pinned: dict[int, Tensor] = {}
        """Host memory by address, kept for good."""
        self.pending: list[Copy] = []

    def wait(self, what: str) -> None:
        """Have everything arrive, if that may be waited for."""
        if self.graph is not None:
            raise RuntimeError(f"{what}: operation not permitted when stream is capturing")
        if self.forbids_waiting:
            raise RuntimeError(f"{what}: called a synchronizing CUDA operation")
        self.arrive(self.moment + 1)

    def arrive(self, until: int) -> None:
        """Have arrive what was under way at the moment `until`."""
        arrived = [copy for copy in self.pending if copy.since < until]
        self.pending = [copy for copy in self.pending if copy.since >= until]
        for copy in arrived:
            if not copy.to_device:
                copy.host.copy_(copy.expected)
            elif not torch.equal(as_bytes(copy.host), as_bytes(copy.expected)):
                raise RuntimeError("host memory was written while it was copied to the device")

    def copy(self, what: str, source: Tensor, host: Tensor | None, *, to_device: bool, waits: bool) -> None:
        """Copy `source` to the device, before it is done, or to `host`, after it has been.

        That waits for the device if the caller does (`waits`: without non_blocking), or memory is not pinned.
        """
        if waits or host is None or address(host) not in self.pinned:
            self.wait(what)
            return
        self.pending.append(Copy(self.moment, plain(host), plain(source).detach().clone(), to_device))
        if not to_device:
            as_bytes(host).fill_(GARBAGE)


device = Device()


def plain(x: Tensor) -> Tensor:
    return x.as_subclass(Tensor)


def as_bytes(x: Tensor) -> Tensor:
    """The memory of a tensor, where it has no gaps; else a copy of it."""
    return plain(x).contiguous().view(-1).view(torch.uint8)


def address(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def untouched(function):
    """`function`, for which tensors are what they are."""

    @functools.wraps(function)
    def inner(*args, **kwargs):
        with torch._C.DisableTorchFunction():
            return function(*args, **kwargs)

    return inner


class PretendCuda(TorchFunctionMode):
    """Stands between Python and torch's functions."""

    @untouched
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        own = args[0] if args and isinstance(args[0], Tensor) else None
        if own is not None and func in QUERIES:
            return QUERIES[func](own)
        name = getattr(func, "__name__", str(func))
        if func is Tensor.__deepcopy__ and isinstance(own, OnDevice):
            return args[1].setdefault(id(own), cloned(own))
        if func is Tensor.pin_memory:
            return pinned(own.clone())
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        has_device = any(isinstance(x, OnDevice) for x in tensors)
        if has_device:
            refuse(func, name, args, tensors)
        pin = bool(kwargs.pop("pin_memory", False))
        wanted, args, kwargs = destination(func, args, kwargs)
        to_device = has_device if wanted is None else wanted.type == "cuda"
        if to_device and not has_device and name in ("tensor", "as_tensor"):
            device.wait(f"torch.{name}")
        refuse_generator(kwargs.get("generator"), to_device)
        device.on_host = True
        try:
            if device.graph is not None and has_device and func is not Tensor.copy_:
                args, kwargs = tree_map_only(Tensor, as_constant, (args, kwargs))
            device.on_host = not (has_device or to_device)
            result = done(func, name, own, args, kwargs, has_device=has_device, to_device=to_device)
        finally:
            device.on_host = False
        if pin:
            pinned(result)
        if any(result is x for x in tensors):  # changed in place
            return result
        return tree_map_only(Tensor, lambda x: placed(x, to_device), result)


def done(func: Any, name: str, own: Tensor | None, args: Any, kwargs: Any, *, has_device: bool, to_device: bool) -> Any:
    """What `func` returns; a copy between the two sides is told to the device."""
    waits = not kwargs.get("non_blocking", False)
    if func is Tensor.cuda:
        func, args, kwargs = Tensor.clone, (own,), {}
    if func in (Tensor.to, Tensor.cpu, Tensor.clone) and has_device != to_device and own is not None:
        device.copy(name, own, own if to_device else None, to_device=to_device, waits=waits)
        kwargs.pop("copy", None)
        return func(own.clone(), *args[1:], **kwargs)  # never the same memory
    if func is not Tensor.copy_ or isinstance(own, OnDevice) == isinstance(args[1], OnDevice):
        return func(*args, **kwargs)
    if isinstance(own, OnDevice):
        device.copy(name, args[1], args[1], to_device=True, waits=waits)
        return func(*args, **kwargs)
    result = func(*args, **kwargs)
    device.copy(name, args[1], own, to_device=False, waits=waits)
    return result


QUERIES = {
    Tensor.device.__get__: lambda x: CUDA if isinstance(x, OnDevice) else CPU,
    Tensor.is_cuda.__get__: lambda x: isinstance(x, OnDevice),
    Tensor.is_cpu.__get__: lambda x: not isinstance(x, OnDevice),
    Tensor.get_device: lambda x: 0 if isinstance(x, OnDevice) else -1,
    Tensor.is_pinned: lambda x: address(x) in device.pinned,
}


def placed(x: Tensor, on_device: bool) -> Tensor:
    """`x`, saying that it is on the device or that it is not."""
    if isinstance(x, OnDevice) == on_device:
        return x
    return x.as_subclass(OnDevice) if on_device else plain(x)


def as_constant(x: Tensor) -> Tensor:
    """A host's number as a kernel is launched with it: it is not read again."""
    return x if isinstance(x, OnDevice) or x.dim() else x.clone()


def cloned(x: Tensor) -> Tensor:
    """A deep copy of a device's tensor."""
    copy = plain(x.detach()).clone().as_subclass(OnDevice).requires_grad_(x.requires_grad)
    copy._is_param = isinstance(x, nn.Parameter)  # type: ignore[attr-defined]
    return copy


def pinned(x: Tensor) -> Tensor:
    """`x`, whose memory is known from now on."""
    device.pinned[address(x)] = x
    return x


def destination(func: Any, args: Any, kwargs: Any) -> tuple[torch.device | None, Any, Any]:
    """Where the result is asked to be, if anywhere, and the arguments that ask for it here."""
    wanted = None
    if kwargs.get("device") is not None:
        wanted = torch.device(kwargs["device"])
        kwargs = {**kwargs, "device": here(wanted)}
    if func in (Tensor.cpu, Tensor.cuda):
        wanted = CPU if func is Tensor.cpu else CUDA
    if func is Tensor.to:
        for n, x in enumerate(args[1:], 1):
            if isinstance(x, Tensor):
                wanted = CUDA if isinstance(x, OnDevice) else CPU
            elif isinstance(x, (str, torch.device)):
                wanted = torch.device(x)
                args = (*args[:n], here(wanted), *args[n + 1 :])
    return wanted, args, kwargs


def here(wanted: torch.device) -> torch.device:
    """Where tensors of that device really are."""
    return CPU if wanted.type == "cuda" else wanted


def refuse(func: Any, name: str, args: Any, tensors: list[Tensor]) -> None:
    """What is not done with tensors some of which are on the device."""
    if func in (Tensor.numpy, Tensor.__array__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
    hosts = [x for x in tensors if not isinstance(x, OnDevice)]
    if hosts and func not in MIXES and (name not in MIXES_SCALARS or any(x.dim() for x in hosts)):
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got cuda:0 and cpu")
    if func in WAITS or (func is torch.where and len(args) == 1) or (func is Tensor.new_tensor):
        device.wait(name)
    if func in (Tensor.__getitem__, Tensor.__setitem__):
        refuse_index(*args)


def refuse_index(x: Tensor, index: Any, new: Any = None) -> None:
    """What `x[index]` or `x[index] = new` waits for, or cannot do."""
    parts = index if isinstance(index, tuple) else (index,)
    indices = [part for part in parts if isinstance(part, Tensor)]
    bounds = [end for part in parts if isinstance(part, slice) for end in (part.start, part.stop, part.step)]
    if not isinstance(x, OnDevice):
        if any(isinstance(i, OnDevice) and i.dim() for i in indices):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        device.wait("a number from the device, on the host")
    masks = [i.dtype in (torch.bool, torch.uint8) for i in indices]
    if any(masks) and (new is None or isinstance(new, Tensor)):
        device.wait("an index that is a mask")
    if any(isinstance(i, OnDevice) and not i.dim() and not mask for i, mask in zip(indices, masks, strict=True)):
        device.wait("an index that is one number")
    if any(isinstance(end, OnDevice) for end in bounds):
        device.wait("a bound of a slice")
    if any(isinstance(part, (list, np.ndarray)) for part in parts) or not all(isinstance(i, OnDevice) for i in indices):
        device.wait("an index from the host")
    if isinstance(new, Tensor) and not isinstance(new, OnDevice):
        device.wait("an assignment from the host")


def refuse_generator(generator: Any, to_device: bool) -> None:
    """To draw the device's numbers from a host's generator or the reverse, or from one that the graph does not know."""
    if not isinstance(generator, Generator):
        return
    if (generator.device.type == "cuda") != to_device:
        raise RuntimeError(f"Expected a '{'cuda' if to_device else 'cpu'}' device type for generator")
    if device.graph is not None and to_device and generator not in device.graph.generators:
        raise RuntimeError("Attempt to increase offset for a CUDA generator not in capture mode.")


class Generator(torch.Generator):
    """One that knows where it is."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        made = super().__new__(cls, "cpu")
        made.where = torch.device(device)
        return made

    def __init__(self, device: Any = "cpu") -> None:
        pass

    device = property(lambda self: self.where)  # type: ignore[assignment]


class Event:
    """A moment in the one stream there is."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.moment = 0

    def record(self, stream: Any = None) -> None:
        device.moment += 1
        self.moment = device.moment

    @untouched
    def synchronize(self) -> None:
        if device.graph is not None:
            device.wait("an event")
        device.arrive(self.moment)


class Stream:
    """The one there is."""

    def __init__(self, *_: Any) -> None:
        pass

    def wait_stream(self, other: Any) -> None:
        pass


class CUDAGraph(Recording):
    def __init__(self) -> None:
        super().__init__()
        self.generators: list[torch.Generator] = []

    def register_generator_state(self, generator: torch.Generator) -> None:
        self.generators.append(generator)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if device.on_host:
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)

    @untouched
    def replay(self) -> None:
        super().replay()


@contextlib.contextmanager
def record(graph: CUDAGraph, **_: Any) -> Any:
    device.graph = graph
    try:
        with graph:
            yield
    finally:
        device.graph = None


class Kernel:
    """A Triton kernel in its interpreter, whose launches are recorded as operations are."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel

    def __getitem__(self, grid: Any) -> Any:
        @untouched
        def launch(*args: Any) -> None:
            with _disable_current_modes():
                self._kernel[grid](*(plain(x) if isinstance(x, Tensor) else x for x in args))

        def launched(*args: Any) -> None:
            launch(*args)
            if device.graph is not None:
                device.graph.add(launch, args, {}, None)

        return launched


class Autocast(torch.autocast):
    """Of the CPU's operations, wherever it is asked for."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu", *args, **kwargs)


def by_device(groups_of: Any) -> Any:
    """`_group_tensors_by_device_and_dtype`, which reads devices where nobody stands between."""

    @untouched
    def grouped(lists: Any, indices: bool = False) -> Any:
        def home(tensors: Any) -> torch.device:
            return CUDA if any(isinstance(x, OnDevice) for xs in tensors for x in xs) else CPU

        groups = groups_of(lists, indices).items()
        return {(home(tensors), dtype): (tensors, at) for (_, dtype), (tensors, at) in groups}

    return grouped


def set_device(device: Any) -> None:
    """As torch, which wants to be told which one."""
    if not isinstance(device, int) and torch.device(device).index is None:
        raise ValueError(f"Expected a torch.device with a specified index or an integer, but got:{device}")


@untouched
def synchronize(_: Any = None) -> None:
    device.wait("torch.cuda.synchronize")


def install() -> None:
    """From now on this process has a GPU."""
    properties = SimpleNamespace(name="Pretence", total_memory=8 << 30, major=9, minor=0, multi_processor_count=132)
    random = {"state": torch.zeros(16, dtype=torch.uint8)}
    nothing: dict[str, Any] = dict.fromkeys(("manual_seed", "manual_seed_all", "reset_peak_memory_stats", "set_stream"))
    for name, answer in {
        **nothing,
        "empty_cache": None,
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "mem_get_info": (6 << 30, 8 << 30),
        "memory_reserved": 0,
        "memory_allocated": 0,
        "max_memory_allocated": 0,
        "get_device_properties": properties,
        "get_device_name": properties.name,
        "get_device_capability": (properties.major, properties.minor),
        "current_stream": Stream(),
        "graph_pool_handle": (0, 0),
        "stream": contextlib.nullcontext(),
    }.items():
        setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    for name, function in {
        "Event": Event,
        "Stream": Stream,
        "CUDAGraph": CUDAGraph,
        "graph": record,
        "synchronize": synchronize,
        "set_device": set_device,
        "get_rng_state": lambda _=None: random["state"].clone(),
        "set_rng_state": lambda state, _=None: random.update(state=state),
        "is_current_stream_capturing": lambda: device.graph is not None,
        "set_sync_debug_mode": lambda mode: setattr(device, "forbids_waiting", mode == "error"),
    }.items():
        setattr(torch.cuda, name, function)
    torch.Generator = Generator  # type: ignore[misc]
    torch.autocast = Autocast  # type: ignore[misc]
    torch._C._group_tensors_by_device_and_dtype = by_device(torch._C._group_tensors_by_device_and_dtype)
    torch.__future__.set_overwrite_module_params_on_conversion(True)

    os.environ["TRITON_INTERPRET"] = "1"
    from fasta2c.learning import gae_triton

    gae_triton._kernel = Kernel(gae_triton._kernel)
    PretendCuda().__enter__()


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    install()
