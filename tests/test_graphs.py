"""Recorded work, on a CPU: what a CUDA graph replays is stood in for by the tensor operations of one call."""

import pytest
import torch
from recording import Recording

from fasta2c.config import TrainConfig
from fasta2c.distributed import ALONE
from fasta2c.graphs import WARM_UP, Graphs
from fasta2c.learning import optim
from fasta2c.parts import assemble, make_envs

CPU = torch.device("cpu")


class StandIn(Graphs):
    """Records operations on a CPU."""

    def __init__(self, device, *, enabled=True, generators=()):
        super().__init__(device)
        self.enabled = enabled
        self.recordings = []

    @property
    def replays(self):
        return sum(recording.replays for recording in self.recordings)

    def warm_up(self, work):
        return work()

    def record(self, work):
        self.recordings.append(Recording())
        with self.recordings[-1] as recording:
            result = work()
        return recording.replay, result


def run(updates, graphs, monkeypatch, ranks=ALONE, **settings):
    """Parameters at the end, actions and metrics of each update; the learning rate in a tensor, as on a GPU."""
    config = TrainConfig(num_envs=6, lr=0.01, hidden_sizes=(16,), optimizer="rmsprop-tf", **settings)

    def with_tensor_rates(model, config):
        optimizer = optim.build_optimizer(model, config)
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(group["lr"])
        return optimizer

    made = []
    monkeypatch.setattr("fasta2c.parts.build_optimizer", with_tensor_rates)
    monkeypatch.setattr("fasta2c.parts.Graphs", lambda *args, **more: made.append(graphs(*args, **more)) or made[-1])
    envs = make_envs(config, CPU, ranks=ranks)
    try:
        parts = assemble(config, envs, CPU, ranks=ranks)
        found = []
        for n in range(updates):
            rollout = parts.collector.collect()
            metrics = parts.learner.update(rollout, n / updates).clone()
            found.append((rollout.actions_TE.clone(), rollout.values_T1E.clone(), metrics))
        return torch.cat([p.detach().flatten() for p in parts.model.parameters()]), found, made[0]
    finally:
        for group in envs:
            group.close()


@pytest.mark.parametrize(
    "settings",
    [
        {"lr_schedule": "linear", "ent_schedule": "cosine", "ent_coef": 0.5},
        {"env_groups": 2, "micro_batch": 2, "normalize_advantage": True},
        {"shared": False, "critic_lr": 0.02, "lr_schedule": "cosine", "num_steps": 1},
        {"num_minibatches": 3, "num_epochs": 2, "lr_schedule": "linear"},
        {"num_minibatches": 2, "shared": False, "critic_lr": 0.02},
        {"critic_updates": 3, "critic_target": "nstep", "shared": False},
    ],
)
def test_a_replay_computes_what_the_call_computes(settings, monkeypatch):
    """Bit for bit over rollouts: nothing that changes between them is a number, and no tensor moves."""
    plain, plain_found, _ = run(8, Graphs, monkeypatch, **settings)
    replayed, found, graphs = run(8, StandIn, monkeypatch, **settings)
    groups = settings.get("env_groups", 1)
    values = groups if settings.get("shared", True) else 0  # with an encoder of its own the critic runs in the update
    per_rollout = settings.get("num_steps", 8) * groups + values + 1
    assert graphs.replays == per_rollout * (8 - WARM_UP - 1)
    for (actions, values, metrics), (plain_actions, plain_values, plain_metrics) in zip(
        found, plain_found, strict=True
    ):
        assert torch.equal(actions, plain_actions) and torch.equal(values, plain_values)
        assert torch.equal(metrics.nan_to_num(), plain_metrics.nan_to_num())
    assert torch.equal(replayed, plain)


def test_on_a_cpu_functions_are_called_as_they_are():
    def work():
        return torch.zeros(1)

    assert Graphs(CPU).wrap(work) is work


def test_graphs_of_the_rollout_and_recorded_graphs_exclude_each_other(monkeypatch):
    _, _, graphs = run(1, StandIn, monkeypatch, reuse_forward="on")
    assert not graphs.enabled
