"""The measures of an update, by hand and from the distributions themselves."""

import math

import pytest
import torch

from fasta2c.learning.measures import explained_variance, mean_kl


def test_the_divergence_is_that_of_the_distributions():
    """The mean of r - 1 - log r over what the one draws is its divergence from the other, in float64."""
    generator = torch.Generator().manual_seed(0)
    old, new = (torch.softmax(torch.randn(5, generator=generator, dtype=torch.float64), 0) for _ in range(2))
    drawn = torch.multinomial(old, 400_000, replacement=True, generator=generator).view(-1, 4)
    ratios = (new / old)[drawn]
    exact = (old * (old / new).log()).sum()
    assert mean_kl(ratios, torch.ones_like(ratios, dtype=torch.bool)) == pytest.approx(exact.item(), rel=0.01)
    ratios[0, 0], valid = math.nan, torch.ones_like(ratios, dtype=torch.bool)
    valid[0, 0] = False
    assert mean_kl(ratios, valid) == pytest.approx(exact.item(), rel=0.01)
    assert mean_kl(torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.bool)) == 0.0


def test_explained_variance_by_hand():
    values, returns = torch.tensor([[1.0, 2.0], [3.0, 1e6]]), torch.tensor([[1.0, 3.0], [5.0, math.nan]])
    valid = torch.tensor([[True, True], [True, False]])
    # errors 0, 1, 2: variance 2/3; returns 1, 3, 5: variance 8/3
    assert explained_variance(values, returns, valid).item() == pytest.approx(1 - (2 / 3) / (8 / 3))
    assert math.isnan(explained_variance(values, torch.ones(2, 2), valid).item())


@pytest.mark.parametrize("constant", [0.1, -7.7, 100.1, 0.0])
def test_returns_that_do_not_vary_have_no_explained_variance(constant):
    """In float32 the mean of 128 times 0.1 is not 0.1, and the rounding would be taken for a variance."""
    returns = torch.full((32, 7), constant)
    values = torch.randn((32, 7), generator=torch.Generator().manual_seed(0))
    assert torch.isnan(explained_variance(values, returns, torch.ones(32, 7, dtype=torch.bool)))
