"""The collector against a scripted environment whose every value can be told apart."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import env_spec

from fasta2c.envs.base import HostEnvs, Row
from fasta2c.graphs import Graphs
from fasta2c.models.distributions import build_distribution
from fasta2c.rollout.buffer import RolloutBuffer
from fasta2c.rollout.collector import Collector
from fasta2c.rollout.passes import Passes
from fasta2c.spaces import Choices
from fasta2c.timing import PhaseTimer

E = 3
CPU = torch.device("cpu")
CHOICE = build_distribution(Choices((), (4,), (0,)))


class Script(HostEnvs):
    """Row n of environment e observes n + e / 10; environment 1 terminates at row 2, environment 2 is cut at row 3."""

    spec = env_spec((1,), "float32", stack=1, actions=4)
    options: dict = {}

    def __init__(self, envs=range(E)):
        self.envs = np.array(envs)
        self.num_envs = len(envs)
        self.seeds = [0] * self.num_envs
        self.n = 0
        self.taken = []
        self.pending = None
        self.previous_done = np.zeros(self.num_envs, bool)

    def reset(self):
        return self.observe()

    def observe(self):
        return (self.n + self.envs.astype(np.float32) / 10).reshape(-1, 1)

    def send(self, actions):
        assert self.pending is None, "sent twice"
        self.pending = actions

    def receive(self):
        self.taken.append(self.pending.copy())
        self.pending = None
        terminated = (self.envs == 1) & (self.n == 2)
        truncated = (self.envs == 2) & (self.n == 3)
        self.n += 1
        rewards = np.full(self.num_envs, self.n, np.float32)
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


def passes_of(model):
    return Passes(model, lambda observations: model(observations)[1])


WHOLE = (range(E),)


def collector(num_steps, micro_batch=100, groups=WHOLE):
    buffer = RolloutBuffer(num_steps, E, Script.spec, torch.device("cpu"))
    envs = [Script(group) for group in groups]
    generator = torch.Generator().manual_seed(0)
    return envs, Collector(
        envs,
        passes_of(Model()),
        CHOICE,
        buffer,
        generator=generator,
        micro_batch=micro_batch,
        timer=PhaseTimer(),
        graphs=Graphs(CPU),
    )


@pytest.mark.parametrize("groups", [WHOLE, (range(2), range(2, 3)), (range(1), range(1, 3)), ([0], [1], [2])])
@pytest.mark.parametrize("micro_batch", [1, 2, 100])
def test_rows_hold_what_happened(groups, micro_batch):
    envs, collect = collector(5, micro_batch, groups)
    rollout = collect.collect()
    seen = torch.arange(6).float().view(6, 1) + torch.arange(E) / 10
    seen[3, 1] = 0  # an episode was over: nothing is kept of its last observation
    torch.testing.assert_close(rollout.values_T1E, seen * 10)
    assert rollout.actions_TE.tolist() == (seen[:5].long() % 4).tolist()
    assert np.concatenate([np.stack(group.taken) for group in envs], axis=1).tolist() == rollout.actions_TE.tolist()
    assert rollout.rewards_TE.tolist() == [[t + 1.0] * E for t in range(5)]
    assert rollout.terminated_TE.nonzero().tolist() == [[2, 1]]
    assert rollout.truncated_TE.nonzero().tolist() == [[3, 2]]
    assert (~rollout.valid_TE).nonzero().tolist() == [[3, 1], [4, 2]]
    assert collect.counts.env_steps == 5 * E - 2
    # environment 1: rows 0 to 2 score 10, 20, 30; environment 2: rows 0 to 3
    assert (collect.counts.episodes.count, collect.counts.episodes.mean_return) == (2, (60 + 100) / 2)


def test_one_group_steps_while_another_is_acted_for():
    """Actions of the second group are sent before the first's row is waited for."""
    order = []

    class Noted(Script):
        def send(self, actions):
            order.append(("send", int(self.envs[0])))
            super().send(actions)

        def receive(self):
            order.append(("receive", int(self.envs[0])))
            return super().receive()

    envs = [Noted([0]), Noted([1, 2])]
    buffer = RolloutBuffer(2, E, Script.spec, torch.device("cpu"))
    collector = Collector(
        envs,
        passes_of(Model()),
        CHOICE,
        buffer,
        generator=torch.Generator(),
        micro_batch=9,
        timer=PhaseTimer(),
        graphs=Graphs(CPU),
    )
    collector.collect()
    ends = [("receive", 0), ("receive", 1)]
    assert order == [("send", 0), ("send", 1), ("receive", 0), ("send", 0), ("receive", 1), ("send", 1), *ends]


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
    assert len(envs[0].taken) == 6 and collect.counts.env_steps == 6 * E - 2


@pytest.mark.parametrize("micro_batch", [1, 100])
@pytest.mark.parametrize("groups", [WHOLE, ([0], [1, 2])])
def test_what_is_remembered_goes_on_over_rollouts_and_ends_with_its_game(micro_batch, groups):
    """State and values count the observations of a game: the true last one too, none of the next game."""

    def unroll(observations, state, opens):
        state = torch.where(opens[0].unsqueeze(1), 0.0, state) + 1
        return torch.zeros(len(observations), 4), state[:, 0], state

    buffer = RolloutBuffer(3, E, Script.spec, CPU, state_size=1)
    collect = Collector(
        [Script(group) for group in groups],
        replace(passes_of(Model()), unroll=unroll),
        CHOICE,
        buffer,
        generator=torch.Generator(),
        micro_batch=micro_batch,
        timer=PhaseTimer(),
        graphs=Graphs(CPU),
    )
    # Environment 1 ends at row 2 and is reset in row 3, environment 2 a row later.
    counted = {0: [1, 2, 3, 4, 5, 6, 7], 1: [1, 2, 3, 4, 1, 2, 3], 2: [1, 2, 3, 4, 5, 1, 2]}
    for first in (0, 3):
        rollout = collect.collect()
        for e, values in counted.items():
            assert rollout.values_T1E[:, e].tolist() == values[first : first + 4]
            assert rollout.first_state_ES[e].item() == (values[first - 1] if first else 0)
            opened = [n == 1 for n in values[first : first + 4]]
            assert rollout.opens(slice(0, 4), slice(e, e + 1)).flatten().tolist() == opened


@pytest.mark.parametrize("groups", [WHOLE, (range(1), range(1, E))])
def test_log_probabilities_are_those_of_the_policy_that_acted(groups):
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 5)
    buffer = RolloutBuffer(4, E, Script.spec, CPU)
    collect = Collector(
        [Script(group) for group in groups],
        passes_of(Outputs(model)),
        CHOICE,
        buffer,
        generator=torch.Generator().manual_seed(0),
        micro_batch=2,
        timer=PhaseTimer(),
        graphs=Graphs(CPU),
        keep_log_probs=True,
    ).collect
    for _ in range(2):
        collect()
        logits = model(buffer.observations(slice(0, 4), slice(0, E)))[:, :4]
        expected = torch.distributions.Categorical(logits=logits).log_prob(buffer.actions_TE.flatten())
        torch.testing.assert_close(buffer.log_probs_TE.flatten(), expected)


class Outputs(torch.nn.Module):
    """The first four outputs of a layer are logits, the last is the value."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, observations):
        outputs = self.layer(observations)
        return outputs[:, :4], outputs[:, 4]


def test_shared_exploration_is_drawn_when_it_is_due():
    class Noted(type(CHOICE)):
        """Draws what the exploration says, to be told apart."""

        def explore(self, num_envs, generator=None):
            return torch.rand(num_envs, generator=generator)

        def sample(self, policy, generator=None, exploration=None):
            seen.append(exploration.clone())
            return super().sample(policy, generator)

    seen: list[torch.Tensor] = []
    for interval, changes in ((0, [0, 5]), (2, [0, 2, 4, 5, 7, 9])):
        seen.clear()
        collect = Collector(
            [Script()],
            passes_of(Model()),
            Noted(Choices((), (4,), (0,))),
            RolloutBuffer(5, E, Script.spec, CPU),
            generator=torch.Generator(),
            micro_batch=9,
            timer=PhaseTimer(),
            graphs=Graphs(CPU),
            sde_interval=interval,
        )
        for _ in range(2):
            collect.collect()
        assert [n for n in range(10) if n == 0 or not torch.equal(seen[n], seen[n - 1])] == changes
        assert all(len(set(noise.tolist())) == E for noise in seen), "each environment has its own"
