"""What the network is called by: where values come from, what is remembered, what a kept graph may hold on to."""

import pytest
import torch
from helpers import env_spec

from fasta2c.config import TrainConfig
from fasta2c.models.actor_critic import ActorCritic
from fasta2c.rollout.buffer import RolloutBuffer
from fasta2c.rollout.passes import Passes

T, E = 3, 4
SPEC = env_spec((5,), "float32", stack=1, actions=3)
CPU = torch.device("cpu")
ALL = slice(0, E)


def made(**settings):
    torch.manual_seed(0)
    model = ActorCritic(SPEC, TrainConfig(recurrent_size=6, **settings))
    buffer = RolloutBuffer(T, E, SPEC, CPU, state_size=model.state_size)
    buffer.frames.normal_()
    buffer.state_ES.normal_()
    return model, buffer


def row(t):
    return slice(t, t + 1), ALL


@pytest.mark.parametrize("recurrent", ["none", "gru", "lstm"])
@pytest.mark.parametrize("shared", [True, False])
@torch.no_grad()
def test_acting_row_by_row_says_what_learning_says_of_all_rows_at_once(recurrent, shared):
    model, buffer = made(recurrent=recurrent, shared=shared)
    passes, before = Passes.of(model), buffer.state_ES.clone()
    buffer.fills[1, 2] = True  # a game opens
    acted = [passes.act(buffer, row(t)) for t in range(T)]
    whole = slice(0, T), ALL
    policy, values, after = passes.recompute(buffer, whole, before)
    torch.testing.assert_close(torch.cat([policy for policy, _ in acted]), policy)
    torch.testing.assert_close(torch.cat([values for _, values in acted]), values)
    torch.testing.assert_close(buffer.state_ES, after)
    alone, after_alone = passes.values(buffer, whole, before)
    torch.testing.assert_close(alone, values)
    torch.testing.assert_close(after_alone, after)


@torch.no_grad()
def test_a_critic_of_its_own_is_left_to_the_learner_where_that_is_wanted():
    model, buffer = made(shared=False)
    at_once, later = Passes.of(model), Passes.of(model, values_later=True)
    policy, values = later.act(buffer, row(0))
    assert values is None
    torch.testing.assert_close(policy, at_once.act(buffer, row(0))[0])
    torch.testing.assert_close(later.values(buffer, row(0), buffer.state_ES)[0], at_once.act(buffer, row(0))[1])


@torch.no_grad()
def test_the_observation_after_the_last_row_is_remembered_when_it_is_acted_on():
    model, buffer = made(recurrent="gru")
    before = buffer.state_ES.clone()
    Passes.of(model).act(buffer, row(T))
    assert torch.equal(buffer.state_ES, before)
    Passes.of(model).act(buffer, row(T - 1))
    assert not torch.equal(buffer.state_ES, before)


@torch.no_grad()
def test_what_is_not_finite_is_not_remembered():
    model, buffer = made(recurrent="gru")
    buffer.frames[0, 1, 0] = torch.nan
    policy, _ = Passes.of(model).act(buffer, row(0))
    assert not torch.isfinite(policy[1]).all(), "or the row tells nothing of it"
    assert torch.isfinite(buffer.state_ES).all()
    others = [0, 2, 3]
    assert (buffer.state_ES[others] != 0).any(dim=1).all()


def test_a_kept_graph_has_observations_of_its_own():
    """The frames move on before the update that differentiates it."""
    model, buffer = made()
    passes = Passes.of(model)
    policy, values = passes.act(buffer, row(0))
    expected = torch.autograd.grad(policy.square().sum() + values.sum(), list(model.parameters()), retain_graph=True)
    buffer.frames.fill_(torch.nan)
    got = torch.autograd.grad(policy.square().sum() + values.sum(), list(model.parameters()))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)
