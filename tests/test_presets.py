"""Tests of files of settings: presets, recipes and a user's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from helpers import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from fasta2c import presets
from fasta2c.config import TrainConfig, to_dict, to_plain
from fasta2c.envs.ids import FAMILIES, resolve
from fasta2c.errors import UserError
from fasta2c.presets import load_preset, read_config, read_yaml

HUGE = 10**400  # a finite whole number that no float holds
UNPRINTABLE = 10**5000  # Python refuses to turn it into text

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 2001-99-99", "not valid YAML: month must be in 1..12"),
        ("lr: !!float abc", "not valid YAML: could not convert string to float"),
        ("? 0x" + "f" * 5000 + "\n: 1", "unknown key a huge number"),
        ("seed: " + "9" * 30, "9,223,372,036,854,775,807.$"),
    ],
)
def test_what_is_wrong_with_a_value_is_said(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=said):
        read_config(file)


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


def write_preset(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "atari.yaml").write_text(
        "defaults: {num_envs: 32, gamma: 0.9, env_kwargs: {reward_clip: true, frame_skip: 4}}\n"
        "envs:\n  Pong: {gamma: 0.8, env_kwargs: {frame_skip: 2}}\n"
    )
    monkeypatch.setattr(presets, "preset_folder", lambda: folder)


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
    files = sorted(presets.preset_folder().glob("*.yaml"))
    assert files
    for file in files:
        contents = yaml.safe_load(file.read_text())
        assert set(contents) <= {"like", "defaults", "envs"}, file
        for name in ["no such environment", *(contents.get("envs") or {})]:
            TrainConfig().with_preset(load_preset(file.stem, name))


def test_what_is_merged_into_a_mapping_may_be_overridden(tmp_path: Path) -> None:
    file = tmp_path / "merged.yaml"
    file.write_text("env_kwargs:\n  <<: &all {<<: &inner {a: 1, b: 2}, b: 3}\n  a: 4\n")
    assert read_yaml(file) == {"env_kwargs": {"a": 4, "b": 3}}
    file.write_text("env_kwargs: {a: 1, b: 2, a: 3}\n")
    with pytest.raises(UserError, match="'a' stands there twice"):
        read_yaml(file)


def test_each_preset_is_of_an_environment_that_there_is() -> None:
    """A misspelt name would be used by nobody, without a word."""
    for file in sorted(presets.preset_folder().glob("*.yaml")):
        for name in yaml.safe_load(file.read_text()).get("envs") or {}:
            family = next(x for x in [*FAMILIES.values(), "Gymnasium"] if x.lower() == file.stem)
            assert resolve(f"{family}/{name}" if family != "Gymnasium" else f"gymnasium:{name}").name == name


@pytest.mark.parametrize("num_envs", [16, 64, 256, 1024])
def test_a_step_on_atari_has_the_same_samples_at_any_number_of_environments(num_envs):
    config = TrainConfig(env="Atari/Pong", num_envs=num_envs).with_preset(load_preset("Atari", "Pong"))
    assert config.num_steps * num_envs / config.minibatches(num_envs) == 256


@pytest.mark.parametrize("file", sorted(presets.preset_folder().glob("*.yaml")), ids=lambda file: file.stem)
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
