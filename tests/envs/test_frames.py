"""Frames stacked on the device against EnvPool's own stack, byte for byte."""

import envpool
import numpy as np
import pytest
import torch

from fasta2c.envs.make import make_envs
from fasta2c.rollout.buffer import RolloutBuffer


@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        ("Pong-v5", {}),
        ("Breakout-v5", {"episodic_life": True}),
        ("Breakout-v5", {"episodic_life": True, "max_episode_steps": 37}),
        ("SpaceInvaders-v5", {"max_episode_steps": 23}),
        ("Breakout-v5", {"gray_scale": False, "max_episode_steps": 23}),
    ],
)
def test_equal_to_envpools_own_stack(env_id, options):
    E, steps = 6, 400
    ours = make_envs(env_id, E, seed=5, **options)
    theirs = envpool.make_gymnasium(env_id, num_envs=E, seed=ours.seeds, stack_num=4, **options)
    rng = np.random.default_rng(0)
    assert np.array_equal(ours.reset().numpy(), theirs.reset()[0])
    ends = 0
    for _ in range(steps):
        actions = rng.integers(0, ours.action_space.n, E)
        seen, _, terminated, truncated, _ = ours.step(torch.from_numpy(actions))
        expected, _, _, _, _ = theirs.step(actions.astype(np.int32))
        assert np.array_equal(seen.numpy(), expected)
        ends += int((terminated | truncated).sum())
    assert ends > 0 or env_id == "Pong-v5"


def test_the_rollout_sees_the_same_stacks():
    """The buffer, which stores each frame once, against the window that `make_envs` keeps."""
    E, T = 5, 9
    options = {"episodic_life": True, "max_episode_steps": 30}
    window = make_envs("Breakout-v5", E, seed=1, **options)
    host = make_envs("Breakout-v5", E, seed=1, **options)._envs
    buffer = RolloutBuffer(T, E, host.spec, torch.device("cpu"))
    buffer.start(host.reset(), slice(0, E))
    expected = window.reset()
    rng = np.random.default_rng(0)
    for _ in range(12):
        buffer.carry_over()
        history = []
        for t in range(T):
            history.append(expected)
            assert torch.equal(buffer.observations(slice(t, t + 1), slice(0, E)), expected)
            actions = rng.integers(0, 4, E)
            buffer.store(t, slice(0, E), host.step(actions))
            expected = window.step(torch.from_numpy(actions))[0]
        # what the learner reads after the rollout is what was acted on
        assert torch.equal(buffer.observations(slice(0, T), slice(0, E)), torch.cat(history))
        assert torch.equal(buffer.observations(slice(2, 4), slice(1, 3)), torch.cat([h[1:3] for h in history[2:4]]))
