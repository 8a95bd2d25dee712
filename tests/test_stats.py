"""Statistics of scores against scipy, by hand, and by what an interval promises."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from fasta2c.stats import bootstrap_interval, interquartile_mean, mean


@pytest.mark.parametrize("count", [4, 8, 40])
def test_the_interquartile_mean_is_scipys_where_a_quarter_is_whole(count):
    values = np.random.default_rng(count).normal(size=(count, 3))
    np.testing.assert_allclose(interquartile_mean(values), scipy.stats.trim_mean(values, 0.25), rtol=1e-12)


def test_the_interquartile_mean_counts_parts_of_values():
    """Five values: a quarter is 1.25 of them, so that 0.75 of the second and fourth count, and the third whole."""
    values = np.array([[100.0], [1.0], [2.0], [4.0], [-50.0]])
    np.testing.assert_allclose(interquartile_mean(values), [(0.75 * 1 + 2 + 0.75 * 4) / 2.5])
    assert interquartile_mean(np.array([[7.0]])) == [7.0]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=12), st.floats(-10, 10), st.floats(0.1, 10))
def test_the_interquartile_mean_lies_inside_and_follows_scale_and_place(values, place, scale):
    array = np.array(values)
    whole = interquartile_mean(array)
    assert array.min() - 1e-9 <= whole <= array.max() + 1e-9
    np.testing.assert_allclose(interquartile_mean(scale * array + place), scale * whole + place, atol=1e-8)


def test_the_interval_is_as_wide_as_scipys():
    values = np.random.default_rng(1).exponential(size=60)
    low, high = bootstrap_interval(values)
    theirs = scipy.stats.bootstrap((values,), np.mean, method="percentile", random_state=0).confidence_interval
    assert low == pytest.approx(theirs.low, rel=0.02) and high == pytest.approx(theirs.high, rel=0.02)
    assert bootstrap_interval(values) == (low, high), "drawn alike each time"


def test_the_interval_holds_what_it_promises():
    random = np.random.default_rng(2)
    held = 0
    for _ in range(300):
        low, high = bootstrap_interval(random.normal(5, 2, size=50), resamples=300)
        held += low <= 5 <= high
    assert 0.90 <= held / 300 <= 0.98


def test_strata_are_resampled_apart():
    """Two tasks whose runs agree: nothing is unsure but which tasks these are, which is not asked."""
    values, tasks = [0.2] * 5 + [0.9] * 5, ["A"] * 5 + ["B"] * 5
    assert bootstrap_interval(values, interquartile_mean, strata=tasks) == (0.55, 0.55)
    low, high = bootstrap_interval(values, interquartile_mean)
    assert low < 0.3 and high > 0.8
    low, high = bootstrap_interval([0.0, 1.0, 5.0], mean, strata=["A", "A", "B"])
    assert (low, high) == (5 / 3, 7 / 3), "a single run of a task is always drawn"


def test_the_interval_of_one_is_unknown_and_of_equals_a_point():
    assert np.isnan(bootstrap_interval([3.0])).all()
    assert bootstrap_interval([3.0] * 9) == (3.0, 3.0)
    low, high = bootstrap_interval(np.arange(12.0).reshape(4, 3), mean)
    assert low.shape == high.shape == (3,) and (low <= high).all()
