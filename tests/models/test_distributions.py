"""Every action head in float64 against torch.distributions, scipy or an enumeration; sampling against probabilities."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from fasta2c.errors import UserError
from fasta2c.models.distributions import build_distribution
from fasta2c.models.distributions.gaussian import LOG_STD_RANGE
from fasta2c.spaces import Choices, Continuous

INF = math.inf
ONE = Choices((), (4,), (0,))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def test_one_choice_is_torchs_categorical():
    logits = normal(50, 7) * 3
    actions = torch.arange(50) % 7
    expected = torch.distributions.Categorical(logits=logits)
    log_probs, entropies = build_distribution(Choices((), (7,), (0,))).log_prob_and_entropy(logits, actions)
    torch.testing.assert_close(log_probs, expected.log_prob(actions))
    torch.testing.assert_close(entropies, expected.entropy())


@given(st.lists(st.integers(1, 4), min_size=2, max_size=3), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_several_choices_against_enumeration(sizes, seed):
    """The probabilities of all combinations sum to 1, and -sum p log p is the entropy; sizes may differ."""
    head = build_distribution(Choices((len(sizes),), tuple(sizes), (0,) * len(sizes)))
    logits = head(normal(1, head.width, seed=seed) * 2)
    combinations = torch.tensor(list(itertools.product(*map(range, sizes))))
    log_probs, entropies = head.log_prob_and_entropy(logits.expand(len(combinations), -1), combinations)
    assert log_probs.exp().sum().item() == pytest.approx(1.0)
    assert -(log_probs.exp() * log_probs).sum().item() == pytest.approx(entropies[0].item())
    drawn = head.sample(logits.float().expand(500, -1), generator())
    assert all((drawn[:, k] < size).all() for k, size in enumerate(sizes))


def masks_of(count, length):
    return st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=count, max_size=count)


@given(masks_of(1, 6), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_a_masked_choice_against_enumeration(mask, seed):
    """Renormalised over the legal options; gradients finite, and none to the illegal ones."""
    legal = [n for n, allowed in enumerate(mask[0]) if allowed] or list(range(6))
    head = build_distribution(Choices((), (6,), (0,)))
    logits = normal(1, 6, seed=seed).mul(3).requires_grad_()
    restricted = head(logits, mask=torch.tensor(mask, dtype=torch.uint8))
    probabilities = torch.softmax(logits[0, legal].detach(), dim=0)
    log_probs, entropies = head.log_prob_and_entropy(restricted.expand(len(legal), -1), torch.tensor(legal))
    torch.testing.assert_close(log_probs.detach(), probabilities.log())
    assert entropies[0].item() == pytest.approx(-(probabilities * probabilities.log()).sum().item())
    (log_probs.sum() + entropies.sum()).backward()
    assert torch.isfinite(logits.grad).all()
    assert all(logits.grad[0, n] == 0 for n in range(6) if n not in legal)
    assert set(head.sample(restricted.detach().float().expand(200, -1), generator(seed)).tolist()) <= set(legal)


def test_an_illegal_option_loses_however_unlikely_the_legal_ones():
    logits = torch.tensor([[80.0, -3e38, 90.0, -3e38]]).expand(20_000, 4)
    head = build_distribution(ONE)
    mask = torch.tensor([[0, 1, 0, 1]], dtype=torch.uint8).expand(20_000, 4)
    restricted = head(logits, mask=mask)
    assert set(head.sample(restricted, generator()).tolist()) <= {1, 3}
    assert set(head.mode(restricted).tolist()) <= {1, 3}


def test_each_choice_has_its_own_mask():
    head = build_distribution(Choices((2,), (3, 2), (0, 0)))
    mask = torch.tensor([[[0, 1, 1], [0, 1, 1]]], dtype=torch.uint8)  # the second choice has no third option
    drawn = head.sample(head(torch.zeros(1, 6), mask=mask).expand(1000, -1), generator())
    assert set(map(tuple, drawn.tolist())) == {(1, 1), (2, 1)}


def test_a_mask_may_list_the_options_of_all_choices_one_after_another():
    head = build_distribution(Choices((2,), (2, 3), (0, 0)))
    mask = torch.tensor([[0, 1, 1, 0, 1]], dtype=torch.uint8)
    drawn = head.sample(head(torch.zeros(1, 6), mask=mask).expand(1000, -1), generator())
    assert set(map(tuple, drawn.tolist())) == {(1, 0), (1, 2)}


def test_a_mask_without_any_legal_option_is_ignored():
    head = build_distribution(Choices((2,), (3, 2), (0, 0)))
    plain = head(torch.ones(1, 6))
    assert torch.equal(head(torch.ones(1, 6), mask=torch.zeros(1, 2, 3, dtype=torch.uint8)), plain)


@given(st.lists(st.integers(1, 5), min_size=2, max_size=4), st.data())
@settings(max_examples=50, deadline=None)
def test_a_joint_choice_takes_only_legal_combinations(sizes, data):
    """Whatever combinations a mask allows: those drawn, as the environment gets them, are among them."""
    count = math.prod(sizes)
    allowed = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count))).reshape(sizes)
    if not allowed.any():
        allowed.flat[0] = True
    starts = tuple(range(len(sizes)))
    head = build_distribution(Choices((len(sizes),), tuple(sizes), starts, joint=True))
    logits = head(torch.zeros(1, count), mask=torch.from_numpy(allowed[None].astype(np.uint8)))
    drawn = head.sample(logits.expand(300, -1), generator())
    assert drawn.shape == (300,)
    taken = head.env_actions(drawn).numpy() - starts
    assert allowed[tuple(taken.T)].all()


def test_samples_follow_the_probabilities():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = (probabilities.log() + 4.0).expand(200_000, 4)
    actions = build_distribution(ONE).sample(logits, generator(3))
    shares = torch.bincount(actions, minlength=4) / len(actions)
    # five standard errors of the largest share
    assert (shares - probabilities).abs().max() < 5 * (0.25 / 200_000) ** 0.5


@pytest.mark.parametrize("actions", [Choices((), (5,), (0,)), Continuous((2,), (-1.0, -INF), (1.0, INF))])
def test_sampling_is_reproducible(actions):
    head = build_distribution(actions)
    policy = torch.zeros(100, head.width)
    one, again, other = (head.sample(policy, generator(s)) for s in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)


@pytest.mark.parametrize("gap", [50.0, 1e4])
def test_a_certain_policy_is_certain(gap):
    logits = torch.tensor([[0.0, gap, 0.0, 0.0]]).expand(10_000, 4)
    assert (build_distribution(ONE).sample(logits, generator()) == 1).all()


@pytest.mark.parametrize(
    ("choices", "drawn", "taken"),
    [
        (Choices((), (3,), (0,)), [2], [2]),
        (Choices((), (3,), (-1,)), [2], [1]),
        (Choices((1,), (3,), (5,)), [2], [[7]]),
        (Choices((2,), (3, 4), (0, 10)), [[2, 3]], [[2, 13]]),
        (Choices((2, 2), (2,) * 4, (0,) * 4), [[0, 1, 1, 0]], [[[0, 1], [1, 0]]]),
        (Choices((2,), (3, 4), (0, 0), joint=True), [7], [[1, 3]]),
    ],
)
def test_the_environment_gets_what_its_space_says(choices, drawn, taken):
    assert build_distribution(choices).env_actions(torch.tensor(drawn)).tolist() == taken


BOX = Continuous((2,), (-2.0, 0.0), (4.0, 10.0))


def test_a_gaussian_is_scipys():
    head = build_distribution(BOX, log_std=-0.7)
    assert head(torch.ones(2, 2)).tolist() == [[1.0, 1.0, *[pytest.approx(-0.7)] * 2]] * 2
    policy, actions = normal(20, 4), normal(20, 2, seed=1)
    log_probs, entropies = head.log_prob_and_entropy(policy, actions)
    expected = stats.norm(policy[:, :2].numpy(), policy[:, 2:].exp().numpy())
    assert np.allclose(log_probs, expected.logpdf(actions.numpy()).sum(axis=1), rtol=1e-12)
    assert np.allclose(entropies, expected.entropy().sum(axis=1), rtol=1e-12)


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.7, -1.5), (-1.5, 0.3), (3.0, -0.5)])
def test_a_squashed_gaussian_against_numerical_integration(mean, log_std):
    """The density of a = tanh(x), in closed form in a, integrates to 1; -E[log p] is the entropy."""
    head = build_distribution(Continuous((1,), (-2.0,), (4.0,)), bounds="squash").double()
    policy = torch.tensor([[mean, log_std]], dtype=torch.float64)

    def log_density(a):
        return stats.norm(mean, math.exp(log_std)).logpdf(math.atanh(a)) - math.log(1 - a * a)

    for x in (-1.3, 0.1, 2.0):
        found = head.log_prob_and_entropy(policy, torch.tensor([[x]], dtype=torch.float64))[0]
        assert found.item() == pytest.approx(log_density(math.tanh(x)), abs=1e-9)
    entropy, _ = integrate.quad(
        lambda x: -stats.norm(mean, math.exp(log_std)).pdf(x) * log_density(math.tanh(x)), -8, 8, limit=200
    )
    found = head.log_prob_and_entropy(policy, torch.zeros(1, 1, dtype=torch.float64))[1]
    assert found.item() == pytest.approx(entropy, abs=2e-3)


def test_a_far_squashed_number_stays_finite():
    head = build_distribution(BOX, bounds="squash")
    policy = torch.tensor([[50.0, -50.0, 30.0, -90.0]], requires_grad=True)  # beyond any sensible log-std too
    log_probs, entropies = head.log_prob_and_entropy(policy, torch.tensor([[50.0, -50.0]]))
    (log_probs + entropies).sum().backward()
    assert torch.isfinite(log_probs).all() and torch.isfinite(entropies).all() and torch.isfinite(policy.grad).all()


@pytest.mark.parametrize("bounds", ["clip", "squash"])
def test_real_numbers_reach_the_environment_within_their_bounds(bounds):
    head = build_distribution(Continuous((3,), (-2.0, -INF, 0.0), (4.0, INF, INF)), bounds=bounds)
    taken = head.env_actions(torch.tensor([[-100.0, -100.0, -100.0], [0.0, 5.0, 5.0], [100.0, 100.0, 100.0]]))
    expected = torch.tensor([[-2.0, -100.0, 0.0], [1.0, 5.0, 5.0], [4.0, 100.0, 100.0]])
    torch.testing.assert_close(taken, expected)


def test_a_number_with_no_room_is_that_number():
    for bounds in ("clip", "squash"):
        head = build_distribution(Continuous((1,), (3.0,), (3.0,)), bounds=bounds)
        assert head.env_actions(torch.tensor([[-7.0], [7.0]])).tolist() == [[3.0], [3.0]]


@pytest.mark.parametrize(
    ("means", "excess"),
    [((1.0, 50.0, 3.0, 9.0), 0), ((2.0, 0.0, -3.0, -9.0), 1 + 9), ((-3.5, -50.0, -1.0, 0.0), 2.5**2 + 1)],
)
def test_how_far_means_lie_beyond_their_bounds(means, excess):
    """In units of half the range where there are two bounds, in the environment's own where there is one."""
    head = build_distribution(Continuous((4,), (-2.0, -INF, 0.0, 3.0), (4.0, INF, INF, 3.0)))
    policy = torch.tensor([[*means, 0.0, 0.0, 0.0, 0.0]], requires_grad=True)
    found = head.excess(policy)
    assert found.tolist() == [pytest.approx(excess)]
    found.sum().backward()
    assert torch.isfinite(policy.grad).all() and (policy.grad.abs().sum() > 0) == (excess > 0)


@pytest.mark.parametrize(
    ("bounds", "low", "high"), [("squash", -1.0, 1.0), ("clip", -INF, INF), ("clip", -3.4028235e38, 3.4028235e38)]
)
def test_nothing_lies_beyond_bounds_that_there_are_not(bounds, low, high):
    head = build_distribution(Continuous((1,), (low,), (high,)), bounds=bounds)
    assert head.excess(torch.tensor([[1000.0, 0.0]])).tolist() == [0]
    if bounds == "clip":
        assert head.env_actions(torch.tensor([[0.5]])).tolist() == [[0.5]]


def test_gaussian_samples_have_the_moments_asked_for():
    head = build_distribution(BOX)
    drawn = head.sample(torch.tensor([[1.0, -2.0, 0.0, math.log(0.1)]]).expand(100_000, 4), generator())
    torch.testing.assert_close(drawn.mean(dim=0), torch.tensor([1.0, -2.0]), atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.std(dim=0), torch.tensor([1.0, 0.1]), atol=0, rtol=0.02)
    assert head.mode(torch.tensor([[1.0, -2.0, 5.0, 5.0]])).tolist() == [[1.0, -2.0]]


def test_state_dependent_exploration_is_scipys_given_the_features():
    head = build_distribution(BOX, state_dependent=3, log_std=-1.0).double()
    with torch.no_grad():
        head.log_std.copy_(normal(3, 2, seed=2))
    means, features, actions = normal(20, 2), normal(20, 3, seed=1), normal(20, 2, seed=3)
    std = np.sqrt(np.square(features.numpy()) @ np.exp(2 * head.log_std.detach().numpy()) + 1e-6)
    log_probs, entropies = head.log_prob_and_entropy(head(means, features), actions)
    expected = stats.norm(means.numpy(), std)
    assert np.allclose(log_probs.detach(), expected.logpdf(actions.numpy()).sum(axis=1), rtol=1e-10)
    assert np.allclose(entropies.detach(), expected.entropy().sum(axis=1), rtol=1e-10)


@pytest.mark.parametrize("size", [1.0, 200.0])
def test_shared_exploration_gives_each_action_its_distribution(size):
    """Over many drawings of the exploration; within one it is a function of the features alone, large ones as well."""
    head = build_distribution(BOX, state_dependent=3, log_std=-0.5)
    features = torch.tensor([[0.5, -1.0, 2.0]]).expand(100_000, 3) * size
    policy = head(torch.tensor([[1.0, -2.0]]).expand(100_000, 2), features).detach()
    exploration = head.explore(100_000, generator())
    drawn = head.sample(policy, None, exploration)
    _, entropies = head.log_prob_and_entropy(policy[:1], drawn[:1])
    std = policy[0, 2:4].clamp(*LOG_STD_RANGE).exp()
    assert entropies.item() == pytest.approx(stats.norm(0, std.numpy()).entropy().sum(), rel=1e-5)
    torch.testing.assert_close(drawn.mean(dim=0), torch.tensor([1.0, -2.0]), atol=0.03 * std.max().item(), rtol=0)
    torch.testing.assert_close(drawn.std(dim=0), std, atol=0, rtol=0.02)
    assert torch.equal(head.sample(policy, None, exploration), drawn)
    alone = head.sample(policy, generator(1))
    torch.testing.assert_close(alone.std(dim=0), std, atol=0, rtol=0.02)


def test_features_learn_nothing_from_exploration():
    head = build_distribution(BOX, state_dependent=3)
    features = torch.ones(4, 3, requires_grad=True)
    log_probs, entropies = head.log_prob_and_entropy(head(torch.zeros(4, 2), features), torch.ones(4, 2))
    (log_probs + entropies).sum().backward()
    assert features.grad is None and head.log_std.grad.abs().sum() > 0


def test_choices_have_no_state_dependent_exploration():
    with pytest.raises(UserError, match="sde: "):
        build_distribution(ONE, state_dependent=3)
