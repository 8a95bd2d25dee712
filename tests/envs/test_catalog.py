"""The list of environments: found by parts of their names, their spaces told, and why some do not train."""

import gymnasium
import pytest

from fasta2c.envs.catalog import catalog


def only(pattern):
    (entry,) = catalog(pattern)
    return entry


def test_an_id_is_found_by_a_part_of_its_name():
    entry = only("atari/PON")
    assert (entry.id, entry.name, entry.family, entry.backend) == ("Pong-v5", "Atari/Pong", "Atari", "envpool")
    assert (entry.observations, entry.actions) == ("uint8[4, 84, 84]", "6 choices")
    assert entry.trains and entry.reason is None


@pytest.mark.parametrize(
    ("pattern", "actions"),
    [
        ("Pendulum-v1", "1 real number"),
        ("Sudoku-v0", "3 times 9 choices, some legal"),
        ("Connector-v2", "10 times 5 choices, some legal"),
        ("FlatPack-v0", "4 times 4 to 25 choices, some legal"),
        ("Basic-v1", "6 choices"),  # by the preset's options
    ],
)
def test_actions_are_told_in_brief(pattern, actions):
    assert {entry.actions for entry in catalog(pattern) if entry.id == pattern} == {actions}


def test_stars_match_the_whole_name():
    assert {entry.name for entry in catalog("Atari/P*g")} == {"Atari/Pong", "Atari/PrivateEye"} - {"Atari/PrivateEye"}
    assert not list(catalog("ong*"))


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [("PGX/Chess", "several players"), ("VizdoomCustom-v1", "cfg_path"), ("MultiAgent-v0", "players")],
)
def test_what_does_not_train_says_why(pattern, reason):
    entries = list(catalog(pattern))
    assert entries and all(reason in entry.reason and not entry.trains for entry in entries)


def test_gymnasiums_environments_are_behind_their_prefix():
    entries = {entry.id: entry for entry in catalog("gymnasium:pendulum")}
    assert entries["gymnasium:Pendulum-v1"].actions == "1 real number"
    gymnasium.register("test_catalog/Broken-v0", entry_point="no_such_module:Env")
    try:
        assert "no_such_module" in only("gymnasium:*Broken*").reason
    finally:
        gymnasium.registry.pop("test_catalog/Broken-v0")


@pytest.mark.usefixtures("reach")
def test_your_own_are_told_of_by_their_whole_names(tmp_path):
    (tmp_path / "cells.py").write_text(
        "import gymnasium\n"
        "class Cells(gymnasium.Env):\n"
        "    observation_space, action_space = gymnasium.spaces.Discrete(10), gymnasium.spaces.Discrete(3)\n"
        "gymnasium.register('Cells-v0', entry_point=Cells)\n"
    )
    (cells,) = catalog("gymnasium:cells:Cells-v0")
    assert cells.trains and cells.actions == "3 choices" and cells.backend == "gymnasium"
    (reach,) = catalog("torch:reach:Reach")
    assert reach.trains and reach.actions == "2 real numbers"
    (missing,) = catalog("torch:nowhere:Reach")
    assert not missing.trains and "nowhere" in missing.reason
