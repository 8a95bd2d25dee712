"""A CUDA device played by the CPU: it refuses what a real one refuses, so that a test finds it without one.

`python -m pytest -p pretend_cuda -m gpu` (with `tests` in PYTHONPATH) runs the GPU's tests by it. Refused are

- operations on tensors of both sides, a host's generator for a device's numbers, and `numpy` of a device's tensor;
- to wait for the device while that is forbidden (`torch.cuda.set_sync_debug_mode`) or while a graph is recorded, to
  copy from memory that is not pinned then, and to draw from a generator that the graph does not know;
- to write host memory while a copy from it is under way. What a copy brings to the host is garbage until waited for.

A tensor "on the device" is a CPU's of the class `OnDevice`, and a graph replays the tensor operations of one call.
Streams, the device's arithmetic, its memory and its speed are not played; nor is what happens inside an operation.
"""

from __future__ import annotations

import contextlib
import functools
import os
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
# What waits for a device whose tensor it is given.
WAITS = {
    *(getattr(Tensor, f"__{name}__") for name in ("bool", "float", "int", "index", "contains")),
    *(getattr(Tensor, name) for name in ("item", "tolist")),
    *(
        getattr(home, name)
        for name in ("nonzero", "masked_select", "unique", "equal", "allclose", "bincount")
        for home in (Tensor, torch)
    ),
}
# What takes a device's tensor and a host's together, and what does where the host's has no dimension.
MIXES = {Tensor.copy_, Tensor.to, Tensor.__getitem__, Tensor.__setitem__, torch._has_compatible_shallow_copy_type}
MIXES_SCALARS = {"add", "sub", "mul", "div", "where", "fill_", "mul_", "_foreach_mul_", "__add__", "__mul__", "__eq__"}
GARBAGE = 0x5A


class OnDevice(Tensor):
    """A tensor that says it is on the device; saved as any other."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return plain(self.detach()).__reduce_ex__(protocol)


class Device:
    """What the driver of the one device knows."""

    def __init__(self) -> None:
        self.graph: CUDAGraph | None = None
        """That is being recorded."""
        self.forbids_waiting = False
        self.moment = 0
        """Goes on with every event."""
        self.pinned: dict[int, Tensor] = {}
        """Host memory by address, kept for good."""
        self.flying: list[tuple[int, Tensor, Tensor, bool]] = []
        """Copies under way: since when, the host's side, what was to be copied, and whether to the device."""

    def wait(self, what: str) -> None:
        """Have everything arrive, if that may be waited for."""
        if self.graph is not None:
            raise RuntimeError(f"{what}: operation not permitted when stream is capturing")
        if self.forbids_waiting:
            raise RuntimeError(f"{what}: called a synchronizing CUDA operation")
        self.arrive(self.moment + 1)

    def arrive(self, until: int) -> None:
        """Have arrive what was under way at the moment `until`."""
        for since, host, told, to_device in self.flying:
            if since >= until:
                continue
            if not to_device:
                host.copy_(told)
            elif not torch.equal(bits(host), bits(told)):
                raise RuntimeError("host memory was written while it was copied to the device")
        self.flying = [copy for copy in self.flying if copy[0] >= until]

    def copy(self, what: str, source: Tensor, host: Tensor | None, *, to_device: bool, waits: bool) -> None:
        """A copy between the two sides is about to be made, or has been if it is to the host."""
        is_pinned = host is not None and address(host) in self.pinned
        if waits or not is_pinned or host is None:
            self.wait(what)
            return
        self.flying.append((self.moment, plain(host), plain(source).detach().clone(), to_device))
        if not to_device:
            bits(host).fill_(GARBAGE)


device = Device()


def plain(x: Tensor) -> Tensor:
    return x.as_subclass(Tensor)


def bits(x: Tensor) -> Tensor:
    return plain(x).reshape(-1).view(torch.uint8) if x.is_contiguous() else plain(x).contiguous().view(torch.uint8)


def address(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def on_host(function):
    """`function`, for which tensors are what they are."""

    @functools.wraps(function)
    def inner(*args, **kwargs):
        with torch._C.DisableTorchFunction():
            return function(*args, **kwargs)

    return inner


class PretendCuda(TorchFunctionMode):
    """Stands between Python and torch's functions."""

    @on_host
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        own = args[0] if args and isinstance(args[0], Tensor) else None
        if own is not None and func in TOLD:
            return TOLD[func](own)
        name = getattr(func, "__name__", str(func))
        if func is Tensor.__deepcopy__ and isinstance(own, OnDevice):
            return args[1].setdefault(id(own), cloned(own))
        if func is Tensor.pin_memory:
            return pinned(own.clone())
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        there = any(isinstance(x, OnDevice) for x in tensors)
        if there:
            refuse(func, name, args, tensors)
        pin = bool(kwargs.pop("pin_memory", False))
        wanted, args, kwargs = destination(func, args, kwargs)
        target = there if wanted is None else wanted.type == "cuda"
        if target and not there and name in ("tensor", "as_tensor"):
            device.wait(f"torch.{name}")
        draws(kwargs.get("generator"), target)

        if func is Tensor.cuda:
            func, args, kwargs = Tensor.clone, (own,), {}
        waits = not kwargs.get("non_blocking", False)
        if func in (Tensor.to, Tensor.cpu, Tensor.clone) and there != target and own is not None:
            device.copy(name, own, own if target else None, to_device=target, waits=waits)
            kwargs.pop("copy", None)
            result = func(own.clone(), *args[1:], **kwargs)  # never the same memory
        else:
            if func is Tensor.copy_ and isinstance(args[1], OnDevice) < isinstance(own, OnDevice):
                device.copy(name, args[1], args[1], to_device=True, waits=waits)
            result = func(*args, **kwargs)
            if func is Tensor.copy_ and isinstance(args[1], OnDevice) > isinstance(own, OnDevice):
                device.copy(name, args[1], own, to_device=False, waits=waits)
        if pin:
            pinned(result)
        if any(result is x for x in tensors):  # changed in place
            return result
        return tree_map_only(Tensor, lambda x: moved(x, target), result)


TOLD = {
    Tensor.device.__get__: lambda x: CUDA if isinstance(x, OnDevice) else CPU,
    Tensor.is_cuda.__get__: lambda x: isinstance(x, OnDevice),
    Tensor.is_cpu.__get__: lambda x: not isinstance(x, OnDevice),
    Tensor.get_device: lambda x: 0 if isinstance(x, OnDevice) else -1,
    Tensor.is_pinned: lambda x: address(x) in device.pinned,
}


def moved(x: Tensor, target: bool) -> Tensor:
    if isinstance(x, OnDevice) == target:
        return x
    return x.as_subclass(OnDevice) if target else plain(x)


def cloned(x: Tensor) -> Tensor:
    copy = plain(x.detach()).clone().as_subclass(OnDevice).requires_grad_(x.requires_grad)
    copy._is_param = isinstance(x, nn.Parameter)  # type: ignore[attr-defined]
    return copy


def pinned(x: Tensor) -> Tensor:
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
    return CPU if wanted.type == "cuda" else wanted


def refuse(func: Any, name: str, args: Any, tensors: list[Tensor]) -> None:
    """What is not done with tensors some of which are on the device."""
    if func in (Tensor.numpy, Tensor.__array__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
    hosts = [x for x in tensors if not isinstance(x, OnDevice)]
    if hosts and func not in MIXES and (name not in MIXES_SCALARS or any(x.dim() for x in hosts)):
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got cuda:0 and cpu")
    if func in WAITS:
        device.wait(name)
    if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], OnDevice):
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        masked = any(isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in index)
        if masked and (func is Tensor.__getitem__ or isinstance(args[2], Tensor)):
            device.wait("an index that is a mask")
        if any(isinstance(x, (list, np.ndarray)) or any(x is host for host in hosts if host.dim()) for x in index):
            device.wait("an index from the host")
        new = args[2] if func is Tensor.__setitem__ else None
        if isinstance(new, Tensor) and not isinstance(new, OnDevice):
            device.wait("an assignment from the host")


def draws(generator: Any, target: bool) -> None:
    if not isinstance(generator, Generator):
        return
    if (generator.device.type == "cuda") != target:
        raise RuntimeError(f"Expected a '{'cuda' if target else 'cpu'}' device type for generator")
    if device.graph is not None and generator not in device.graph.generators:
        raise RuntimeError("Attempt to increase offset for a CUDA generator not in capture mode.")


class Generator(torch.Generator):
    def __new__(cls, device: Any = "cpu") -> Generator:
        made = super().__new__(cls, "cpu")
        made.where = torch.device(device)
        return made

    def __init__(self, device: Any = "cpu") -> None:
        pass

    device = property(lambda self: self.where)  # type: ignore[assignment]


class Event:
    def __init__(self, *_: Any, **__: Any) -> None:
        self.moment = 0

    def record(self, stream: Any = None) -> None:
        device.moment += 1
        self.moment = device.moment

    @on_host
    def synchronize(self) -> None:
        if device.graph is not None:
            device.wait("an event")
        device.arrive(self.moment)


class Stream:
    def __init__(self, *_: Any) -> None:
        pass

    def wait_stream(self, other: Any) -> None:
        pass


class CUDAGraph(TorchDispatchMode):
    """What is done while it is recorded is the first replay's work; the others do the operations again."""

    def __init__(self) -> None:
        super().__init__()
        self.generators: list[torch.Generator] = []
        self._operations: list[tuple[Any, ...]] = []
        self._done = False

    def register_generator_state(self, generator: torch.Generator) -> None:
        self.generators.append(generator)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.add(func, args, kwargs or {}, result)
        return result

    def add(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        self._operations.append((func, args, kwargs, result))
        self._done = True

    @on_host
    @torch.no_grad()
    def replay(self) -> None:
        if self._done:
            self._done = False
            return
        for func, args, kwargs, result in self._operations:
            again = func(*args, **kwargs)
            for place, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(place, Tensor):
                    place.data.copy_(new)


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
        @on_host
        def launch(*args: Any) -> None:
            with _disable_current_modes():
                self._kernel[grid](*(plain(x) if isinstance(x, Tensor) else x for x in args))

        def launched(*args: Any) -> None:
            launch(*args)
            if device.graph is not None:
                device.graph.add(launch, args, {}, None)

        return launched


class Autocast(torch.autocast):
    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu", *args, **kwargs)


def by_device(groups_of: Any) -> Any:
    """`_group_tensors_by_device_and_dtype`, which reads devices where nobody stands between."""

    @on_host
    def grouped(lists: Any, indices: bool = False) -> Any:
        def home(tensors: Any) -> torch.device:
            return CUDA if any(isinstance(x, OnDevice) for xs in tensors for x in xs) else CPU

        groups = groups_of(lists, indices).items()
        return {(home(tensors), dtype): (tensors, at) for (_, dtype), (tensors, at) in groups}

    return grouped


@on_host
def synchronize(_: Any = None) -> None:
    device.wait("torch.cuda.synchronize")


def install() -> None:
    """From now on this process has a GPU."""
    properties = SimpleNamespace(name="Pretence", total_memory=8 << 30, major=9, minor=0, multi_processor_count=132)
    random = {"state": torch.zeros(16, dtype=torch.uint8)}
    nothing: dict[str, Any] = dict.fromkeys(("set_device", "manual_seed", "manual_seed_all", "reset_peak_memory_stats"))
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
