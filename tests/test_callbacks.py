"""Callbacks are told of each update, game and checkpoint, and may end a run."""

import csv
import json
from pathlib import Path

import pytest
import torch

from fasta2c import Callback, TrainConfig, train
from fasta2c.errors import UserError
from fasta2c.run import checkpoint

SMALL = {"num_envs": 8, "num_steps": 8, "quiet": True, "log_interval": 5, "total_steps": 1500}


class Noting(Callback):
    def __init__(self):
        self.updates, self.games, self.saved = [], [], []

    def on_update(self, run):
        self.updates.append((run.update, run.env_steps, run.mean_return))

    def on_episode_end(self, run, game):
        self.games.append(game)
        assert run.update == len(self.updates) + 1, "before the update's own"

    def on_checkpoint(self, run, path):
        self.saved.append((run.update, checkpoint.load(path)["update"]))


def test_each_update_game_and_checkpoint_is_told(tmp_path):
    noting = Noting()
    result = train(TrainConfig(run_dir=tmp_path / "run", checkpoint_interval=10, **SMALL), callbacks=[noting])
    assert [update for update, _, _ in noting.updates] == list(range(1, result.updates + 1))
    assert noting.updates[-1][1:] == (result.env_steps, result.mean_return)
    assert len(noting.games) == result.episodes > 20
    last = noting.games[-100:]
    assert sum(game.score for game in last) / len(last) == pytest.approx(result.mean_return)
    assert all(game.length == game.score for game in noting.games) and {game.env for game in noting.games} == set(
        range(8)
    )
    assert noting.saved == [(n, n) for n in (10, 20)] + [(result.updates, result.updates)]


def test_games_of_a_class_on_the_device_are_told_too(reach, tmp_path):
    noting = Noting()
    result = train(TrainConfig(env="torch:reach:Reach", run_dir=tmp_path / "run", **SMALL), callbacks=[noting])
    assert len(noting.games) == result.episodes >= 24 and all(game.length == 50 for game in noting.games)


def test_callbacks_change_nothing_of_what_is_learnt(tmp_path):
    class Looking(Callback):
        def on_update(self, run):
            run.policy.act(torch.zeros(3, 4))

    plain = train(TrainConfig(run_dir=tmp_path / "a", **SMALL))
    watched = train(TrainConfig(run_dir=tmp_path / "b", **SMALL), callbacks=[Looking()])
    a, b = (checkpoint.load(checkpoint.resolve(run.run_dir))["model"] for run in (plain, watched))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_callback_ends_a_run_as_its_budget_would(tmp_path):
    class Enough(Callback):
        def on_update(self, run):
            if run.update == 7:
                run.stop()

    result = train(TrainConfig(run_dir=tmp_path / "run", **SMALL), callbacks=[Enough(), noting := Noting()])
    assert result.updates == 7 and len(noting.updates) == 7, "the others hear of it as well"
    assert json.loads((result.run_dir / "summary.json").read_text())["status"] == "done"
    with (result.run_dir / "metrics.csv").open() as file:
        assert [row["update"] for row in csv.DictReader(file)] == ["5", "7"]
    assert checkpoint.load(checkpoint.resolve(result.run_dir))["update"] == 7
    assert train(TrainConfig(quiet=True), resume=result.run_dir).updates > 7, "and it can go on"


def test_the_documented_callback_ends_a_run_that_learns_no_more(tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "python.md").read_text(encoding="utf-8")
    code = next(block for block in page.split("```python\n") if "class Patience" in block).partition("```")[0]
    names: dict = {}
    exec(code.partition("\nresult = ")[0], names)
    config = TrainConfig(run_dir=tmp_path / "run", lr=1e-30, critic_lr=1e-30, **{**SMALL, "total_steps": 10**6})
    result = train(config, callbacks=[patience := names["Patience"](2000)])
    assert result.env_steps < 10**5 and result.env_steps - patience.best_at == pytest.approx(2000, abs=64)


def test_callbacks_may_come_one_after_another_or_alone(tmp_path):
    noting = [Noting(), Noting()]
    result = train(TrainConfig(run_dir=tmp_path / "run", **SMALL), callbacks=iter(noting))
    assert all(len(each.updates) == result.updates > 1 for each in noting)
    result = train(TrainConfig(run_dir=tmp_path / "alone", **SMALL), callbacks=(alone := Noting()))
    assert len(alone.updates) == result.updates


@pytest.mark.parametrize("wrong", [None, [Noting], [print]], ids=["none", "class", "function"])
def test_what_is_no_callback_is_refused_before_anything_is_written(tmp_path, wrong):
    with pytest.raises(UserError, match="callbacks: .* is no Callback; give a list of instances"):
        train(TrainConfig(run_dir=tmp_path / "run", **SMALL), callbacks=wrong)
    assert not (tmp_path / "run").exists()


def test_a_callback_that_fails_leaves_the_run_whole(tmp_path):
    class Broken(Callback):
        def on_update(self, run):
            if run.update == 15:
                raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        train(TrainConfig(run_dir=tmp_path / "run", checkpoint_interval=10, **SMALL), callbacks=[Broken()])
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"
    assert checkpoint.load(checkpoint.resolve(tmp_path / "run"))["update"] == 10
