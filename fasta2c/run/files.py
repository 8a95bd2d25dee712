"""Files written whole or not at all, and refused before that where they cannot be."""

from __future__ import annotations

import contextlib
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fasta2c.errors import UserError, reason

# What a run keeps in its folder beside TensorBoard's files.
OURS = ("config.yaml", "metrics.csv", "summary.json", "checkpoints")


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write `data` so that `path` holds either what it held before or all of it, even after a power failure.

    The temporary file is hidden and beside `path`, named `.<name>.<pid>.tmp`; a kill may leave it behind.
    Raises `OSError` as the disk does.
    """
    temporary = temporary_beside(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def clear_temporaries(folder: Path) -> None:
    """Remove what kills have left in `folder`, whose only writer is the caller."""
    for stale in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            stale.unlink()


def temporary_beside(path: Path) -> Path:
    """The name under which this process prepares `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` last through a power failure, where the filesystem can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_output(path: Path) -> None:
    """Raise `UserError` where no file can be written to `path`: there is no such folder, or something else is there."""
    try:
        check_name(path)
        if not path.parent.is_dir():
            raise UserError(f"{path.parent} is no folder; make it first, or name another file.")
        if not os.access(path.parent, os.W_OK):
            raise UserError(f"{path.parent} cannot be written; name another file.")
        if _is_of_a_run(Path(os.path.realpath(path))):  # `resolve` raises RuntimeError for links in a circle
            raise UserError(f"{path} is a file of a run's own; name another.")
        with contextlib.suppress(FileNotFoundError):
            mode = path.stat().st_mode
            if stat.S_ISDIR(mode):
                raise UserError(f"{path} is a folder; name a file in it.")
            if not stat.S_ISREG(mode):
                raise UserError(f"{path} is no file; name another.")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"{path} cannot be written ({reason(error)}).") from None


def check_name(path: Path) -> None:
    """Raise `ValueError` where `path` is no text, so that logs and messages cannot name it."""
    str(path.absolute()).encode()


def _is_of_a_run(path: Path) -> bool:
    """Whether a run keeps a file at `path`, which is resolved."""
    return any(is_ours(inside.name) and (inside.parent / "config.yaml").is_file() for inside in (path, path.parent))


def is_ours(name: str) -> bool:
    """Whether a run has something called `name` in its folder."""
    return name in OURS or name.startswith("events.out.tfevents.")


def finite(value: Any) -> Any:
    """`value` with NaN and infinities, which JSON lacks, replaced by None at any depth."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
