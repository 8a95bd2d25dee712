"""Tests of the configuration: validation, the merge order, presets and files."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import enum
import functools
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fasta2c.config import TrainConfig, from_plain, to_plain
from fasta2c.errors import UserError

FIELDS = [f.name for f in dataclasses.fields(TrainConfig)]
HUGE = 10**400  # a finite whole number that no float holds
UNPRINTABLE = 10**5000  # Python refuses to turn it into text


def bomb() -> dict[str, Any]:
    """What nine lines of YAML's aliases can mean: 9 ** 9 values."""
    return {"x": functools.reduce(lambda inner, _: [inner] * 9, range(9), "x")}


numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([HUGE, -HUGE, math.nan, math.inf, -math.inf, 0.0, -0.0, 2**31, 2**63, 2**64, 1e308]),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, st.text(), st.binary(), st.complex_numbers(), st.just(object))
anything = st.recursive(
    scalars | st.sampled_from([Path("x"), np.float32(1), np.int64(3), np.zeros(3), dataclasses, object()]),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(scalars, inner)
        | st.frozensets(st.integers())  # a set: iterable, but no list
    ),
    max_leaves=6,
)


@given(name=st.sampled_from(FIELDS), value=anything)
@example(name="lr", value=HUGE)
@example(name="gae", value=np.zeros(3))
@settings(max_examples=examples(500), deadline=None)
def test_any_value_in_any_field_is_taken_or_refused_by_name(name: str, value: Any) -> None:
    try:
        config = TrainConfig(**{name: value})
    except UserError as error:
        assert str(error).startswith(f"{name}:")
        assert len(str(error)) < 400
        return
    number = getattr(config, name)
    if isinstance(number, int | float):
        assert math.isfinite(float(number))


@pytest.mark.parametrize("name", [n for n in FIELDS if n != "env_kwargs"])
def test_numbers_that_python_does_not_print_are_refused_in_words(name: str) -> None:
    # Not part of the fuzzing above, because hypothesis and pytest print what they pass.
    for wrap in (lambda n: n, lambda n: -n, lambda n: (n,), lambda n: [n], lambda n: {"a": n}):
        with pytest.raises(UserError, match=f"^{name}: "):
            TrainConfig(**{name: wrap(UNPRINTABLE)})


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("gamma", 1.5, "it must be from 0 to 1"),
        ("gamma", math.nan, "nan is out of range"),
        ("num_envs", 0, "at least 1|from 1"),
        ("num_envs", 2**31, "out of range"),
        ("num_envs", 8.0, "expected a whole number, found a number"),
        ("num_steps", -1, "-1 is out of range"),
        ("seed", -1, "-1 is out of range"),
        ("seed", 2**63, "out of range"),
        ("total_steps", True, "expected a whole number, found true/false"),
        ("lr", math.nan, "above 0"),
        ("lr", 1e39, "out of range"),
        ("ent_coef", 1e308, "out of range"),
        ("lr", bomb()["x"], "expected a number, found a list"),
        ("env_timeout", 1e7, "from 0 to 1,000,000"),
        ("lr", math.inf, "finite"),
        ("lr", 0, "above 0"),
        ("lr", HUGE, "finite"),
        ("lr", "fast", "expected a number, found text"),
        ("critic_lr", -1e-3, "above 0"),
        ("gae", "scam", "Did you mean scan"),
        ("device", "gpu", "not one of auto, cpu, cuda, cuda:N"),
        ("device", "cuda:-1", "not one of"),
        ("device", "cuda:٣", "not one of"),
        ("env", " ", "an environment id is needed"),
        ("env_kwargs", {1: 2}, "expected a mapping"),
        ("hidden_sizes", (64, 0), "0 is out of range"),
        ("hidden_sizes", "64", "expected a list|found"),
        ("shared", "yes", "expected true/false, found text"),
    ],
)
def test_values_that_cannot_be_are_refused(name: str, value: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        TrainConfig(**{name: value})
    assert str(caught.value).startswith(f"{name}:")


itself: dict[str, Any] = {"x": []}
itself["x"].append(itself)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"x": datetime.date(2020, 1, 1)}, r"^env_kwargs\.x: datetime.* cannot be saved"),
        ({"x": [{"y": math.nan}]}, r"^env_kwargs\.x\.y: nan cannot be saved with"),
        ({"x": {"y": 10**400}}, r"^env_kwargs\.x\.y: 1000.* cannot be saved"),
        ({"x": b"y"}, "cannot be saved"),
        ({"x": "\ud800"}, "cannot be saved"),
        ({"x": np.float64(1.0)}, "cannot be saved"),
        (itself, "^env_kwargs: it contains itself"),
        (bomb(), "^env_kwargs: .* too large"),
        ({"x": functools.reduce(lambda inner, _: [inner], range(350), 0)}, "^env_kwargs: .* too deep"),
    ],
)
def test_env_kwargs_are_what_a_run_can_keep(value: Any, said: str) -> None:
    assert TrainConfig(env_kwargs={"a": [1, "b", None, {"c": [True, 1e9]}]}).env_kwargs["a"][2] is None
    with pytest.raises(UserError, match=said):
        TrainConfig(env_kwargs=value)


def test_edges_of_the_ranges_are_inside() -> None:
    edges: dict[str, Any] = {"gamma": 1, "gae_lambda": 0.0, "num_envs": 1, "num_steps": 1, "ent_coef": 0, "lr": 5e-324}
    config = TrainConfig(**edges, hidden_sizes=(), critic_lr=None, device="cuda:1", seed=2**63 - 1)
    assert {name: getattr(config, name) for name in edges} == edges


def test_a_config_cannot_be_changed_but_replaced() -> None:
    config = TrainConfig(num_envs=4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_envs = 5  # type: ignore[misc]
    assert dataclasses.replace(config, num_steps=3).num_envs == 4
    with pytest.raises(UserError, match="num_steps"):
        dataclasses.replace(config, num_steps=0)


def test_text_is_a_path_and_a_list_a_tuple_in_python_too() -> None:
    config = TrainConfig(run_dir="runs/x", hidden_sizes=[8, 8])  # type: ignore[arg-type]
    assert config == TrainConfig(run_dir=Path("runs/x"), hidden_sizes=(8, 8))


def test_a_preset_fills_what_was_not_given_and_nothing_else() -> None:
    preset = {"num_envs": 64, "gamma": 0.9, "env_kwargs": {"frame_skip": 2, "noop_max": 5}}
    # Given as the default's own value: that is a choice too, which the preset respects.
    config = TrainConfig(num_envs=16, env_kwargs={"frame_skip": 3}).with_preset(preset)
    assert (config.num_envs, config.gamma) == (16, 0.9)
    assert config.env_kwargs == {"frame_skip": 3, "noop_max": 5}
    # A second time, nothing is left to fill.
    assert config.with_preset({"gamma": 0.1, "lr": 1.0}) == config


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies_remember_what_was_given(again: Any) -> None:
    config = again(TrainConfig(gamma=0.5))
    assert config.with_preset({"gamma": 0.9, "num_envs": 3}) == TrainConfig(gamma=0.5, num_envs=3)


@given(name=st.sampled_from(FIELDS), value=anything)
@settings(max_examples=examples(200), deadline=None)
def test_from_plain_takes_or_refuses_with_the_source_named(name: str, value: Any) -> None:
    try:
        from_plain({name: value}, "my.yaml")
    except UserError as error:
        assert str(error).startswith(f"my.yaml: {name}:")


@pytest.mark.parametrize(("num_envs", "minibatches"), [(1, 1), (16, 1), (24, 2), (64, 4), (256, 16), (1024, 64)])
def test_minibatches_follow_the_number_of_environments(num_envs, minibatches):
    assert TrainConfig(num_steps=16, num_minibatches="auto", minibatch_size=256).minibatches(num_envs) == minibatches


@given(st.integers(1, 10**5), st.integers(1, 1000), st.integers(1, 10**6))
def test_minibatches_have_an_environment_each_at_least(num_envs, num_steps, minibatch_size):
    config = TrainConfig(num_steps=num_steps, num_minibatches="auto", minibatch_size=minibatch_size)
    assert 1 <= config.minibatches(num_envs) <= num_envs


def test_minibatches_that_are_given_stay():
    assert TrainConfig(num_minibatches=3).minibatches(256) == 3


class Word(str, enum.Enum):  # noqa: UP042 (as people write it)
    CPU = "cpu"


class Number(enum.IntEnum):
    SIX = 6


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"lr": np.float64(0.5)}, 0.5),
        ({"lr": np.float32(0.5)}, 0.5),
        ({"lr": np.int64(1)}, 1.0),
        ({"num_envs": np.uint8(6)}, 6),
        ({"num_envs": Number.SIX}, 6),
        ({"num_envs": np.array(6)}, 6),
        ({"device": Word.CPU}, "cpu"),
        ({"device": np.str_("cpu")}, "cpu"),
        ({"precision": np.str_("fp32")}, "fp32"),
        ({"compile": np.bool_(True)}, True),
        ({"hidden_sizes": [np.int64(6), Number.SIX]}, (6, 6)),
        ({"critic_lr": np.float64(0.5)}, 0.5),
    ],
)
def test_numbers_and_words_of_other_kinds_become_pythons_own(given, kept):
    """A file of settings can hold no others."""
    value = getattr(TrainConfig(**given), next(iter(given)))
    assert value == kept and type(value) is type(kept)
    if isinstance(kept, tuple):
        assert {type(item) for item in value} == {int}
    yaml.safe_dump(to_plain(TrainConfig(**given)))


def test_but_for_some_fields_a_configuration_stays_what_it_was():
    config = TrainConfig(lr=0.5, env_kwargs={"a": 1}).but(seed=3, num_steps=8)
    assert (config.lr, config.seed, config.num_steps) == (0.5, 3, 8)
    whole = config.with_preset({"num_steps": 64, "gamma": 0.5, "lr": 0.1})
    assert (whole.num_steps, whole.gamma, whole.lr, whole.env_kwargs) == (8, 0.5, 0.5, {"a": 1})
    with pytest.raises(TypeError, match="sed"):
        TrainConfig().but(sed=3)
