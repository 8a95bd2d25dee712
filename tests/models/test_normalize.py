"""Running moments against numpy over everything at once."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fasta2c.models.normalize import RunningMoments


def every(batch):
    return torch.ones(len(batch), dtype=torch.bool)


@given(st.lists(st.integers(0, 7), min_size=1, max_size=5), st.integers(0, 99), st.floats(-1e6, 1e6))
@settings(max_examples=50, deadline=None)
def test_batches_add_up_to_the_whole(sizes, seed, offset):
    rng = np.random.default_rng(seed)
    batches = [rng.normal(offset, 3.0, (size, 4)) for size in sizes]
    moments = RunningMoments(4)
    for batch in batches:
        moments.update([moments.measure(torch.from_numpy(batch), every(batch))])
    everything = np.concatenate(batches)
    if len(everything):
        assert np.allclose(moments.mean_D, everything.mean(axis=0), rtol=1e-9, atol=1e-9)
        assert np.allclose(moments.variance_D, everything.var(axis=0), rtol=1e-6, atol=1e-6)
    else:
        assert moments.mean_D.tolist() == [0.0] * 4 and moments.variance_D.tolist() == [1.0] * 4


@given(st.lists(st.integers(0, 7), min_size=1, max_size=5), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_batches_taken_together_are_as_one_after_the_other(sizes, seed):
    rng = np.random.default_rng(seed)
    batches = [torch.from_numpy(rng.normal(5.0, 3.0, (size, 4))) for size in sizes]
    together, in_turn = RunningMoments(4), RunningMoments(4)
    together.update(together.measure(batch, every(batch)) for batch in batches)
    for batch in batches:
        in_turn.update([in_turn.measure(batch, every(batch))])
    for name, x in in_turn.state_dict().items():
        assert torch.allclose(together.state_dict()[name], x, rtol=1e-9, atol=1e-12), name


def test_one_infinite_number_spoils_nothing():
    moments = RunningMoments(2)
    moments.update([moments.measure(torch.tensor([[1.0, 1.0], [3.0, 3.0]]), every("ab"))])
    moments.update([moments.measure(torch.tensor([[torch.inf, 5.0], [2.0, torch.nan]]), every("ab"))])
    assert (moments.mean_D.tolist(), moments.count.item()) == ([2.0, 2.75], 4)
    assert torch.isfinite(moments.scale_D).all()


def test_samples_that_are_not_valid_do_not_count():
    samples = torch.tensor([[1.0], [torch.nan], [3.0], [1e6], [torch.inf]])
    moments = RunningMoments(1)
    moments.update([moments.measure(samples, torch.tensor([True, False, True, False, False]))])
    assert (moments.count.item(), moments.mean_D.item(), moments.variance_D.item()) == (2, 2.0, 1.0)
