"""What load_policy returns acts and values as the run's own network does."""

import numpy as np
import pytest
import torch

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
