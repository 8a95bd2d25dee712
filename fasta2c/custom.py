"""What a user names as `module:Name`, imported; what can go wrong with it, then or later, told in words."""

from __future__ import annotations

import importlib
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from fasta2c.errors import UserError, one_line

# What a user's code may raise where its mistakes are to be told in words; it may also call `sys.exit`.
RAISED = (Exception, SystemExit)


def load(name: str, where: str) -> Any:
    """The attribute that `module:Name` stands for.

    Args:
        name: as the user wrote it.
        where: what a message begins with: the field or id that it was given as.

    Raises:
        UserError: no such form, module or name, or a module that fails while it is imported.
    """
    module, _, attribute = name.rpartition(":")
    if not module or not attribute.isidentifier():
        raise UserError(f"{where}: {name!r} names nothing; write module:Name.")
    found = imported(module, where)
    try:
        return getattr(found, attribute)
    except AttributeError:
        raise UserError(f"{where}: the module {module} has no {attribute!r}.") from None
    except RAISED as error:  # a module may import what it is asked for, and fail at that
        raise UserError(f"{where}: importing {name} failed: {told(error)}") from None


def imported(module: str, where: str) -> ModuleType:
    """The module of that name; raises `UserError`, beginning with `where`, for one that is missing or fails."""
    try:
        return importlib.import_module(module)
    except RAISED as error:  # a user's module can raise anything while it is imported
        if isinstance(error, ModuleNotFoundError) and error.name:
            raise UserError(f"{where}: no module named {error.name!r} can be imported.") from None
        raise UserError(f"{where}: importing {module} failed: {told(error)}") from None


def told(error: Exception | SystemExit) -> str:
    """An error of the user's code in a line: its kind, what it says and, if it was in this process, where."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    if frames and Path(frames[-1].filename).parent.name == "vector":  # Gymnasium's, telling of another process
        place = ""
    kind, text = type(error).__name__, one_line(error)
    return (kind if text == kind else f"{kind}: {text}") + place
