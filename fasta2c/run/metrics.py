"""The metrics of a run, a row at a time: metrics.csv and TensorBoard, which always say the same."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import re
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from fasta2c.config import RESUMABLE
from fasta2c.errors import reason, warn
from fasta2c.run.files import write_atomically

# A metric's column in metrics.csv and its tag in TensorBoard, in the order of the columns.
TAGS: Mapping[str, str | None] = {
    "env_steps": None,
    "update": None,
    "wall_seconds": "time/wall_seconds",
    "sps": "time/sps",
    "episode_return_mean": "episode/return_mean",
    "episode_length_mean": "episode/length_mean",
    "episodes": "episode/count",
    "policy_loss": "loss/policy",
    "value_loss": "loss/value",
    "entropy": "policy/entropy",
    "explained_variance": "value/explained_variance",
    "grad_norm": "optim/grad_norm",
    "lr": "optim/lr",
    "ent_coef": "optim/ent_coef",
    "best_return": "episode/best_return",
    "eval_return_mean": "eval/return_mean",
    "env_fraction": "time/env_fraction",
    "act_fraction": "time/act_fraction",
    "update_fraction": "time/update_fraction",
    "skipped_updates": "optim/skipped_updates",
}

# Characters of a row of metrics.csv, far more than it has.
LONGEST_ROW = 10_000

# What TensorBoard's HParams compares runs by.
OUTCOMES = ("episode/return_mean", "episode/best_return", "time/sps")

# TensorBoard's custom scalars: category, chart, tags.
LAYOUT: Mapping[str, Mapping[str, list[str]]] = {
    "Learning": {
        "return": ["episode/return_mean", "episode/best_return", "eval/return_mean"],
        "episode length": ["episode/length_mean"],
        "entropy": ["policy/entropy"],
    },
    "Losses": {
        "policy": ["loss/policy"],
        "value": ["loss/value"],
        "explained variance": ["value/explained_variance"],
    },
    "Throughput": {
        "env steps per second": ["time/sps"],
        "share of the time": ["time/env_fraction", "time/act_fraction", "time/update_fraction"],
    },
    "Optimizer": {
        "gradient norm": ["optim/grad_norm"],
        "learning rate": ["optim/lr"],
        "entropy coefficient": ["optim/ent_coef"],
    },
}


class MetricsLog:
    """Appends rows to metrics.csv and to a TensorBoard file in a run's folder.

    A log that cannot be written warns once and never ends the run; metrics.csv goes on when the disk has room again.

    Args:
        directory: the run's folder; None writes nothing.
        resume_at: env steps of the checkpoint that a resumed run continues from; what was logged after it is dropped.
    """

    def __init__(self, directory: Path | None, *, resume_at: int | None = None) -> None:
        self._warned = False
        self._csv: io.FileIO | None = None
        self._board: Any = None
        self._excepthook = threading.excepthook
        if directory is None:
            return
        threading.excepthook = self._on_thread_error
        try:
            self._csv = _open_csv(directory / "metrics.csv", resume_at)
        except OSError as error:
            self._warn(error)
        try:
            self._board = _open_board(directory, resume_at)
        except OSError as error:
            self._warn(error)
        self._on_board(lambda board: board.add_custom_scalars(_layout()))

    def write(self, row: Mapping[str, float | int | None]) -> None:
        """Log one row; `env_steps` is needed, other columns are left empty if absent, None or NaN.

        Raises:
            ValueError: a key is no column.
            KeyError: `env_steps` is missing.
        """
        if unknown := row.keys() - TAGS.keys():
            raise ValueError(f"not columns of metrics.csv: {', '.join(sorted(unknown))}")
        known = {k: v for k, v in row.items() if v is not None and not math.isnan(v)}
        env_steps = int(known["env_steps"])
        if self._csv is not None:
            try:
                _append(self._csv, ",".join(_cell(known.get(column)) for column in TAGS) + "\n")
            except OSError as error:
                self._warn(error)

        def add(board: Any) -> None:
            for column, tag in TAGS.items():
                if tag is not None and column in known:
                    board.add_scalar(tag, float(known[column]), env_steps)
            board.flush()

        self._on_board(add)

    def add_config(self, values: Mapping[str, Any]) -> None:
        """Show the configuration's plain `values` as text, and what decides what is learnt in TensorBoard's HParams."""
        from torch.utils.tensorboard.summary import hparams

        learnt = {k: v for k, v in values.items() if k not in RESUMABLE}
        shown = {k: v if isinstance(v, bool | int | float | str) else json.dumps(v) for k, v in learnt.items()}
        experiment, start, _ = hparams(shown, dict.fromkeys(OUTCOMES, 0.0))

        def add(board: Any) -> None:
            lines = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True).splitlines()
            board.add_text("config", "\n".join(f"    {line}" for line in lines))
            board.file_writer.add_summary(experiment)
            board.file_writer.add_summary(start)

        self._on_board(add)

    def add_histograms(self, tensors: Iterable[tuple[str, Any]], *, env_steps: int) -> None:
        """Show how the numbers of named tensors are spread; waits for the device."""

        def add(board: Any) -> None:
            for name, tensor in tensors:
                board.add_histogram(name, tensor, env_steps)

        self._on_board(add)

    def add_text(self, tag: str, text: str) -> None:
        """Show `text` (Markdown) under `tag` in TensorBoard."""
        self._on_board(lambda board: board.add_text(tag, text))

    def add_film(self, tag: str, gif: bytes, *, env_steps: int) -> None:
        """Show a GIF under `tag` in TensorBoard, among its images."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        width, height = struct.unpack("<HH", gif[6:10])
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
        summary = Summary(value=[Summary.Value(tag=tag, image=image)])
        self._on_board(lambda board: board.file_writer.add_summary(summary, env_steps))

    def close(self) -> None:
        """Close both files; may be called twice."""
        if self._csv is not None:
            self._csv.close()
            self._csv = None
        self._on_board(lambda board: board.close())
        self._board = None
        if threading.excepthook == self._on_thread_error:
            threading.excepthook = self._excepthook

    def _on_board(self, action: Callable[[Any], None]) -> None:
        """Do `action` with TensorBoard's writer while there is one; an error ends it, for its thread has died."""
        if self._board is None:
            return
        try:
            action(self._board)
        except OSError as error:
            self._board = None
            self._warn(error)

    def _on_thread_error(self, args: threading.ExceptHookArgs) -> None:
        """Keep the traceback of TensorBoard's thread off the terminal: the next call raises the same error here."""
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard.")):
            self._excepthook(args)

    def _warn(self, error: OSError) -> None:
        if self._warned:
            return
        self._warned = True
        warn(f"metrics cannot be written ({reason(error)}); the run goes on.")


def _open_csv(path: Path, resume_at: int | None) -> io.FileIO:
    """metrics.csv, unbuffered and at its end, holding the header and the rows up to `resume_at`."""
    rows = [] if resume_at is None else _read_rows(path, resume_at)
    lines = [",".join(TAGS), *(",".join(row.get(column) or "" for column in TAGS) for row in rows)]
    write_atomically(path, "".join(line + "\n" for line in lines).encode())
    return io.FileIO(path, "ab")


def _read_rows(path: Path, resume_at: int) -> list[dict[str, str]]:
    """The whole rows of metrics.csv up to `resume_at` env steps; a line torn by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8-sig", errors="replace").rpartition("\n")[0].split("\n")
    # A power cut leaves zeros; nor is what is longer than any row of ours one. No row has quotes: one that has come in
    # must not take the lines after it for its own.
    whole = (line for line in lines if "\0" not in line and len(line) < LONGEST_ROW)
    rows = csv.DictReader(whole, quoting=csv.QUOTE_NONE)
    return [
        row
        for row in rows
        if None not in row
        and None not in row.values()
        and re.fullmatch(r"[0-9]{1,18}", row.get("env_steps") or "")
        and int(row["env_steps"]) <= resume_at
    ]


def _append(file: io.FileIO, line: str) -> None:
    """Append `line` whole or not at all. Raises `OSError` if it does not fit."""
    size = os.fstat(file.fileno()).st_size
    rest = line.encode()
    try:
        while rest:  # a full disk takes a part first, and says why it is full at the next attempt
            rest = rest[file.write(rest) :]
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(size)
        raise


def _cell(value: float | int | None) -> str:
    """A number as metrics.csv shows it: whole numbers in full, others to float32's precision."""
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{float(value):.9g}"


def _open_board(directory: Path, resume_at: int | None) -> Any:
    """A TensorBoard writer which, on a resume, hides what earlier files hold after `resume_at`."""
    from torch.utils.tensorboard import SummaryWriter  # imported late: eval and export need no TensorBoard

    if resume_at is None:
        return SummaryWriter(str(directory))
    _make_past(directory)
    return SummaryWriter(str(directory), purge_step=resume_at + 1)


def _make_past(directory: Path) -> None:
    """See that a TensorBoard file that is made now comes after all of `directory`'s.

    They are read in the order of their names, which tell whole seconds: wait for the next one, or rename files of a
    future, which the clock told before it was set back.
    """
    named = ((path.name.split(".", 4), path) for path in directory.glob("events.out.tfevents.*"))
    stamped = sorted((int(parts[3]), path.name, path) for parts, path in named if parts[3].isdecimal())
    now = time.time()
    future = [path for stamp, _, path in stamped if stamp > now]
    last = max((stamp for stamp, _, _ in stamped if stamp <= now), default=int(now) - len(future) - 1)
    for path in future:
        last += 1
        path.rename(path.with_name(".".join(["events.out.tfevents", str(last), *path.name.split(".", 4)[4:]])))
    if stamped:
        time.sleep(max(last + 1 - time.time(), 0.0))


def _layout() -> dict[str, dict[str, list[Any]]]:
    """`LAYOUT` in the form that `SummaryWriter.add_custom_scalars` takes."""
    return {name: {chart: ["Multiline", tags] for chart, tags in charts.items()} for name, charts in LAYOUT.items()}
