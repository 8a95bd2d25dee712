"""Tests of the configuration: validation, the merge order, presets and files."""

from __future__ import annotations

import copy
import dataclasses
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

from fasta2c import config as config_module
from fasta2c.config import TrainConfig, from_plain, load_preset, read_config, read_yaml, to_dict, to_plain
from fasta2c.errors import UserError

FIELDS = [f.name for f in dataclasses.fields(TrainConfig)]
HUGE = 10**400  # a finite whole number that no float holds
UNPRINTABLE = 10**5000  # Python refuses to turn it into text

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


def test_plain_values_survive_yaml(tmp_path: Path) -> None:
    config = TrainConfig(
        env="Atari/Pong", run_dir=tmp_path / "run", hidden_sizes=(8, 9), lr=1e-5, env_kwargs={"a": [1, {"b": None}]}
    )
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({**to_plain(config), "versions": {"torch": "2"}, "commit": None}))
    assert TrainConfig(**read_config(file)) == config
    assert to_dict(config)["hidden_sizes"] == (8, 9)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr: 7e-4", r"FILE: lr: '7e-4' is text to YAML.* as in 7\.0e-4"),
        ("lr: 1e3", r"as in 1\.0e\+3"),
        ("num_evns: 3", "FILE: unknown key 'num_evns'. Did you mean num_envs"),
        ("1: 3", "unknown key 1"),
        ("gamma: 1.5", "FILE: gamma: 1.5 is out of range"),
        ("gamma: .nan", "gamma: nan is out of range"),
        (f"lr: {HUGE}", "lr: .* is out of range"),
        (f"seed: {UNPRINTABLE // 10**1000}", "seed"),
        ("num_envs:", "num_envs: expected a whole number, found nothing"),
        ("env_kwargs: [1]", "env_kwargs: expected a mapping"),
        ("gae: scam", "gae: 'scam' is not one of"),
        ("- 1", "expected lines of 'key: value', found a list"),
        ("just text", "expected lines of 'key: value', found text"),
        ("a: [1", r"not valid YAML at line 1, column \d"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("\x00", "not valid YAML"),
    ],
)
def test_files_are_refused_with_their_name_and_key(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=said.replace("FILE", str(file))) as caught:
        TrainConfig(**read_config(file))
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_config(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="Is a directory"):
        read_config(tmp_path)
    (tmp_path / "binary").write_bytes(bytes(range(128, 256)))
    with pytest.raises(UserError, match="not valid YAML"):
        read_config(tmp_path / "binary")
    (tmp_path / "empty").write_text("# nothing\n")
    assert read_config(tmp_path / "empty") == {}


@given(text=st.text() | st.recursive(scalars, lambda i: st.lists(i) | st.dictionaries(st.text(), i)).map(repr))
@settings(max_examples=examples(200), deadline=None)
def test_no_text_in_a_file_raises_anything_but_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        TrainConfig(**read_config(file))
    except UserError as error:
        assert str(error)


@given(name=st.sampled_from(FIELDS), value=anything)
@settings(max_examples=examples(200), deadline=None)
def test_from_plain_takes_or_refuses_with_the_source_named(name: str, value: Any) -> None:
    try:
        from_plain({name: value}, "my.yaml")
    except UserError as error:
        assert str(error).startswith(f"my.yaml: {name}:")


def write_preset(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "atari.yaml").write_text(
        "defaults: {num_envs: 32, gamma: 0.9, env_kwargs: {reward_clip: true, frame_skip: 4}}\n"
        "envs:\n  Pong: {gamma: 0.8, env_kwargs: {frame_skip: 2}}\n"
    )
    monkeypatch.setattr(config_module, "preset_folder", lambda: folder)


def test_an_environment_wins_over_its_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_preset(tmp_path, monkeypatch)
    kwargs = {"reward_clip": True, "frame_skip": 4}
    assert load_preset("Atari", "Breakout") == {"num_envs": 32, "gamma": 0.9, "env_kwargs": kwargs}
    expected = {"num_envs": 32, "gamma": 0.8, "env_kwargs": {**kwargs, "frame_skip": 2}}
    assert load_preset("atari", "pong") == expected
    assert load_preset("Procgen", "Coinrun") == {}


def test_a_family_builds_on_the_defaults_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_preset(tmp_path, monkeypatch)
    (tmp_path / "arcade.yaml").write_text("like: atari\ndefaults: {gamma: 0.7, env_kwargs: {frame_skip: 1}}\n")
    kwargs = {"reward_clip": True, "frame_skip": 1}
    expected = {"num_envs": 32, "gamma": 0.7, "env_kwargs": kwargs}
    assert load_preset("Arcade", "Pong") == expected  # of its own Pong it says nothing, and Atari's is another game


def test_the_preset_of_the_default_environment_is_found() -> None:
    assert load_preset("Classic", "CartPole")


def test_each_preset_in_the_repository_can_be_used() -> None:
    files = sorted(config_module.preset_folder().glob("*.yaml"))
    assert files
    for file in files:
        contents = yaml.safe_load(file.read_text())
        assert set(contents) <= {"like", "defaults", "envs"}, file
        for name in ["no such environment", *(contents.get("envs") or {})]:
            TrainConfig().with_preset(load_preset(file.stem, name))


@pytest.mark.parametrize(("num_envs", "minibatches"), [(1, 1), (16, 1), (24, 2), (64, 4), (256, 16), (1024, 64)])
def test_minibatches_follow_the_number_of_environments(num_envs, minibatches):
    assert TrainConfig(num_steps=16, num_minibatches="auto", minibatch_size=256).minibatches(num_envs) == minibatches


@given(st.integers(1, 10**5), st.integers(1, 1000), st.integers(1, 10**6))
def test_minibatches_have_an_environment_each_at_least(num_envs, num_steps, minibatch_size):
    config = TrainConfig(num_steps=num_steps, num_minibatches="auto", minibatch_size=minibatch_size)
    assert 1 <= config.minibatches(num_envs) <= num_envs


def test_minibatches_that_are_given_stay():
    assert TrainConfig(num_minibatches=3).minibatches(256) == 3


@pytest.mark.parametrize("num_envs", [16, 64, 256, 1024])
def test_a_step_on_atari_has_the_same_samples_at_any_number_of_environments(num_envs):
    config = TrainConfig(env="Atari/Pong", num_envs=num_envs).with_preset(load_preset("Atari", "Pong"))
    assert config.num_steps * num_envs / config.minibatches(num_envs) == 256


@pytest.mark.parametrize("file", sorted(config_module.preset_folder().glob("*.yaml")), ids=lambda file: file.stem)
def test_every_preset_works_with_a_single_environment(file):
    names = ["", *(read_yaml(file).get("envs") or {})]
    for name in names:
        assert TrainConfig(num_envs=1).with_preset(load_preset(file.stem, name)).minibatches(1) == 1


def test_a_recipe_is_found_by_its_name_where_no_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = read_config(Path("td-actor-critic"))
    assert recipe["gae_lambda"] == 0.0 and recipe["env"] == "Classic/CartPole"
    Path("td-actor-critic").write_text("gamma: 0.5")
    assert read_config(Path("td-actor-critic")) == {"gamma": 0.5}
    with pytest.raises(UserError, match=r"no such recipe. Did you mean td-actor-critic"):
        read_config(Path("td-actor-critics"))
    with pytest.raises(UserError, match=r"no such recipe. Recipes are a2c-gae-separate, "):
        read_config(Path("zzz"))
    with pytest.raises(UserError, match=r"Did you mean pong"):
        read_config(Path("pong.yaml"))
    Path("pong").mkdir()
    assert read_config(Path("pong"))["env"] == "Atari/Pong"
    with pytest.raises(UserError, match="cannot be read"):
        read_config(Path("./sub/td-actor-critic"))
