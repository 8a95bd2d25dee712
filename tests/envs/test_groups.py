"""Environments in groups that take turns are the environments of one pool."""

import gymnasium
import numpy as np
import pytest

from fasta2c.envs.ids import resolve
from fasta2c.envs.make import make_env_groups
from fasta2c.errors import UserError

E = 7
SEEDS = list(range(100, 100 + E))


def groups_of(env, groups, **options):
    return make_env_groups(resolve(env), E, groups=groups, seeds=SEEDS, options=options, num_threads=2)


@pytest.mark.parametrize(
    ("env", "options"),
    [
        ("Classic/CartPole", {"max_episode_steps": 12}),
        ("Atari/Breakout", {"episodic_life": True, "max_episode_steps": 40}),
        ("gymnasium:CartPole-v1", {"max_episode_steps": 12}),
    ],
)
@pytest.mark.parametrize("groups", [2, 3])
def test_the_same_actions_bring_the_same_rows(env, options, groups):
    whole, parts = groups_of(env, 1, **options), groups_of(env, groups, **options)
    assert sorted(part.num_envs for part in parts) == sorted(-(-(E - n) // groups) for n in range(groups))
    assert np.array_equal(whole[0].reset(), np.concatenate([part.reset() for part in parts]))
    rng = np.random.default_rng(0)
    ends = np.cumsum([part.num_envs for part in parts])[:-1]
    for _ in range(60):
        actions = rng.integers(0, whole[0].action_space.n, E)
        for part, own in zip(parts, np.split(actions, ends), strict=True):
            part.send(own)
        seen = [part.receive() for part in parts]
        for name, expected in whole[0].step(actions)._asdict().items():
            found = [getattr(row, name) for row in seen]
            if expected is None:
                assert name == "lost" and set(found) == {None}
            else:
                assert np.array_equal(np.concatenate(found), expected), name
    for envs in (*whole, *parts):
        envs.close()


def test_more_groups_than_environments_are_one_each():
    assert [part.num_envs for part in groups_of("Classic/CartPole", 100)] == [1] * E


def test_a_refusal_closes_what_was_made(monkeypatch):
    closed = []

    class Envs:
        spec = None

        def __init__(self, env_id, num_envs, **_):
            if made:
                raise UserError("no more")
            made.append(num_envs)

        def close(self):
            closed.append(1)

    made = []
    monkeypatch.setattr("fasta2c.envs.envpool.EnvPoolEnvs", Envs)
    with pytest.raises(UserError, match="no more"):
        groups_of("Classic/CartPole", 2)
    assert len(made) == len(closed) == 1


class Wider(gymnasium.Env):
    """Observes more numbers than the one before."""

    action_space, made = gymnasium.spaces.Discrete(2), 0

    def __init__(self):
        Wider.made += 1
        self.observation_space = gymnasium.spaces.Box(0, 1, (1 + Wider.made,), np.float32)


def test_groups_of_other_spaces_are_refused():
    gymnasium.register("test_groups/Wider-v0", entry_point=Wider, disable_env_checker=True)
    try:
        with pytest.raises(UserError, match="test_groups/Wider-v0: its environments do not all have the same spaces"):
            groups_of("gymnasium:test_groups/Wider-v0", E)
    finally:
        gymnasium.registry.pop("test_groups/Wider-v0")
