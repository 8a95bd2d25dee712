"""How training begins: anew, from a checkpoint, from another run's parameters, or where torchrun has restarted it."""

import itertools
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import config, load, rows, same_parameters

from fasta2c import TrainConfig, distributed
from fasta2c.errors import UserError
from fasta2c.launch import train
from fasta2c.trainer import Trainer


def test_resume_goes_on_where_the_run_was(tmp_path):
    first = train(config(tmp_path))
    before, log_before = load(first), rows(first.run_dir)
    second = train(TrainConfig(total_steps=6000), resume=first.run_dir)
    assert second.env_steps >= 6000 > first.env_steps and second.episodes > first.episodes
    log = rows(first.run_dir)
    assert log[: len(log_before)] == log_before
    steps = [int(r["env_steps"]) for r in log]
    assert steps == sorted(set(steps)) and steps[-1] == second.env_steps
    assert second.wall_seconds > first.wall_seconds
    assert load(second)["resumes"] == 1 and not same_parameters(before, load(second))


def test_a_run_of_another_kind_of_device_goes_on_with_new_randomness(tmp_path):
    """A CUDA generator's state is 16 bytes; a CPU's, which cannot take it, starts anew."""
    run = train(TrainConfig(total_steps=64, num_envs=2, quiet=True, run_dir=tmp_path / "run"))
    for file in (run.run_dir / "checkpoints").glob("*.pt"):
        state = torch.load(file, weights_only=True)
        state["generator"] = torch.zeros(16, dtype=torch.uint8)
        torch.save(state, file)
    assert train(TrainConfig(total_steps=128, quiet=True), resume=run.run_dir).env_steps >= 128


def test_resume_restores_parameters_optimizer_and_generator(tmp_path):
    """Nothing left to do: what is saved again is what was loaded."""
    first = train(config(tmp_path))
    before = load(first)
    built = Trainer(TrainConfig(), first.run_dir)
    after = built.records._state(built.standing)
    built.close()
    assert same_parameters(before, after)
    assert torch.equal(before["generator"], after["generator"])
    for key, state in before["optimizer"]["state"].items():
        restored = after["optimizer"]["state"][key]
        assert state and all(torch.equal(torch.as_tensor(v), torch.as_tensor(restored[k])) for k, v in state.items())
    for name in ("update", "best_return", "log", "randomness"):
        assert str(before[name]) == str(after[name])
    under_way = {"returns": [0.0] * 8, "lengths": [0] * 8}  # these games begin anew
    assert after["collector"]["episodes"] == {**before["collector"]["episodes"], **under_way}
    assert after["collector"]["env_steps"] == before["collector"]["env_steps"]
    lengths = before["collector"]["episodes"]["lengths"]
    assert after["collector"]["dropped"] == {"games": sum(n > 0 for n in lengths), "env_steps": sum(lengths)}


def test_what_torchrun_starts_again_goes_on(tmp_path, monkeypatch):
    """The n-th training of a job with the n-th run that it had before; a number of environments is found but once."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    monkeypatch.setattr("fasta2c.launch.tune", lambda config, device, say: replace(config, num_envs=4))
    settings = {"num_envs": "auto", "total_steps": 500, "checkpoint_interval": 1}
    for attempt in range(2):
        monkeypatch.setattr(distributed, "_calls", itertools.count())
        runs = [train(config(tmp_path, name, **settings)) for name in ("one", "two")]
        assert [load(run)["resumes"] for run in runs] == [attempt, attempt]
    with pytest.raises(UserError, match="holds another run"):
        train(config(tmp_path, "one", **settings))


def test_a_run_of_a_job_that_was_never_saved_begins_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # then it is the launcher's process that tells the job
    monkeypatch.setattr(distributed, "_calls", itertools.count())
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Trainer, "_save", lambda trainer: os.kill(os.getpid(), signal.SIGINT))
        train(config(tmp_path))
    assert (tmp_path / "run" / "config.yaml").is_file() and not (tmp_path / "run" / "checkpoints").exists()
    monkeypatch.setattr(distributed, "_calls", itertools.count())
    assert load(train(config(tmp_path)))["resumes"] == 0


def test_a_resumed_run_does_not_replay_the_old_games(tmp_path):
    def seeds(trainer):
        try:
            return {seed for envs in trainer.parts.envs for seed in envs.seeds}
        finally:
            trainer.close()

    first = train(config(tmp_path))
    old, new = seeds(Trainer(config(tmp_path, "again"))), seeds(Trainer(TrainConfig(), first.run_dir))
    assert len(old) == len(new) == 8 and not old & new


@pytest.mark.parametrize("changed", [{"lr": 0.5}, {"num_envs": 4}, {"run_dir": Path("elsewhere")}, {"total_steps": 10}])
def test_resume_refuses_what_would_change_the_learning(tmp_path, changed):
    first = train(config(tmp_path))
    with pytest.raises(UserError, match="--" + next(iter(changed)).replace("_", "-")):
        train(TrainConfig(**changed), resume=first.run_dir)
    train(TrainConfig(), resume=first.run_dir)  # and the lock was given back


def test_init_from_takes_the_parameters_alone(tmp_path):
    first = train(config(tmp_path))
    second = train(config(tmp_path, "second", init_from=first.run_dir, total_steps=1, lr=1e-12, critic_lr=1e-12))
    assert second.updates == 1
    for key, value in load(first)["model"].items():
        torch.testing.assert_close(load(second)["model"][key], value, rtol=0, atol=1e-9)


def test_init_from_another_network_is_refused_before_anything_is_written(tmp_path):
    first = train(config(tmp_path))
    with pytest.raises(UserError, match="does not fit"):
        train(config(tmp_path, "second", init_from=first.run_dir, hidden_sizes=(8,)))
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize(
    "changed",
    [{"env": "Classic/CartPool"}, {"env_kwargs": {"nope": 1}}, {"env": "PGX/Chess"}, {"device": "cuda:77"}],
)
def test_bad_input_leaves_nothing_behind(tmp_path, changed):
    with pytest.raises(UserError):
        train(config(tmp_path, **changed))
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_without_counters_cannot_be_resumed(tmp_path):
    result = train(config(tmp_path, total_steps=2000))
    latest = result.run_dir / "checkpoints" / "latest.pt"
    state = load(result)
    del state["generator"]
    latest.unlink()
    torch.save(state, latest)
    with pytest.raises(UserError, match="lacks generator"):
        train(TrainConfig(total_steps=4000), resume=result.run_dir)
