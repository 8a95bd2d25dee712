"""Sweeps try what they are told to, go on after a kill, share their work, and say what was best."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
import types

import numpy as np
import optuna
import pytest
import yaml
from PIL import Image

from fasta2c import TrainConfig, train
from fasta2c.cli import main
from fasta2c.errors import DiskError, RunError, Stopped, UserError
from fasta2c.presets import read_config
from fasta2c.records import TrainResult
from fasta2c.tools import study as study_module
from fasta2c.tools import sweep as module
from fasta2c.tools.sweep import sweep

QUICK = {
    "env": "Classic/CartPole",
    "num_envs": 8,
    "num_steps": 8,
    "total_steps": 1500,
    "log_interval": 5,
    "quiet": True,
}
GRID = {"lr": [1e-5, 1e-2], "gamma": [0.9, 0.99]}


def quick(**changed):
    return TrainConfig(**{**QUICK, **changed})


@pytest.fixture
def pretended(monkeypatch):
    """Training that takes no time: the score is 100 lr + seed. Returns what was asked of it."""
    asked = []

    def pretend(config, *, resume=None, callbacks=()):
        asked.append(config)
        config.run_dir.mkdir(parents=True)
        return TrainResult(config.run_dir, 1, 1, 1, 1.0, 1.0, 100 * config.lr + config.seed, 0.0, None, None)

    monkeypatch.setattr(module, "train", pretend)
    monkeypatch.setattr(module, "plot", lambda runs, out: None)
    return asked


def rows(folder):
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_grid_is_tried_whole_with_each_seed(tmp_path):
    tried = sweep(quick(), GRID, tmp_path / "s", seeds=[3, 4], prune=False)
    assert sorted((t.values["lr"], t.values["gamma"]) for t in tried) == [
        (1e-5, 0.9),
        (1e-5, 0.99),
        (1e-2, 0.9),
        (1e-2, 0.99),
    ]
    assert [t.mean for t in tried] == sorted((t.mean for t in tried), reverse=True)
    for trial in tried:
        assert trial.state == "complete" and len(trial.scores) == 2
        configs = [read_config(run / "config.yaml") for run in trial.runs]
        assert [config["seed"] for config in configs] == [3, 4]
        assert all(config[name] == value for config in configs for name, value in trial.values.items())
    table = rows(tmp_path / "s")
    assert [float(row["mean_return"]) for row in table] == [t.mean for t in tried] and table[0]["rank"] == "1"
    with Image.open(tmp_path / "s" / "curves.png") as picture:
        assert 0.02 < (np.asarray(picture.convert("L")) < 200).mean() < 0.5


def test_the_best_can_be_trained_with(tmp_path, pretended):
    best, *_ = sweep(quick(num_steps=16), GRID, tmp_path / "s", seeds=[0, 1])
    assert best.values["lr"] == 1e-2 and best.scores == [1.0, 2.0]
    values = read_config(tmp_path / "s" / "best.yaml")
    assert (values["lr"], values["num_steps"]) == (1e-2, 16) and not {"seed", "run_dir", "quiet"} & values.keys()
    assert train(TrainConfig(**values, run_dir=tmp_path / "run", quiet=True)).env_steps >= 1500


def test_called_again_nothing_is_done_twice(tmp_path, pretended):
    first = sweep(quick(), GRID, tmp_path / "s", trials=3)
    assert len(pretended) == len(first) == 3
    whole = sweep(quick(), GRID, tmp_path / "s")
    assert len(pretended) == len(whole) == 4 and len({config.run_dir for config in pretended}) == 4
    assert sweep(quick(), GRID, tmp_path / "s") == whole and len(pretended) == 4


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_ranges_and_lists_are_drawn_from(tmp_path, pretended, sampler):
    space = {
        "lr": {"low": 1e-5, "high": 1e-1, "log": True},
        "num_steps": {"low": 4, "high": 9},
        "hidden_sizes": [[32], [64, 64]],
        "critic_lr": [None, 1e-3],
    }
    tried = sweep(quick(), space, tmp_path / "s", sampler=sampler, trials=25)
    assert len(tried) == len(pretended) == 25
    assert all(1e-5 <= config.lr <= 1e-1 and 4 <= config.num_steps <= 9 for config in pretended)
    assert {config.hidden_sizes for config in pretended} == {(32,), (64, 64)}
    assert {config.critic_lr for config in pretended} == {None, 1e-3}
    # Before a sampler knows anything: by magnitude three of four (2 of ten come once in 2,400), by value one in ten.
    assert sum(config.lr < 1e-2 for config in pretended[:10]) > 2
    if sampler == "random":
        assert sum(config.lr < 1e-3 for config in pretended) > 2, "by magnitude half of them, by value a hundredth"


def test_what_stands_below_the_others_is_given_up(tmp_path, monkeypatch):
    """Five that get from 0 to 50, and then one that gets to 10."""
    steps = []

    def pretend(config, *, resume=None, callbacks=()):
        config.run_dir.mkdir(parents=True)
        best = 50.0 if len(steps) < 5 else 10.0
        steps.append(0)
        run = types.SimpleNamespace(
            config=config, mean_return=None, stop=lambda: setattr(run, "stopped", True), stopped=False
        )
        for run.env_steps in range(0, config.total_steps + 1, 50):
            run.mean_return = best * run.env_steps / config.total_steps if run.env_steps else None
            for callback in callbacks:
                callback.on_update(run)
            if run.stopped:
                break
        steps[-1] = run.env_steps
        return TrainResult(config.run_dir, 1, 1, 1, 1.0, 1.0, run.mean_return, 0.0, None, None)

    monkeypatch.setattr(module, "train", pretend)
    monkeypatch.setattr(module, "plot", lambda runs, out: None)
    tried = sweep(quick(total_steps=1000), {"lr": [1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 6e-3]}, tmp_path / "s")
    assert steps == [1000] * 5 + [300], "as soon as three tenths are done"
    assert [trial.state for trial in tried] == ["complete"] * 5 + ["pruned"]
    assert (tried[-1].scores, tried[0].scores) == ([3.0], [50.0])


def test_pruning_can_be_left_out(tmp_path):
    told = []

    class Always(optuna.pruners.NopPruner):
        def prune(self, study, trial):
            told.append(trial.number)
            return True

    def pruned(prune):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(optuna.pruners, "MedianPruner", lambda **_: Always())
            return sweep(quick(), {"lr": [1e-3]}, tmp_path / str(prune), prune=prune)

    assert [trial.state for trial in pruned(False)] == ["complete"] and not told
    assert [trial.state for trial in pruned(True)] == ["pruned"] and told


@pytest.mark.parametrize("error", [Stopped(signal.SIGINT), KeyboardInterrupt()])
def test_what_a_signal_has_ended_is_tried_again(tmp_path, pretended, monkeypatch, error):
    """Stopped comes from inside a run, KeyboardInterrupt while its environments are made."""
    real = module.train

    def interrupted(config, **options):
        if len(pretended) == 2:
            monkeypatch.setattr(module, "train", real)
            raise error
        return real(config, **options)

    monkeypatch.setattr(module, "train", interrupted)
    with pytest.raises(type(error)):
        sweep(quick(), GRID, tmp_path / "s")
    assert len(pretended) == 2
    tried = sweep(quick(), GRID, tmp_path / "s")
    assert len(tried) == len(pretended) == 4 and len({str(t.values) for t in tried}) == 4
    assert all(trial.state == "complete" for trial in tried)


def test_what_a_full_disk_has_ended_is_tried_again(tmp_path, pretended, monkeypatch):
    real = module.train

    def full(config, **options):
        raise DiskError("no room")

    monkeypatch.setattr(module, "train", full)
    with pytest.raises(DiskError, match="no room"):
        sweep(quick(), GRID, tmp_path / "s")
    monkeypatch.setattr(module, "train", real)
    assert [trial.state for trial in sweep(quick(), GRID, tmp_path / "s")] == ["complete"] * 4


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"no database" * 1000])
def test_a_damaged_database_is_told_in_a_line(tmp_path, pretended, damage):
    sweep(quick(), {"lr": [1e-3]}, tmp_path / "s")
    file = tmp_path / "s" / "study.db"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(RunError, match=r"study.db cannot be used \([^\n]+\); the runs beside it are whole"):
        sweep(quick(), {"lr": [1e-3]}, tmp_path / "s")


def test_what_fails_after_an_interruption_has_failed(tmp_path, monkeypatch):
    errors = [KeyboardInterrupt(), RunError("NaN"), AssertionError("not tried again")]

    def failing(config, **options):
        raise errors.pop(0)

    monkeypatch.setattr(module, "train", failing)
    with pytest.raises(KeyboardInterrupt):
        sweep(quick(), {"lr": [1e-3]}, tmp_path / "s")
    for _ in range(2):
        with pytest.raises(RunError, match="no setting came to an end .*: NaN"):
            sweep(quick(), {"lr": [1e-3]}, tmp_path / "s")
    assert [row["state"] for row in rows(tmp_path / "s")] == ["fail"]


def test_settings_that_cannot_be_together_fail_alone(tmp_path):
    """Exploration by state is for real-valued actions."""
    tried = sweep(quick(), {"sde": [True, False]}, tmp_path / "s")
    assert [trial.state for trial in tried] == ["complete", "fail"]
    assert "sde: it is for real-valued actions" in str(tried[1]) and (tmp_path / "s" / "best.yaml").exists()


def test_the_dead_of_another_machine_are_known_as_such(tmp_path, pretended):
    """Whoever is at work holds a lock; names and process ids tell nothing after a restart."""
    sweep(quick(), GRID, tmp_path / "s", trials=1)
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{tmp_path / 's' / 'study.db'}")
    (done,) = study.trials
    left = next(json.loads(v) for v in ("0.9", "0.99") if v != done.params["gamma"])
    study.enqueue_trial({"lr": done.params["lr"], "gamma": json.dumps(left)})
    study.ask().set_user_attr("worker", "node01-7-abc")  # RUNNING for ever
    (tmp_path / "s" / "workers" / "node01-7-abc").touch()
    tried = sweep(quick(), GRID, tmp_path / "s")
    assert len({str(trial.values) for trial in tried}) == len(tried) == 4


def test_a_setting_that_somebody_is_at_is_left_to_them(tmp_path, pretended):
    sweep(quick(), GRID, tmp_path / "s", trials=1)
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{tmp_path / 's' / 'study.db'}")
    study.enqueue_trial({"lr": "1e-05" if study.trials[0].params["lr"] != "1e-05" else "0.01", "gamma": "0.9"})
    study.ask({}).set_user_attr("worker", "other")
    with study_module.lock(tmp_path / "s" / "workers" / "other"):
        assert len(sweep(quick(), GRID, tmp_path / "s")) == 3
    assert len(sweep(quick(), GRID, tmp_path / "s")) == 4


KILLED = """
import sys
from fasta2c import TrainConfig
from fasta2c.tools.sweep import sweep
sweep(TrainConfig(env="Classic/CartPole", num_envs=8, num_steps=8, total_steps=15_000, checkpoint_interval=20,
    log_interval=20, quiet=True), {"lr": [1e-3, 1e-2]}, sys.argv[1], prune=False)
"""


def test_after_a_kill_the_run_goes_on_from_its_checkpoint(tmp_path):
    folder = tmp_path / "s"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(folder)]) as process:
        for _ in range(600):
            time.sleep(0.1)
            if saved := list(folder.glob("runs/*/checkpoints/latest.pt")):
                break
        process.kill()
    assert len(saved) == 1, "the first of them was under way"
    begun = saved[0].parents[1]
    subprocess.run([sys.executable, "-c", KILLED, str(folder)], check=True, timeout=300)
    assert len(rows(folder)) == 2 and {row["state"] for row in rows(folder)} == {"complete"}
    steps = [int(row["env_steps"]) for row in csv.DictReader((begun / "metrics.csv").open())]
    assert steps == sorted(set(steps)) and steps[-1] >= 15_000
    assert len(list(folder.glob("runs/*"))) == 2 and len(list(begun.glob("events.out.tfevents.*"))) == 2


def test_processes_share_the_work(tmp_path):
    code = KILLED.replace("15_000", "3000").replace("[1e-3, 1e-2]", "[1e-4, 2e-4, 3e-4, 1e-3, 2e-3, 3e-3]")
    workers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "s")]) for _ in range(2)]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    table = rows(tmp_path / "s")
    assert sorted(float(row["lr"]) for row in table) == [1e-4, 2e-4, 3e-4, 1e-3, 2e-3, 3e-3]
    assert len(list((tmp_path / "s" / "runs").iterdir())) == 6
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{tmp_path / 's' / 'study.db'}")
    assert len({trial.user_attrs["worker"] for trial in study.trials}) == 2 and len(study.trials) == 6


def test_a_setting_that_fails_is_told_and_the_others_go_on(tmp_path):
    with pytest.raises(RunError, match="no setting came to an end .*no episode has ended"):
        sweep(quick(total_steps=8), {"lr": [1e-3, 1e-2]}, tmp_path / "s")  # no game ends within 8 steps
    assert not (tmp_path / "s" / "best.yaml").exists()
    assert [row["mean_return"] for row in rows(tmp_path / "s")] == ["", ""]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--sweep-dir s", "--space is missing"),
        ("--space {", "--space: '{' is not JSON"),
        ('--space {"num_envs":["auto"]}', "auto would choose anew for each run"),
        ("--space {}", "--space: nothing to search"),
        ('--space {"lrr":[1]}', "--space: 'lrr' is nothing to search. Did you mean lr"),
        ('--space {"seed":[1]}', "--space: 'seed' is nothing to search."),
        ('--space {"lr":[]}', "space.lr: [] is neither a list of values nor a range"),
        ('--space {"lr":3}', "space.lr: 3 is neither a list of values nor a range"),
        ('--space {"lr":[-1]}', "space: lr: -1.0 is out of range"),
        ('--space {"lr":[0.001,1e-3]}', "space.lr: [0.001, 0.001] has 0.001 twice"),
        ('--space {"gamma":[1,1.0]}', "space.gamma: [1, 1.0] has 1.0 twice"),
        ('--space {"lr":{"low":0,"high":1,"log":true}} --sampler tpe --trials 1', "true only of a range above 0"),
        ('--space {"lr":{"low":1,"high":2,"log":1}} --sampler tpe --trials 1', "log is true or false"),
        ('--space {"lr":[1e-3]} --seeds -1', "seeds: -1 is out of range"),
        ('--space {"lr":["x"]}', "space: lr: expected a number, found text"),
        ('--space {"lr":{"low":0.1,"high":1}}', "space.lr: a grid needs a list of values"),
        ('--space {"lr":{"low":0.1}} --sampler tpe --trials 2', "space.lr: {'low': 0.1} is no range"),
        ('--space {"lr":{"low":1,"high":0.1}} --sampler tpe --trials 2', "is no range"),
        ('--space {"shared":{"low":false,"high":true}} --sampler tpe --trials 2', "is no range"),
        ('--space {"lr":[0.1]} --sampler random', "trials: random has no end"),
        ('--space {"lr":[0.1]} --sampler best', "--sampler: 'best' is not one of grid, random, tpe"),
        ('--space {"lr":[0.1]} --trials 0', "--trials: 0 is out of range"),
        ('--space {"lr":[0.1]} --seeds 1 1', "seeds: at least one is needed, and none twice"),
        ('--space {"lr":[0.1]} --seed 3', "--seed is set by the sweep"),
        ('--space {"lr":[0.1]} --num-envs auto', "--num-envs: auto would choose anew for each run"),
        ('--space {"lr":[0.1]} --env Nope', "unknown environment 'Nope'"),
        ('--space {"lr":[0.1],"lr":[0.2]}', "--space: 'lr' stands there twice"),
        ('--space {"lr":[0.1]} --device cuda:99', "--device: 'cuda:99' is not there"),
        ('--space {"lr":[0.1]} --encoder nowhere:Own', "--encoder: no module named 'nowhere'"),
        ('--space {"lr":[0.1]} --env torch:nowhere:Own', "no module named 'nowhere'"),
        ('--space {"lr":[0.1]} --env-kwargs {"a":1}', "env_kwargs.a: CartPole-v1 has no such option"),
        ('--space {"lr":[0.1]} --sweep-dir taken', "taken is not empty and holds no sweep"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, capsys, flags, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    assert main(["sweep", *flags.split()]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and told in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_ranges_of_real_numbers_have_real_ones_between_whole_ends(tmp_path, pretended):
    space = {"gamma": {"low": 0, "high": 1}, "num_steps": {"low": 1, "high": 64}}
    tried = sweep(quick(), space, tmp_path / "s", sampler="random", trials=5)
    assert len({trial.values["gamma"] for trial in tried}) == 5
    assert all(isinstance(trial.values["num_steps"], int) for trial in tried)


@pytest.mark.parametrize("name", ["s?a=1", "s#b", "s%41", "sä b"])
def test_a_sweeps_folder_may_be_called_anything(tmp_path, pretended, name):
    assert len(sweep(quick(), GRID, tmp_path / name)) == 4
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name / "study.db").is_file()


def test_a_sweep_of_which_nothing_could_be_run_has_failed(tmp_path, capsys):
    assert main(["sweep", "--space", '{"sde":[true]}', "--sweep-dir", str(tmp_path / "s"), "--quiet"]) == 1
    told = capsys.readouterr()
    assert not told.out and "no setting came to an end" in told.err and "sde: it is for real-valued" in told.err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"trials": -1}, "trials: -1 is out of range"),
        ({"trials": 0}, "trials: 0 is out of range"),
        ({"trials": 1.5}, "trials: expected a whole number"),
        ({"trials": "2"}, "trials: expected a whole number"),
        ({"seeds": 3}, "seeds: expected a list"),
        ({"seeds": ["a"]}, "seeds: expected a whole number"),
        ({"seeds": ()}, "seeds: at least one"),
        ({"space": {3: [1]}}, "space: 3 is nothing to search"),
        ({"space": [("lr", [1])]}, "space: nothing to search"),
    ],
)
def test_mistakes_in_python(tmp_path, given, told):
    with pytest.raises(UserError, match=told):
        sweep(quick(), **{"space": GRID, "folder": tmp_path / "s", **given})
    assert not (tmp_path / "s").exists()


def test_numpys_numbers_are_welcome(tmp_path, pretended):
    space = {"lr": [np.float64(1e-3), np.float32(0.5)], "num_steps": np.array([4, 8])}
    tried = sweep(quick(), space, tmp_path / "s", seeds=np.arange(2))
    assert len(tried) == 4 and tried[0].values == {"lr": 0.5, "num_steps": 4}
    assert yaml.safe_load((tmp_path / "s" / "best.yaml").read_text())["lr"] == 0.5


def test_a_sweep_goes_on_with_its_settings_named_in_another_order(tmp_path, pretended):
    sweep(quick(), {"lr": [1e-3, 1e-2], "gamma": [0.9]}, tmp_path / "s", trials=1)
    sweep(quick(), {"gamma": [0.9], "lr": [1e-3, 1e-2]}, tmp_path / "s")
    assert sorted((float(row["lr"]), float(row["gamma"])) for row in rows(tmp_path / "s")) == [(1e-3, 0.9), (1e-2, 0.9)]
    assert all(config.run_dir.name.startswith("gamma=0.9,lr=") for config in pretended)


def test_options_that_are_tried_are_laid_over_the_others(tmp_path, pretended):
    config = quick(env="gymnasium:CartPole-v1", env_kwargs={"sutton_barto_reward": True})
    sweep(config, {"env_kwargs": [{"max_episode_steps": 9}]}, tmp_path / "s")
    both = {"sutton_barto_reward": True, "max_episode_steps": 9}
    assert pretended[0].env_kwargs == both == read_config(tmp_path / "s" / "best.yaml")["env_kwargs"]


def test_runs_that_were_removed_are_missed_by_the_picture_alone(tmp_path, capsys):
    space = {"lr": [1e-3, 1e-2]}
    tried = sweep(quick(), space, tmp_path / "s")
    for trial in tried:
        shutil.rmtree(trial.runs[0])
        assert sweep(quick(), space, tmp_path / "s") == tried and len(rows(tmp_path / "s")) == 2
        assert "curves.png lacks the runs that were removed" in capsys.readouterr().err


def test_a_sampler_that_there_is_not_is_refused(tmp_path):
    with pytest.raises(UserError, match="sampler: 'gird' is not one of grid, random, tpe. Did you mean grid"):
        sweep(quick(), GRID, tmp_path / "s", sampler="gird", trials=1)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("summary", ["[]", "{", '{"status": "done"}', '{"status": "done", "env_steps": "x"}'])
def test_a_summary_that_is_none_is_of_no_account(tmp_path, pretended, monkeypatch, summary):
    train = module.train

    def interrupted(config, **options):
        config.run_dir.mkdir(parents=True)
        (config.run_dir / "summary.json").write_text(summary)
        monkeypatch.setattr(module, "train", train)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(quick(), {"lr": [1e-3]}, tmp_path / "s")
    (trial,) = sweep(quick(), {"lr": [1e-3]}, tmp_path / "s")
    assert trial.state == "complete"


def test_a_sweep_that_others_are_at_work_on_has_not_failed(tmp_path, monkeypatch):
    def failing(config, **options):
        raise RunError("NaN")

    monkeypatch.setattr(module, "train", failing)
    with pytest.raises(RunError):
        sweep(quick(), {"lr": [1e-3]}, tmp_path / "s", trials=1)
    (tmp_path / "t" / "workers").mkdir(parents=True)
    study = study_module.open_study(tmp_path / "t", "grid", prune=False)
    study.enqueue_trial({"lr": "0.01"})
    study.ask({}).set_user_attr("worker", "other")
    with study_module.lock(tmp_path / "t" / "workers" / "other"):
        (trial,) = sweep(quick(), {"lr": [1e-2, 1e-3]}, tmp_path / "t")
    assert trial.state == "fail" and rows(tmp_path / "t")[0]["failure"] == "NaN"


@pytest.mark.parametrize("changed", [{"seeds": [1]}, {"sampler": "random", "trials": 2}, {"space": {"lr": [1e-3]}}])
def test_another_sweep_is_not_mixed_in(tmp_path, pretended, changed):
    sweep(quick(), GRID, tmp_path / "s")
    with pytest.raises(UserError, match=f"holds a sweep with another {next(iter(changed))}"):
        sweep(quick(), changed.pop("space", GRID), tmp_path / "s", **changed)
    with pytest.raises(UserError, match="holds a sweep with another config"):
        sweep(quick(ent_coef=0.1), GRID, tmp_path / "s")


def test_without_optuna_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install '\.\[sweep\]'"):
        sweep(quick(), GRID, tmp_path / "s")


def test_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text("num_envs: 8\nnum_steps: 8\ntotal_steps: 1500\nlog_interval: 5\n")
    command = ["sweep", "--config", "base.yaml", "--space", '{"lr": [1e-5, 1e-2]}', "--ent-coef", "0.01"]
    assert main([*command, "--seeds", "0", "1", "--no-prune"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all("± " in line and "lr " in line for line in lines[:2])
    assert lines[2] == "train the best:  fasta2c train --config sweep/best.yaml"
    about = yaml.safe_load((tmp_path / "sweep" / "sweep.yaml").read_text())
    assert about["config"]["ent_coef"] == 0.01 and about["seeds"] == [0, 1]
    assert main(["train", "--config", "sweep/best.yaml", "--run-dir", "run", "--quiet"]) == 0
