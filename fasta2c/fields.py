"""What a configuration's fields may hold: their ranges, and the check of a value against its annotation."""

from __future__ import annotations

import contextlib
import itertools
import math
import operator
import reprlib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from fasta2c.errors import UserError, did_you_mean

# The largest float32, nearly; how much a mapping may hold, and how deep.
LARGEST = 3.4e38
MOST_VALUES, DEEPEST = 10_000, 50

_SHORTENED = reprlib.Repr()
_SHORTENED.maxlevel, _SHORTENED.maxstring, _SHORTENED.maxother = 3, 80, 80


@dataclass(frozen=True)
class Range:
    """Bounds of a number, both included unless `above` (then the lower one is not)."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def holds(self, value: float) -> bool:
        """Whether `value` is finite and inside the bounds."""
        over = value > self.low if self.above else value >= self.low
        # Not `!= inf`: a number too large for torch's floats is finite, and comes to grief later.
        return over and value <= self.high and abs(value) <= LARGEST

    def __str__(self) -> str:
        low, high = (f"{bound:,}" for bound in (self.low, self.high))
        if self.low == -math.inf:
            return "finite"
        if self.high == math.inf:
            return f"finite and {'above' if self.above else 'at least'} {low}"
        return f"{'above' if self.above else 'from'} {low} {'and at most' if self.above else 'to'} {high}"


# The upper bounds are where EnvPool's and torch's integers end; what fits in memory is less.
Count = Annotated[int, Range(1, 2**31 - 1)]
Whole = Annotated[int, Range(0, 2**31 - 1)]
Seed = Annotated[int, Range(0, 2**63 - 1)]
Finite = Annotated[float, Range()]
Unit = Annotated[float, Range(0, 1)]
NonNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, above=True)]


def accepts(hint: Any, kind: type) -> bool:
    """Whether `kind` is what the annotation, or an option of its union, stands for."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType, Annotated):
        return any(accepts(option, kind) for option in typing.get_args(hint))
    return hint is kind or origin is kind


def plain(value: Any) -> Any:
    """A number or text of another kind than Python's own (NumPy's, an enumeration's) as Python's; else `value`."""
    if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0 and value.dtype.kind in "biufU":
        value = value.item()
    if isinstance(value, str) and type(value) is not str:
        return str.__str__(value)
    kind = next((k for k in (bool, int, float) if isinstance(value, k)), None)
    return value if kind in (None, type(value)) else kind(value)


def convert(value: Any, hint: Any) -> Any:
    """`value`; text made a path (`~` is home), a list a tuple, whole numbers real, where the annotation has these."""
    value = tuple(map(plain, value)) if isinstance(value, list | tuple) and accepts(hint, tuple) else plain(value)
    if isinstance(value, str | Path) and accepts(hint, Path):
        with contextlib.suppress(RuntimeError):  # nobody's home
            return Path(value).expanduser()
        return Path(value)
    if type(value) is int and accepts(hint, float) and not accepts(hint, int):
        with contextlib.suppress(OverflowError):  # too large a number is refused in words
            return float(value)
    if not isinstance(value, int) and accepts(hint, int):
        with contextlib.suppress(TypeError):  # whole numbers of other kinds
            return operator.index(value)
    return value


def checked(name: str, value: Any, hint: Any) -> Any:
    """`value` as `convert` has it; raises `UserError` as `check` does."""
    value = convert(value, hint)
    check(name, value, hint)
    return value


def kind_of(value: Any) -> str:
    """What `value` is, in a YAML writer's words."""
    names = {str: "text", bool: "true/false", int: "a whole number", float: "a number", dict: "a mapping"}
    names |= {Path: "a path", type(Path()): "a path", list: "a list", tuple: "a list", type(None): "nothing"}
    return names.get(type(value), type(value).__name__)


def show(value: Any) -> str:
    """`value` for a message, cut where it is long."""
    try:
        text = _SHORTENED.repr(value) if isinstance(value, dict | list | tuple | set) else repr(value)
    except ValueError:  # Python prints no whole numbers of thousands of digits
        return "a huge number"
    return text if len(text) <= 60 else f"{text[:40]}…{text[-15:]}"


def check(name: str, value: Any, hint: Any) -> None:
    """Raise `UserError`, starting with the field's `name`, unless `value` is what its annotation says, in range."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        check(name, value, options[0])
        for bounds in options[1:]:
            if isinstance(bounds, Range) and not bounds.holds(value):
                most = f"; {LARGEST} is the most" if bounds.high == math.inf and LARGEST < abs(value) < math.inf else ""
                raise UserError(f"{name}: {show(value)} is out of range; it must be {bounds}{most}.")
    elif origin in (typing.Union, types.UnionType):
        words = next((typing.get_args(o) for o in options if typing.get_origin(o) is Literal), ())
        if words and isinstance(value, str):
            if value not in words:
                raise UserError(f"{name}: {show(value)} is neither a whole number nor {' nor '.join(words)}.")
        elif value is not None or type(None) not in options:
            check(name, value, next(o for o in options if o is not type(None)))
    elif origin is Literal:
        if not isinstance(value, str) or value not in options:
            hint = did_you_mean(value, options) if isinstance(value, str) else ""
            raise UserError(f"{name}: {show(value)} is not one of {', '.join(options)}.{hint}")
    elif origin is tuple:
        if not isinstance(value, tuple):
            raise UserError(f"{name}: expected a list, found {kind_of(value)} ({show(value)}).")
        for item in value:
            check(name, item, options[0])
    elif origin is dict:
        if not isinstance(value, dict) or not all(isinstance(k, str) for k in value):
            raise UserError(
                f"{name}: expected a mapping such as {{frame_skip: 4}}, found {kind_of(value)} ({show(value)})."
            )
        _check_plain(name, value)
    elif hint is float:
        if isinstance(value, str) and _reads_as_number(value):
            raise UserError(
                f"{name}: {show(value)} is text to YAML, not a number; write a point before the exponent, "
                f"as in {_with_point(value)}."
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{name}: expected a number, found {kind_of(value)} ({show(value)}).")
    elif hint is int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise UserError(f"{name}: expected a whole number, found {kind_of(value)} ({show(value)}).")
    elif not isinstance(value, hint):
        raise UserError(f"{name}: expected {kind_of(hint())}, found {kind_of(value)} ({show(value)}).")


def check_ranges(flags: object, limits: Mapping[str, Range]) -> None:
    """Raise `UserError` for a flag that is given and out of its range."""
    for name, bounds in limits.items():
        value = getattr(flags, name)
        if value is not None and not bounds.holds(value):
            raise UserError(f"{name}: {value} is out of range; it must be {bounds}.")


def _check_plain(name: str, value: Any) -> None:
    """Raise `UserError` unless `value` is what JSON holds: text, finite numbers, true, false, null, or several."""
    left = [(name, value, 0)]
    for count in itertools.count(1):
        if not left:
            return
        where, inner, depth = left.pop()
        if depth > DEEPEST or count > MOST_VALUES:  # a few lines of YAML's aliases can mean billions of values
            raise UserError(f"{name}: it contains itself, or is too large or too deep to be kept with a run.")
        kind = type(inner)  # a subclass, such as numpy's numbers, is nothing that a file gives back
        if kind is dict:
            left += ((where, key, depth + 1) for key in inner)
            left += ((f"{where}.{key}", item, depth + 1) for key, item in inner.items())
        elif kind in (list, tuple):
            left += ((where, item, depth + 1) for item in inner)
        elif not (
            inner is None
            or kind is bool
            or (kind is int and abs(inner) < 2**63)
            or (kind is float and math.isfinite(inner))
            or (kind is str and not any("\ud800" <= letter <= "\udfff" for letter in inner))
        ):
            kinds = "text, numbers, true, false, null, lists or mappings"
            raise UserError(f"{where}: {show(inner)} cannot be saved with the run; use {kinds}.")


def _reads_as_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _with_point(text: str) -> str:
    mantissa, mark, exponent = text.lower().partition("e")
    if not mark:
        return text
    point = mantissa if "." in mantissa else f"{mantissa}.0"
    return f"{point}e{exponent if exponent[:1] in '+-' else '+' + exponent}"
