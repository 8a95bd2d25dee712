"""Spaces of every kind as leaves, packed rows, actions and masks."""

import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from hypothesis import given, settings
from hypothesis import strategies as st

from fasta2c.errors import UserError
from fasta2c.spaces import Choices, Continuous, EnvSpec, Leaf, observation_space, spec_of

INF = math.inf


def spec(observations, actions=None):
    return spec_of(observations, Discrete(2) if actions is None else actions, env_id="test")


@pytest.mark.parametrize(
    ("space", "leaf"),
    [
        (Box(0, 255, (4, 84, 84), np.uint8), Leaf((), (4, 84, 84), "uint8", 0, 255)),
        (Box(-1, 9, (9, 9), np.int32), Leaf((), (9, 9), "int32", -1, 9)),
        (Box(0, 5, (6, 3, 3), np.int8), Leaf((), (6, 3, 3), "uint8", 0, 5)),
        (Box(-(2**31), 2**31 - 1, (4,), np.int32), Leaf((), (4,), "int32", -INF, INF)),
        (Box(-(2**60), 2**60, (4,), np.int64), Leaf((), (4,), "float32", -INF, INF, huge=True)),
        (Discrete(2**40), Leaf((), (), "float32", -INF, INF, huge=True)),
        (Box(-1, 1, (), np.float64), Leaf((), (), "float32", -INF, INF)),
        (Box(0, 1, (3,), np.bool_), Leaf((), (3,), "uint8", 0, 1)),
        (Discrete(500), Leaf((), (), "int32", 0, 499, categorical=True)),
        (Discrete(21, start=-1), Leaf((), (), "int32", -1, 19, categorical=True)),
        (MultiDiscrete([3, 5]), Leaf((), (2,), "uint8", 0, 4, categorical=True)),
        (MultiBinary((4, 4, 31)), Leaf((), (4, 4, 31), "uint8", 0, 1)),
    ],
)
def test_a_space_is_a_leaf(space, leaf):
    assert spec(space).leaves == (leaf,)


@pytest.mark.parametrize("space", [Discrete(2, start=2**40), Box(2**33, 2**33 + 9, (2,), np.int64)])
def test_whole_numbers_that_float32_takes_for_one_are_refused(space):
    with pytest.raises(UserError, match="are all one in 32 bits"):
        spec(space)


@pytest.mark.parametrize(
    "other",
    [Box(0, 100, (3,), np.uint8), Box(0, 1, (3,)), MultiDiscrete([256] * 3), Dict({"x": Box(0, 255, (3,), np.uint8)})],
)
def test_a_network_fits_where_the_numbers_mean_the_same(other):
    trained = spec(Box(0, 255, (3,), np.uint8))
    assert trained.fits(spec(Box(0, 255, (3,), np.int32)))
    assert not trained.fits(spec(other))


def test_dicts_and_tuples_nest():
    space = Dict({"b": Dict({"x": Box(0, 1, (2,)), "y": Discrete(3)}), "a": spaces.Tuple((Discrete(2), Box(0, 1, ())))})
    assert {leaf.path for leaf in spec(space).leaves} == {("b", "x"), ("b", "y"), ("a", "0"), ("a", "1")}


@pytest.mark.parametrize(
    "space",
    [
        spaces.Text(5),
        spaces.Sequence(Discrete(2)),
        Box(0, 1, (0,)),
        MultiDiscrete(np.zeros(0, np.int64)),
        Dict({1: Box(0, 1, (1,))}),
    ],
)
def test_what_has_no_fixed_shape_is_refused_in_words(space):
    with pytest.raises(UserError, match="test: "):
        spec(space)


@pytest.mark.parametrize(
    ("space", "actions"),
    [
        (Discrete(6), Choices((), (6,), (0,))),
        (Discrete(3, start=5), Choices((), (3,), (5,))),
        (MultiDiscrete([3, 2], start=[0, 4]), Choices((2,), (3, 2), (0, 4))),
        (MultiDiscrete([[3, 2], [1, 5]]), Choices((2, 2), (3, 2, 1, 5), (0,) * 4)),
        (MultiBinary(3), Choices((3,), (2, 2, 2), (0,) * 3)),
        (Box(np.array([0, -1]), np.array([39, 19]), (2,), np.int32), Choices((2,), (40, 21), (0, -1))),
        (Box(-2, 2, (1,)), Continuous((1,), (-2.0,), (2.0,))),
        (Box(-INF, 1, (2, 2)), Continuous((2, 2), (-INF,) * 4, (1.0,) * 4)),
        (Box(-1e10, 1e10, (1,), np.float64), Continuous((1,), (-INF,), (INF,))),
        # EnvPool's "no bounds"
        (Box(np.finfo(np.float64).tiny, np.finfo(np.float64).max, (1,), np.float64), Continuous((1,), (-INF,), (INF,))),
    ],
)
def test_action_spaces(space, actions):
    assert spec(Box(0, 1, (1,)), space).actions == actions


@pytest.mark.parametrize(
    "space",
    [
        Dict({"a": Discrete(2)}),
        spaces.Text(3),
        Box(-1, 1, (0,)),
        Box(0, 2**30, (2,), np.int32),
        MultiDiscrete(np.zeros(0, np.int64)),
    ],
)
def test_other_action_spaces_are_refused_in_words(space):
    with pytest.raises(UserError, match="action space"):
        spec(Box(0, 1, (1,)), space)


@pytest.mark.parametrize(
    ("actions", "mask", "joint", "found"),
    [
        (Discrete(4), (4,), False, True),
        (Discrete(4), (1, 4), False, True),
        (MultiDiscrete([2, 3]), (5,), False, True),
        (MultiDiscrete([3, 3]), (6,), False, True),
        (MultiBinary(3), (3, 2), False, True),
        (MultiDiscrete([40, 20]), (40, 20), True, True),
        (MultiDiscrete([9, 9, 9]), (9, 9, 9), True, True),
        (MultiDiscrete([5, 5, 5]), (3, 5), False, True),
        (MultiDiscrete([5, 4]), (2, 5), False, True),
        (MultiDiscrete([10, 10]), (10, 10), True, True),
        (Box(-1, 1, (2,)), (2,), False, False),
    ],
)
def test_a_mask_is_recognised_by_its_shape(actions, mask, joint, found):
    made = spec(Dict({"action_mask": MultiBinary(mask), "state": Box(0, 1, (2,))}), actions)
    assert getattr(made.actions, "joint", False) is joint
    assert (made.mask is not None) is found


@pytest.mark.parametrize(
    ("actions", "mask"), [(Discrete(4), (5,)), (MultiDiscrete([5, 4]), (2, 4)), (MultiBinary(3), (3,))]
)
def test_a_mask_that_fits_no_actions_is_refused_in_words(actions, mask):
    """It would be obeyed by nobody, without a word."""
    with pytest.raises(UserError, match="action_mask of shape"):
        spec(Dict({"action_mask": MultiBinary(mask), "state": Box(0, 1, (2,))}), actions)


LEAVES = st.one_of(
    st.builds(lambda n: Box(-INF, INF, (n,)), st.integers(0, 5)),
    st.builds(lambda n: Box(-INF, INF, (2, n), np.float64), st.integers(1, 3)),
    st.builds(lambda n: Box(0, 255, (n, 3), np.uint8), st.integers(1, 3)),
    st.builds(Discrete, st.integers(1, 1000)),
    st.builds(MultiBinary, st.integers(1, 5)),
    st.builds(lambda n: Box(-5, 100_000, (n,), np.int32), st.integers(1, 3)),
)


@given(st.dictionaries(st.text("abc", min_size=1, max_size=2), LEAVES, min_size=1, max_size=5), st.integers(1, 4))
@settings(max_examples=80, deadline=None)
def test_packing_loses_nothing(items, count):
    """Any leaves, one row or several, aligned or not: out comes what went in, in the nesting of the space."""
    space = Dict({"state": Box(0, 1, (1,)), "inner": Dict(items)})
    layout = spec(space).layout
    space.seed(0)
    batch = [space.sample() for _ in range(count)]
    arrays = [np.stack([_at(sample, leaf.path) for sample in batch]) for leaf in layout.leaves]
    packed = torch.from_numpy(layout.pack(arrays))
    assert packed.shape == (count, *layout.shape)
    for leaf, array, tensor in zip(layout.leaves, arrays, layout.unpack(packed), strict=True):
        assert tensor.shape == (count, *leaf.shape) and tensor.dtype is getattr(torch, leaf.dtype)
        assert np.array_equal(tensor, array.astype(leaf.dtype))
    for row in range(count):
        for a, b in zip(layout.unpack(packed[row : row + 1]), layout.unpack(packed), strict=True):
            assert torch.equal(a[0], b[row]), "a single row lies in memory as it happens to"
    nested = layout.nest(layout.unpack(packed))
    assert all(a is not None for a in layout.flatten(nested))
    assert [*observation_space(layout)["inner"]] == [*Dict(items)]


def _at(sample, path):
    for key in path:
        sample = sample[key]
    return sample


def test_a_missing_leaf_is_named():
    layout = spec(Dict({"a": Discrete(2), "b": Dict({"c": Discrete(2)})})).layout
    with pytest.raises(ValueError, match="'b.c' is missing"):
        layout.flatten({"a": 1, "b": {}})


def test_a_tuple_may_come_as_a_list():
    assert spec(spaces.Tuple((Discrete(2), Discrete(3)))).layout.flatten([1, 2]) == [1, 2]


@pytest.mark.parametrize("actions", [Discrete(3), MultiDiscrete([3, 4]), Box(-1, INF, (2, 2))])
@pytest.mark.parametrize(
    "observations", [Box(0, 255, (1, 84, 84), np.uint8), Dict({"a": Discrete(3), "b": Box(0, 1, ())})]
)
def test_a_spec_survives_a_checkpoint(tmp_path, observations, actions):
    made = spec(observations, actions)
    torch.save(made.to_plain(), tmp_path / "spec.pt")
    assert EnvSpec.from_plain(torch.load(tmp_path / "spec.pt", weights_only=True)) == made


def test_stacked_frames_stack_channels():
    made = spec_of(Box(0, 255, (3, 64, 84), np.uint8), Discrete(2), env_id="test", stack=4)
    assert (made.frames.shape, made.layout.shape) == ((3, 64, 84), (12, 64, 84))
    assert isinstance(observation_space(made.layout), gymnasium.spaces.Box)


NESTED = Dict({"image": Box(0, 255, (3,), np.uint8), "speed": Box(-9, 9, (2,), np.float32), "count": Discrete(5)})


@pytest.mark.parametrize("space", [Box(-9, 9, (2, 2), np.float32), NESTED], ids=["single", "nested"])
def test_real_numbers_are_made_zero_in_some_observations_or_where_not_finite(space):
    layout = spec_of(space, Discrete(2), env_id="test").layout
    rng = np.random.default_rng(0)
    leaves = [rng.integers(1, 4, (5, *leaf.shape)).astype(leaf.dtype) for leaf in layout.leaves]
    real = next(n for n, leaf in enumerate(layout.leaves) if leaf.real)
    for e, number in enumerate([np.nan, np.inf, -np.inf, np.nan]):
        leaves[real][e].flat[1] = number
    rows, which = layout.pack(leaves), np.array([True, False, True, False, True])
    tensors = torch.from_numpy(rows.copy())
    blank, finite = [leaf.copy() for leaf in leaves], [leaf.copy() for leaf in leaves]
    blank[real][which] = 0
    finite[real].reshape(5, -1)[:4, 1] = 0
    assert layout.blank_tensors(tensors, torch.from_numpy(which)).numpy().tobytes() == layout.pack(blank).tobytes()
    assert layout.finite_tensors(tensors).numpy().tobytes() == layout.pack(finite).tobytes()
    assert tensors.numpy().tobytes() == rows.tobytes()
    layout.blank(rows, which)
    assert rows.tobytes() == layout.pack(blank).tobytes()
