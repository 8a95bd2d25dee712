"""The same numbers on a CUDA device as on the CPU, and whole runs there."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from helpers import env_spec

from fasta2c import TrainConfig, evaluate, load_policy, make_envs, snapshot, train
from fasta2c.distributed import Ranks
from fasta2c.errors import RunError
from fasta2c.graphs import Graphs
from fasta2c.learning.advantages import gae
from fasta2c.learning.forwards import Forwards
from fasta2c.learning.learner import Learner
from fasta2c.learning.optim import RMSpropTF, build_optimizer, make_averages, step_where
from fasta2c.models.actor_critic import ActorCritic
from fasta2c.models.distributions import build_distribution
from fasta2c.parts import assemble
from fasta2c.parts import make_envs as make_groups
from fasta2c.rollout.buffer import RolloutBuffer
from fasta2c.rollout.passes import Passes
from fasta2c.run import checkpoint
from fasta2c.spaces import Choices

pytestmark = pytest.mark.gpu
TESTS = Path(__file__).parent
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def rollout(device, spec, T=6, E=8):
    generator = torch.Generator().manual_seed(0)
    buffer = RolloutBuffer(T, E, spec, device)
    frames = torch.randint(0, 256, buffer.frames.shape, generator=generator)
    buffer.frames.copy_(frames if spec.frames.dtype == "uint8" else frames / 255)
    buffer.fills.copy_(torch.rand(buffer.fills.shape, generator=generator) < 0.1)
    for name in ("rewards_TE", "values_T1E"):
        x = getattr(buffer, name)
        x.copy_(torch.randn(x.shape, generator=generator))
    buffer.actions_TE.copy_(torch.randint(0, spec.actions.sizes[0], (T, E), generator=generator))
    buffer.terminated_TE.copy_(torch.rand(T, E, generator=generator) < 0.1)
    buffer.truncated_TE.copy_(torch.rand(T, E, generator=generator) < 0.1)
    buffer.valid_TE.copy_(torch.rand(T, E, generator=generator) < 0.9)
    return buffer


def learner_of(model, optimizer, config, graphs):
    forwards = Forwards(Passes.of(model), model.distribution, micro_batch=16)
    return Learner(
        model, optimizer, config, forwards=forwards, micro_batch=16, threads=1, graphs=graphs, num_minibatches=1
    )


@pytest.mark.parametrize(
    "spec", [env_spec((1, 84, 84), "uint8", stack=4, actions=6), env_spec((5,), "float32", stack=1, actions=3)]
)
@pytest.mark.parametrize("optimizer", ["rmsprop", "rmsprop-tf", "adam", "muon"])
def test_an_update_is_the_same_as_on_the_cpu(spec, optimizer, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr("fasta2c.accel.has_fast_bf16", lambda device: False)  # of Muon, whose roundings are apart
    config = TrainConfig(optimizer=optimizer, lr=1e-3, ent_coef=0.01, optimizer_eps=1e-3)
    after, metrics = [], []
    for device in (CPU, CUDA):
        torch.manual_seed(0)
        model = ActorCritic(spec, config).to(device)
        graphs = Graphs(device, enabled=False)
        optimizer = build_optimizer(model, config)
        learner = learner_of(model, optimizer, config, graphs)
        metrics.append(learner.update(rollout(device, spec), 0.0).cpu())
        after.append(torch.cat([p.detach().cpu().flatten() for p in model.parameters()]))
    torch.testing.assert_close(metrics[0], metrics[1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(after[0], after[1], rtol=1e-3, atol=1e-4)


def test_gae_and_sampling():
    buffer = rollout(CPU, env_spec((5,), "float32", stack=1, actions=3), T=33, E=100)
    inputs = (buffer.rewards_TE, buffer.values_T1E, buffer.terminated_TE, buffer.truncated_TE)
    here = gae(*inputs, gamma=0.99, gae_lambda=0.95)
    there = gae(*(x.cuda() for x in inputs), gamma=0.99, gae_lambda=0.95)
    for a, b in zip(here, there, strict=True):
        torch.testing.assert_close(a, b.cpu())
    logits = torch.log(torch.tensor([0.7, 0.2, 0.1], device=CUDA)).expand(100_000, 3)
    race = build_distribution(Choices((), (3,), (0,)))
    shares = torch.bincount(race.sample(logits, torch.Generator(CUDA).manual_seed(0))) / 100_000
    torch.testing.assert_close(shares.cpu(), torch.tensor([0.7, 0.2, 0.1]), atol=0.01, rtol=0)


@pytest.mark.parametrize("env", ["Atari/Pong", "Classic/CartPole"])
def test_a_run_trains_saves_resumes_and_plays(tmp_path, env):
    common = {"num_envs": 8, "num_steps": 4, "quiet": True, "env_kwargs": {"max_episode_steps": 100}}
    run = train(TrainConfig(env=env, device="cuda", total_steps=2000, run_dir=tmp_path / "run", **common))
    more = train(TrainConfig(total_steps=4000), resume=run.run_dir)
    assert more.env_steps >= 4000
    state = checkpoint.load(checkpoint.resolve(run.run_dir))
    assert all(torch.isfinite(p).all() for p in state["model"].values())
    observations = make_envs(env, 3, seed=0, device="cuda").reset()
    assert observations.device.type == "cuda"
    values = [load_policy(run.run_dir, device=d).value(observations.to(d)).cpu() for d in ("cuda", "cpu")]
    torch.testing.assert_close(*values, rtol=0.05, atol=0.05)
    assert evaluate(run.run_dir, episodes=4, device="cuda").episodes == 4


def parameters_after(updates, **settings):
    config = TrainConfig(device="cuda", num_envs=40, lr_schedule="linear", ent_coef=0.01, **settings)
    envs = make_groups(config, CUDA)
    try:
        parts = assemble(config, envs, CUDA)
        metrics = [parts.learner.update(parts.collector.collect(), n / 10).clone() for n in range(updates)]
        return torch.cat([p.detach().flatten() for p in parts.model.parameters()]), torch.stack(metrics)
    finally:
        for group in envs:
            group.close()


EVERY_KIND = [
    pytest.param({"env": "Classic/Pendulum", "sde": True, "normalize_observations": True, "normalize_rewards": True}),
    pytest.param({"env": "Classic/Pendulum", "action_bounds": "squash", "shared": False}),
    pytest.param({"env": "Classic/Pendulum", "bounds_coef": 0.1, "num_minibatches": 4, "num_epochs": 2}),
    pytest.param({"env": "MiniGrid/Empty-5x5", "recurrent": "gru"}),
    pytest.param({"env": "Jumanji/BinPack", "recurrent": "lstm", "shared": False}),
    pytest.param({"env": "Jumanji/Cleaner", "encoder": "small-cnn"}),
    pytest.param({"env": "torch:reach:Reach"}),
    pytest.param({"env": "Classic/CartPole", "num_minibatches": 4, "num_epochs": 2, "optimizer": "muon"}),
    pytest.param({"env": "Classic/CartPole", "num_epochs": 4, "target_kl": 1e-5, "optimizer": "adam"}),
    pytest.param({"env": "MiniGrid/Empty-5x5", "recurrent": "gru", "num_minibatches": 4, "shared": False}),
    pytest.param({"env": "Atari/Pong", "num_minibatches": 4, "optimizer": "muon"}),
    pytest.param({"env": "Classic/CartPole", "shared": False, "critic_updates": 3, "critic_target": "td0"}),
]


@pytest.mark.parametrize("settings", EVERY_KIND)
@pytest.mark.usefixtures("reach")
def test_recorded_graphs_of_every_kind_of_network(settings, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    recorded, recorded_metrics = parameters_after(8, precision="fp32", **settings)
    monkeypatch.setattr(Graphs, "wrap", lambda self, work: work)
    plain, plain_metrics = parameters_after(8, precision="fp32", **settings)
    torch.testing.assert_close(recorded, plain, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(recorded_metrics, plain_metrics, rtol=1e-2, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize("env", ["Atari/Pong", "Classic/CartPole"])
@pytest.mark.parametrize("optimizer", ["rmsprop", "rmsprop-tf", "adam", "muon"])
@pytest.mark.parametrize("env_groups", [1, 2])
def test_recorded_graphs_compute_what_plain_calls_compute(env, optimizer, env_groups, monkeypatch):
    settings = {"env": env, "optimizer": optimizer, "env_groups": env_groups, "precision": "fp32", "micro_batch": 64}
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    recorded, recorded_metrics = parameters_after(8, **settings)
    monkeypatch.setattr(Graphs, "wrap", lambda self, work: work)
    plain, plain_metrics = parameters_after(8, **settings)
    # Bit for bit but for sums whose order is the device's (atomic additions in gather's gradient).
    torch.testing.assert_close(recorded, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(recorded_metrics, plain_metrics, rtol=1e-3, atol=1e-4, equal_nan=True)


@pytest.mark.skipif(not torch.distributed.is_nccl_available(), reason="needs NCCL")
def test_messages_are_recorded_with_the_update_and_nccl_ends():
    """As far as one GPU can show it. What NCCL has been recorded by must be let go of first, or it never ends."""
    script = "import rank_work; rank_work.learns_alone('cuda:0')"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout) == (0, "learnt the same\n"), done.stderr


@pytest.mark.parametrize(
    "settings",
    [
        *(
            {"env": env, "reuse_forward": reuse}
            for env in ("Atari/Pong", "Classic/CartPole")
            for reuse in ("auto", "on")
        ),
        *(kind.values[0] for kind in EVERY_KIND if not kind.values[0]["env"].startswith("torch:")),
    ],
)
def test_nothing_waits_for_the_device_but_the_actions(settings):
    config = TrainConfig(device="cuda", num_envs=40, lr_schedule="linear", **settings)
    envs = make_groups(config, CUDA)
    try:
        parts = assemble(config, envs, CUDA)
        for _ in range(4):  # warm-up and recording
            parts.learner.update(parts.collector.collect(), 0.0)
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(3):
            metrics = parts.learner.update(parts.collector.collect(), 0.5)  # raises where it would wait
        torch.cuda.set_sync_debug_mode("default")
        assert torch.isfinite(metrics[:3]).all()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        for group in envs:
            group.close()


@pytest.mark.parametrize("optimizer", ["rmsprop", "rmsprop-tf", "adam", "muon"])
@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_updates_are_refused_inside_a_recording_from_the_first_on(optimizer, on_nan):
    spec = env_spec((5,), "float32", actions=3)
    config = TrainConfig(optimizer=optimizer, on_nan=on_nan)
    model = ActorCritic(spec, config).to(CUDA)
    built, graphs = build_optimizer(model, config), Graphs(CUDA)
    learner = learner_of(model, built, config, graphs)
    buffer = rollout(CUDA, spec)
    buffer.valid_TE.fill_(True)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    reward = buffer.rewards_TE[2, 3].clone()
    buffer.rewards_TE[2, 3] = float("nan")
    for _ in range(5):
        learner.update(buffer, 0.0)
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())
    assert learner.watch.report() == (1, "reward", 2, 3, 5, 5)
    buffer.rewards_TE[2, 3] = reward
    learner.update(buffer, 0.0)
    moved = [name for name, x in model.state_dict().items() if not torch.equal(before[name], x)]
    assert all(torch.isfinite(x).all() for x in model.state_dict().values())
    assert bool(moved) == (on_nan == "skip")


class Waits(torch.nn.Module):
    """An encoder that no graph can hold."""

    features = 8

    def __init__(self, observation_space):
        super().__init__()
        self.layer = torch.nn.Linear(observation_space.shape[0], self.features)

    def forward(self, observations):
        return self.layer(observations) * (2.0 if observations.sum().item() > 0 else 1.0)


def test_an_encoder_that_waits_for_the_device_trains_without_graphs_alone(tmp_path):
    settings = {"env": "Classic/CartPole", "encoder": f"{__name__}:Waits", "device": "cuda", "quiet": True}
    with pytest.raises(RunError, match="could not be recorded as a CUDA graph.*--no-cuda-graphs"):
        train(TrainConfig(**settings, total_steps=2_000, run_dir=tmp_path / "recorded"))
    plain = train(TrainConfig(**settings, total_steps=2_000, run_dir=tmp_path / "plain", cuda_graphs=False))
    assert plain.env_steps >= 2_000


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_a_step_that_is_not_allowed_leaves_parameters_of_every_width(dtype, shape):
    p = torch.nn.Parameter(torch.ones(shape, dtype=dtype, device=CUDA))
    optimizer = RMSpropTF([p], lr=torch.tensor(0.1, device=CUDA))
    make_averages(optimizer)
    for gradient, allowed in ((float("nan"), False), (1.0, True)):
        p.grad = torch.full_like(p, gradient)
        step_where(optimizer, torch.tensor(allowed, device=CUDA))
        assert bool((p == 1).all()) == (not allowed)
        assert torch.isfinite(p).all()


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam", "muon"])
def test_building_an_optimizer_warns_of_nothing(optimizer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_optimizer(
            ActorCritic(env_spec((5,), "float32"), TrainConfig()).to(CUDA), TrainConfig(optimizer=optimizer)
        )


def test_what_ranks_send_each_other_of_a_checkpoint_is_on_the_host():
    """Another host may lack the device that it is on."""

    class Two(Ranks):
        def gather_object(self, value):
            sent.append(value)
            return [value, value]

        def all_gather_object(self, value):
            return [value, value]

    def tensors(value):
        if isinstance(value, torch.Tensor):
            return [value]
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
        return [x for part in inside for x in tensors(part)]

    sent = []
    config = TrainConfig(normalize_rewards=True, num_envs=2, num_steps=2)
    envs = make_groups(config, CUDA)
    try:
        snapshot.take(assemble(config, envs, CUDA), config, CUDA, Two(world_size=2))
    finally:
        for group in envs:
            group.close()
    found = tensors(sent[0])
    assert len(found) > 3
    assert {x.device.type for x in found} == {"cpu"}
