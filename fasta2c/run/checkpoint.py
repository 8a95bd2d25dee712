"""Checkpoints: saved whole or not at all, read without running code, and refused in one line when they are no good."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import PicklingError, UnpicklingError
from typing import Any, NamedTuple

import torch

from fasta2c.errors import DiskError, RunError, UserError, is_out_of_memory, one_line, reason
from fasta2c.run.directory import RunDirectory
from fasta2c.run.files import clear_temporaries, sync_folder, temporary_beside, write_atomically

FORMAT_VERSION = 2
KEPT = 3


def save(directory: RunDirectory, state: Mapping[str, Any], *, env_steps: int) -> None:
    """Write `state` as step_<env_steps>.pt and latest.pt, and keep the three newest steps.

    Args:
        state: tensors and plain values only; `format_version` is added.

    Raises:
        RunError: the disk refuses, the folder is another run's by now, or `state` holds something that `load` would
            refuse; the previous latest.pt is as it was.
    """
    step = directory.checkpoints / f"step_{env_steps}.pt"
    _write(directory, step, state)
    try:
        _point_to(step, directory.latest)
    except OSError as error:
        raise _refused(directory.latest, error) from None
    # Steps beyond this one are of a run that was resumed from before them: what they hold has not happened.
    steps = _steps(directory.checkpoints)
    for old in steps[: steps.index(step)] + steps[steps.index(step) + KEPT :]:
        with contextlib.suppress(OSError):
            old.unlink()


def save_best(directory: RunDirectory, state: Mapping[str, Any]) -> None:
    """Write `state` as best.pt; arguments and errors as for `save`."""
    _write(directory, directory.best, state)


class Best(NamedTuple):
    """What the policy of best.pt came to."""

    mean_return: float
    games: int
    """That it is the mean of."""
    env_steps: int
    """After which."""


def best_of(directory: RunDirectory) -> Best | None:
    """What best.pt came to; None where there is none."""
    try:
        state = load(directory.best)
        with understood(directory.best):
            collector = state["collector"]
            return Best(
                float(state["best_return"]), len(collector["episodes"]["finished"]), int(collector["env_steps"])
            )
    except UserError:  # missing or damaged: the next good policy takes its place
        return None


def drop_best(directory: RunDirectory) -> None:
    """Remove best.pt, if it is there; raises `RunError` where that is refused."""
    try:
        directory.best.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"{directory.best} cannot be removed ({reason(error)}).") from None


def load(path: Path, *, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """The state saved in `path`, `format_version` included; no code in the file is run.

    Raises:
        UserError: the file is missing, damaged, not a checkpoint of fasta2c, or of another format version.
    """
    try:
        file = path.open("rb")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({reason(error)}); give a run directory or one of its checkpoints."
        ) from None
    damaged = f"{path} is damaged or cut short; {_another(path)}."
    foreign = f"{path} is not a checkpoint of fasta2c; give a run directory or a file from its checkpoints folder."
    with file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of what is refused just below
        start = file.read(2)
        if start != b"PK":  # torch's files are zip archives
            raise UserError(damaged if not start else foreign)
        try:
            with zipfile.ZipFile(file) as archive:
                if archive.testzip() is not None:  # torch itself does not compare checksums
                    raise UserError(damaged)
            file.seek(0)
            state = torch.load(file, map_location=map_location, weights_only=True)
        except UserError:
            raise
        except (zipfile.BadZipFile, EOFError, OSError):
            raise UserError(damaged) from None
        except Exception:  # torch raises nearly everything on a file that it does not like
            raise UserError(foreign) from None
    if not isinstance(state, dict) or "format_version" not in state:
        raise UserError(foreign)
    if type(state["format_version"]) is not int or state["format_version"] != FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {state['format_version']!r} and this fasta2c reads {FORMAT_VERSION}; "
            "use the version of fasta2c that wrote it (named in the run's config.yaml)."
        )
    return state


@contextlib.contextmanager
def understood(file: Path | None) -> Iterator[None]:
    """Inside, what `file` holds is used; where that is not what a run saves, a `UserError` says so. None: no file."""
    try:
        yield
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if file is None or is_out_of_memory(error) or isinstance(error, getattr(torch, "AcceleratorError", ())):
            raise
        told = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{file} does not hold what a run saves ({told}); use another checkpoint.") from error


def serialise(state: Mapping[str, Any]) -> memoryview:
    """`state` as a checkpoint's bytes; raises `TypeError` where it holds something that `load` would refuse."""
    buffer = io.BytesIO()
    try:
        torch.save(dict(state), buffer)
        buffer.seek(0)
        torch.load(buffer, map_location="meta", weights_only=True)  # no data is read, only the structure
    except (UnpicklingError, PicklingError, AttributeError) as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))  # torch advises whoever reads, not whoever writes
        told = refused[1] if refused else str(error).splitlines()[0]
        raise TypeError(f"it holds more than tensors and plain values: {told}") from None
    return buffer.getbuffer()


def run_of(path: Path) -> Path:
    """The run directory that `path` is, or that it is a checkpoint of."""
    try:
        if not path.is_file():
            return path
        folder = path.absolute().parent
    except OSError:  # whoever opens it says why
        return path
    # Above `..` is not what that stands behind, which may be a link.
    return folder / ".." if folder.name == ".." else folder.parent


def resolve(path: Path, which: str = "latest") -> Path:
    """The checkpoint file meant by `path`, a run directory or itself a checkpoint.

    Args:
        which: for a run directory, `latest`, `best` or a file (a path, or a name in the checkpoints folder).

    Raises:
        UserError: there is no such file, it cannot be looked for, or `path` leaves no choice.
    """
    try:
        return _find(path, which)
    except OSError as error:  # a folder that may not be entered, a name too long
        raise UserError(f"{path} cannot be read ({reason(error)}); give a run directory or a checkpoint.") from None


def _find(path: Path, which: str) -> Path:
    if path.is_file():
        if which != "latest":
            raise UserError(f"{path} is itself a checkpoint; to choose one, give the run directory.")
        return path
    if not path.is_dir():
        raise UserError(f"{path} does not exist; give a run directory or one of its checkpoints.")
    folder = path / "checkpoints"
    candidates = [folder / f"{which}.pt"] if which in ("latest", "best") else [Path(which), folder / which]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    present = sorted(p.name for p in folder.glob("[!.]*.pt") if p.is_file()) if folder.is_dir() else []
    if not present:
        raise UserError(f"{path} holds no checkpoint; give a run directory whose run has saved one.")
    raise UserError(f"{path} has no checkpoint {which!r}; use one of {', '.join(present)}.")


def _write(directory: RunDirectory, path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint of `directory` atomically, and clear what earlier kills left in its folder."""
    directory.check_ours()
    try:  # first, for torch turns the disk's errors into its own
        data = serialise({**state, "format_version": FORMAT_VERSION})
    except TypeError as error:
        raise RunError(f"{path} cannot be written: {error}") from None
    try:
        path.parent.mkdir(exist_ok=True)
        clear_temporaries(path.parent)
        write_atomically(path, data)
    except OSError as error:
        raise _refused(path, error) from None


def _point_to(step: Path, latest: Path) -> None:
    """Let `latest` name the file `step` in one move: by a hard link, or a copy where there are none."""
    temporary = temporary_beside(latest)
    try:
        try:
            os.link(step, temporary)
        except OSError:
            shutil.copyfile(step, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, latest)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(latest.parent)


def _steps(folder: Path) -> list[Path]:
    """The step_*.pt files of `folder`, newest first."""
    found = [(int(m[1]), p) for p in folder.glob("step_*.pt") if (m := re.fullmatch(r"step_(\d+)\.pt", p.name))]
    return [path for _, path in sorted(found, reverse=True)]


def _another(path: Path) -> str:
    """What to use in place of the damaged `path`; latest.pt and its step are one file, and damaged together."""
    others = [p for p in _steps(path.parent) if not p.samefile(path)]
    return f"use another checkpoint, such as {others[0]}" if others else "use another checkpoint or train anew"


def _refused(path: Path, error: OSError) -> DiskError:
    go_on = "continue with --resume" if (path.parent / "latest.pt").exists() else "train anew"
    return DiskError(f"{path} cannot be written ({reason(error)}); make room, then {go_on}.")
