"""The categorical distribution against torch's own, and the exponential race against the probabilities it is for."""

import pytest
import torch

from fasta2c.models import distributions


def test_log_prob_and_entropy_match_torch():
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * 3
    actions = torch.arange(50) % 7
    expected = torch.distributions.Categorical(logits=logits)
    log_probs, entropies = distributions.log_prob_and_entropy(logits, actions)
    torch.testing.assert_close(log_probs, expected.log_prob(actions))
    torch.testing.assert_close(entropies, expected.entropy())


def test_samples_follow_the_probabilities():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = (probabilities.log() + 4.0).expand(200_000, 4)
    actions = distributions.sample(logits, torch.Generator().manual_seed(3))
    shares = torch.bincount(actions, minlength=4) / len(actions)
    # five standard errors of the largest share
    assert (shares - probabilities).abs().max() < 5 * (0.25 / 200_000) ** 0.5


def test_sampling_is_reproducible():
    logits = torch.zeros(100, 5)
    one, again, other = (distributions.sample(logits, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)


@pytest.mark.parametrize("gap", [50.0, 1e4])
def test_a_certain_policy_is_certain(gap):
    logits = torch.tensor([[0.0, gap, 0.0]]).expand(10_000, 3)
    assert (distributions.sample(logits, torch.Generator().manual_seed(0)) == 1).all()
