"""Reward scaling against a float64 reference that walks each episode, and reset rows that must not count."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fasta2c.learning.rewards import RewardScaler

GAMMA = 0.9


def rows(seed, T, E):
    """Rewards, done and valid flags as autoreset gives them: each done is followed by a reset row."""
    rng = np.random.default_rng(seed)
    rewards, done = rng.normal(3, 5, (T, E)).astype(np.float32), rng.random((T, E)) < 0.2
    valid = np.ones((T, E), bool)
    for t in range(1, T):
        valid[t] = ~(done[t - 1] & valid[t - 1])
        done[t] &= valid[t]
    return rewards, done, valid


def reference(rewards, done, valid):
    """The standard deviation of every discounted return of every episode so far."""
    returns = []
    for e in range(rewards.shape[1]):
        so_far = 0.0
        for t in range(len(rewards)):
            if valid[t, e]:
                so_far = float(rewards[t, e]) + GAMMA * so_far
                returns.append(so_far)
                if done[t, e]:
                    so_far = 0.0
    return np.std(returns)


@given(st.integers(0, 999), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_returns_go_on_over_rollouts(seed, rollouts):
    T, E = 5, 3
    whole = rows(seed, rollouts * T, E)
    scaler = RewardScaler(E, GAMMA)
    for n in range(rollouts):
        part = [torch.from_numpy(x[n * T : (n + 1) * T]) for x in whole]
        scaled = scaler(*part)
    expected = part[0].numpy() / math.sqrt(reference(*whole) ** 2 + 1e-8)
    assert np.allclose(scaled, expected, rtol=1e-5)


@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e9])
def test_reset_rows_do_not_count(poison):
    rewards, done, valid = (torch.from_numpy(x) for x in rows(1, 40, 4))
    assert (~valid).any()
    clean = RewardScaler(4, GAMMA)(rewards, done, valid)
    dirty = RewardScaler(4, GAMMA)(torch.where(valid, rewards, poison), done, valid)
    assert torch.equal(clean[valid], dirty[valid])


@pytest.mark.parametrize("reward", [0.0, 0.1, 1.0, -300.0])
@pytest.mark.parametrize("gamma", [GAMMA, 0.0])
def test_rewards_whose_returns_do_not_vary_are_left_as_they_are(reward, gamma):
    """Games of one step each: by the deviation, which is 0 or rounding, they would be multiplied by thousands."""
    ones = torch.ones(3, 2, dtype=torch.bool)
    scaler = RewardScaler(2, gamma)
    for _ in range(50):
        scaled = scaler(torch.full((3, 2), reward), ones, ones)
        assert scaled.eq(torch.tensor(reward)).all()


def test_small_rewards_that_vary_are_made_as_large_as_others():
    ones = torch.ones(1, 4, dtype=torch.bool)
    scaled = RewardScaler(4, GAMMA)(torch.tensor([[1.0, 1.01, 1.0, 1.01]]), ~ones, ones)
    torch.testing.assert_close(scaled.std(correction=0), torch.tensor(1.0), rtol=1e-3, atol=0)


def test_a_saved_scaler_goes_on_where_it_was():
    first, second = RewardScaler(3, GAMMA), RewardScaler(3, GAMMA)
    first(*(torch.from_numpy(x) for x in rows(0, 30, 3)))
    second.load_state_dict(first.state_dict())
    more = [torch.from_numpy(x) for x in rows(1, 30, 3)]
    assert first.return_E.any() and torch.equal(first(*more), second(*more))
    second.load_moments(first.state_dict())
    assert second.return_E.tolist() == [0.0] * 3 and torch.equal(first.moments.variance_D, second.moments.variance_D)


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_a_reward_that_is_not_finite_is_none_for_the_scale(odd):
    paid, done, valid = (torch.from_numpy(x) for x in rows(0, 30, 3))
    done[:], valid[:] = False, True
    plain, other = RewardScaler(3, GAMMA), RewardScaler(3, GAMMA)
    paid[4, 1] = 0.0
    expected = plain(paid, done, valid)
    paid[4, 1] = odd
    found = other(paid, done, valid)
    assert not torch.isfinite(found[4, 1]) and torch.equal(plain.return_E, other.return_E)
    found[4, 1] = expected[4, 1]
    assert torch.equal(found, expected)
