"""Ids resolve to a backend, a family and the backend's own id; mistakes name the nearest."""

import pytest

from fasta2c.envs.ids import FAMILIES, EnvId, resolve
from fasta2c.errors import UserError


@pytest.mark.parametrize(
    ("typed", "family", "name", "backend_id"),
    [
        ("Atari/Pong", "Atari", "Pong", "Pong-v5"),
        ("atari/pong", "Atari", "Pong", "Pong-v5"),
        ("Pong-v5", "Atari", "Pong", "Pong-v5"),
        ("Classic/CartPole", "Classic", "CartPole", "CartPole-v1"),
        ("Classic/CartPole-v0", "Classic", "CartPole", "CartPole-v0"),
        ("MuJoCo/Ant", "MuJoCo", "Ant", "Ant-v5"),
        ("MuJoCo/Ant-v3", "MuJoCo", "Ant", "Ant-v3"),
        ("DMC/CartpoleSwingup", "DMC", "CartpoleSwingup", "CartpoleSwingup-v1"),
        ("MiniGrid/Empty-5x5", "MiniGrid", "Empty-5x5", "MiniGrid-Empty-5x5-v0"),
        ("Box2D/LunarLander", "Box2D", "LunarLander", "LunarLander-v3"),
        ("Jumanji/BinPack-v2", "Jumanji", "BinPack", "Jumanji/BinPack-v2"),
        ("PGX/Go9x9", "PGX", "Go9x9", "Go9x9-v1"),
    ],
)
def test_envpool_ids(typed, family, name, backend_id):
    assert resolve(typed) == EnvId("envpool", family, name, backend_id)


@pytest.mark.parametrize(
    ("typed", "name", "backend_id"),
    [
        ("gymnasium:CartPole-v1", "CartPole", "CartPole-v1"),
        ("Gymnasium:my.module:Thing-v3", "Thing", "my.module:Thing-v3"),
    ],
)
def test_gymnasium_ids(typed, name, backend_id):
    assert resolve(typed) == EnvId("gymnasium", "Gymnasium", name, backend_id)


def test_every_envpool_id_resolves_to_itself_and_by_family():
    import envpool

    for backend_id in envpool.list_all_envs():
        found = resolve(backend_id)
        assert found.backend_id == backend_id
        assert found.family in FAMILIES.values()
        again = resolve(f"{found.family}/{found.name}")
        assert again.family == found.family
        assert again.name.lower() == found.name.lower()  # some ids exist in two spellings


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [("Atari/Pnog", "Atari/Pong"), ("CartPol-v1", "CartPole-v1"), ("Atri/Pong", "Atari/Pong"), ("Pong", "Pong-v5")],
)
def test_an_unknown_id_names_the_nearest(typed, nearest):
    with pytest.raises(UserError, match=nearest):
        resolve(typed)


@pytest.mark.parametrize("typed", ["", "/", "Atari/", "gymnasium:", "x" * 300, "Atari/Pong/extra", "../../etc"])
def test_nonsense_is_a_user_error(typed):
    with pytest.raises(UserError):
        resolve(typed)
