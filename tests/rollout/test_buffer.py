"""The rollout's tensors: what is observed at each row, what is carried over, and chunks that cover it once."""

import numpy as np
import pytest
import torch
from helpers import env_spec
from hypothesis import given
from hypothesis import strategies as st

from fasta2c.envs.base import Row
from fasta2c.envs.torch import TensorRow
from fasta2c.learning.advantages import gae
from fasta2c.rollout.buffer import RolloutBuffer

CPU = torch.device("cpu")
ALL = slice(0, 2)


def ramp(value, num_envs):
    """A frame [E, 1, 1, 1] that tells time and environment apart."""
    return (np.arange(num_envs) * 100 + value).astype(np.uint8).reshape(num_envs, 1, 1, 1)


def row(frames, opens):
    """A row of which only frames matter."""
    nothing = np.zeros(len(frames))
    return Row(frames, nothing, nothing > 0, nothing > 0, nothing < 1, opens, nothing, nothing > 0)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 7])
def test_stacks_reach_back_over_rollouts(num_steps):
    """Frames 0, 1, 2, … of two environments: observation n is frames n-3 to n, clamped to the first."""
    buffer = RolloutBuffer(num_steps, 2, env_spec((1, 1, 1), "uint8", stack=4, actions=2), CPU)
    buffer.start(ramp(0, 2), ALL)
    none = np.zeros(2, np.bool_)
    n = 0
    for _ in range(4):
        buffer.carry_over()
        for t in range(num_steps):
            seen = buffer.observations(slice(t, t + 1), slice(0, 2)).view(2, 4)
            expected = [max(n - 3 + s, 0) for s in range(4)]
            assert seen.tolist() == [expected, [100 + x for x in expected]]
            n += 1
            buffer.store(t, ALL, row(ramp(n, 2), none))


def test_a_fill_hides_what_was_before():
    buffer = RolloutBuffer(3, 2, env_spec((1, 1, 1), "uint8", stack=4, actions=2), CPU)
    buffer.start(ramp(0, 2), ALL)
    buffer.carry_over()
    for t, first in enumerate(([0, 0], [0, 1], [0, 0])):
        buffer.store(t, ALL, row(ramp(t + 1, 2), np.array(first, np.bool_)))
    seen = buffer.observations(slice(0, 4), slice(0, 2)).view(4, 2, 4)
    assert seen[:, 0].tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 2], [0, 1, 2, 3]]
    assert seen[:, 1].tolist() == [[100] * 4, [100, 100, 100, 101], [102] * 4, [102, 102, 102, 103]]


def test_rows_of_some_environments_leave_the_others_alone():
    buffer = RolloutBuffer(2, 3, env_spec((1,), "float32", stack=1, actions=2), CPU)
    values = np.array([7.0, 8.0], np.float32)
    flags = np.array([True, False])
    part = Row(values.reshape(2, 1), values, flags, ~flags, flags, ~flags, values, flags)
    buffer.store(1, slice(1, 3), part)
    buffer.upload()
    assert buffer.rewards_TE.tolist() == [[0, 0, 0], [0, 7, 8]]
    assert buffer.terminated_TE.tolist() == buffer.valid_TE.tolist() == [[False] * 3, [False, True, False]]
    assert buffer.truncated_TE.tolist() == [[False] * 3, [False, False, True]]
    assert buffer.observations(slice(2, 3), slice(0, 3)).tolist() == [[0], [0], [8]]


@pytest.mark.parametrize("gae_lambda", [0.0, 0.9, 1.0])
def test_a_game_that_is_lost_was_cut_behind_the_row_before(gae_lambda):
    """Row 2 of environment 0 fails: row 1 bootstraps from the value of what was seen last, and from nothing else."""
    buffer = RolloutBuffer(4, 2, env_spec((1,), "float32", stack=1, actions=2), CPU)
    none, ones = np.zeros(2, np.bool_), np.ones(2, np.float32)
    for t in range(4):
        lost = np.array([t == 2, False])
        buffer.store(
            t, ALL, Row(ones.reshape(2, 1), ones, none, lost, ~lost, none, ones, none, lost if t == 2 else None)
        )
    buffer.upload()
    buffer.values_T1E.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]).T.expand(5, 2))
    buffer.rewards_TE[2, 0] = buffer.values_T1E[3, 0] = torch.nan
    ends = buffer.terminated_TE, buffer.truncated_TE
    advantages, _ = gae(buffer.rewards_TE, buffer.values_T1E, *ends, gamma=0.5, gae_lambda=gae_lambda)
    assert advantages[1, 0] == 1.0 + 0.5 * 3.0 - 2.0
    assert buffer.truncated_TE.tolist() == [[False, False], [True, False], [True, False], [False, False]]


def test_nothing_is_kept_of_an_end_that_is_told_again_because_the_reset_failed():
    buffer = RolloutBuffer(1, 2, env_spec((1,), "float32", stack=1, actions=2), CPU)
    seen, lost, zeros = np.array([[np.nan], [1.0]], np.float32), np.array([True, False]), np.zeros(2, np.float32)
    buffer.store(0, ALL, Row(seen, zeros, lost & ~lost, lost, ~lost, lost & ~lost, zeros, lost & ~lost, lost))
    buffer.upload()
    assert buffer.observations(slice(1, 2), ALL).tolist() == [[0], [1]]


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("odd", [np.nan, np.inf, 3e38])
def test_nothing_is_kept_of_what_was_seen_where_an_episode_was_over(on_device, odd):
    """There nothing is acted on or learnt; a number that the network makes infinite would spoil the gradient."""
    buffer = RolloutBuffer(2, 3, env_spec((2,), "float32", stack=1, actions=2), CPU)
    seen, flags = np.full((3, 2), odd, np.float32), np.array([True, False, True])
    zeros = np.zeros(3, np.float32)
    row = Row(seen, zeros, flags, ~flags, ~flags | flags, ~flags & flags, zeros, flags)
    if on_device:
        fields = {name: torch.from_numpy(np.array(getattr(row, name))) for name in TensorRow._fields}
        buffer.store_tensors(0, slice(0, 3), TensorRow(**fields))
    else:
        buffer.store(0, slice(0, 3), row)
    kept = buffer.observations(slice(1, 2), slice(0, 3)).numpy()
    assert not kept[[0, 2]].any() and np.array_equal(kept[1], seen[1], equal_nan=True)
    assert np.array_equal(seen, np.full((3, 2), odd, np.float32), equal_nan=True)


def test_vectors_are_not_copied():
    buffer = RolloutBuffer(3, 2, env_spec((5,), "float32", stack=1, actions=2), CPU)
    seen = buffer.observations(slice(0, 2), slice(0, 2))
    assert seen.shape == (4, 5) and seen.data_ptr() == buffer.frames.data_ptr()


def test_a_slice_of_environments_sees_its_own_frames():
    buffer = RolloutBuffer(1, 3, env_spec((1, 1, 1), "uint8", stack=4, actions=2), CPU)
    buffer.start(np.array([1, 2, 3], np.uint8).reshape(3, 1, 1, 1), slice(0, 3))
    buffer.carry_over()
    assert buffer.observations(slice(0, 1), slice(1, 3)).view(2, 4).tolist() == [[2] * 4, [3] * 4]


@given(T=st.integers(1, 12), E=st.integers(1, 12), samples=st.integers(1, 200))
def test_chunks_cover_every_sample_once(T, E, samples):
    buffer = RolloutBuffer(T, E, env_spec((1,), "float32", stack=1, actions=2), CPU)
    counted = torch.zeros(T, E)
    for rows, envs in buffer.chunks(samples):
        counted[rows, envs] += 1
        assert counted[rows, envs].numel() <= samples
    assert (counted == 1).all()
