"""A run's parts together: an update on the kept forward passes is the update on new ones."""

import ctypes
import math
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fasta2c.config import TrainConfig
from fasta2c.envs.ids import resolve
from fasta2c.envs.make import make_host_envs
from fasta2c.errors import UserError
from fasta2c.learning.learner import METRICS
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


@pytest.mark.parametrize("several", [{}, {"num_minibatches": 2, "num_epochs": 2}])
@pytest.mark.parametrize("shared", [True, False])
def test_kept_forward_passes_agree_with_a_whole_batch(shared, several):
    common = {"num_envs": 8, "num_steps": 6, "lr": 1e-3, "shared": shared, **several}
    fresh, _ = parameters_after(5, TrainConfig(reuse_forward="off", **common))
    for reuse in ("on", "auto"):
        kept, _ = parameters_after(5, TrainConfig(reuse_forward=reuse, **common))
        torch.testing.assert_close(kept, fresh, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_minibatches", [1, 2])
def test_a_critic_of_its_own_says_nothing_before_the_update(num_minibatches):
    config = TrainConfig(num_envs=4, num_steps=3, shared=False, num_minibatches=num_minibatches)
    envs = make_host_envs(resolve(config.env), 4, seeds=list(range(4)), options={})
    try:
        parts = assemble(config, [envs], torch.device("cpu"))
        rollout = parts.collector.collect()
        assert not rollout.values_T1E.any()
        parts.learner.update(rollout, 0.0)
        assert rollout.values_T1E.all()
    finally:
        envs.close()


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


BOUNDS = st.sampled_from([(-np.inf, np.inf), (0.0, 0.0), (-1.0, 1.0), (-np.inf, 3.0), (0.5, np.inf), (-1e30, 1e30)])
SHAPES = st.lists(st.integers(1, 4), max_size=4).map(tuple)
FLOATS = st.builds(lambda b, shape, t: Box(*b, shape, t), BOUNDS, SHAPES, st.sampled_from([np.float32, np.float64]))
WHOLE = st.builds(
    lambda low, width, shape, t: Box(low, low + width, shape, t),
    st.integers(0, 3),
    st.sampled_from([0, 1, 5, 100]),
    SHAPES,
    st.sampled_from([np.uint8, np.int8, np.int32, np.int64]),
)
NAMES = st.one_of(
    st.builds(lambda n, start: Discrete(n, start=start), st.integers(1, 700), st.integers(-3, 3)),
    st.builds(MultiBinary, st.integers(1, 5)),
    st.lists(st.integers(1, 5), min_size=1, max_size=4).map(MultiDiscrete),
)
PICTURES = st.sampled_from([Box(0, 255, shape, np.uint8) for shape in ((3, 40, 40), (36, 41, 1), (40, 40), (6, 6, 3))])
OBSERVED = st.recursive(
    st.one_of(FLOATS, WHOLE, NAMES, PICTURES),
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from(["a", "b", "c.d"]), inner, min_size=1, max_size=3).map(Dict),
        st.lists(inner, min_size=1, max_size=2).map(Tuple),
    ),
    max_leaves=4,
)
TAKEN = st.one_of(
    NAMES, st.builds(lambda b, s, t: Box(*b, s, t), BOUNDS, SHAPES, st.sampled_from([np.float32, np.float64])), WHOLE
)


class Anything(gymnasium.Env):
    """Shows samples of any space, takes only what any other contains, ends every third step."""

    def __init__(self, observed, taken):
        self.observation_space, self.action_space = observed, taken
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.steps += 1
        return self.observation_space.sample(), 1.0, self.steps % 3 == 0, False, {}


@example(MultiBinary(1), Box(0, 5, (2, 2, 2, 4), np.uint8), "none", False)  # more combinations than integers count
@given(OBSERVED, TAKEN, st.sampled_from(["none", "gru"]), st.booleans())
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_any_spaces_train(observed, taken, recurrent, normalize):
    """Two updates, finite, with actions that the space contains."""
    name = "test_parts/Anything-v0"
    gymnasium.registry.pop(name, None)
    gymnasium.register(name, entry_point=lambda: Anything(observed, taken), disable_env_checker=True)
    config = TrainConfig(
        env=f"gymnasium:{name}", num_envs=3, num_steps=4, recurrent=recurrent, recurrent_size=8, shared=normalize,
        normalize_observations=normalize, normalize_rewards=normalize, action_bounds="squash" if normalize else "clip",
        critic_updates=1 if normalize else 2,
    )  # fmt: skip
    envs = make_envs(config, torch.device("cpu"))
    try:
        parts = assemble(config, envs, torch.device("cpu"))
        for _ in range(2):
            metrics = dict(zip(METRICS, parts.learner.update(parts.collector.collect(), 0.0).tolist(), strict=True))
            del metrics["explained_variance"]
            assert all(map(math.isfinite, metrics.values())), metrics
    finally:
        envs[0].close()
        gymnasium.registry.pop(name, None)


def test_steps_of_the_critic_alone_need_one_alone():
    with pytest.raises(UserError, match=r"critic_updates: .*--no-shared"):
        make_envs(TrainConfig(critic_updates=2), torch.device("cpu"))


def test_a_loss_of_bounds_needs_real_valued_actions():
    config = TrainConfig(env="Classic/CartPole", num_envs=2, bounds_coef=1e-3)
    envs = make_envs(config, torch.device("cpu"))
    with pytest.raises(UserError, match="bounds_coef: it is for real-valued actions"):
        assemble(config, envs, torch.device("cpu"))
    envs[0].close()
