"""What load_policy returns acts and values as the run's own network does."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete, MultiBinary, MultiDiscrete

from fasta2c import TrainConfig, load_policy, make_envs, train
from fasta2c.errors import UserError
from fasta2c.run import checkpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy") / "run"
    return train(TrainConfig(num_envs=4, num_steps=4, total_steps=200, run_dir=folder, quiet=True))


def test_it_acts_on_what_make_envs_returns(run):
    envs = make_envs("Classic/CartPole", 5, seed=0)
    policy = load_policy(run.run_dir, device="cpu")
    observations = envs.reset()
    for _ in range(20):
        actions = policy.act(observations)
        assert actions.shape == (5,) and set(actions.tolist()) <= {0, 1}
        observations, rewards, terminated, truncated, infos = envs.step(actions)
        assert all(x.shape == (5,) for x in (rewards, terminated, truncated, infos["valid"]))
    assert policy.value(observations).shape == (5,)


def test_greedy_is_the_likeliest_action_and_numpy_is_welcome(run):
    policy = load_policy(run.run_dir, device="cpu")
    observations = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    logits, values = policy.model(torch.from_numpy(observations))
    assert torch.equal(policy.act(observations, greedy=True), logits.argmax(-1))
    assert torch.equal(policy.value(observations), values.detach())
    assert not torch.equal(policy.act(observations), policy.act(observations))


def test_observations_may_be_read_backwards_and_openings_be_a_list(run):
    policy = load_policy(run.run_dir, device="cpu")
    observations = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    backwards = policy.value(observations[::-1], opens=[True] * 50)
    assert torch.equal(backwards, policy.value(observations, opens=np.ones(50, bool)).flip(0))
    with pytest.raises(ValueError, match=r"opens of shape \[50\], one for each observation, got \[1\]"):
        policy.act(observations, opens=[True])


@pytest.mark.parametrize(
    ("env", "actions", "told"),
    [
        ("Classic/CartPole", [0, 1], r"actions of shape \[3\], got \[2\]"),
        ("Classic/CartPole", [[0], [1], [0]], r"actions of shape \[3\], got \[3, 1\]"),
        ("Classic/CartPole", [0, 1, 2], "actions that are in Discrete"),
        ("Classic/CartPole", [0, -1, 0], "actions that are in Discrete"),
        ("Classic/CartPole", [0.0, 1.0, 0.0], "actions that are in Discrete"),
        ("Classic/Pendulum", [[0j], [0j], [1j]], "expected real numbers"),
        ("Classic/Pendulum", [0.0, 1.0, 0.0], r"actions of shape \[3, 1\], got \[3\]"),
    ],
)
def test_actions_that_there_are_not_are_refused(env, actions, told):
    """By EnvPool the first would end the process."""
    envs = make_envs(env, 3, seed=0)
    envs.reset()
    with pytest.raises(ValueError, match=told):
        envs.step(actions)
    taken = [0, 1, 0] if env == "Classic/CartPole" else [[0.5], [1], [0]]
    for kind in (list, np.array, torch.tensor, lambda actions: np.array(actions)[::-1]):
        assert envs.step(kind(taken))[1].shape == (3,)
    envs.close()


class Chooser(gymnasium.Env):
    """Takes what its space has, and nothing else."""

    def __init__(self, space):
        kinds = {
            "several": MultiDiscrete([3, 4], start=[1, -2]),
            "bits": MultiBinary((2, 2)),
            "from": Discrete(3, start=5),
        }
        self.action_space = kinds[space]
        self.observation_space = gymnasium.spaces.Box(0, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        return np.zeros(2, np.float32), 0.0, False, False, {}


@pytest.mark.parametrize("space", ["several", "bits", "from"])
def test_every_choice_that_there_is_can_be_taken(space):
    gymnasium.register("test_policy/Chooser-v0", entry_point=Chooser, disable_env_checker=True)
    try:
        envs = make_envs("gymnasium:test_policy/Chooser-v0", 4, seed=0, space=space)
        envs.reset()
        for _ in range(20):
            envs.step(np.stack([envs.action_space.sample() for _ in range(4)]))
        with pytest.raises(ValueError, match="expected actions that are in"):
            envs.step(np.stack([envs.action_space.sample() for _ in range(4)]) + 9)
    finally:
        gymnasium.registry.pop("test_policy/Chooser-v0")


def test_the_wrong_shape_is_refused(run):
    with pytest.raises(ValueError, match=r"\[B, 4\]"):
        load_policy(run.run_dir, device="cpu").act(torch.zeros(3, 7))


def test_a_checkpoint_file_will_do(run):
    whole = load_policy(run.run_dir, device="cpu")
    file = load_policy(run.run_dir / "checkpoints" / "latest.pt", device="cpu")
    observations = torch.randn(6, 4)
    assert torch.equal(whole.value(observations), file.value(observations))


def test_no_run_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_policy(tmp_path / "nothing")


@pytest.mark.parametrize("missing", ["config", "spec", "model"])
def test_a_checkpoint_that_lacks_a_part_is_refused(run, tmp_path, missing):
    state = checkpoint.load(checkpoint.resolve(run.run_dir))
    del state[missing]
    torch.save(state, tmp_path / "cut.pt")
    with pytest.raises(UserError, match="lacks"):
        load_policy(tmp_path / "cut.pt")
