"""Whole runs of the trainer on real environments: files, determinism, resume, faults."""

import dataclasses
import io
import itertools
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from gymnasium.spaces import Box, Dict, Discrete
from PIL import Image
from small_runs import config, load, rows, same_parameters
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from walks import Walk

from fasta2c import TrainConfig, evaluate, load_policy
from fasta2c.callbacks import Callback
from fasta2c.errors import RunError, Stopped, UserError
from fasta2c.launch import train
from fasta2c.learning import learner
from fasta2c.learning.learner import METRICS, Learner
from fasta2c.presets import read_config
from fasta2c.run import checkpoint
from fasta2c.trainer import Trainer


def test_a_run_leaves_all_its_files(tmp_path):
    result = train(config(tmp_path, total_steps=8000, checkpoint_interval=20))
    folder = result.run_dir
    names = {p.name for p in folder.iterdir() if not p.name.startswith(".")}
    assert {"config.yaml", "metrics.csv", "summary.json", "checkpoints"} <= names
    assert any(n.startswith("events.out.tfevents") for n in names)
    steps = [p.name for p in (folder / "checkpoints").glob("step_*.pt")]
    assert len(steps) == 3 and (folder / "checkpoints" / "latest.pt").exists()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "done" and summary["env_steps"] == result.env_steps >= 8000
    assert set(summary["phase_seconds"]) == {"env", "act", "update", "copy", "log", "other"}
    assert sum(summary["phase_seconds"].values()) == pytest.approx(summary["wall_seconds"], rel=0.1)
    assert summary["mean_return"] == pytest.approx(result.mean_return)
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    assert stored["optimizer"] == "adam" and stored["versions"]["torch"]  # the preset's, resolved
    assert TrainConfig(**read_config(folder / "config.yaml")).num_steps == 8


def test_checkpoints_come_by_the_clock_too(tmp_path, monkeypatch):
    """An interval in updates outlasts a whole run of thousands of environments."""
    saved, save = [], Trainer._save

    def noted(trainer):
        save(trainer)
        saved.append(trainer.update)

    monkeypatch.setattr(Trainer, "_save", noted)
    train(config(tmp_path, "clock", total_steps=640, checkpoint_interval=10**6, checkpoint_minutes=1e-9))
    assert saved[:10] == list(range(1, 11))
    saved.clear()
    train(config(tmp_path, "updates", total_steps=640, checkpoint_interval=10**6, checkpoint_minutes=0.0))
    assert saved == [11]  # the last one


def test_metrics_count_valid_rows_and_end_at_the_run(tmp_path):
    result = train(config(tmp_path))
    written = rows(result.run_dir)
    steps = [int(r["env_steps"]) for r in written]
    assert steps == sorted(set(steps)) and steps[-1] == result.env_steps
    assert [int(r["update"]) for r in written][:2] == [5, 10]
    # reset rows are not counted: fewer env steps than rows, by one a finished episode (at most)
    issued = result.updates * 64
    assert issued - result.episodes - 8 <= result.env_steps < issued


def test_what_a_row_tells_is_what_was_done(tmp_path):
    """Speed, shares of time and schedules against a clock that goes by the second; means against the updates' own."""
    trainer = Trainer(config(tmp_path, total_steps=2000, log_interval=3, lr_schedule="linear", ent_coef=0.02))
    ticks, updates = itertools.count(), []
    clock, learner, update = trainer.clock, trainer.learner, trainer.learner.update

    def noted(rollout, progress):
        metrics = update(rollout, progress)
        rate = trainer.parts.optimizer.param_groups[0]["lr"]
        updates.append((float(rate), dict(zip(METRICS, metrics.tolist(), strict=True))))
        return metrics

    learner.update = noted
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(clock), "wall_seconds", property(lambda clock: 10.0 * next(ticks)))
        shares = {"env": 0.1, "act": 0.2, "update": 0.3}
        patch.setattr(type(clock), "shares", property(lambda clock: shares))
        trainer.run()
    trainer.close()
    written = rows(trainer.directory.path)
    assert len(written) >= 3
    for number, row in enumerate(written[:-1]):
        three = updates[3 * number : 3 * number + 3]
        assert float(row["lr"]) == pytest.approx(three[-1][0], rel=1e-6) and float(row["ent_coef"]) == 0.02
        for name in METRICS:
            assert float(row[name]) == pytest.approx(np.mean([metrics[name] for _, metrics in three]), rel=1e-4)
        assert [float(row[f"{phase}_fraction"]) for phase in shares] == [0.1, 0.2, 0.3]
    for before, row in itertools.pairwise(written):
        steps, seconds = (float(row[name]) - float(before[name]) for name in ("env_steps", "wall_seconds"))
        assert seconds > 0 and float(row["sps"]) == pytest.approx(steps / seconds, rel=1e-6)
    rates = [float(row["lr"]) for row in written]
    assert rates == sorted(rates, reverse=True) and 0 < rates[-1] < rates[0] < trainer.config.lr


def test_the_same_seed_gives_the_same_parameters_and_another_does_not(tmp_path):
    runs = [load(train(config(tmp_path, n, seed=s))) for n, s in (("a", 3), ("b", 3), ("c", 4))]
    assert runs[0]["update"] >= 40
    assert same_parameters(runs[0], runs[1]) and not same_parameters(runs[0], runs[2])


EVERY_KIND = [
    {"env": "Classic/Pendulum", "sde": True},  # by its preset everything normalised, and many steps an update
    {"env": "Classic/Pendulum", "sde": False, "action_bounds": "squash", "recurrent": "gru", "shared": True},
    {"env": "MiniGrid/Empty-5x5", "recurrent": "lstm"},
    {"env": "Jumanji/Minesweeper"},
    {"env": "Jumanji/Connector", "recurrent": "lstm", "shared": False},
    {"env": "gymnasium:Blackjack-v1"},
]


@pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda kind: "-".join(map(str, kind.values())))
def test_a_run_of_every_kind_is_reproducible_and_resumes(tmp_path, kind):
    small = {**kind, "total_steps": 1500}
    first, second = (load(train(config(tmp_path, name, **small))) for name in "ab")
    assert same_parameters(first, second)
    built = Trainer(TrainConfig(), tmp_path / "a")
    restored = built.records._state(built.standing)
    built.close()
    assert same_parameters(first, restored)
    for key, value in first["reward_scaler"].items():  # episodes begin anew
        assert torch.equal(torch.zeros_like(value) if key == "return_E" else value, restored["reward_scaler"][key])
    assert train(TrainConfig(total_steps=2500, quiet=True), resume=tmp_path / "a").env_steps >= 2500


def test_evaluation_leaves_the_statistics_as_they_were(tmp_path):
    run = train(config(tmp_path, env="Classic/Pendulum", total_steps=1500, eval_interval=2, eval_episodes=1))
    count = load(run)["model"]["moments.count"].item()
    assert count == run.env_steps, "each observation acted on, once"
    policy = load_policy(run.run_dir)
    before = {key: value.clone() for key, value in policy.model.state_dict().items()}
    policy.act(torch.randn(3, 3))
    evaluate(run.run_dir, episodes=2)
    assert all(torch.equal(before[key], value) for key, value in policy.model.state_dict().items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_seed_gives_the_same_parameters_on_pong(tmp_path, precision):
    pong = {"env": "Atari/Pong", "num_envs": 4, "num_steps": 4, "total_steps": 800, "precision": precision}
    runs = [load(train(config(tmp_path, name, **pong))) for name in "ab"]
    assert runs[0]["update"] == 50 and same_parameters(*runs)


@pytest.mark.parametrize(
    "kind",
    [
        {"env": "Atari/Pong", "encoder": "nature-cnn", "num_epochs": 2, "optimizer": "muon"},
        {"env": "Atari/Pong", "encoder": "impala", "recurrent": "lstm"},
        {"env": "MiniGrid/Empty-5x5", "encoder": "small-cnn"},
        {"env": "Classic/Pendulum", "encoder": "mlp"},
    ],
    ids=lambda kind: kind["encoder"],
)
def test_deterministic_runs_are_equal_with_any_number_of_threads(tmp_path, kind):
    small = {**kind, "num_steps": 4, "total_steps": 150, "deterministic": True}
    runs = [load(train(config(tmp_path, str(n), env_threads=n, **small))) for n in (1, 3)]
    assert same_parameters(*runs)


def test_deterministic_runs_refuse_what_is_not(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="deterministic: --num-envs auto"):
        config(tmp_path, deterministic=True, num_envs="auto")

    def update(*_):
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))

    monkeypatch.setattr(Learner, "update", update)
    with pytest.raises(RunError, match="^deterministic: put_ does not have a deterministic implementation.$"):
        train(config(tmp_path, deterministic=True))
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_stop_at_return_ends_the_run_once_a_hundred_games_reach_it(tmp_path):
    result = train(config(tmp_path, total_steps=1_000_000, stop_at_return=15.0))  # random play scores 22
    assert result.mean_return >= 15 and 100 <= result.episodes < 130 and result.env_steps < 10_000
    assert json.loads((result.run_dir / "summary.json").read_text())["status"] == "done"
    further = train(TrainConfig(stop_at_return=100.0, total_steps=1_000_000), resume=result.run_dir)
    assert further.mean_return >= 100 and result.env_steps < further.env_steps < 1_000_000


def test_more_minibatches_than_environments_are_refused(tmp_path):
    with pytest.raises(UserError, match="num_minibatches: 9 are more than the 8 environments"):
        train(config(tmp_path, num_minibatches=9))
    assert not (tmp_path / "run").exists()


def test_minibatches_that_follow_from_the_environments_still_do_so_in_another_run(tmp_path):
    run = train(config(tmp_path, num_minibatches="auto", minibatch_size=16, optimizer="muon"))
    kept = read_config(run.run_dir / "config.yaml")
    assert kept["num_minibatches"] == "auto" and TrainConfig(**kept).minibatches(16) == 8
    assert train(TrainConfig(total_steps=4000, num_minibatches="auto"), resume=run.run_dir).env_steps >= 4000


class Faulty:
    """Pays 1 and shows 0 but for what `faults` say: (step, environment, "reward" or "observation", number)."""

    observation_space = Box(-np.inf, np.inf, (2,))
    action_space = Discrete(2)

    def __init__(self, num_envs, *, device, seed, faults=()):
        self.num_envs, self.faults, self.steps = num_envs, faults, 0

    def reset(self):
        return torch.zeros(self.num_envs, 2)

    def step(self, actions):
        self.steps += 1
        brought = {"observation": self.reset(), "reward": torch.ones(self.num_envs)}
        for step, env, what, number in self.faults:
            if step == self.steps:
                brought[what][env] = float(number)
        never = torch.zeros(self.num_envs, dtype=torch.bool)
        return brought["observation"], brought["reward"], never, never


def faulty(tmp_path, monkeypatch, faults, **changed):
    monkeypatch.setitem(sys.modules, "faulty", types.SimpleNamespace(Faulty=Faulty))
    common = {"env": "torch:faulty:Faulty", "env_kwargs": {"faults": faults}, "checkpoint_interval": 10}
    return config(tmp_path, **common, **changed)


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("what", ["reward", "observation"])
def test_a_number_that_is_not_finite_stops_the_run_and_is_placed(tmp_path, monkeypatch, what, number):
    step = 12 * 8 + 4  # in row 3 of update 13; what is observed after it is acted on in the next row
    row = 3 if what == "reward" else 4
    told = (
        f"the {what} of environment 5 in row {row} of update 13 is NaN or infinite .by 832 env steps.; the update was"
    )
    with pytest.raises(RunError, match=told):
        train(faulty(tmp_path, monkeypatch, [[step, 5, what, number]]))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"
    assert load(tmp_path / "run")["update"] == 10


@pytest.mark.parametrize("what", ["reward", "observation"])
def test_updates_with_numbers_that_are_not_finite_can_be_skipped(tmp_path, monkeypatch, capsys, what):
    faults = [[step, env, what, "nan"] for step in (100, 101, 700) for env in (0, 5)]
    options = {"on_nan": "skip", "normalize_observations": True, "normalize_rewards": True}
    result = train(faulty(tmp_path, monkeypatch, faults, **options))
    saved, log = load(result), rows(result.run_dir)
    assert result.env_steps >= 3000 and saved["skipped"] == int(log[-1]["skipped_updates"]) == 1
    state = [*saved["model"].values(), *(x for kept in saved["optimizer"]["state"].values() for x in kept.values())]
    assert all(torch.isfinite(x).all() for x in state)
    assert all(row["policy_loss"] for row in log)  # the means are those of the updates that were applied
    assert capsys.readouterr().err.count("fasta2c: warning: ") == 1
    more = train(TrainConfig(total_steps=6000, quiet=True), resume=result.run_dir)
    assert json.loads((more.run_dir / "summary.json").read_text())["skipped_updates"] == 2


def test_what_is_remembered_of_a_bad_number_does_not_last(tmp_path, monkeypatch):
    """These games never end, and with them never what a network remembers."""
    faults = [[100, 0, "observation", "nan"], [101, 1, "reward", "inf"]]
    run = train(faulty(tmp_path, monkeypatch, faults, on_nan="skip", recurrent="gru", normalize_rewards=True))
    saved = load(run)
    assert saved["skipped"] == 1 and all(torch.isfinite(x).all() for x in saved["reward_scaler"].values())


def test_ten_updates_in_a_row_that_must_be_skipped_stop_the_run(tmp_path, monkeypatch):
    nine = [[8 * update + 1, 0, "reward", "nan"] for update in (*range(9), *range(20, 29))]
    assert train(faulty(tmp_path, monkeypatch, nine, on_nan="skip")).env_steps >= 3000
    ten = [[8 * update + 1, 0, "reward", "nan"] for update in range(20, 30)]
    with pytest.raises(RunError, match="row 0 of update 30 .*; 10 updates in a row were skipped"):
        train(faulty(tmp_path, monkeypatch, ten, on_nan="skip", name="second"))


def test_a_loss_that_is_not_finite_is_not_applied(tmp_path, monkeypatch):
    real, calls = learner.loss_sums, []

    def poisoned(*args, **kwargs):
        calls.append(1)
        sums = real(*args, **kwargs)
        return sums._replace(value=sums.value * math.nan) if len(calls) == 13 else sums

    monkeypatch.setattr(learner, "loss_sums", poisoned)
    with pytest.raises(RunError, match="the loss or gradient of update 13 is NaN or infinite.*Try a lower --lr"):
        train(config(tmp_path, checkpoint_interval=10, num_epochs=1))
    saved = load(tmp_path / "run")
    assert saved["update"] == 10
    assert all(torch.isfinite(p).all() for p in saved["model"].values())


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_stops(tmp_path, signum, monkeypatch):
    real = Learner.update
    calls = []

    def signalled(self, rollout, progress):
        calls.append(1)
        if len(calls) == 13:
            os.kill(os.getpid(), signum)
        return real(self, rollout, progress)

    monkeypatch.setattr(Learner, "update", signalled)
    before = signal.signal(signum, signal.default_int_handler)  # under nohup SIGHUP would be ignored, as it should be
    try:
        with pytest.raises(Stopped) as stopped:
            train(config(tmp_path, total_steps=10**9))
    finally:
        signal.signal(signum, before)
    assert stopped.value.exit_code == 128 + signum
    assert f"--resume {tmp_path / 'run'}" in str(stopped.value)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (
        summary["status"] == "stopped" and load(tmp_path / "run")["collector"]["env_steps"] == summary["env_steps"] > 0
    )


def test_evaluation_during_training_is_logged(tmp_path):
    result = train(config(tmp_path, eval_interval=10, eval_episodes=3))
    values = [r["eval_return_mean"] for r in rows(result.run_dir)]
    assert [v != "" for v in values[:4]] == [False, True, False, True]


@pytest.mark.parametrize("env", ["torch:walks:Walk", "gymnasium:test_trainer/Global-v0"])
def test_games_beside_the_training_leave_it_as_it_was(tmp_path, env):
    """Their environments draw from the generators that the training's draw from."""

    class Evaluating(Callback):
        def on_checkpoint(self, run, path):
            evaluate(path, episodes=2)

    gymnasium.register("test_trainer/Global-v0", entry_point=Global)
    small = {"env": env, "total_steps": 1500, "eval_episodes": 2, "checkpoint_interval": 3}
    try:
        runs = [
            train(config(tmp_path, name, **small, eval_interval=interval), callbacks=callbacks)
            for name, interval, callbacks in (("a", 0, ()), ("b", 1, ()), ("c", 0, Evaluating()))
        ]
    finally:
        gymnasium.registry.pop("test_trainer/Global-v0")
    states = [load(run) for run in runs]
    assert same_parameters(*states[:2]) and same_parameters(*states[::2])
    assert len({run.mean_return for run in runs}) == 1


class Global(gymnasium.Env):
    """Draws from the generators that everybody shares, when it is made as well; it asks for no seed."""

    observation_space = Box(-np.inf, np.inf, (3,))
    action_space = Discrete(2)

    def __init__(self):
        self.length = int(np.random.randint(3, 9))

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            np.random.seed(seed)
        self.steps = 0
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.steps += 1
        drawn = np.array([np.random.normal(), random.gauss(0, 1), float(torch.randn(()))], np.float32)
        return drawn, float(drawn.sum()), self.steps >= self.length, False, {}


DRAWS = """
import sys
sys.path.insert(0, {tests!r})
import gymnasium, random
from fasta2c import TrainConfig, evaluate, train
from test_trainer import Global

class Seedless(Global):
    def reset(self, *, seed=None, options=None):
        return super().reset()

gymnasium.register("test_trainer/Seedless-v0", entry_point=Seedless)
random.seed({seed})
options = {{"vectorization_mode": {mode!r}}}
small = {{"num_envs": 2, "num_steps": 8, "total_steps": 300, "quiet": True}}
run = train(TrainConfig(env="gymnasium:test_trainer/Seedless-v0", env_kwargs=options, **small))
print(run.mean_return, evaluate(run.run_dir, episodes=3).mean_return)
"""


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_environments_that_draw_from_everybodys_generators_are_reproducible(tmp_path, mode):
    told = []
    for name in "ab":
        (tmp_path / name).mkdir()
        script = DRAWS.format(tests=str(Path(__file__).parent), seed=ord(name), mode=mode)
        run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path / name, capture_output=True, text=True)
        told.append(run.stdout)
        assert run.returncode == 0, run.stderr
    assert told[0] == told[1] != ""


def test_a_return_that_float32_rounds_is_reached(tmp_path):
    """0.9 is 0.89999998 there."""

    class Paying:
        observation_space, action_space = Box(0, 1, (1,)), Discrete(2)

        def __init__(self, num_envs, *, device, seed):
            self.over = torch.zeros(num_envs, dtype=torch.bool)

        def reset(self):
            return torch.zeros(len(self.over), 1)

        def step(self, actions):
            self.over = ~self.over
            rewards = torch.full((len(self.over),), 0.9)
            return self.reset(), rewards, self.over, torch.zeros_like(self.over)

    sys.modules["paying"] = types.SimpleNamespace(Paying=Paying)
    try:
        result = train(config(tmp_path, env="torch:paying:Paying", stop_at_return=0.9))
    finally:
        del sys.modules["paying"]
    assert result.env_steps < 500 and result.mean_return == pytest.approx(0.9)


def test_best_is_the_highest_mean_over_a_hundred_games(tmp_path):
    result = train(config(tmp_path, total_steps=20_000))
    logged = [float(r["episode_return_mean"]) for r in rows(result.run_dir) if int(r["episodes"]) >= 100]
    assert result.best_return == pytest.approx(max(logged), rel=1e-6)
    best = checkpoint.load(checkpoint.resolve(result.run_dir, "best"))
    assert best["best_return"] == result.best_return


def test_a_best_of_few_games_gives_way_to_the_first_of_a_hundred(tmp_path):
    """A session that ends early leaves the mean of its few games, which luck may have made high."""
    first = train(config(tmp_path, total_steps=320, num_envs=4, lr=1e-9, checkpoint_interval=1))
    file = first.run_dir / "checkpoints" / "best.pt"
    state = checkpoint.load(file)
    assert 0 < len(state["collector"]["episodes"]["finished"]) < 100 and state["best_return"] == first.best_return
    file.write_bytes(checkpoint.serialise({**state, "best_return": 400.0}))
    again = train(TrainConfig(total_steps=20_000, quiet=True), resume=first.run_dir)
    best = checkpoint.load(file)
    assert best["best_return"] == again.best_return < 100 and len(best["collector"]["episodes"]["finished"]) == 100
    file.write_bytes(checkpoint.serialise({**best, "best_return": 400.0}))
    assert train(TrainConfig(total_steps=24_000, quiet=True), resume=first.run_dir).best_return == 400.0


def test_a_best_policy_that_is_undone_goes_and_one_that_a_kill_has_left_stays(tmp_path):
    """It is what `best_return` tells of, whichever checkpoint a run goes on from."""

    def now(folder):
        return checkpoint.load(folder / "best.pt")["best_return"] if (folder / "best.pt").exists() else None

    run = train(config(tmp_path, total_steps=20_000, checkpoint_interval=100)).run_dir
    folder = run / "checkpoints"
    steps = sorted(folder.glob("step_*.pt"), key=lambda path: int(path.stem.removeprefix("step_")))
    best = checkpoint.load(folder / "best.pt")
    best["collector"]["env_steps"], best["best_return"] = 19_990, 400.0  # after all but the last
    kept = (folder / "best.pt").read_bytes(), steps[-2].read_bytes()
    (folder / "best.pt").write_bytes(checkpoint.serialise(best))

    (folder / "latest.pt").unlink()  # as if killed before the last
    (folder / "latest.pt").write_bytes(kept[1])
    trainer = Trainer(TrainConfig(quiet=True, total_steps=30_000), resume=run)
    trainer.close()
    assert trainer.records.best_return == now(folder) == 400.0

    trainer = Trainer(TrainConfig(quiet=True, total_steps=30_000), resume=steps[-2])
    trainer.close()
    assert trainer.records.best_return is None
    assert now(folder) is None
    (folder / "best.pt").write_bytes(kept[0])
    result = train(TrainConfig(quiet=True, total_steps=30_000), resume=run)
    assert result.best_return == now(folder)


def test_the_policy_of_a_run_draws_other_actions_each_time(tmp_path):
    trainer = Trainer(config(tmp_path))
    observations = torch.zeros(64, 4)
    first, second = (trainer.policy.act(observations) for _ in range(2))
    trainer.close()
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    "changed",
    [
        {"num_steps": 1},
        {"num_envs": 1},
        {"shared": True, "critic_lr": None},
        {"value_loss": "huber", "optimizer": "rmsprop", "ent_schedule": "cosine", "ent_coef": 0.01},
        {"gae": "compiled", "micro_batch": 3, "lr_schedule": "cosine", "activation": "relu"},
        {"env": "gymnasium:CartPole-v1"},
        {"env": "Acrobot-v1", "precision": "bf16"},
    ],
)
def test_options_make_finite_updates(tmp_path, changed):
    result = train(config(tmp_path, total_steps=600, **changed))
    assert all(torch.isfinite(p).all() for p in load(result)["model"].values())
    assert float(rows(result.run_dir)[-1]["grad_norm"]) > 0


def test_env_kwargs_reach_the_environment_and_add_to_the_preset(tmp_path):
    result = train(
        config(tmp_path, env="Atari/Breakout", num_envs=4, total_steps=64, env_kwargs={"full_action_space": True})
    )
    stored = load(result)
    assert stored["spec"]["actions"]["sizes"] == (18,)
    assert stored["config"]["env_kwargs"] == {"reward_clip": True, "episodic_life": True, "full_action_space": True}


@pytest.mark.parametrize(
    ("half", "changed"),
    [
        (100, {}),
        (15, {"recurrent": "gru", "num_epochs": 2, "num_minibatches": 2, "optimizer": "muon"}),
        (15, {"normalize_observations": True, "normalize_rewards": True, "lr_schedule": "linear"}),
        (15, {"eval_interval": 5, "eval_episodes": 1, "env_groups": 2}),
    ],
)
def test_a_run_of_savable_environments_resumes_bit_for_bit(tmp_path, monkeypatch, half, changed):
    common = {"env": "torch:walks:Walk", "total_steps": 2 * half * 64, "log_interval": 7, "checkpoint_interval": half}

    def save_and_fall(trainer):
        save(trainer)
        raise KeyboardInterrupt

    whole, save = train(config(tmp_path, "whole", **common, **changed)), Trainer._save
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Trainer, "_save", save_and_fall)
        train(config(tmp_path, "cut", **common, **changed))
    resumed = train(TrainConfig(quiet=True), resume=tmp_path / "cut")
    assert resumed.updates == whole.updates > 2 * half
    ours, theirs = load(whole), load(resumed)
    assert same_parameters(ours, theirs)
    carried = theirs["collector"]["games"]["buffer"].values()
    assert all(x.untyped_storage().nbytes() == x.nbytes for x in carried), "no more is saved than is needed"
    timed = {"wall_seconds", "sps", "env_fraction", "act_fraction", "update_fraction"}
    logs = [[{k: v for k, v in row.items() if k not in timed} for row in rows(r.run_dir)] for r in (whole, resumed)]
    assert logs[0] == logs[1]
    assert json.loads((resumed.run_dir / "summary.json").read_text())["dropped"] == {"games": 0, "env_steps": 0}


def test_games_go_on_in_the_groups_they_were_saved_in(tmp_path, monkeypatch):
    run = train(config(tmp_path, env="torch:walks:Walk", total_steps=500, env_groups=2))
    with pytest.raises(UserError, match="env_groups: the games were saved in 2 groups; go on with --env-groups 2"):
        train(TrainConfig(total_steps=1000, env_groups=1, quiet=True), resume=run.run_dir)


@pytest.mark.parametrize("unsavable", [object(), np.float32(1), lambda: None])
def test_a_state_that_no_checkpoint_can_hold_is_refused_before_training(tmp_path, monkeypatch, unsavable):
    monkeypatch.setattr(Walk, "state_dict", lambda walk: {"odd": unsavable})
    with pytest.raises(UserError, match="torch:walks:Walk: its state_dict cannot be saved: "):
        train(config(tmp_path, env="torch:walks:Walk"))
    assert not (tmp_path / "run").exists()


class Breaking(torch.nn.Module):
    """An encoder that fails in its `calls`-th call, or has a state that cannot be saved."""

    calls, extra = 30, None

    def __init__(self, space):
        super().__init__()
        self.layer, self.features, self.left = torch.nn.Linear(space.shape[0], 8), 8, self.calls

    def forward(self, x):
        self.left -= 1
        return self.layer(x) if self.left else {}["the rope"]

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        pass


def test_an_encoder_of_the_users_that_fails_ends_the_run_in_words(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mine", types.SimpleNamespace(Breaking=Breaking))
    with pytest.raises(RunError, match=r"encoder: mine:Breaking raised KeyError: 'the rope' \(test_trainer.py:\d+\)"):
        train(config(tmp_path, encoder="mine:Breaking"))
    monkeypatch.setattr(Breaking, "extra", Breaking)
    with pytest.raises(UserError, match="encoder mine:Breaking: its state_dict cannot be saved: it holds more than"):
        train(config(tmp_path, "unsaved", encoder="mine:Breaking"))
    assert not (tmp_path / "unsaved").exists()


class Moody(torch.nn.Module):
    """Does otherwise while it learns."""

    features = 8

    def __init__(self, space):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(space.shape[0], 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5)
        )

    def forward(self, x):
        if len(x) > 8:  # what measures graphs, on fewer, learns nothing
            seen.append((self.training, torch.is_grad_enabled()))
        return self.layers(x)


seen: list[tuple[bool, bool]] = []


@pytest.mark.parametrize("more", [{}, {"num_epochs": 2, "num_minibatches": 2}, {"reuse_forward": "on"}])
def test_an_encoder_of_the_users_learns_in_one_mode_and_acts_in_the_other(tmp_path, monkeypatch, more):
    monkeypatch.setitem(sys.modules, "mine", types.SimpleNamespace(Moody=Moody))
    seen.clear()
    run = train(config(tmp_path, encoder="mine:Moody", num_envs=16, eval_interval=10, eval_episodes=2, **more)).run_dir
    assert {(False, False), (True, True)} <= set(seen)
    assert (False, True) not in seen, "its update is differentiated as it acts"
    policy, observations = load_policy(run), torch.randn(9, 4)
    assert torch.equal(policy.value(observations), policy.value(observations))
    assert evaluate(run, episodes=5, greedy=True) == evaluate(run, episodes=5, greedy=True)
    mean = checkpoint.load(checkpoint.resolve(run))["model"]["encoder.encoder.layers.1.running_mean"]
    assert mean.abs().sum() > 0


@pytest.mark.parametrize(
    "more",
    [
        {"recurrent": "gru", "recurrent_size": 4},
        {"shared": False, "critic_updates": 2},
        {"num_minibatches": 16, "num_epochs": 2, "micro_batch": 16},
        {"shared": False, "num_minibatches": 2, "recurrent": "lstm", "recurrent_size": 4},
    ],
)
def test_such_an_encoder_is_not_asked_for_statistics_of_what_is_not_learnt_from(tmp_path, monkeypatch, more):
    """Of a single observation, as after the last row of one environment, there are none."""
    monkeypatch.setitem(sys.modules, "mine", types.SimpleNamespace(Moody=Moody))
    seen.clear()
    settings = {"shared": True, "encoder": "mine:Moody", "num_envs": 16, "num_steps": 16, **more}
    assert train(config(tmp_path, total_steps=2000, **settings)).env_steps >= 2000
    assert (True, True) in seen
    assert (True, False) not in seen


def test_statistics_of_bad_numbers_are_not_kept(tmp_path, monkeypatch):
    class Poisoned(Moody):
        def forward(self, x):
            poisoned.append(self.training and len(poisoned) == 200)
            return super().forward(torch.full_like(x, torch.nan) if poisoned[-1] else x)

    poisoned: list[bool] = []
    monkeypatch.setitem(sys.modules, "mine", types.SimpleNamespace(Poisoned=Poisoned))
    run = train(config(tmp_path, encoder="mine:Poisoned", num_envs=16, num_epochs=4, on_nan="skip")).run_dir
    assert json.loads((run / "summary.json").read_text())["skipped_updates"] >= any(poisoned) > 0
    state = checkpoint.load(checkpoint.resolve(run))["model"]
    assert all(torch.isfinite(x).all() for x in state.values())


class Shaken(Callback):
    def on_update(self, run):
        raise RuntimeError("a shape of my own")


def test_what_a_callback_raises_is_not_laid_to_the_encoder(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mine", types.SimpleNamespace(Moody=Moody))
    with pytest.raises(RuntimeError, match="^a shape of my own$"):
        train(config(tmp_path, encoder="mine:Moody", num_envs=16), callbacks=[Shaken()])


class InPlace(Moody):
    def forward(self, x):
        return super().forward(x).exp().mul_(2.0)


def test_an_encoder_that_cannot_be_differentiated_is_told_of(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mine", types.SimpleNamespace(InPlace=InPlace))
    with pytest.raises(RunError, match="encoder: mine:InPlace cannot be learnt with: RuntimeError: one of the var"):
        train(config(tmp_path, encoder="mine:InPlace"))


def test_torch_may_have_been_told_not_to_differentiate(tmp_path):
    """As simulators do."""
    torch.set_grad_enabled(False)
    try:
        assert train(config(tmp_path, total_steps=500)).env_steps >= 500
    finally:
        torch.set_grad_enabled(True)


def test_another_default_dtype_is_refused(tmp_path):
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(UserError, match="fasta2c needs float32"):
            train(config(tmp_path))
    finally:
        torch.set_default_dtype(torch.float32)
    assert not (tmp_path / "run").exists()


class Seen(gymnasium.Env):
    """Observes bytes, or numbers of another range."""

    action_space, high = Discrete(2), 255

    def __init__(self, high=None):
        self.observation_space = Box(0, high or self.high, (2,), np.uint8)

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.uint8), {}

    def step(self, action):
        return np.ones(2, np.uint8), 1.0, True, False, {}


def test_a_run_does_not_go_on_with_other_observations(tmp_path, monkeypatch):
    gymnasium.register("test_trainer/Seen-v0", entry_point=Seen)
    try:
        run = train(config(tmp_path, env="gymnasium:test_trainer/Seen-v0", total_steps=200)).run_dir
        with pytest.raises(UserError, match="env_kwargs: the policy was trained with other observations"):
            evaluate(run, episodes=1, env_kwargs={"high": 100})
        monkeypatch.setattr(Seen, "high", 100)
        with pytest.raises(UserError, match="observes or takes other things by now than when this was saved"):
            train(TrainConfig(total_steps=400, quiet=True), resume=run)
    finally:
        gymnasium.registry.pop("test_trainer/Seen-v0")


def test_a_run_goes_on_from_an_older_checkpoint_where_the_last_is_damaged(tmp_path):
    run = train(config(tmp_path, checkpoint_interval=10)).run_dir
    checkpoints = run / "checkpoints"
    (checkpoints / "latest.pt").write_bytes((checkpoints / "latest.pt").read_bytes()[:5000])  # and its step: one file
    older = sorted(checkpoints.glob("step_*.pt"), key=lambda file: int(file.stem[5:]))[-2]
    with pytest.raises(UserError, match=f"damaged or cut short; use another checkpoint, such as .*{older.name}"):
        train(TrainConfig(total_steps=4000, quiet=True), resume=run)
    cut_at = checkpoint.load(older)["collector"]["env_steps"]
    Trainer(TrainConfig(total_steps=4000, quiet=True), older).close()
    assert load(run)["collector"]["env_steps"] == cut_at, "what comes after it is gone from the start on"
    result = train(TrainConfig(total_steps=4000, quiet=True), resume=run)
    assert result.run_dir == run and result.env_steps >= 4000
    steps = [int(row["env_steps"]) for row in rows(run)]
    assert steps == sorted(set(steps)) and steps[-1] == result.env_steps
    assert load(run)["resumes"] == 2


WRONG = [
    *({name: "text"} for name in ("update", "resumes", "wall_seconds", "best_return", "log", "collector", "optimizer")),
    {"optimizer": {}},
    {"collector": {}},
    {"log": {}},
    {"randomness": {}},
    {"model": {"odd": torch.zeros(1)}},
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: f"{next(iter(wrong))}-{type(next(iter(wrong.values())))}")
def test_a_checkpoint_that_holds_something_else_is_refused_in_a_line(tmp_path, small_run, wrong):
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    state = load(run)
    torch.save({**state, **wrong}, run / "checkpoints" / "latest.pt")
    before = (run / "metrics.csv").read_bytes()
    with pytest.raises(UserError, match=r"latest\.pt.* (lacks|does not hold|does not fit)"):
        train(TrainConfig(total_steps=3000, quiet=True), resume=run)
    assert (run / "metrics.csv").read_bytes() == before


@pytest.mark.parametrize("wrong", [{"spec": {}}, {"spec": {"stack": "four"}}, {"model": {}}], ids=str)
def test_a_policy_is_not_made_of_something_else(tmp_path, small_run, wrong):
    state = load(small_run)
    wrong = {name: {**state[name], **value} if value else value for name, value in wrong.items()}
    torch.save({**state, **wrong}, tmp_path / "odd.pt")
    with pytest.raises(UserError, match=r"odd\.pt.* does not (hold|fit)"):
        load_policy(tmp_path / "odd.pt")


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    return train(config(tmp_path_factory.mktemp("small"), total_steps=1000)).run_dir


class Wanderer(gymnasium.Env):
    """Changes the working directory, in its constructor or in its 100th step."""

    observation_space = Box(0, 1, (2,), np.float32)
    action_space = Discrete(2)

    def __init__(self, when, to):
        self.when, self.to, self.steps = when, to, 0
        if when == "made":
            os.chdir(to)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        if self.steps == 100 and self.when == "step":
            os.chdir(self.to)
        return np.zeros(2, np.float32), 1.0, self.steps % 10 == 0, False, {}


@pytest.mark.parametrize("when", ["made", "step"])
@pytest.mark.parametrize("run_dir", ["run", None])
def test_an_environment_that_goes_elsewhere_leaves_the_run_where_it_is(tmp_path, monkeypatch, when, run_dir):
    gymnasium.register("test_trainer/Wanderer-v0", entry_point=Wanderer)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    kwargs = {"when": when, "to": str(tmp_path / "elsewhere")}
    try:
        given = config(tmp_path, env="gymnasium:test_trainer/Wanderer-v0", env_kwargs=kwargs, checkpoint_interval=10)
        train(dataclasses.replace(given, run_dir=run_dir))
    finally:
        gymnasium.registry.pop("test_trainer/Wanderer-v0")
    assert not list((tmp_path / "elsewhere").iterdir())
    (summary,) = tmp_path.glob("run/summary.json" if run_dir else "runs/**/summary.json")
    assert json.loads(summary.read_text())["status"] == "done"
    assert (summary.parent / "checkpoints" / "latest.pt").exists()


class Stuck(Wanderer):
    """Takes for ever to close."""

    def __init__(self):
        super().__init__("never", "")

    def close(self):
        time.sleep(1000)


def test_an_environment_that_never_closes_costs_its_timeout_and_not_the_run(tmp_path, capsys):
    gymnasium.register("test_trainer/Stuck-v0", entry_point=Stuck)
    try:
        given = config(tmp_path, env="gymnasium:test_trainer/Stuck-v0", num_envs=1, total_steps=200, env_timeout=0.5)
        result = train(given)
    finally:
        gymnasium.registry.pop("test_trainer/Stuck-v0")
    assert result.env_steps >= 200 and json.loads((result.run_dir / "summary.json").read_text())["status"] == "done"
    assert "could not be closed: RunError: gymnasium:test_trainer/Stuck-v0 has not answered" in capsys.readouterr().err


class Frail(gymnasium.Env):
    """Fails in its 200th step of all; games of 10."""

    observation_space = Box(0, 1, (2,), np.float32)
    action_space = Discrete(2)

    def __init__(self, how):
        self.how, self.steps = how, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        if self.steps == 200:
            if self.how == "die":
                os._exit(1)
            if self.how == "hang":
                time.sleep(1000)
            raise ValueError("broken")
        return np.ones(2, np.float32), 1.0, self.steps % 10 == 0, False, {}


FAULTS = [("sync", "raise"), ("sync", "hang"), ("async", "raise"), ("async", "die"), ("async", "hang")]


@pytest.fixture
def frail():
    gymnasium.register("Frail-v0", entry_point=Frail)
    yield
    gymnasium.registry.pop("Frail-v0")


def frail_config(tmp_path, mode, how, **changed):
    kwargs = {"how": how, "vectorization_mode": mode}
    common = {"env": "gymnasium:Frail-v0", "num_envs": 4, "env_timeout": 1.0, "checkpoint_interval": 10}
    return config(tmp_path, env_kwargs=kwargs, total_steps=1200, **common, **changed)


@pytest.mark.parametrize(("mode", "how"), FAULTS)
def test_an_environment_that_fails_ends_the_run_its_checkpoint_whole(tmp_path, frail, mode, how):
    with pytest.raises(RunError, match="has not answered" if how == "hang" else "broken|was ended with exit code 1"):
        train(frail_config(tmp_path, mode, how))
    assert load(tmp_path / "run")["update"] == 20  # of 8 rows, a tenth of them resets
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("mode", "how"), FAULTS)
def test_an_environment_that_fails_is_made_anew_and_the_run_goes_on(tmp_path, frail, mode, how):
    result = train(frail_config(tmp_path, mode, how, restart_envs=True))
    assert result.env_steps >= 1200
    summary = json.loads((result.run_dir / "summary.json").read_text())
    assert summary["env_restarts"] == 4 and summary["mean_return"] == 10.0  # the lost games of 9 do not count
    assert summary["dropped"] == {"games": 4, "env_steps": 4 * 9}
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("when", ["reset", "evaluation"])
def test_an_environment_that_hangs_elsewhere_ends_the_run_too(tmp_path, frail, monkeypatch, when):
    if when == "reset":
        monkeypatch.setattr(Frail, "reset", lambda self, **_: time.sleep(1000))
    wanted = frail_config(tmp_path, "sync", "hang", eval_interval=5, eval_episodes=200)
    with pytest.raises(RunError, match="has not answered within 1 s"):
        train(wanted)
    assert (tmp_path / "run").exists() == (when == "evaluation")


def test_only_what_can_be_made_anew_is_promised_to_be(tmp_path):
    with pytest.raises(UserError, match="restart_envs: only an environment of Gymnasium can be made anew"):
        train(config(tmp_path, restart_envs=True))


def test_a_run_does_not_grow(tmp_path, monkeypatch):
    """Two per cent of a process is some 14 kB an update here; TensorBoard, checkpoints and statistics are among it."""
    real, sizes = Trainer._take, {}

    def measured(trainer, metrics):
        real(trainer, metrics)
        if trainer.update % 250 == 0:
            sizes[trainer.update] = int(Path("/proc/self/statm").read_text().split()[1])

    monkeypatch.setattr(Trainer, "_take", measured)
    train(config(tmp_path, num_envs=4, num_steps=4, total_steps=1010 * 16, checkpoint_interval=100))
    assert sizes[1000] < 1.02 * sizes[250]


class Cut:
    """Cut after the last row of a rollout of 8, once with a number that is not finite."""

    observation_space, action_space = Box(-np.inf, np.inf, (2,)), Discrete(2)

    def __init__(self, num_envs, *, device, seed):
        self.num_envs, self.steps = num_envs, 0

    def reset(self):
        return torch.zeros(self.num_envs, 2)

    def step(self, actions):
        self.steps += 1
        cut = torch.full((self.num_envs,), self.steps % 8 == 0)
        shown = torch.full((self.num_envs, 2), math.nan if self.steps == 96 else 1.0)
        return shown, torch.full((self.num_envs,), float(self.steps % 8 != 1)), torch.zeros_like(cut), cut


def test_a_bad_number_in_the_last_row_of_a_rollout_costs_one_update(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cut", types.SimpleNamespace(Cut=Cut))
    assert load(train(config(tmp_path, env="torch:cut:Cut", on_nan="skip")))["skipped"] == 1


class Ending:
    """Ends every fifth step, with an observation whose number is `last`; `nested` or not."""

    action_space = Discrete(2)

    def __init__(self, num_envs, *, device, seed, last, nested):
        number, self.nested = Box(-np.inf, np.inf, (2,)), nested
        self.observation_space = Dict({"image": Box(0, 255, (3,), np.uint8), "number": number}) if nested else number
        self.num_envs, self.last, self.steps = num_envs, float(last), 0

    def observe(self, number):
        numbers = torch.full((self.num_envs, 2), 1.0)
        numbers[:, 1] = number
        image = torch.full((self.num_envs, 3), self.steps % 5, dtype=torch.uint8)
        return {"image": image, "number": numbers} if self.nested else numbers

    def reset(self):
        return self.observe(0.0)

    def step(self, actions):
        self.steps += 1
        over = torch.full((self.num_envs,), self.steps % 6 == 5)
        rewards = torch.where(torch.tensor(self.steps % 6 == 0), 0.0, actions.float())
        return self.observe(self.last if over[0] else 0.5), rewards, over, torch.zeros_like(over)


@pytest.mark.parametrize("last", ["nan", "inf", "-inf", "1e9"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("how", [{"reuse_forward": "on"}, {"reuse_forward": "off"}, {"normalize_observations": True}])
def test_what_the_last_observation_of_an_episode_says_is_not_learnt_from(tmp_path, monkeypatch, last, nested, how):
    monkeypatch.setitem(sys.modules, "ending", types.SimpleNamespace(Ending=Ending))
    common = {"env": "torch:ending:Ending", "total_steps": 600, **how}
    odd, plain = (
        train(config(tmp_path, name, **common, env_kwargs={"last": shown, "nested": nested}))
        for name, shown in (("odd", last), ("plain", "0"))
    )
    assert load(odd)["skipped"] == 0 and same_parameters(load(odd), load(plain))


def test_films_of_the_games_are_in_tensorboard(tmp_path):
    run = train(config(tmp_path, total_steps=640, video_interval=5)).run_dir
    board = EventAccumulator(str(run), size_guidance={"images": 0}).Reload()
    films = board.Images("episode/film")
    assert len(films) == 2 and films[0].step < films[1].step
    assert (films[0].height, films[0].width) == (400, 600)
    with Image.open(io.BytesIO(films[1].encoded_image_string)) as film:
        assert film.format == "GIF" and film.n_frames > 8
        shown = []
        for number in range(film.n_frames):
            film.seek(number)
            shown.append(np.asarray(film.convert("RGB")))
    assert all(picture.std() > 10 for picture in shown)
    assert sum(not np.array_equal(a, b) for a, b in zip(shown, shown[1:], strict=False)) > len(shown) / 2


@pytest.mark.parametrize(
    ("env", "told"), [("ToyText/Catch", "EnvPool cannot draw it"), ("torch:walks:Walk", "it cannot be drawn")]
)
def test_a_film_of_what_cannot_be_drawn_is_refused_before_training(tmp_path, monkeypatch, env, told):
    with pytest.raises(UserError, match=told):
        train(config(tmp_path, env=env, video_interval=5))
    assert not (tmp_path / "run").exists()


def test_a_film_that_fails_later_warns_once_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise RunError("a.gif cannot be written (No space left on device)")

    monkeypatch.setattr("fasta2c.sideshow.gif", full)
    assert train(config(tmp_path, total_steps=1000, video_interval=5)).env_steps >= 1000
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "fasta2c: warning: no film could be made (a.gif cannot be written (No space left on device)); the run goes on."
    ]
