"""Runs that must learn: exact values where they are known, and solved tasks."""

from pathlib import Path

import pytest
import torch

from fasta2c import TrainConfig, evaluate, load_policy, train


@pytest.fixture(autouse=True)
def our_environments(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.mark.parametrize("gae_lambda", [0.0, pytest.param(0.95, marks=pytest.mark.nightly), 1.0])
@pytest.mark.parametrize(("env", "value"), [("OneStep-v0", 1.0), ("Endless-v0", 1 / (1 - 0.9))])
def test_values_of_one_step_and_of_an_endless_game_cut_at_ten(tmp_path, env, value, gae_lambda):
    """A cut is no end: V = 1 / (1 - gamma), though no episode is longer than ten steps."""
    run = train(
        TrainConfig(
            env=f"gymnasium:constant_envs:{env}",
            num_envs=4,
            num_steps=8,
            total_steps=30_000,
            gamma=0.9,
            gae_lambda=gae_lambda,
            optimizer="adam",
            lr=3e-3,
            max_grad_norm=10.0,
            lr_schedule="linear",
            run_dir=tmp_path / "run",
            quiet=True,
        )
    )
    policy = load_policy(run.run_dir, device="cpu")
    assert policy.value(torch.ones(1, 2)).item() == pytest.approx(value, rel=0.02)


@pytest.mark.parametrize("optimizer", ["rmsprop", "rmsprop-tf", "adam", "muon"])
def test_identity_is_learnt(tmp_path, optimizer):
    run = train(
        TrainConfig(
            env="gymnasium:constant_envs:Identity-v0",
            num_envs=8,
            num_steps=8,
            total_steps=60_000,
            gamma=0.5,
            optimizer=optimizer,
            lr=3e-3,
            run_dir=tmp_path / "run",
            quiet=True,
        )
    )
    assert evaluate(run.run_dir, episodes=50).mean_return > 9.5


@pytest.mark.slow
def test_cartpole_is_solved_by_default(tmp_path):
    run = train(TrainConfig(run_dir=tmp_path / "run", quiet=True))
    assert evaluate(run.run_dir, episodes=100).mean_return >= 475


@pytest.mark.parametrize("recurrent", ["none", "gru", pytest.param("lstm", marks=pytest.mark.nightly)])
def test_a_maze_that_asks_for_memory_is_solved_with_one_alone(tmp_path, recurrent):
    run = train(
        TrainConfig(
            env="gymnasium:memory_envs:TMaze-v0",
            env_kwargs={"length": 6},
            recurrent=recurrent,
            recurrent_size=32,
            num_envs=16,
            num_steps=16,
            total_steps=150_000,
            optimizer="adam",
            lr=3e-3,
            lr_schedule="linear",
            ent_coef=0.02,
            max_grad_norm=10.0,
            run_dir=tmp_path / "run",
            quiet=True,
        )
    )
    mean = evaluate(run.run_dir, episodes=100, greedy=True).mean_return
    assert mean > 0.95 if recurrent != "none" else abs(mean) < 0.4
