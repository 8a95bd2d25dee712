"""GAE against hand-computed cases, an independent float64 reference, properties, and poisoned reset rows."""

import math

import numpy as np
import pytest
import torch
from helpers import vtrace_reference
from hypothesis import given, settings
from hypothesis import strategies as st

from fasta2c.learning.advantages import build_estimators, gae, standardise, vtrace


def reference(rewards, values, terminated, truncated, gamma, lam):
    """GAE's definition: V-trace's, where the policy that learns is the one that acted."""
    return vtrace_reference(rewards, values, terminated, truncated, np.ones_like(rewards), gamma, lam)


def column(*values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype).unsqueeze(1)


def test_hand_computed_without_ends():
    advantages, returns = gae(
        column(1.0, 2.0), column(10.0, 20.0, 30.0), column(0, 0).bool(), column(0, 0).bool(), gamma=0.5, gae_lambda=0.5
    )
    # delta = [1 + 10 - 10, 2 + 15 - 20] = [1, -3];  adv = [1 - 0.25 * 3, -3]
    assert advantages.flatten().tolist() == [0.25, -3.0]
    assert returns.flatten().tolist() == [10.25, 17.0]


def test_termination_has_no_future_and_truncation_bootstraps():
    values, rewards = column(10.0, 20.0), column(1.0)
    ended, going_on = column(1).bool(), column(0).bool()
    terminated, _ = gae(rewards, values, ended, going_on, gamma=0.5, gae_lambda=1.0)
    truncated, _ = gae(rewards, values, going_on, ended, gamma=0.5, gae_lambda=1.0)
    both, _ = gae(rewards, values, ended, ended, gamma=0.5, gae_lambda=1.0)
    assert (terminated.item(), truncated.item(), both.item()) == (-9.0, 1.0, -9.0)


@pytest.mark.parametrize("name", ["scan", "auto", "compiled"])
@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_matches_the_reference(name, lam):
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(11, 7, generator=generator, dtype=torch.float64)
    values = torch.randn(12, 7, generator=generator, dtype=torch.float64)
    terminated = torch.rand(11, 7, generator=generator) < 0.2
    truncated = torch.rand(11, 7, generator=generator) < 0.2
    advantages, returns = build_estimators(name, torch.device("cpu")).gae(
        rewards, values, terminated, truncated, gamma=0.9, gae_lambda=lam
    )
    expected = reference(*(x.numpy() for x in (rewards, values, terminated, truncated)), 0.9, lam)
    np.testing.assert_allclose(advantages.numpy(), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(returns.numpy(), expected + values[:-1].numpy(), rtol=1e-12, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    T=st.integers(1, 9), E=st.integers(1, 4), seed=st.integers(0, 10_000), gamma=st.floats(0, 1), lam=st.floats(0, 1)
)
def test_matches_the_reference_at_any_size(T, E, seed, gamma, lam):
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(size=(T, E)), rng.normal(size=(T + 1, E))
    terminated, truncated = rng.random((T, E)) < 0.3, rng.random((T, E)) < 0.3
    advantages, _ = gae(
        *(torch.from_numpy(x) for x in (rewards, values, terminated, truncated)), gamma=gamma, gae_lambda=lam
    )
    np.testing.assert_allclose(
        advantages.numpy(), reference(rewards, values, terminated, truncated, gamma, lam), rtol=1e-9, atol=1e-9
    )


def test_lambda_one_is_the_n_step_return():
    rewards, values = column(1.0, 2.0, 3.0), column(9.0, 9.0, 9.0, 4.0)
    none = column(0, 0, 0).bool()
    _, returns = gae(rewards, values, none, none, gamma=0.5, gae_lambda=1.0)
    assert returns[0].item() == pytest.approx(1 + 0.5 * 2 + 0.25 * 3 + 0.125 * 4)


@pytest.mark.parametrize("poison", [math.nan, 1e6, -1e6, math.inf])
def test_a_reset_row_reaches_no_other_row(poison):
    """Row 1 ends the episode, so row 2 is a reset row: its reward, and its value after a termination, do not matter."""
    rewards, values = column(1.0, 2.0, 3.0, 4.0), column(5.0, 6.0, 7.0, 8.0, 9.0)
    ended, none = column(0, 1, 0, 0).bool(), column(0, 0, 0, 0).bool()
    for terminated, truncated in ((ended, none), (none, ended)):
        clean, _ = gae(rewards, values, terminated, truncated, gamma=0.9, gae_lambda=0.8)
        bad_rewards, bad_values = rewards.clone(), values.clone()
        bad_rewards[2] = poison
        if terminated is ended:
            bad_values[2] = poison  # after a truncation this value is the bootstrap
        dirty, _ = gae(bad_rewards, bad_values, terminated, truncated, gamma=0.9, gae_lambda=0.8)
        valid = [0, 1, 3]
        assert torch.equal(clean[valid], dirty[valid])


@settings(max_examples=60, deadline=None)
@given(
    T=st.integers(1, 9), E=st.integers(1, 4), seed=st.integers(0, 10_000), gamma=st.floats(0, 1), lam=st.floats(0, 1)
)
def test_vtrace_matches_its_reference(T, E, seed, gamma, lam):
    rng = np.random.default_rng(seed)
    rewards, values, ratios = rng.normal(size=(T, E)), rng.normal(size=(T + 1, E)), np.exp(rng.normal(size=(T, E)))
    terminated, truncated = rng.random((T, E)) < 0.3, rng.random((T, E)) < 0.3
    arrays = (rewards, values, terminated, truncated, ratios)
    for name in ("scan", "auto"):
        advantages, returns = build_estimators(name, torch.device("cpu")).vtrace(
            *map(torch.from_numpy, arrays), gamma=gamma, gae_lambda=lam
        )
        expected = vtrace_reference(*arrays, gamma, lam)
        np.testing.assert_allclose(advantages.numpy(), expected, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(returns.numpy(), expected + values[:-1], rtol=1e-9, atol=1e-9)


def test_vtrace_by_hand():
    none = column(0, 0).bool()
    ratios = column(0.5, 4.0)  # the second counts as 1
    advantages, returns = vtrace(
        column(1.0, 2.0), column(10.0, 20.0, 30.0), none, none, ratios, gamma=0.5, gae_lambda=0.5
    )
    # delta = [1, -3];  adv = [0.5 (1 - 0.25 * 3), -3]
    assert advantages.flatten().tolist() == [0.125, -3.0]
    assert returns.flatten().tolist() == [10.125, 17.0]


def test_vtrace_on_policy_is_gae_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(11, 7, generator=generator), torch.randn(12, 7, generator=generator)
    terminated = torch.rand(11, 7, generator=generator) < 0.2
    truncated = torch.rand(11, 7, generator=generator) < 0.2
    rows = (rewards, values, terminated, truncated)
    expected = gae(*rows, gamma=0.9, gae_lambda=0.8)
    for got, wanted in zip(vtrace(*rows, torch.ones(11, 7), gamma=0.9, gae_lambda=0.8), expected, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("poison", [math.nan, 1e6, math.inf])
def test_a_reset_row_reaches_no_other_row_by_vtrace(poison):
    rewards, values = column(1.0, 2.0, 3.0, 4.0), column(5.0, 6.0, 7.0, 8.0, 9.0)
    ended, none, ratios = column(0, 1, 0, 0).bool(), column(0, 0, 0, 0).bool(), column(0.5, 0.7, 0.9, 2.0)
    for terminated, truncated in ((ended, none), (none, ended)):
        clean, _ = vtrace(rewards, values, terminated, truncated, ratios, gamma=0.9, gae_lambda=0.8)
        bad_rewards, bad_values, bad_ratios = rewards.clone(), values.clone(), ratios.clone()
        bad_rewards[2] = bad_ratios[2] = poison
        if terminated is ended:
            bad_values[2] = poison
        dirty, _ = vtrace(bad_rewards, bad_values, terminated, truncated, bad_ratios, gamma=0.9, gae_lambda=0.8)
        valid = [0, 1, 3]
        assert torch.equal(clean[valid], dirty[valid])


def test_standardise_uses_valid_rows_only():
    advantages = torch.tensor([[1.0, math.nan], [3.0, 1e6]])
    valid = torch.tensor([[True, False], [True, False]])
    assert standardise(advantages, valid).tolist() == [[-1.0, 0.0], [1.0, 0.0]]


@pytest.mark.parametrize("equal", [5.0, 0.1, -7.7, 100.1])
def test_standardise_of_equal_advantages_is_zero_not_nan_nor_rounding(equal):
    assert not standardise(torch.full((32, 7), equal), torch.ones(32, 7, dtype=torch.bool)).any()
