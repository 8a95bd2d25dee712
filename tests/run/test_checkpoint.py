"""Checkpoints: what is saved comes back, kills and full disks spoil nothing, and bad files are refused unrun."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fasta2c.errors import RunError, UserError
from fasta2c.run import checkpoint
from fasta2c.run.directory import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory.create(tmp_path / "run", env="x", seed=0)
    directory.write_config({})
    return directory


def state(step: int) -> dict[str, Any]:
    return {"weights": {"w": torch.arange(1000.0) + step, "none": None}, "env_steps": step, "history": [1.5, (2, "x")]}


def names(run: RunDirectory) -> list[str]:
    return sorted(os.listdir(run.checkpoints))


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def test_a_file_is_no_choice_of_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "x.pt").touch()
    assert checkpoint.resolve(tmp_path / "x.pt") == tmp_path / "x.pt"
    with pytest.raises(UserError, match="itself a checkpoint"):
        checkpoint.resolve(tmp_path / "x.pt", "best")


def test_round_trip(run: RunDirectory) -> None:
    given = state(10)
    checkpoint.save(run, given, env_steps=10)
    assert "format_version" not in given
    for path in (run.latest, run.checkpoints / "step_10.pt"):
        loaded = checkpoint.load(path)
        assert loaded["format_version"] == checkpoint.FORMAT_VERSION == 2
        assert torch.equal(loaded["weights"]["w"], torch.arange(1000.0) + 10)
        assert (loaded["history"], loaded["env_steps"], loaded["weights"]["none"]) == ([1.5, (2, "x")], 10, None)


def test_three_newest_steps_stay_and_latest_is_the_last(run: RunDirectory) -> None:
    for step in (900, 1000, 1100, 1200, 10_000):  # text order would put 10000 and 900 at the wrong ends
        checkpoint.save(run, state(step), env_steps=step)
        assert checkpoint.load(run.latest)["env_steps"] == step
    assert names(run) == ["latest.pt", "step_10000.pt", "step_1100.pt", "step_1200.pt"]


def test_the_same_step_twice(run: RunDirectory) -> None:
    checkpoint.save(run, state(1), env_steps=5)
    checkpoint.save(run, state(2), env_steps=5)
    assert checkpoint.load(run.latest)["env_steps"] == checkpoint.load(run.checkpoints / "step_5.pt")["env_steps"] == 2
    assert names(run) == ["latest.pt", "step_5.pt"]


def test_what_was_just_saved_outlives_higher_steps_of_an_abandoned_past(run: RunDirectory) -> None:
    for step in (100, 200, 300, 50):
        checkpoint.save(run, state(step), env_steps=step)
    assert "step_50.pt" in names(run) and checkpoint.load(run.latest)["env_steps"] == 50


def test_going_on_from_an_older_checkpoint_drops_the_newer_ones(run: RunDirectory) -> None:
    for step in (10, 20, 30):
        checkpoint.save(run, state(step), env_steps=step)
    checkpoint.save(run, state(25), env_steps=25)
    assert names(run) == ["latest.pt", "step_10.pt", "step_20.pt", "step_25.pt"]


def test_the_folder_of_another_run_at_the_same_path_is_not_written_to(tmp_path: Path) -> None:
    ours = RunDirectory.create(tmp_path / "run", env="x", seed=0)
    ours.write_config({"seed": 1})
    ours.path.rename(tmp_path / "moved")
    with RunDirectory.create(tmp_path / "run", env="x", seed=0) as theirs:
        theirs.write_config({"seed": 2})
        checkpoint.save(theirs, state(2), env_steps=2)
        for write in (
            lambda: checkpoint.save(ours, state(1), env_steps=1),
            lambda: checkpoint.save_best(ours, state(1)),
            lambda: ours.write_summary({}),
        ):
            with pytest.raises(RunError, match="run is another run's folder by now"):
                write()
        assert names(theirs) == ["latest.pt", "step_2.pt"] and not theirs.summary_file.exists()
    ours.close()


@pytest.mark.parametrize("below", ["run", "run/checkpoints/step_1.pt", "run/checkpoints/latest.pt"])
def test_a_run_is_found_by_its_checkpoints(run: RunDirectory, below: str) -> None:
    checkpoint.save(run, state(1), env_steps=1)
    assert checkpoint.run_of(run.path.parent / below) == run.path


def test_a_run_is_found_from_inside_it(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(run, state(1), env_steps=1)
    monkeypatch.chdir(run.checkpoints)
    assert checkpoint.run_of(Path("latest.pt")) == run.path


def test_latest_is_a_copy_where_links_are_not_supported(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(source: Path, target: Path) -> None:
        raise OSError(95, "Operation not supported")

    checkpoint.save(run, state(1), env_steps=1)
    assert run.latest.samefile(run.checkpoints / "step_1.pt")
    monkeypatch.setattr(os, "link", unsupported)
    checkpoint.save(run, state(2), env_steps=2)
    assert not run.latest.samefile(run.checkpoints / "step_2.pt")
    assert checkpoint.load(run.latest)["env_steps"] == 2


def test_best_is_apart(run: RunDirectory) -> None:
    checkpoint.save_best(run, state(3))
    for step in (4, 5, 6, 7):
        checkpoint.save(run, state(step), env_steps=step)
    assert checkpoint.load(run.best)["env_steps"] == 3


def test_leftovers_of_a_kill_are_cleared_and_never_loaded(run: RunDirectory) -> None:
    checkpoint.save(run, state(1), env_steps=1)
    torn = [run.checkpoints / ".step_2.pt.999999.tmp", run.checkpoints / f".latest.pt.{os.getpid()}.tmp"]
    for path in torn:
        path.write_bytes(b"PK half")
    assert checkpoint.load(checkpoint.resolve(run.path))["env_steps"] == 1
    checkpoint.save(run, state(2), env_steps=2)
    assert names(run) == ["latest.pt", "step_1.pt", "step_2.pt"]


def test_a_kill_before_latest_moves_leaves_the_older_one(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(run, state(1), env_steps=1)

    def killed(step: Path, latest: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "_point_to", killed)
        checkpoint.save(run, state(2), env_steps=2)
    assert checkpoint.load(run.latest)["env_steps"] == 1


def test_a_state_that_could_not_be_read_back_is_not_saved(run: RunDirectory) -> None:
    checkpoint.save(run, state(1), env_steps=1)
    with pytest.raises(RunError, match=r"step_2.pt cannot be written: it holds more .* plain values: numpy[\w.]+$"):
        checkpoint.save(run, {"mean": np.float64(1.0)}, env_steps=2)
    assert names(run) == ["latest.pt", "step_1.pt"]


FULL_DISK = """
import resource, signal, sys, torch
from pathlib import Path
from fasta2c.errors import RunError
from fasta2c.run import checkpoint
from fasta2c.run.directory import RunDirectory
run = RunDirectory.open(Path(sys.argv[1]), lock=True)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    checkpoint.save(run, {"w": torch.zeros(100_000)}, env_steps=2)
except RunError as error:
    print(error)
"""


def test_a_full_disk_is_a_run_error_and_latest_stays(run: RunDirectory) -> None:
    checkpoint.save(run, state(1), env_steps=1)
    run.close()
    environment = {**os.environ, "PYTHONPATH": str(Path(checkpoint.__file__).parents[2])}
    command = [sys.executable, "-c", FULL_DISK, str(run.path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "step_2.pt cannot be written (File too large); make room, then continue with --resume" in done.stdout
    assert done.stdout.count("\n") == 1
    assert names(run) == ["latest.pt", "step_1.pt"]
    assert checkpoint.load(run.latest)["env_steps"] == 1


def test_without_a_checkpoint_there_is_nothing_to_resume(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "write_atomically", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(RunError, match="make room, then train anew"):
        checkpoint.save(run, state(1), env_steps=1)


def test_a_disk_that_fills_up_at_latest_is_a_run_error(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(run, state(1), env_steps=1)

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(RunError, match="No space left"):
        checkpoint.save(run, state(2), env_steps=2)
    assert checkpoint.load(run.latest)["env_steps"] == 1
    assert not [name for name in names(run) if name.startswith(".")]


@pytest.mark.parametrize("kept", [0, 2, 100, 0.5, 0.9, -1])
def test_truncated(run: RunDirectory, kept: float) -> None:
    checkpoint.save(run, state(1), env_steps=1)
    checkpoint.save(run, state(2), env_steps=2)
    data = run.latest.read_bytes()
    size = int(len(data) * kept) if 0 < kept < 1 else int(kept)
    run.latest.write_bytes(data[:size])
    message = refused(run.latest)
    assert "damaged" in message
    assert "step_1.pt" in message, "step_2.pt is the same file as latest.pt and damaged too"


def test_a_flipped_bit_in_the_weights_is_seen(run: RunDirectory) -> None:
    checkpoint.save(run, state(1), env_steps=1)
    data = bytearray(run.latest.read_bytes())
    data[data.index(torch.arange(1.0, 9.0).numpy().tobytes()) + 9] ^= 1
    run.latest.write_bytes(data)
    assert "damaged" in refused(run.latest)


class Trap:
    """Unpickling this makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("write", [torch.save, lambda o, p: p.write_bytes(pickle.dumps(o))], ids=["torch", "pickle"])
def test_code_is_refused_and_not_run(tmp_path: Path, write: Callable[[Any, Path], None]) -> None:
    trap, path = tmp_path / "sprung", tmp_path / "trap.pt"
    write({"format_version": 2, "weights": Trap(trap)}, path)
    assert "not a checkpoint of fasta2c" in refused(path)
    assert not trap.exists()
    torch.load(path, weights_only=False) if write is torch.save else pickle.loads(path.read_bytes())
    assert trap.exists(), "the trap must be able to spring"


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {}}, torch.zeros(3)], ids=["list", "dict", "tensor"])
def test_other_peoples_torch_files(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "other.pt")
    assert "not a checkpoint of fasta2c" in refused(tmp_path / "other.pt")


def test_whole_modules_and_text_are_foreign(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    (tmp_path / "text.pt").write_text("hello world")
    assert "not a checkpoint" in refused(tmp_path / "module.pt")
    assert "not a checkpoint" in refused(tmp_path / "text.pt")


@pytest.mark.parametrize("version", [1, 3, 0, None, "2"])
def test_other_format_versions(tmp_path: Path, version: Any) -> None:
    torch.save({"format_version": version}, tmp_path / "x.pt")
    assert f"format version {version!r} and this fasta2c reads 2" in refused(tmp_path / "x.pt")


def test_missing_and_folders_cannot_be_read(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "none.pt")
    assert "Is a directory" in refused(tmp_path)


def test_resolve(run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no checkpoint"):
        checkpoint.resolve(run.path)
    checkpoint.save(run, state(1), env_steps=1)
    step = run.checkpoints / "step_1.pt"
    assert checkpoint.resolve(run.path) == run.latest
    assert checkpoint.resolve(run.path, str(step)) == checkpoint.resolve(run.path, "step_1.pt") == step
    assert checkpoint.resolve(step) == step
    for which in ("best", "bset", "step_2.pt", str(tmp_path / "none.pt")):
        with pytest.raises(UserError, match=r"use one of latest.pt, step_1.pt"):
            checkpoint.resolve(run.path, which)
    checkpoint.save_best(run, state(1))
    assert checkpoint.resolve(run.path, "best") == run.best
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.resolve(tmp_path / "none")


def test_a_name_that_no_file_can_have_is_refused_in_words(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.resolve(tmp_path / ("x" * 5000))


@pytest.mark.parametrize("path", ["latest.pt", "../checkpoints/latest.pt", "../latest.pt"])
def test_the_run_of_a_checkpoint_is_found_from_anywhere(tmp_path, monkeypatch, path):
    folder = tmp_path / "run" / "checkpoints"
    (folder / "sub").mkdir(parents=True)
    (folder / "latest.pt").touch()
    monkeypatch.chdir(folder / "sub" if path == "../latest.pt" else folder)
    assert checkpoint.run_of(Path(path)).resolve() == tmp_path / "run"
