"""metrics.csv and TensorBoard say the same, resume without a seam, and never end the run."""

from __future__ import annotations

import csv
import math
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2, metadata

from fasta2c.run import metrics
from fasta2c.run.metrics import LAYOUT, TAGS, MetricsLog

# Column and tag as the design names them, apart from the module's own table.
EXPECTED = {
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


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def board(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in board(folder).Scalars(tag)]


def log(folder: Path, *steps: int, resume_at: int | None = None) -> None:
    written = MetricsLog(folder, resume_at=resume_at)
    for step in steps:
        written.write({"env_steps": step, "sps": step * 10})
    written.close()


def test_every_column_and_tag(tmp_path: Path) -> None:
    row = {column: 100 * (i + 1) for i, column in enumerate(EXPECTED)}
    written = MetricsLog(tmp_path)
    written.write(row)
    written.close()
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == ",".join(EXPECTED)
    assert rows(tmp_path) == [{column: str(value) for column, value in row.items()}]
    events = board(tmp_path)
    assert set(events.Tags()["scalars"]) == {tag for tag in EXPECTED.values() if tag}
    for column, tag in EXPECTED.items():
        if tag:
            (event,) = events.Scalars(tag)
            assert (event.step, event.value) == (100, row[column])


def test_unknown_numbers_are_empty_cells_and_no_points(tmp_path: Path) -> None:
    written = MetricsLog(tmp_path)
    unknown = {"policy_loss": math.nan, "best_return": None}
    written.write({"env_steps": 3_000_000_000, "lr": 7e-4, "sps": math.inf, **unknown})
    (row,) = rows(tmp_path)  # on disk before close
    assert {k: v for k, v in row.items() if v} == {"env_steps": "3000000000", "lr": "0.0007", "sps": "inf"}
    assert set(board(tmp_path).Tags()["scalars"]) == {"optim/lr", "time/sps"}
    ((step, lr),) = points(tmp_path, "optim/lr")
    assert step == 3_000_000_000 and lr == pytest.approx(7e-4)
    written.write({"env_steps": 3_000_000_001, "lr": 1.0})
    assert len(points(tmp_path, "optim/lr")) == 2
    written.close()


def test_mistakes_in_the_row_are_errors(tmp_path: Path) -> None:
    written = MetricsLog(tmp_path)
    with pytest.raises(ValueError, match="loss_policy"):
        written.write({"env_steps": 1, "loss_policy": 1.0})
    with pytest.raises(KeyError):
        written.write({"lr": 1.0})
    with pytest.raises(KeyError):
        written.write({"env_steps": None})
    written.close()
    assert rows(tmp_path) == []


def test_layout_names_tags_that_are_written(tmp_path: Path) -> None:
    log(tmp_path, 1)
    layout = layout_pb2.Layout()
    (event,) = board(tmp_path).Tensors(metadata.CONFIG_SUMMARY_TAG)
    layout.ParseFromString(event.tensor_proto.string_val[0])
    shown = {category.title: {c.title: list(c.multiline.tag) for c in category.chart} for category in layout.category}
    assert shown == LAYOUT
    assert list(shown) == ["Learning", "Losses", "Throughput", "Optimizer"]
    charted = {tag for charts in shown.values() for tags in charts.values() for tag in tags}
    assert charted <= set(TAGS.values())


def test_text(tmp_path: Path) -> None:
    written = MetricsLog(tmp_path)
    written.add_text("config", "lr: 0.1")
    written.close()
    (event,) = board(tmp_path).Tensors("config/text_summary")
    assert event.tensor_proto.string_val[0] == b"lr: 0.1"


def test_resume_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    log(tmp_path, 10, 20, 30)
    log(tmp_path, 25, 40, resume_at=20)
    log(tmp_path, 35, resume_at=25)
    assert [row["env_steps"] for row in rows(tmp_path)] == ["10", "20", "25", "35"]
    assert points(tmp_path, "time/sps") == [(10, 100), (20, 200), (25, 250), (35, 350)]


def test_resume_leaves_no_overlap_where_the_clock_was_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = metrics.time.time
    with monkeypatch.context() as ahead:
        ahead.setattr(metrics.time, "time", lambda: clock() + 3600)
        log(tmp_path, 10, 20)
        ahead.setattr(metrics.time, "time", lambda: clock() + 7200)
        log(tmp_path, 30, 40, resume_at=20)
    log(tmp_path, 40, 50, resume_at=30)
    assert [int(row["env_steps"]) for row in rows(tmp_path)] == [10, 20, 30, 40, 50]
    assert [step for step, _ in points(tmp_path, "time/sps")] == [10, 20, 30, 40, 50]


@pytest.mark.parametrize("odd", ["7" * 5000, f"15,{'9' * 200_000}", "١٥", "-15", "1e3"], ids=str.__len__)
def test_resume_drops_rows_that_are_none_of_ours(tmp_path: Path, odd: str) -> None:
    log(tmp_path, 10)
    with (tmp_path / "metrics.csv").open("a", encoding="utf-8") as file:
        file.write(odd + "," * 19 + "\n")
    log(tmp_path, 30, resume_at=20)
    assert [row["env_steps"] for row in rows(tmp_path)] == ["10", "30"]


def test_a_quote_spoils_its_own_line_alone(tmp_path: Path) -> None:
    log(tmp_path, 10, 20, 30)
    text = (tmp_path / "metrics.csv").read_text()
    (tmp_path / "metrics.csv").write_text(text.replace("\n20,", '\n"20,'))
    log(tmp_path, 40, resume_at=30)
    assert [row["env_steps"] for row in rows(tmp_path)] == ["10", "30", "40"]


def test_resume_before_the_first_row_and_without_a_file(tmp_path: Path) -> None:
    log(tmp_path, 5, resume_at=0)
    log(tmp_path, 6, resume_at=0)
    assert [row["env_steps"] for row in rows(tmp_path)] == ["6"]
    assert points(tmp_path, "time/sps") == [(6, 60)]


@pytest.mark.parametrize("tail", ["3", "30,1,2", "30," + "," * 17 + "0.", "\0\0\0", "\0" * 200_000 + "\n", "\xff"])
def test_a_torn_last_line_is_dropped_on_resume(tmp_path: Path, tail: str) -> None:
    log(tmp_path, 10, 20)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write(tail)
    for events in tmp_path.glob("events*"):
        events.unlink()  # or the resume would wait for the next second
    log(tmp_path, 40, resume_at=30)
    text = (tmp_path / "metrics.csv").read_text()
    assert [row["env_steps"] for row in rows(tmp_path)] == ["10", "20", "40"]
    assert text.endswith("\n") and {line.count(",") for line in text.splitlines()} == {len(EXPECTED) - 1}


def test_resume_reads_an_older_files_columns_by_name(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("update,env_steps,gone\n1,10,5\n2,20,6\n")
    log(tmp_path, resume_at=10)
    (row,) = rows(tmp_path)
    assert (row["update"], row["env_steps"], set(row)) == ("1", "10", set(EXPECTED))


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from fasta2c.run.metrics import MetricsLog
log = MetricsLog(Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
for step in range(1, 31):
    if step == 11:
        size = (Path(sys.argv[1]) / "metrics.csv").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 7, hard))
    if step == 21:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    log.write({"env_steps": step, "sps": 12.5})
log.add_text("a", "b")
log.close()
print("done")
"""


def test_a_full_disk_warns_once_and_rows_stay_whole(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(metrics.__file__).parents[2])}
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert done.stderr == "fasta2c: warning: metrics cannot be written (File too large); the run goes on.\n"
    assert [int(row["env_steps"]) for row in rows(tmp_path)] == [*range(1, 11), *range(21, 31)]
    assert {row["sps"] for row in rows(tmp_path)} == {"12.5"}


def test_a_folder_that_is_gone_warns_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    log(tmp_path / "file", 1, 2)
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "metrics cannot be written (Not a directory)" in captured.err


def test_no_stderr_to_warn_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "stderr", None)
    log(tmp_path / "file", 1)
    assert capsys.readouterr().out == ""


def test_other_threads_errors_are_still_told_and_the_hook_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []

    def hook(args: threading.ExceptHookArgs) -> None:
        told.append(args.exc_type)

    def fail() -> None:
        raise OSError

    monkeypatch.setattr(threading, "excepthook", hook)
    written = MetricsLog(tmp_path)
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    written.close()
    written.close()
    assert told == [OSError] and threading.excepthook is hook


def test_a_mark_that_a_spreadsheet_puts_first_costs_no_row(tmp_path: Path) -> None:
    log(tmp_path, 10, 20)
    file = tmp_path / "metrics.csv"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    log(tmp_path, 30, resume_at=20)
    assert [row["env_steps"] for row in rows(tmp_path)] == ["10", "20", "30"]
