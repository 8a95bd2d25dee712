"""The collector against a scripted environment whose every value can be told apart."""

import numpy as np
import torch

from fasta2c.envs.base import EnvSpec, Row
from fasta2c.rollout.buffer import RolloutBuffer
from fasta2c.rollout.collector import Collector
from fasta2c.timing import PhaseTimer

E = 3


class Script:
    """Row n of environment e observes n + e / 10; environment 1 terminates at row 2, environment 2 is cut at row 3."""

    spec = EnvSpec((1,), "float32", 1, 4)
    num_envs = E
    seeds = [0] * E
    options: dict = {}

    def __init__(self):
        self.n = 0
        self.taken = []
        self.previous_done = np.zeros(E, bool)

    def reset(self):
        return self.observe()

    def observe(self):
        return (self.n + np.arange(E, dtype=np.float32) / 10).reshape(E, 1)

    def step(self, actions):
        self.taken.append(actions.copy())
        terminated, truncated = np.zeros(E, bool), np.zeros(E, bool)
        terminated[1], truncated[2] = self.n == 2, self.n == 3
        self.n += 1
        rewards = np.full(E, self.n, np.float32)
        done = terminated | truncated
        row = Row(
            self.observe(), rewards, terminated, truncated, ~self.previous_done, self.previous_done, rewards * 10, done
        )
        self.previous_done = done
        return row

    def close(self):
        pass


class Model(torch.nn.Module):
    """Values are ten times the observation; the action is the whole part of the observation, modulo 4."""

    def forward(self, observations):
        wanted = observations[:, 0].long() % 4
        return torch.nn.functional.one_hot(wanted, 4).float() * 1e4, observations[:, 0] * 10


def collector(num_steps, samples=100):
    buffer = RolloutBuffer(num_steps, E, Script.spec, torch.device("cpu"))
    envs = Script()
    generator = torch.Generator().manual_seed(0)
    return envs, Collector(envs, Model(), buffer, generator=generator, samples=samples, timer=PhaseTimer())


def test_rows_hold_what_happened():
    for samples in (1, 2, 100):
        envs, collect = collector(5, samples)
        rollout = collect.collect()
        time = torch.arange(6).float().view(6, 1)
        torch.testing.assert_close(rollout.values_T1E, (time + torch.arange(E) / 10) * 10)
        assert rollout.actions_TE.tolist() == [[t % 4] * E for t in range(5)] == [a.tolist() for a in envs.taken]
        assert rollout.rewards_TE.tolist() == [[t + 1.0] * E for t in range(5)]
        assert rollout.terminated_TE.nonzero().tolist() == [[2, 1]]
        assert rollout.truncated_TE.nonzero().tolist() == [[3, 2]]
        assert (~rollout.valid_TE).nonzero().tolist() == [[3, 1], [4, 2]]
        assert collect.env_steps == 5 * E - 2


def test_validity_and_observations_carry_over_into_the_next_rollout():
    _, collect = collector(3)
    assert collect.collect().valid_TE.all()
    rollout = collect.collect()
    assert (~rollout.valid_TE).nonzero().tolist() == [[0, 1], [1, 2]]
    assert rollout.values_T1E[:, 0].tolist() == [30, 40, 50, 60]


def test_rollouts_of_one_row():
    envs, collect = collector(1)
    for n in range(6):
        rollout = collect.collect()
        assert rollout.values_T1E[:, 0].tolist() == [n * 10, n * 10 + 10]
    assert len(envs.taken) == 6 and collect.env_steps == 6 * E - 2


def test_scores_are_counted_by_game():
    _, collect = collector(5)
    collect.collect()
    # environment 1: rows 0 to 2 score 10, 20, 30; environment 2: rows 0 to 3
    assert (collect.episodes.count, collect.episodes.mean_return) == (2, (60 + 100) / 2)
