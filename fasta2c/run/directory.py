"""The folder of a run: where its files are, and who may write to it."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from fasta2c.errors import DiskError, RunError, UserError, reason
from fasta2c.run.files import check_name, clear_temporaries, finite, is_ours, write_atomically


class RunDirectory:
    """A run's folder; `create` and `open` make one, `close` (or leaving a `with`) releases its lock."""

    def __init__(self, path: Path, lock: int | None = None) -> None:
        self.path = path
        """As it was given, for messages."""
        self.root = path.absolute()
        """The same wherever the process goes: an environment may change the working directory."""
        self._lock = lock

    @classmethod
    def create(
        cls, path: Path | None, *, env: str, seed: int, job: str | None = None, below: Path | None = None
    ) -> RunDirectory:
        """A new run's folder, locked; `runs/<env>/<time>-s<seed>` if `path` is None.

        The `job` whose run it is can find it again (`of_job`). A relative path is `below` that folder, or below the
        working directory.

        Raises:
            UserError: `path` holds another run, is a file, is not empty, is in use, or cannot be written.
        """
        below = below or Path()
        folder = None if path is None else below / path
        made: list[Path] = []
        try:
            check_name(folder or below)
            if folder is None:
                folder = below / _default_parent(env) / f"{time.strftime('%Y%m%d-%H%M%S')}-s{seed}"
                made = _missing(folder.parent)
                folder = _make_unused(folder)
                made.insert(0, folder)
            else:
                _refuse_if_taken(folder, job)
                made = _missing(folder)
                folder.mkdir(parents=True, exist_ok=True)
            directory = cls(folder, _lock(folder))
            try:
                _refuse_if_taken(folder, job)  # again: another run may have come and gone before the lock was ours
                if job is not None:
                    (folder / ".lock").write_text(job, encoding="utf-8")
            except BaseException:
                directory.close()
                raise
            return directory
        except BaseException as error:
            for empty in made:
                with contextlib.suppress(OSError, ValueError):
                    empty.rmdir()
            if isinstance(error, OSError | ValueError):  # ValueError: a NUL in the name
                raise UserError(f"{folder} cannot be written ({reason(error)}); choose another --run-dir.") from None
            raise

    @classmethod
    def open(cls, path: Path, *, lock: bool) -> RunDirectory:
        """The folder of an existing run: locked to go on writing to it, or unlocked to read.

        Raises:
            UserError: `path` does not exist, is no run, or is to be locked and is in use or cannot be written.
        """
        directory = cls(path)
        try:
            if not path.exists():
                raise UserError(f"{path} does not exist; give the folder of a run, such as runs/Atari/Pong/<time>-s0.")
            if not directory.config_file.is_file():
                raise UserError(f"{path} is not a run (it has no config.yaml); give the folder that train made.")
            if lock:
                check_name(path)
                directory._lock = _lock(path)
                clear_temporaries(path)
        except (OSError, ValueError) as error:
            verb = "written" if lock else "read"
            raise UserError(f"{path} cannot be {verb} ({reason(error)}); change its permissions or copy it.") from None
        return directory

    @classmethod
    def of_job(cls, path: Path | None, *, env: str, job: str) -> Path | None:
        """The folder, chosen as by `create`, of a run that `job` has begun and saved; None before it has."""
        with contextlib.suppress(OSError, ValueError):
            folders = sorted(_default_parent(env).iterdir(), reverse=True) if path is None else [path]
            return next((x for x in folders if _is_of_job(x, job) and cls(x).latest.is_file()), None)
        return None

    @property
    def config_file(self) -> Path:
        """The resolved configuration, versions and commit."""
        return self.root / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        """A row for each log interval."""
        return self.root / "metrics.csv"

    @property
    def summary_file(self) -> Path:
        """How the run ended."""
        return self.root / "summary.json"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints; it exists once there is one."""
        return self.root / "checkpoints"

    @property
    def latest(self) -> Path:
        """The newest checkpoint."""
        return self.checkpoints / "latest.pt"

    @property
    def best(self) -> Path:
        """The checkpoint with the highest mean return."""
        return self.checkpoints / "best.pt"

    def write_config(self, values: Mapping[str, Any]) -> None:
        """Write plain `values` to config.yaml. Raises `RunError` if the disk refuses."""
        text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
        self._write(self.config_file, text)

    def write_summary(self, values: Mapping[str, Any]) -> None:
        """Write `values` to summary.json, NaN and infinities as null. Raises `RunError` if the disk refuses."""
        self._write(self.summary_file, json.dumps(finite(values), indent=2, allow_nan=False) + "\n")

    def check_ours(self) -> None:
        """Raise `RunError` where somebody has moved the folder away and another run has begun at its path."""
        if self._lock is None:
            return
        try:
            there, ours = (self.root / ".lock").stat(), os.fstat(self._lock)
        except OSError:
            return  # the folder is gone, or only its lock: whoever writes to it will hear
        if (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
            raise RunError(f"{self.path} is another run's folder by now (this one's was moved or removed).")

    def close(self) -> None:
        """Release the lock, if held."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(self._lock, fcntl.LOCK_UN)  # a forked child may still hold the descriptor open
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, path: Path, text: str) -> None:
        self.check_ours()
        try:
            write_atomically(path, text.encode())
        except OSError as error:
            raise DiskError(f"{path} cannot be written ({reason(error)}); make room or check the disk.") from None


def _safe_parts(env: str) -> list[str]:
    """`env` as folder names that stay where they are put: no `..`, nothing hidden, no odd characters."""
    parts = (re.sub(r"[^A-Za-z0-9._+=-]", "_", part).lstrip(".")[:100] for part in env.split("/"))
    return [part for part in parts if part] or ["env"]


def _default_parent(env: str) -> Path:
    """Where runs of `env` are, unless somebody says."""
    return Path("runs", *_safe_parts(env))


def _is_of_job(folder: Path, job: str | None) -> bool:
    """Whether `job` has begun the run in `folder`."""
    with contextlib.suppress(OSError, ValueError):
        return job is not None and (folder / ".lock").read_text(encoding="utf-8") == job
    return False


def _make_unused(folder: Path) -> Path:
    """Make `folder`, or `folder-2`, `folder-3`, … if it exists: mkdir itself decides, so two runs never share one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for count in itertools.count(1):
        candidate = folder if count == 1 else folder.with_name(f"{folder.name}-{count}")
        with contextlib.suppress(FileExistsError):
            candidate.mkdir()
            return candidate
    raise AssertionError("unreachable")


def _missing(folder: Path) -> list[Path]:
    """`folder` and its parents that do not exist yet, innermost first."""
    return list(itertools.takewhile(lambda p: not p.exists(), (folder, *folder.parents)))


def _refuse_if_taken(folder: Path, job: str | None) -> None:
    """Raise `UserError` unless `folder` is free for a new run: absent, or a folder with hidden files only.

    A run of the same `job`, which was ended before it could be saved, may begin anew in its own.
    """
    if not folder.exists() or _is_of_job(folder, job):
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another --run-dir.")
    names = [p.name for p in folder.iterdir() if not p.name.startswith(".")]
    if any(map(is_ours, names)):
        raise UserError(f"{folder} holds another run; continue it with --resume {folder} or choose another --run-dir.")
    if names:
        raise UserError(f"{folder} is not empty; choose a new or empty folder as --run-dir.")


def _lock(folder: Path) -> int:
    """An open descriptor that holds the folder's advisory lock until it is closed or the process dies."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(
            f"{folder} is in use by another fasta2c; wait until that ends or choose another --run-dir."
        ) from None
    except OSError:
        pass  # a network filesystem without locks: better unguarded than unusable
    return descriptor
