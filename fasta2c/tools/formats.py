"""File formats of trained networks: how each is written, and read back by its own runtime.

Shapes: B samples.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fasta2c.errors import UserError
from fasta2c.fields import check

FormatName = Literal["onnx", "torchscript", "pt2"]
# A file as a function of its tensors, in order.
Runtime = Callable[[Sequence[Tensor]], list[Tensor]]
# Its tensors by name, in order: the shape, dtype and meaning of each.
Signature = dict[str, dict[str, Any]]


class Format(NamedTuple):
    """How a format is written and read back."""

    endings: tuple[str, ...]
    """Of its files, the usual one first."""
    write: Callable[[nn.Module, tuple[Tensor, ...], Signature, Signature, str], bytes]
    """Given a module, example inputs, what goes in and what comes out by name, and the metadata."""
    read: Callable[[bytes], Runtime]
    check: Callable[[], None] = lambda: None
    """Raises `UserError` where a package is missing."""


def choose(name: FormatName | Literal["auto"], out: Path | None = None) -> FormatName:
    """The format that is meant by its `name`, or by the ending of the file `out`.

    Raises:
        UserError: there is no such format, or the ending says nothing, or something else.
    """
    check("format", name, Literal["auto", FormatName])
    ending = out.suffix.lower() if out is not None else ""
    told = next((name for name, kind in FORMATS.items() if ending in kind.endings), None)
    if name == "auto":
        if out is not None and told is None:
            raise UserError(f"out: {out} does not tell its format; end it in .onnx, .ts or .pt2, or give --format.")
        return told or "onnx"
    if told not in (None, name):
        raise UserError(f"out: {out} has the ending of {told}, but the format is to be {name}.")
    return name


def _check_onnx() -> None:
    if any(importlib.util.find_spec(package) is None for package in ("onnx", "onnxscript", "onnxruntime")):
        needed = "onnx, onnxscript and onnxruntime"
        raise UserError(f"ONNX files need {needed}: pip install '.[export]' in its source folder.")


def _program(module: nn.Module, examples: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("B")
    return torch.export.export(module, examples, dynamic_shapes=(tuple({0: batch} for _ in examples),))


def _write_onnx(
    module: nn.Module, examples: tuple[Tensor, ...], takes: Signature, gives: Signature, about: str
) -> bytes:
    program = torch.onnx.export(
        _program(module, examples), dynamo=True, verbose=False, input_names=list(takes), output_names=list(gives)
    )
    assert program is not None
    program.model.metadata_props["fasta2c"] = about
    return bytes(program.model_proto.SerializeToString())


def _read_onnx(data: bytes) -> Runtime:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]
    return lambda inputs: [
        torch.from_numpy(x) for x in session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
    ]


def _write_torchscript(
    module: nn.Module, examples: tuple[Tensor, ...], takes: Signature, gives: Signature, about: str
) -> bytes:
    file = io.BytesIO()
    traced = torch.jit.trace(module, examples, check_trace=False)
    torch.jit.save(traced, file, _extra_files={"fasta2c": about})
    return file.getvalue()


def _read_torchscript(data: bytes) -> Runtime:
    module = torch.jit.load(io.BytesIO(data))
    return lambda inputs: list(module(*inputs))


def _write_pt2(
    module: nn.Module, examples: tuple[Tensor, ...], takes: Signature, gives: Signature, about: str
) -> bytes:
    file = io.BytesIO()
    torch.export.save(_program(module, examples), file, extra_files={"fasta2c": about})
    return file.getvalue()


def _read_pt2(data: bytes) -> Runtime:
    module = torch.export.load(io.BytesIO(data)).module()
    return lambda inputs: list(module(*inputs))


FORMATS: dict[FormatName, Format] = {
    "onnx": Format((".onnx",), _write_onnx, _read_onnx, _check_onnx),
    "torchscript": Format((".ts", ".pt", ".pth"), _write_torchscript, _read_torchscript),
    "pt2": Format((".pt2",), _write_pt2, _read_pt2),
}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back what exporters print of their progress and of their own future."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
