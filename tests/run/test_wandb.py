"""Weights & Biases gets TensorBoard's numbers, by its own means, and is missed in words."""

import os
import subprocess
import sys
import types
from importlib.machinery import ModuleSpec

import pytest

from fasta2c import TrainConfig, train
from fasta2c.errors import UserError

SMALL = {"num_envs": 8, "num_steps": 8, "total_steps": 2000, "log_interval": 5, "quiet": True, "wandb": True}


def test_it_is_begun_before_the_log_and_ended_with_the_run(tmp_path, monkeypatch):
    calls = []

    def init(**given):
        calls.append(given)
        assert not list(tmp_path.glob("run/events*")), "else it would miss them"
        return types.SimpleNamespace(finish=lambda: calls.append("finished"))

    module = types.ModuleType("wandb")
    module.__spec__, module.init, module.errors = ModuleSpec("wandb", None), init, types.SimpleNamespace(Error=OSError)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    train(TrainConfig(run_dir=tmp_path / "run", **SMALL))
    given, ended = calls
    assert ended == "finished" and given["sync_tensorboard"] and given["dir"] == tmp_path / "run"
    assert given["config"]["num_envs"] == 8 and given["project"] == "fasta2c" and given["name"] == "run"


def test_where_it_is_missing_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="wandb: it is not installed; pip install wandb"):
        train(TrainConfig(run_dir=tmp_path / "run", **SMALL))
    assert not (tmp_path / "run").exists()


def test_what_it_keeps_offline_has_the_returns(tmp_path):
    pytest.importorskip("wandb")
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    command = [
        sys.executable,
        "-m",
        "fasta2c",
        "train",
        "--run-dir",
        "run",
        "--total-steps",
        "60000",
        "--wandb",
        "--quiet",
    ]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=300)
    (kept,) = tmp_path.rglob("*.wandb")
    assert b"episode/return_mean" in kept.read_bytes()
