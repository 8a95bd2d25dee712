"""A user's own environments as tensors: the same rows as on the host, counted together, mistakes told in words."""

import sys
import types

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete

from fasta2c import TrainConfig, evaluate, make_envs, train
from fasta2c.envs.ids import resolve
from fasta2c.envs.torch import TorchEnvs
from fasta2c.errors import RunError, UserError

CPU = torch.device("cpu")


class Counter:
    """Environment e observes how many steps its episode has, ends after e + 1 of them; cut after 3."""

    observation_space = Dict({"steps": Box(0, 99, (1,)), "parity": Discrete(2)})
    action_space = Discrete(2, start=5)

    def __init__(self, num_envs, *, device, seed, cut=3):
        self.lengths, self.cut = torch.arange(num_envs, device=device) + 1, cut
        self.steps = torch.zeros_like(self.lengths)
        self.over = torch.zeros_like(self.lengths, dtype=torch.bool)

    def observe(self):
        return {"steps": self.steps.unsqueeze(1).double(), "parity": self.steps % 2}

    def reset(self):
        self.steps.zero_()
        self.over.zero_()
        return self.observe()

    def step(self, actions):
        assert ((actions == 5) | (actions == 6)).all()
        rewards = torch.where(self.over, 0.0, actions.double())
        self.steps = torch.where(self.over, 0, self.steps + 1)
        terminated = ~self.over & (self.steps == self.lengths)
        truncated = ~self.over & ~terminated & (self.steps == self.cut)
        self.over = terminated | truncated
        return self.observe(), rewards, terminated, truncated


class Raising(Counter):
    @property
    def observation_space(self):
        raise LookupError("no map")


class Slamming(Counter):
    def close(self):
        raise LookupError("no door")


def test_a_space_that_cannot_be_asked_for_and_a_close_that_fails_are_told(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "odd", types.SimpleNamespace(Raising=Raising, Slamming=Slamming))
    with pytest.raises(UserError, match="torch:odd:Raising: observation_space raised LookupError: no map"):
        TorchEnvs(resolve("torch:odd:Raising"), 2, seeds=[0, 1], options={}, device=CPU)
    TorchEnvs(resolve("torch:odd:Slamming"), 2, seeds=[0, 1], options={}, device=CPU).close()
    assert "warning: torch:odd:Slamming: close raised LookupError: no door" in capsys.readouterr().err


class Wrong(Counter):
    """Gives one thing of the wrong shape."""

    def __init__(self, num_envs, *, device, seed, wrong=""):
        super().__init__(num_envs, device=device, seed=seed)
        self.wrong = wrong

    def step(self, actions):
        found = list(super().step(actions))
        if self.wrong == "observations":
            found[0] = {"steps": found[0]["steps"][:, 0], "parity": found[0]["parity"]}
        elif self.wrong == "missing":
            found[0] = {"steps": found[0]["steps"]}
        elif self.wrong == "rewards":
            found[1] = found[1].unsqueeze(1)
        elif self.wrong == "device":
            found[0] = {"steps": found[0]["steps"], "parity": found[0]["parity"].to("meta")}
        elif self.wrong == "flags":
            found[2] = found[2].to("meta")
        return tuple(found)


class Learnt(Counter):
    """Moves by a network of its own, whose parameters are there to be learnt by somebody else."""

    def __init__(self, num_envs, *, device, seed):
        super().__init__(num_envs, device=device, seed=seed)
        self.scale = torch.nn.Parameter(torch.ones((), device=device))

    def observe(self):
        with torch.enable_grad():
            observed = super().observe()
            return {"steps": observed["steps"] * self.scale, "parity": observed["parity"]}

    def step(self, actions):
        observed, rewards, *ends = super().step(actions)
        with torch.enable_grad():
            return observed, rewards * self.scale, *ends


@pytest.fixture(autouse=True)
def theirs(monkeypatch):
    module = types.SimpleNamespace(
        Counter=Counter,
        Wrong=Wrong,
        Rude=Rude,
        Paying=Paying,
        Learnt=Learnt,
        Bare=lambda num_envs, device, seed: object(),
    )
    monkeypatch.setitem(sys.modules, "theirs", module)


def make(name, num_envs=4, **options):
    return TorchEnvs(resolve(f"torch:theirs:{name}"), num_envs, seeds=[1] * num_envs, options=options, device=CPU)


def test_rows_keep_the_contract():
    envs = make("Counter")
    envs.reset()
    rows = [envs.step(torch.full((4,), 5)) for _ in range(5)]
    assert [row.terminated.tolist() for row in rows[:3]] == [[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0]]
    assert [row.truncated.tolist() for row in rows[:3]] == [[0] * 4, [0] * 4, [0, 0, 0, 1]]
    assert [row.valid.tolist() for row in rows[:4]] == [[1] * 4, [0, 1, 1, 1], [1, 0, 1, 1], [0, 1, 0, 0]]
    assert all(torch.equal(row.opens, ~row.valid) and torch.equal(row.scores, row.rewards) for row in rows)
    steps, parity = (envs.spec.layout.unpack(rows[0].observations)[i] for i in (1, 0))
    assert (steps.tolist(), steps.dtype) == ([[1.0]] * 4, torch.float32)
    assert parity.tolist() == [1] * 4


def test_training_counts_what_happened(tmp_path):
    """Four environments: the lengths of a game and its reset row give the share of valid rows."""
    options = {"num_envs": 4, "num_steps": 12, "total_steps": 400, "run_dir": tmp_path / "run", "quiet": True}
    run = train(TrainConfig(env="torch:theirs:Counter", **options))
    rows = run.updates * 12
    games = [rows // (length + 1) for length in (1, 2, 3, 3)]
    assert run.episodes == sum(games)
    assert run.env_steps == sum(rows - n for n in games)
    result = evaluate(run.run_dir, episodes=8)
    assert result.mean_length == np.mean([1, 2] + [3] * 6), "eight environments of a game each"


class Rude(Counter):
    """Changes the actions it is given."""

    def step(self, actions):
        found = super().step(actions)
        actions.fill_(10**9)
        return found


def test_what_an_environment_does_to_its_actions_stays_there(tmp_path):
    config = TrainConfig(env="torch:theirs:Rude", num_envs=4, total_steps=400, run_dir=tmp_path / "run", quiet=True)
    assert train(config).env_steps >= 400, "the update found the actions as they were drawn"


def test_groups_and_the_public_environments_agree():
    envs = make_envs("torch:theirs:Counter", 4, seed=0, cut=2)
    assert envs.reset()["steps"].tolist() == [[0.0]] * 4
    _, rewards, _, truncated, infos = envs.step(torch.tensor([5, 6, 5, 6]))
    assert rewards.tolist() == [5, 6, 5, 6] and not truncated.any() and infos["valid"].all()
    assert envs.step(torch.tensor([5, 6, 5, 6]))[3].tolist() == [False, False, True, True]


class Paying(Counter):
    """Pays for resets too, as EnvPool's DMC and MetaWorld do."""

    def step(self, actions):
        observations, rewards, terminated, truncated = super().step(actions)
        return observations, rewards + 1, terminated, truncated


def test_the_public_environments_pay_nothing_for_a_reset():
    envs = make_envs("torch:theirs:Paying", 2, seed=0)
    envs.reset()
    steps = [envs.step(torch.tensor([5, 6])) for _ in range(3)]
    expected = [[6, 7], [0, 7], [6, 0]]
    assert [rewards.tolist() for _, rewards, *_ in steps] == expected
    assert [infos["score"].tolist() for *_, infos in steps] == expected


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Nothing", {}, "no 'Nothing'"),
        ("Bare", {}, "has no observation_space"),
        ("Counter", {"nope": 1}, "cannot be made: TypeError"),
    ],
)
def test_a_class_that_cannot_be_used_is_told_in_words(name, options, message):
    with pytest.raises(UserError, match=message):
        make(name, **options)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("observations", r"its space says steps \[1\] of float32 for each environment, it gave \[4\] for all"),
        ("missing", "'parity' is missing"),
        ("rewards", r"rewards as a tensor of shape \[4\] on cpu"),
        ("device", "its observations are on meta, not on cpu"),
        ("flags", r"terminated as a tensor of shape \[4\] on cpu"),
    ],
)
def test_rows_of_the_wrong_shape_are_told_in_words(wrong, message):
    envs = make("Wrong", wrong=wrong)
    envs.reset()
    with pytest.raises(RunError, match=message):
        envs.step(torch.full((4,), 5))


@pytest.mark.parametrize("env", ["torch:", "torch:theirs", "torch::X", "torch:no_such_module:X"])
def test_ids_that_name_no_class(env):
    with pytest.raises(UserError):
        TorchEnvs(resolve(env), 2, seeds=[0], options={}, device=CPU)


@pytest.mark.usefixtures("reach")
def test_the_readmes_example_learns(tmp_path):
    config = TrainConfig(
        env="torch:reach:Reach", num_envs=256, total_steps=800_000, run_dir=tmp_path / "run", quiet=True
    )
    run = train(config)
    first = (run.run_dir / "metrics.csv").read_text(encoding="utf-8").splitlines()
    column = first[0].split(",").index("episode_return_mean")
    assert run.mean_return > 0.6 * float(first[1].split(",")[column]), "returns are below 0"


@pytest.mark.parametrize("method", ["reset", "step", "state_dict", "load_state_dict"])
def test_what_a_method_raises_is_told_in_words(monkeypatch, method):
    envs = make("Counter")
    envs.reset()
    monkeypatch.setattr(Counter, method, lambda self, *_: 1 / 0, raising=False)
    calls = {
        "reset": envs.reset,
        "step": lambda: envs.step(torch.full((4,), 5)),
        "state_dict": envs.state_dict,
        "load_state_dict": lambda: envs.load_state_dict({"envs": {}, "previous_done": torch.zeros(4)}),
    }
    told = rf"torch:theirs:Counter: {method} raised ZeroDivisionError: division by zero \(test_torch.py:\d+\)"
    with pytest.raises(RunError, match=told):
        calls[method]()


def test_nothing_of_an_environment_is_differentiated(tmp_path):
    run = train(
        TrainConfig(env="torch:theirs:Learnt", num_envs=4, total_steps=300, run_dir=tmp_path / "run", quiet=True)
    )
    assert evaluate(run.run_dir, episodes=3).episodes == 3


class Reusing(Counter):
    """Gives the same memory in each row, and writes into the actions that it is given."""

    def step(self, actions):
        observations, rewards, *ends = super().step(actions)
        actions.fill_(9)
        self.given = getattr(self, "given", [torch.zeros_like(end) for end in ends])
        for given, end in zip(self.given, ends, strict=True):
            given.copy_(end)
        return observations, rewards, *self.given


def test_rows_and_actions_are_the_callers_to_keep(monkeypatch):
    monkeypatch.setitem(sys.modules, "reusing", types.SimpleNamespace(Reusing=Reusing))
    envs = make_envs("torch:reusing:Reusing", 3, seed=0, device="cpu")
    envs.reset()
    actions = torch.full((3,), 5)
    first = envs.step(actions)
    assert actions.tolist() == [5, 5, 5] and first[2].tolist() == [True, False, False]
    envs.step(actions)
    assert first[2].tolist() == [True, False, False] and first[3].tolist() == [False] * 3


@pytest.mark.parametrize("env", ["Classic/CartPole", "gymnasium:CartPole-v1", "torch:walks:Walk"])
def test_closed_environments_say_so(env):
    envs = make_envs(env, 2, seed=0, device="cpu")
    envs.reset()
    envs.close()
    envs.close()
    for use in (envs.reset, lambda: envs.step([0, 0]), envs.render):
        with pytest.raises(RuntimeError, match="these environments are closed"):
            use()
