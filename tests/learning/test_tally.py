"""Means of updates' metrics for the log, whatever numbers were not finite."""

import math

import pytest
import torch

from fasta2c.learning.learner import METRICS
from fasta2c.learning.tally import Tally


def metrics(*values):
    """An update's, the first few given, 1 elsewhere."""
    return torch.tensor([*values, *[1.0] * (len(METRICS) - len(values))])


def test_means_are_over_finite_numbers_and_since_the_last_call():
    tally = Tally(torch.device("cpu"))
    tally.add(metrics(1.0, math.nan))
    tally.add(metrics(3.0, math.inf))
    means = tally.take_means()
    assert means[METRICS[0]] == 2.0 and math.isnan(means[METRICS[1]]) and means[METRICS[2]] == 1.0
    tally.add(metrics(5.0))
    assert tally.take_means()[METRICS[0]] == 5.0


def test_half_an_interval_goes_on_elsewhere():
    half, other = Tally(torch.device("cpu")), Tally(torch.device("cpu"))
    half.add(metrics(1.0))
    half.add(metrics(math.nan))
    kept = half.state_dict()
    other.load_state_dict({name: kept[name] for name in METRICS[:-1]})  # as if the last were new
    other.add(metrics(2.0, 4.0))
    means = other.take_means()
    assert means[METRICS[0]] == pytest.approx(1.5) and means[METRICS[1]] == pytest.approx(2.0)
    assert means[METRICS[-1]] == 1.0
