"""Finding a fast number of environments: which trial wins, what is tried, and that a run takes it over."""

import json
import weakref

import pytest
import torch
import yaml

from fasta2c import TrainConfig, train, tune
from fasta2c.errors import UserError
from fasta2c.tune import Trial, choose, sweep

CPU = torch.device("cpu")


def trial(num_envs, sps, **more):
    return Trial({"num_envs": num_envs, **more}, sps, 1.0)


def test_the_fewest_environments_that_are_nearly_as_fast():
    assert choose([trial(16, 50), trial(64, 91), trial(256, 100)]).settings == {"num_envs": 64}
    assert choose([trial(16, 50), trial(64, 89), trial(256, 100)]).settings == {"num_envs": 256}
    assert choose([trial(64, 91), trial(64, 99, env_threads=1), trial(256, 100)]).settings["env_threads"] == 1


class Speeds:
    """Stands in for trials: each takes no time and reaches what is said of its number of environments."""

    def __init__(self, monkeypatch, sps, seconds=0.0):
        self.tried = []

        def attempt(config, device, settings):
            self.tried.append(settings)
            return Trial(settings, sps[settings["num_envs"]], seconds * settings["num_envs"])

        monkeypatch.setattr(tune, "_try", attempt)
        monkeypatch.setattr("fasta2c.accel.cores", lambda: 8)

    def numbers(self, config, seconds=100.0):
        return [t.settings["num_envs"] for t in sweep(config, CPU, seconds=seconds) if len(t.settings) == 1]


RISING = {16: 1, 64: 2, 256: 3, 1024: 4, 4096: 5}
LONG = TrainConfig(num_envs="auto", total_steps=10**9)


def test_more_are_tried_as_long_as_they_pay(monkeypatch):
    assert Speeds(monkeypatch, RISING).numbers(LONG) == [16, 64, 256, 1024, 4096]
    assert Speeds(monkeypatch, {16: 9, 64: 8, 256: 7}).numbers(LONG) == [16, 64, 256]


def test_a_run_keeps_updates_enough_to_learn(monkeypatch):
    short = TrainConfig(num_envs="auto", num_steps=10, total_steps=2000 * 64)
    assert Speeds(monkeypatch, RISING).numbers(short) == [16, 64]
    assert Speeds(monkeypatch, RISING).numbers(TrainConfig(num_envs="auto", total_steps=1)) == [16]


def test_minibatches_want_environments_enough(monkeypatch):
    speeds = Speeds(monkeypatch, RISING)
    assert speeds.numbers(TrainConfig(num_envs="auto", total_steps=10**9, num_minibatches=32)) == [64, 256, 1024, 4096]
    with pytest.raises(UserError, match="num_minibatches: 5000"):
        speeds.numbers(TrainConfig(num_envs="auto", total_steps=10**9, num_minibatches=5000))


def test_trials_that_would_take_too_long_are_left_out(monkeypatch):
    """Each environment takes a tenth of a second: 16 and 64 of them fit into 10 s, 256 do not."""
    speeds = Speeds(monkeypatch, RISING, seconds=0.1)
    assert speeds.numbers(LONG, seconds=10) == [16, 64]


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA out of memory. Tried to allocate 9 GiB"), UserError("out of memory: 4,096 environments take…")],
    ids=["device", "before"],
)
def test_numbers_that_do_not_fit_into_memory_end_the_search(monkeypatch, error):
    def attempt(config, device, settings):
        if settings["num_envs"] > fits:
            raise error
        return Trial(settings, settings["num_envs"], 0.0)

    monkeypatch.setattr(tune, "_try", attempt)
    fits = 64
    assert max(t.settings["num_envs"] for t in sweep(LONG, CPU, seconds=100)) == 64
    fits = 1
    with pytest.raises(type(error), match="out of memory"):
        list(sweep(LONG, CPU, seconds=100))


def test_variants_that_do_not_fit_into_memory_are_passed_over(monkeypatch):
    def attempt(config, device, settings):
        if settings.get("env_groups") == 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 9 GiB")
        return Trial(settings, 5.0 - len(settings), 0.0)

    monkeypatch.setattr(tune, "_try", attempt)
    tried = [t.settings for t in sweep(LONG, CPU, seconds=100)]
    assert [s for s in tried if "env_groups" in s] == [{"num_envs": 16, "env_groups": 1}]


def test_nothing_is_left_of_a_trial_that_did_not_fit(monkeypatch):
    """Not even the frames that its error came through, when the next one begins."""

    class Rollout:
        pass

    def measure(config, device):
        assert not any(alive() for alive in left), "memory of the trial before"
        rollout = Rollout()
        rollout.itself = rollout
        left.append(weakref.ref(rollout))
        if config.num_envs > 16:
            raise RuntimeError("CUDA out of memory. Tried to allocate 9 GiB")
        return 1.0

    left = []
    monkeypatch.setattr(tune, "_measure", measure)
    list(sweep(LONG, CPU, seconds=100))
    assert len(left) > 2
    assert not any(alive() for alive in left)


def test_groups_and_threads_are_tried_unless_given(monkeypatch):
    speeds = Speeds(monkeypatch, {16: 1, 64: 0, 256: 0})
    list(sweep(LONG, CPU, seconds=10))
    assert [s for s in speeds.tried if len(s) > 1] == [
        {"num_envs": 16, **other}
        for other in ({"env_groups": 1}, {"env_groups": 2}, {"env_threads": 1}, {"env_threads": 4})
    ]
    speeds.tried.clear()
    list(sweep(TrainConfig(num_envs="auto", total_steps=10**9, env_groups=1, env_threads=2), CPU, seconds=10))
    assert all(len(s) == 1 for s in speeds.tried)


def test_a_run_takes_what_was_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tune, "NUM_ENVS", (2, 4))
    monkeypatch.setattr(tune, "UPDATES", 5)
    run = train(TrainConfig(num_envs="auto", num_steps=4, total_steps=200, run_dir=tmp_path / "run"))
    saved = yaml.safe_load((run.run_dir / "config.yaml").read_text())
    assert saved["num_envs"] in (2, 4)
    told = capsys.readouterr().err
    assert "--num-envs 2: " in told and "--num-envs 4: " in told and "taken: " in told and "optimizer steps" in told
    assert json.loads((run.run_dir / "summary.json").read_text())["status"] == "done"


def test_an_environment_that_cannot_be_made_is_one_error(tmp_path):
    with pytest.raises(UserError, match="no such option"):
        train(TrainConfig(num_envs="auto", env_kwargs={"nothing": 1}, run_dir=tmp_path / "run", quiet=True))
    assert not (tmp_path / "run").exists()
