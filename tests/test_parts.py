"""A run's parts together: an update on the kept forward passes is the update on new ones."""

import ctypes
import subprocess
import sys

import pytest
import torch

from fasta2c.config import TrainConfig
from fasta2c.envs.ids import resolve
from fasta2c.envs.make import make_host_envs
from fasta2c.parts import assemble, make_envs


def parameters_after(updates, config):
    envs = make_host_envs(resolve(config.env), config.num_envs, seeds=list(range(config.num_envs)), options={})
    try:
        parts = assemble(config, [envs], torch.device("cpu"))
        metrics = [parts.learner.update(parts.collector.collect(), 0.1) for _ in range(updates)]
        assert not parts.collector.collect().forwards or config.reuse_forward == "on"
        return torch.cat([p.detach().flatten() for p in parts.model.parameters()]), torch.stack(metrics)
    finally:
        envs.close()


@pytest.mark.parametrize(
    ("env", "settings"),
    [
        ("Classic/CartPole", {"shared": False, "hidden_sizes": (16,)}),
        ("Classic/CartPole", {"normalize_advantage": True, "optimizer": "adam"}),
        ("Atari/Pong", {"num_steps": 5}),
    ],
)
@pytest.mark.parametrize("chunk", [4, 2])
def test_kept_forward_passes_make_the_same_update(env, settings, chunk):
    """Bit for bit, as long as the samples are added up in the same order: row by row."""
    common = {"env": env, "num_envs": 4, "precision": "fp32", "micro_batch": chunk, "ent_coef": 0.01, **settings}
    fresh, fresh_metrics = parameters_after(4, TrainConfig(reuse_forward="off", **common))
    for reuse in ("on", "auto"):  # auto runs a critic of its own once, over the rollout
        kept, kept_metrics = parameters_after(4, TrainConfig(reuse_forward=reuse, **common))
        assert torch.equal(kept, fresh)
        assert torch.equal(kept_metrics.nan_to_num(), fresh_metrics.nan_to_num())


@pytest.mark.parametrize("shared", [True, False])
def test_kept_forward_passes_agree_with_a_whole_batch(shared):
    common = {"num_envs": 8, "num_steps": 6, "lr": 1e-3, "shared": shared}
    fresh, _ = parameters_after(5, TrainConfig(reuse_forward="off", **common))
    for reuse in ("on", "auto"):
        kept, _ = parameters_after(5, TrainConfig(reuse_forward=reuse, **common))
        torch.testing.assert_close(kept, fresh, rtol=1e-4, atol=1e-5)


def test_an_update_lets_go_of_the_graphs():
    config = TrainConfig(reuse_forward="on", num_envs=2)
    envs = make_host_envs(resolve(config.env), 2, seeds=[0, 1], options={})
    try:
        parts = assemble(config, [envs], torch.device("cpu"))
        rollout = parts.collector.collect()
        assert len(rollout.forwards) == config.num_steps
        parts.learner.update(rollout, 0.0)
        assert not rollout.forwards
        parts.collector.collect()
        assert len(parts.collector.collect().forwards) == config.num_steps, "graphs of a rollout not learnt from stay"
    finally:
        envs.close()


FAULTS_OF_AN_UPDATE = """
import resource, statistics
import torch
from fasta2c.config import TrainConfig
from fasta2c.parts import assemble, make_envs

config, device = TrainConfig(num_envs=256, num_steps=16, shared=False), torch.device("cpu")
parts = assemble(config, make_envs(config, device), device)
faults = []
for _ in range(20):
    rollout = parts.collector.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    parts.learner.update(rollout, 0.0)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(statistics.median(faults[10:]))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not GNU's C library")
def test_updates_find_their_memory_where_the_last_one_left_it():
    """Otherwise an update of this size has about 1,700 page faults. In a process of its own, as memory has a past."""
    done = subprocess.run([sys.executable, "-c", FAULTS_OF_AN_UPDATE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 300


def test_environments_come_in_groups_where_that_is_faster():
    device = torch.device("cpu")
    for config, sizes in (
        (TrainConfig(num_envs=33), [17, 16]),
        (TrainConfig(num_envs=31), [31]),
        (TrainConfig(num_envs=31, env_groups=3), [11, 10, 10]),
        (TrainConfig(num_envs=33, env="Atari/Pong"), [33]),
        (TrainConfig(num_envs=33, env="Atari/Pong", encoder="mlp"), [17, 16]),
        (TrainConfig(num_envs=33, env="gymnasium:CartPole-v1"), [33]),
    ):
        envs = make_envs(config, device)
        assert [group.num_envs for group in envs] == sizes
        for group in envs:
            group.close()


@pytest.mark.parametrize(
    "env",
    ["Game2048", "Sudoku", "Cleaner", "BinPack", "Minesweeper", "TSP", "FlatPack", "JobShop", "MultiCVRP", "Knapsack"]
    + ["GraphColoring", "Maze", "PacMan", "Tetris", "PGX/Play2048"],
)
def test_no_illegal_action_is_ever_taken(env):
    """Over rollouts with a network that prefers illegal ones: its logits are large where it must not choose."""
    config = TrainConfig(env=env if "/" in env else f"Jumanji/{env}", num_envs=8, num_steps=20)
    envs = make_envs(config, torch.device("cpu"))
    try:
        parts = assemble(config, envs, torch.device("cpu"))
        spec = envs[0].spec
        assert spec.mask is not None
        with torch.no_grad():
            parts.model.policy_head.weight.mul_(1e4)  # far from even
        checked = 0
        for _ in range(4):
            rollout = parts.collector.collect()
            packed = rollout.observations(slice(0, 20), slice(0, 8))
            mask = spec.layout.unpack(packed)[spec.mask].bool().unflatten(0, (20, 8))
            actions = rollout.actions_TE
            if actions.dim() == 3:  # one for each of several masks
                legal = mask.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
                possible = mask.any(dim=-1)
            else:
                legal = mask.flatten(2).gather(-1, actions.unsqueeze(-1)).squeeze(-1)
                possible = mask.flatten(2).any(dim=-1)
            counted = possible & rollout.valid_TE.view(20, 8, *(1,) * (legal.dim() - 2))
            assert legal[counted].all()
            checked += int(counted.sum())
        assert checked > 200
    finally:
        for group in envs:
            group.close()
