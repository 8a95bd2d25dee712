"""Numbers that are not finite are found, placed, counted and kept from the parameters, on a CPU and as on a GPU."""

import copy
import math

import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from helpers import env_spec

from fasta2c.config import TrainConfig
from fasta2c.learning.optim import build_optimizer, make_averages, step_where
from fasta2c.learning.watch import NumberWatch
from fasta2c.models.actor_critic import ActorCritic
from fasta2c.rollout.buffer import RolloutBuffer
from fasta2c.spaces import spec_of

T, E = 5, 6
CPU = torch.device("cpu")
NUMBERS = env_spec((3,), "float32")
NESTED = spec_of(
    Dict({"image": Box(0, 255, (2, 2), "uint8"), "speed": Box(-9, 9, (3,)), "count": Discrete(4)}),
    Discrete(2),
    env_id="test",
)

YES = torch.ones((), dtype=torch.bool)


def rollout(spec=NUMBERS):
    buffer = RolloutBuffer(T, E, spec, CPU)
    buffer.valid_TE.fill_(True)
    return buffer


@pytest.fixture(params=["host", "device"])
def watch(request):
    """On a host, and as a GPU has it, which nothing may ask before the report."""
    made = NumberWatch(CPU, freeze=False)
    made._on_host = request.param == "host"
    return made


def updated(watch, buffer, *numbers):
    """Whether an optimizer step on `buffer` would have been applied, and what is told of it."""
    watch.examine(buffer)
    allowed = bool(watch.allows(YES, *(numbers or [torch.zeros(3)])))
    watch.conclude()
    return allowed, watch.report()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_reward_is_placed(watch, number):
    assert updated(watch, rollout()) == (True, None)
    buffer = rollout()
    buffer.rewards_TE[3, 1] = buffer.rewards_TE[2, 4] = number
    allowed, fault = updated(watch, buffer)
    assert not allowed
    assert fault == (2, "reward", 2, 4, 1, 1)
    assert updated(watch, rollout()) == (True, None)


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("row", range(T + 1))
@pytest.mark.parametrize("spec", [NUMBERS, env_spec((2, 2), "float32", stack=3)], ids=str)
def test_an_observation_is_placed(watch, number, row, spec):
    buffer = rollout(spec)
    buffer.frames[spec.stack - 1 + row, 4].view(-1)[1] = number
    allowed, fault = updated(watch, buffer)
    assert not allowed and fault == (1, "observation", row, 4, 1, 1)


def test_an_observation_of_several_parts_is_placed(watch):
    buffer = rollout(NESTED)
    speeds = torch.zeros(E, 3)
    speeds[2, 1] = math.nan
    leaves = {"image": torch.full((E, 2, 2), 255), "speed": speeds, "count": torch.full((E,), 3)}
    buffer.frames[3] = NESTED.frames.pack_tensors(NESTED.frames.flatten(leaves))
    assert updated(watch, buffer) == (False, (1, "observation", 3, 2, 1, 1))
    buffer.frames[:, :, 4 * 3 :] = 255  # bytes that would be NaN as a real number, which comes first
    buffer.frames[:, :, : 4 * 3] = 0
    assert updated(watch, buffer) == (True, None)


def test_what_is_not_learnt_from_may_be_anything(watch):
    buffer = rollout()
    buffer.terminated_TE[1, 0] = buffer.terminated_TE[T - 1, 3] = True
    buffer.valid_TE[2, 0] = buffer.valid_TE[0, 1] = False  # what follows an end, in this rollout and in the last
    buffer.frames[2, 0] = buffer.frames[0, 1] = buffer.frames[T, 3] = math.nan
    buffer.rewards_TE[2, 0] = buffer.rewards_TE[0, 1] = math.inf
    assert updated(watch, buffer) == (True, None)


def test_the_last_observation_of_an_episode_that_was_cut_is_learnt_from(watch):
    buffer = rollout()
    buffer.truncated_TE[1, 0], buffer.valid_TE[2, 0] = True, False
    buffer.frames[2, 0] = math.nan
    assert updated(watch, buffer) == (False, (1, "observation", 2, 0, 1, 1))


def test_a_loss_or_a_gradient_has_no_place(watch):
    numbers = torch.tensor([1.0, math.nan, 2.0]), torch.tensor(1.0)
    assert updated(watch, rollout(), *numbers) == (False, (1, "loss or gradient", None, None, 1, 1))
    numbers = torch.zeros(3), torch.tensor(math.inf)
    assert updated(watch, rollout(), *numbers) == (False, (2, "loss or gradient", None, None, 1, 2))


def test_the_first_since_the_last_report_is_told_and_all_are_counted(watch):
    for row in (None, 3, 2, None, 1):
        buffer = rollout()
        if row is not None:
            buffer.rewards_TE[row] = math.nan
        watch.examine(buffer)
        assert bool(watch.allows(YES, torch.zeros(1))) == (row is None)
        watch.conclude()
    assert watch.report() == (2, "reward", 3, 0, 3, 2)
    assert watch.report() is None


def test_all_steps_of_an_update_behind_a_fault_are_left_out(watch):
    watch.examine(rollout())
    assert watch.allows(YES, torch.zeros(1))
    assert not watch.allows(YES, torch.full((), math.nan))
    assert not watch.allows(YES, torch.zeros(1))
    watch.conclude()
    assert watch.report().skipped == 1


def test_frozen_behind_the_first_fault(watch):
    watch._freeze = True
    buffer = rollout()
    buffer.rewards_TE[0, 0] = math.nan
    for faulty in (True, False, False):
        watch.examine(buffer if faulty else rollout())
        assert not watch.allows(YES, torch.zeros(1))
        watch.conclude()
    assert watch.report().update == 1
    assert not updated(watch, rollout())[0], "reported, it is not forgotten"


class OnGpu(torch.Tensor):
    """Says that it is on a GPU, and must not be asked for its value."""

    @property
    def is_cuda(self):
        return True

    def __bool__(self):
        raise AssertionError("waited for")


@pytest.mark.parametrize("name", ["adam", "rmsprop", "rmsprop-tf", "muon"])
def test_a_step_that_is_not_allowed_changes_nothing_without_being_waited_for(name):
    config = TrainConfig(optimizer=name)
    model = ActorCritic(env_spec((3,), "float32"), config)
    optimizer = build_optimizer(model, config)
    other = copy.deepcopy(model)
    theirs = build_optimizer(other, config)

    def give_gradients(number):
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            p.grad, q.grad = torch.full_like(p, number), torch.full_like(q, number)

    def state(of_model, of_optimizer):
        averages = [x for kept in of_optimizer.state.values() for x in kept.values()]
        return [x.clone() for x in (*of_model.parameters(), *averages)]

    make_averages(optimizer)
    for number, allowed in (
        (math.nan, False),
        (0.5, True),
        (math.nan, False),
        (0.3, True),
        (math.inf, False),
        (0.1, True),
    ):
        before = state(model, optimizer)
        give_gradients(number)
        step_where(optimizer, torch.tensor(allowed).as_subclass(OnGpu))
        if allowed:
            theirs.step()
            assert any(not torch.equal(x, y) for x, y in zip(before, state(model, optimizer), strict=True))
        assert not theirs.state or all(
            torch.equal(x, y) for x, y in zip(state(model, optimizer), state(other, theirs), strict=True)
        )


def test_a_first_step_that_is_not_allowed_is_not_made():
    config = TrainConfig()
    model = ActorCritic(env_spec((3,), "float32"), config)
    optimizer, before = build_optimizer(model, config), copy.deepcopy(model.state_dict())
    for p in model.parameters():
        p.grad = torch.full_like(p, math.nan)
    step_where(optimizer, torch.tensor(False))
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())


@pytest.mark.parametrize("on_host", [True, False])
def test_numbers_of_a_step_that_is_not_wanted_do_not_matter(on_host):
    watch = NumberWatch(torch.device("cpu"), freeze=True)
    watch._on_host = on_host
    watch.examine(rollout())
    assert not watch.allows(~YES, torch.full((), math.nan)) and watch.allows(YES, torch.zeros(1))
    watch.conclude()
    assert watch.report() is None
