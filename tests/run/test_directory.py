"""The run's folder: names, refusals that leave nothing behind, the lock, files written whole or not at all."""

from __future__ import annotations

import fcntl
import json
import math
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from fasta2c.errors import RunError, UserError
from fasta2c.run import directory as module
from fasta2c.run.directory import RunDirectory
from fasta2c.run.files import write_atomically


@pytest.fixture(autouse=True)
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def create(path: Path | None = None, env: str = "Atari/Pong", seed: int = 7) -> RunDirectory:
    return RunDirectory.create(path, env=env, seed=seed)


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        create(path)
    message = str(caught.value)
    assert "\n" not in message and "--run-dir" in message
    return message


def test_default_path_is_env_time_and_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    at = (2024, 3, 5, 14, 7, 9, 1, 65, 0)
    real = time.strftime
    monkeypatch.setattr(time, "strftime", lambda form: real(form, at))
    assert create().path == Path("runs/Atari/Pong/20240305-140709-s7")


def test_runs_of_one_second_get_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda form: "now")
    assert [create().path.name for _ in range(3)] == ["now-s7", "now-s7-2", "now-s7-3"]


@pytest.mark.parametrize(
    "env, folder",
    [
        ("gymnasium:my_module:Env-v0", "gymnasium_my_module_Env-v0"),
        ("../../etc/passwd", "etc/passwd"),
        ("/abs/x", "abs/x"),
        ("..", "env"),
        ("", "env"),
        ("a/./.hidden/ü \n\0$HOME", "a/hidden/_____HOME"),
        ("x" * 300, "x" * 100),
    ],
)
def test_env_never_leads_out_of_runs(env: str, folder: str) -> None:
    path = create(env=env).path
    assert path.parent == Path("runs") / folder
    assert path.resolve().is_relative_to(Path("runs").resolve())


def test_a_name_that_is_no_text_is_refused() -> None:
    with pytest.raises(UserError, match="cannot be written"):
        create(Path(os.fsdecode(b"a\xffb")))
    assert not list(Path().iterdir())


def test_paths_of_its_files() -> None:
    run = create(Path("r"))
    files = (run.config_file, run.metrics_file, run.summary_file, run.checkpoints, run.latest, run.best)
    names = [
        "config.yaml",
        "metrics.csv",
        "summary.json",
        "checkpoints",
        "checkpoints/latest.pt",
        "checkpoints/best.pt",
    ]
    assert [file.relative_to(Path("r").resolve()).as_posix() for file in files] == names


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "summary.json", "checkpoints", "events.out.tfevents.1"])
def test_another_run_is_refused(name: str) -> None:
    Path("r").mkdir()
    Path("r", name).touch()
    assert "r holds another run; continue it with --resume r" in refused(Path("r"))
    assert os.listdir("r") == [name]


def test_other_files_are_refused() -> None:
    Path("r").mkdir()
    Path("r/thesis.tex").touch()
    assert "not empty" in refused(Path("r"))
    assert os.listdir("r") == ["thesis.tex"]


def test_hidden_files_are_fine() -> None:
    Path("r").mkdir()
    Path("r/.DS_Store").touch()
    create(Path("r")).close()
    create(Path("r")).close()  # only the lock is left of the first
    assert ".DS_Store" in os.listdir("r")


def test_a_file_is_refused() -> None:
    Path("r").write_text("mine")
    assert "is a file" in refused(Path("r"))
    assert "cannot be written" in refused(Path("r/below"))
    assert Path("r").read_text() == "mine"


@pytest.mark.parametrize("name", ["n" * 300, "nul\0"])
def test_impossible_names_are_refused_and_leave_nothing(name: str) -> None:
    assert "cannot be written" in refused(Path("new", name))
    assert not Path("new").exists()


def test_a_working_directory_that_logs_cannot_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nu\udcff").mkdir()
    monkeypatch.chdir(tmp_path / "nu\udcff")
    assert "cannot be written" in refused(Path("r"))
    with pytest.raises(UserError, match="cannot be written"):
        create()
    assert os.listdir() == []


def test_a_failing_lock_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "_lock", fail)
    assert "a/b cannot be written (Permission denied)" in refused(Path("a/b"))
    with pytest.raises(UserError):
        create()
    assert os.listdir() == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_refused() -> None:
    Path("r").mkdir(mode=0o500)
    assert "cannot be written" in refused(Path("r"))


def test_a_second_run_in_the_folder_is_refused_until_the_first_closes() -> None:
    with create(Path("r")) as first:
        assert "in use" in refused(Path("r"))
        first.write_config({})
        with pytest.raises(UserError, match="in use"):
            RunDirectory.open(Path("r"), lock=True)
        RunDirectory.open(Path("r"), lock=False)
    RunDirectory.open(Path("r"), lock=True).close()


def test_the_lock_dies_with_its_process() -> None:
    code = (
        "import os; from pathlib import Path; from fasta2c.run.directory import RunDirectory\n"
        "run = RunDirectory.create(Path('r'), env='x', seed=0); run.write_config({'a': 1})\n"
        "print('ready', flush=True)\n"
        "input()"
    )
    root = str(Path(module.__file__).parents[2])
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True, env={**os.environ, "PYTHONPATH": root}
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        with pytest.raises(UserError, match="in use"):
            RunDirectory.open(Path("r"), lock=True)
        child.kill()
    RunDirectory.open(Path("r"), lock=True).close()


def test_a_filesystem_without_locks_is_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    create(Path("r")).close()
    assert Path("r").is_dir()


def test_open_wants_a_run() -> None:
    Path("empty").mkdir()
    Path("file").touch()
    for name, problem in [("none", "does not exist"), ("empty", "not a run"), ("file", "not a run")]:
        with pytest.raises(UserError, match=problem):
            RunDirectory.open(Path(name), lock=True)
    assert os.listdir("empty") == []
    with pytest.raises(UserError, match="cannot be read"):
        RunDirectory.open(Path("n" * 300), lock=False)


def test_what_kills_left_is_cleared_by_the_next_writer_not_by_a_reader() -> None:
    create(Path("r")).close()
    Path("r/config.yaml").touch()
    left = Path("r/.summary.json.123.tmp")
    left.touch()
    RunDirectory.open(Path("r"), lock=False).close()
    assert left.exists()
    RunDirectory.open(Path("r"), lock=True).close()
    assert not left.exists()


def test_config_and_summary_round_trip() -> None:
    run = create(Path("r"))
    values = {"env": "Atari/Pong", "optimizer_eps": 1e-5, "hidden_sizes": [64, 64], "name": "ü", "none": None}
    run.write_config(values)
    assert yaml.safe_load(run.config_file.read_text()) == values
    assert list(yaml.safe_load(run.config_file.read_text())) == list(values)
    run.write_summary({"a": math.nan, "b": [math.inf, 1.5], "c": {"d": -math.inf}, "e": (1, "x", None)})
    expected = {"a": None, "b": [None, 1.5], "c": {"d": None}, "e": [1, "x", None]}
    assert json.loads(run.summary_file.read_text()) == expected


def test_a_full_disk_is_a_run_error_and_the_old_file_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    run = create(Path("r"))
    run.write_summary({"old": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"summary.json cannot be written \(No space left"):
        run.write_summary({"new": 2})
    assert json.loads(run.summary_file.read_text()) == {"old": 1}
    assert sorted(os.listdir("r")) == [".lock", "summary.json"]


def test_an_interrupt_while_writing_leaves_the_old_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("f").write_bytes(b"old")

    def interrupt(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(Path("f"), b"new")
    assert os.listdir() == ["f"] and Path("f").read_bytes() == b"old"


def test_its_files_stay_where_they_are_if_the_process_goes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with RunDirectory.create(Path("here"), env="x", seed=0) as run:
        assert run.path == Path("here")
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir("elsewhere")
        run.write_config({"lr": 1.0})
        run.write_summary({})
    assert {path.name for path in (tmp_path / "here").iterdir()} == {".lock", "config.yaml", "summary.json"}
    with RunDirectory.create(None, env="x", seed=0, below=tmp_path) as run:
        assert run.path.parent == tmp_path / "runs" / "x"


def test_files_have_the_usual_permissions() -> None:
    Path("plain").touch()
    write_atomically(Path("f"), memoryview(b"x"))
    assert stat.S_IMODE(Path("f").stat().st_mode) == stat.S_IMODE(Path("plain").stat().st_mode)


def test_a_path_means_what_the_system_takes_it_for() -> None:
    """`..` behind a link leads out of where the link points to."""
    Path("there/deep").mkdir(parents=True)
    Path("here").mkdir()
    Path("here/link").symlink_to(Path("there/deep").absolute())
    directory = create(Path("here/link/../run"))
    directory.write_config({"env": "Atari/Pong"})
    directory.close()
    assert Path("there/run/config.yaml").is_file() and os.listdir("here") == ["link"]
    opened = RunDirectory.open(Path("here/link/../run"), lock=True)
    assert opened.config_file.is_file()
    opened.check_ours()
    opened.close()


def test_a_run_that_logs_cannot_name_is_not_written_to_but_read() -> None:
    folder = Path(os.fsdecode(b"a\xffb"))
    folder.mkdir()
    (folder / "config.yaml").touch()
    with pytest.raises(UserError, match="cannot be written"):
        RunDirectory.open(folder, lock=True)
    assert RunDirectory.open(folder, lock=False).path == folder
