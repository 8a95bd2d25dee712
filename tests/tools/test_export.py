"""Exported files, run by their own runtimes, play as the policies they came from; others are not written."""

import errno
import io
import json
import sys
import types

import gymnasium
import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from fasta2c import TrainConfig, load_policy, make_envs, train
from fasta2c.cli import main
from fasta2c.errors import RunError, UserError
from fasta2c.tools import export as tool
from fasta2c.tools import formats
from fasta2c.tools.export import export

SMALL = {"num_envs": 4, "num_steps": 4, "total_steps": 64, "precision": "fp32", "quiet": True}


def trained(folder, **settings):
    """A run whose policy no longer is the one it began with, far from indifferent."""
    return train(TrainConfig(run_dir=folder / "run", **{**SMALL, "lr": 0.03, **settings})).run_dir


pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("export"))


def call_onnx(path, inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [x.name for x in session.get_inputs()] == list(inputs)
    found = session.run(None, {name: np.asarray(x) for name, x in inputs.items()})
    return dict(zip((x.name for x in session.get_outputs()), map(torch.from_numpy, found), strict=True))


def told(path):
    return json.loads(
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        .get_modelmeta()
        .custom_metadata_map["fasta2c"]
    )


def test_an_onnx_file_plays_as_its_policy(run, tmp_path):
    made = export(run, tmp_path / "a.onnx")
    policy, envs = load_policy(run, device="cpu"), make_envs("Classic/CartPole", 7, seed=3)
    observations = envs.reset()
    for count in (7, 1):
        found = call_onnx(made.path, {"observations": observations[:count]})
        assert torch.equal(found["actions"], policy.act(observations[:count], greedy=True))
        assert torch.allclose(found["values"], policy.value(observations[:count]), atol=1e-5)
        assert torch.allclose(found["logits"], policy.model(observations[:count])[0].detach(), atol=1e-5)
    assert made.difference < 1e-5 and made.observations == 256
    about = told(made.path)
    assert about["env"] == "Classic/CartPole" and about["inputs"] == made.inputs
    assert about["inputs"]["observations"]["shape"] == ["B", 4]
    assert {name: x["dtype"] for name, x in about["outputs"].items()} == {
        "actions": "int64",
        "values": "float32",
        "logits": "float32",
    }
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]


@pytest.mark.parametrize(("format", "ending"), [("torchscript", "ts"), ("pt2", "pt2")])
def test_torch_runs_its_own_formats(run, tmp_path, monkeypatch, format, ending):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(run), "--format", format, "--quiet"]) == 0
    path, extra = tmp_path / f"policy.{ending}", {"fasta2c": ""}
    if format == "pt2":
        module = torch.export.load(path, extra_files=extra).module()
    else:
        module = torch.jit.load(path, _extra_files=extra)
    observations = torch.randn(5, 4)
    policy = load_policy(run, device="cpu")
    for count in (5, 1):
        actions, values, _ = module(observations[:count])
        assert torch.equal(actions, policy.act(observations[:count], greedy=True))
        assert torch.allclose(values, policy.value(observations[:count]), atol=1e-5)
    assert json.loads(extra["fasta2c"])["env"] == "Classic/CartPole"


@pytest.mark.slow
def test_frames_come_as_bytes_and_stacked(tmp_path):
    made = export(trained(tmp_path, env="Atari/Pong", num_envs=2, total_steps=16), tmp_path / "a.onnx")
    envs = make_envs("Atari/Pong", 3, seed=0)
    observations = envs.reset()
    for _ in range(3):
        observations = envs.step(torch.randint(6, (3,)))[0]
    assert observations.dtype is torch.uint8 and made.inputs["observations"]["shape"] == ["B", 4, 84, 84]
    found = call_onnx(made.path, {"observations": observations})
    policy = load_policy(tmp_path / "run", device="cpu")
    assert torch.allclose(found["values"], policy.value(observations), atol=1e-4)
    assert "newest last" in made.inputs["observations"]["meaning"] and told(made.path)["frame_stack"] == 4


def test_observations_are_normalised_in_the_file_and_actions_squashed(tmp_path):
    settings = {"normalize_observations": True, "action_bounds": "squash", "sde": False, "lr": 1e-3}
    made = export(trained(tmp_path, env="Classic/Pendulum", **settings), tmp_path / "a.onnx")
    policy = load_policy(tmp_path / "run", device="cpu")
    assert policy.model.moments is not None and policy.model.moments.count > 0
    observations = torch.tensor([[1.0, 0.0, 8.0], [-1.0, 0.1, -5.0], [0.0, 1.0, 400.0]])
    found = call_onnx(made.path, {"observations": observations})
    assert torch.allclose(found["actions"], policy.act(observations, greedy=True), atol=1e-5)
    assert torch.allclose(found["values"], policy.value(observations), atol=1e-4)
    assert found["actions"].shape == (3, 1) and found["actions"].abs().max() < 2
    assert torch.allclose(2 * torch.tanh(found["means"]), found["actions"], atol=1e-5)
    assert torch.allclose(found["log_stds"][0], policy.model.distribution.log_std.detach(), atol=1e-6)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_memory_goes_in_and_out(tmp_path, kind):
    made = export(trained(tmp_path, recurrent=kind, recurrent_size=8, shared=False), tmp_path / "a.ts")
    module, policy = torch.jit.load(made.path), load_policy(tmp_path / "run", device="cpu")
    assert list(made.inputs) == ["observations", "memory", "opens"]
    assert list(made.outputs) == ["actions", "values", "logits", "next_memory"]
    envs = make_envs("Classic/CartPole", 3, seed=1)
    observations, opens, memory = envs.reset(), torch.ones(3, dtype=torch.bool), torch.full((3, made_size(made)), 9.0)
    opened = 0
    for _ in range(60):
        values = policy.value(observations, opens=opens)
        actions = policy.act(observations, greedy=True, opens=opens)
        chosen, valued, _, memory = module(observations, memory, opens)
        assert torch.equal(chosen, actions) and torch.allclose(valued, values, atol=1e-5)
        observations, _, _, _, infos = envs.step(torch.zeros(3, dtype=torch.int64))
        opens = infos["opens"]
        opened += int(opens.sum())
    assert opened > 3, "games have ended, and their memory with them"


class Dotted(gymnasium.Env):
    """Keys that read alike once they are joined by dots."""

    observation_space = gymnasium.spaces.Dict(
        {"a.b": gymnasium.spaces.Box(-1, 1, (2,)), "a": gymnasium.spaces.Dict({"b": gymnasium.spaces.Discrete(5)})}
    )
    action_space = gymnasium.spaces.MultiDiscrete([2, 3], start=[5, -1])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        assert action in self.action_space
        return self.observation_space.sample(), 1.0, False, False, {}


def test_names_differ_and_the_metadata_is_strict_json(tmp_path):
    gymnasium.register("test_export/Dotted-v0", entry_point=Dotted, disable_env_checker=True)
    try:
        run_dir = trained(tmp_path, env="gymnasium:test_export/Dotted-v0", num_envs=2)
        made = export(run_dir, tmp_path / "a.ts")
    finally:
        gymnasium.registry.pop("test_export/Dotted-v0")
    assert list(made.inputs) == ["observations.a.b", "observations.a.b_"]
    extra = {"fasta2c": ""}
    actions, _, logits = torch.jit.load(made.path, _extra_files=extra)(
        *(torch.zeros(4, *made.inputs[name]["shape"][1:], dtype=getattr(torch, made.inputs[name]["dtype"]))
          for name in made.inputs)
    )  # fmt: skip
    assert actions.shape == (4, 2) and logits.shape == (4, 2, 3)
    assert set(actions[:, 0].tolist()) <= {5, 6} and set(actions[:, 1].tolist()) <= {-1, 0, 1}

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    about = json.loads(extra["fasta2c"], parse_constant=refuse)
    assert about["learning"]["gamma"] == 0.99 and len(about["spaces"]["leaves"]) == 2


def made_size(made):
    return made.inputs["memory"]["shape"][1]


def test_a_mask_and_several_choices(tmp_path):
    made = export(trained(tmp_path, env="Jumanji/JobShop", num_envs=2), tmp_path / "a.ts")
    module, policy = torch.jit.load(made.path), load_policy(tmp_path / "run", device="cpu")
    envs = make_envs("Jumanji/JobShop", 2, seed=1)
    observations = envs.reset()
    leaves = policy.spec.layout.flatten(observations)
    assert list(made.inputs) == [f"observations.{'.'.join(leaf.path)}" for leaf in policy.spec.leaves]
    actions, values, logits = module(*leaves)
    assert torch.equal(actions, policy.act(observations, greedy=True))
    assert torch.allclose(values, policy.value(observations), atol=1e-5)
    mask = observations["action_mask"] != 0
    assert logits.shape == mask.shape and torch.equal(logits == -torch.inf, ~mask)


def shifted(write, what):
    """A writer that gets one number of the network wrong."""

    def wrong(module, *rest):
        with torch.no_grad():
            what(module.model)
        return write(module, *rest)

    return wrong


@pytest.mark.parametrize(
    "what",
    [
        lambda model: model.value_head.bias.add_(0.001),
        lambda model: model.policy_head.bias[0].add_(0.001),
        lambda model: setattr(model.distribution, "mode", lambda policy: policy.argmin(-1)),
    ],
)
def test_a_file_that_differs_is_not_written(run, tmp_path, monkeypatch, what):
    out = tmp_path / "policy.ts"
    out.write_text("what was there")
    kind = formats.FORMATS["torchscript"]
    monkeypatch.setitem(formats.FORMATS, "torchscript", kind._replace(write=shifted(kind.write, what)))
    with pytest.raises(RunError, match="differs from its policy"):
        export(run, out)
    assert out.read_text() == "what was there" and [p.name for p in tmp_path.iterdir()] == ["policy.ts"]


class Branching(nn.Module):
    """A user's network whose path depends on what it sees."""

    features = 4

    def __init__(self, space):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, observations):
        return self.layer(observations) if observations.sum() > 0 else -self.layer(observations)


def test_a_network_that_a_format_cannot_hold(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mine", types.SimpleNamespace(Branching=Branching))
    folder = trained(tmp_path, encoder="mine:Branching")
    capsys.readouterr()
    assert main(["export", str(folder), "--out", str(tmp_path / "a.pt2"), "--quiet"]) == 2
    err = capsys.readouterr().err
    assert "pt2 cannot hold its network" in err and err.count("\n") == 1
    # Tracing takes the path of its example for the only one, which the trial finds out.
    with pytest.raises(RunError, match="differs from its policy"):
        export(folder, tmp_path / "a.ts")
    assert not list(tmp_path.glob("a.*"))


def test_a_disk_that_refuses(run, tmp_path, monkeypatch, capsys):
    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tool, "write_atomically", full)
    assert main(["export", str(run), "--out", str(tmp_path / "a.ts"), "--quiet"]) == 1
    assert capsys.readouterr().err.endswith("cannot be written (No space left on device); make room or name another.\n")


def test_missing_packages_are_named(run, tmp_path, monkeypatch):
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install '\.\[export\]'"):
        export(run, tmp_path / "a.onnx")


@pytest.mark.parametrize("out", [None, "policy.onnx"])
def test_a_format_that_there_is_not_in_python(run, tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^format: 'tflite' is not one of auto, onnx, torchscript, pt2\.$"):
        export(run, out, format="tflite")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{run}", "--format", "tflite"], "--format: 'tflite' is not one of"),
        (["nothing"], "does not exist"),
        (["{empty}"], "holds no checkpoint"),
        (["{run}", "--out", "no/where.onnx"], "no is no folder"),
        (["{run}", "--out", "{empty}"], "is a folder"),
        (["{run}", "--out", "{run}/checkpoints/latest.pt"], "a file of a run's own"),
        (["{run}", "--out", "{run}/config.yaml", "--format", "pt2"], "a file of a run's own"),
        (["{run}", "--out", "policy.onnx", "--format", "pt2"], "--out: policy.onnx has the ending of onnx"),
        (["{run}", "--out", "policy.bin"], "--out: policy.bin does not tell its format"),
        ([], "RUN_DIR"),
    ],
)
def test_mistakes_get_a_line(run, tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    filled = [a.format(run=run, empty=tmp_path / "empty") for a in arguments]
    assert main(["export", *filled]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert not list(tmp_path.glob("policy*"))


def test_what_it_prints(run, tmp_path, capsys):
    assert main(["export", str(run), "--out", str(tmp_path / "a.pt")]) == 0
    out = capsys.readouterr().out
    assert "takes    observations float32 [B, 4]" in out and "gives    logits float32 [B, 2]" in out
    assert out.splitlines()[-1] == f"file     {tmp_path / 'a.pt'}"
    assert torch.jit.load(io.BytesIO((tmp_path / "a.pt").read_bytes()))(torch.zeros(2, 4))[0].shape == (2,)
