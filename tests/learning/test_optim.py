"""RMSprop's two forms against float64 arithmetic, clipping, schedules and parameter groups."""

import copy
import math

import pytest
import torch
from helpers import env_spec

from fasta2c.config import TrainConfig
from fasta2c.learning.optim import RMSpropTF, build_optimizer, clip_grad_norm, schedule, set_learning_rate
from fasta2c.models.actor_critic import ActorCritic


def model(**config):
    return ActorCritic(env_spec((4,), "float32", actions=2), TrainConfig(**config))


def steps(optimizer, parameter, gradients):
    for g in gradients:
        parameter.grad = torch.tensor([g], dtype=parameter.dtype)
        optimizer.step()
    return parameter.item()


def by_hand(gradients, *, start, inside, lr=0.1, alpha=0.9, eps=1e-2):
    p, average = 1.0, start
    for g in gradients:
        average = alpha * average + (1 - alpha) * g * g
        p -= lr * g / (math.sqrt(average + eps) if inside else math.sqrt(average) + eps)
    return p


def test_rmsprop_tf_has_eps_inside_and_starts_at_one():
    p = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    result = steps(RMSpropTF([p], lr=0.1, alpha=0.9, eps=1e-2), p, [0.5, -2.0, 3.0])
    assert result == pytest.approx(by_hand([0.5, -2.0, 3.0], start=1.0, inside=True), abs=1e-12)


def test_rmsprop_has_eps_outside_and_starts_at_zero():
    config = TrainConfig(optimizer="rmsprop", lr=0.1, rmsprop_alpha=0.9, optimizer_eps=1e-2)
    optimizer = build_optimizer(model(), config)
    p = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer.param_groups[0]["params"] = [p]
    result = steps(optimizer, p, [0.5, -2.0, 3.0])
    assert result == pytest.approx(by_hand([0.5, -2.0, 3.0], start=0.0, inside=False), abs=1e-12)


def test_rmsprop_tf_resumes_from_its_state_dict():
    a, b = (torch.nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(2))
    first = RMSpropTF([a], lr=0.1)
    steps(first, a, [1.0, 2.0])
    b.data.copy_(a.data)
    second = RMSpropTF([b], lr=0.5)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert steps(first, a, [3.0]) == steps(second, b, [3.0])


def test_clip_scales_down_to_the_norm_and_returns_the_norm_before():
    p = torch.nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([3.0, 4.0])
    assert clip_grad_norm([p], 0.5).item() == pytest.approx(5.0)
    assert p.grad.tolist() == pytest.approx([0.3, 0.4], rel=1e-4)


def test_small_gradients_are_left_alone():
    p = torch.nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([0.03, 0.04])
    clip_grad_norm([p], 0.5)
    assert p.grad.tolist() == pytest.approx([0.03, 0.04])


@pytest.mark.parametrize(
    ("name", "values"), [("constant", [1, 1, 1]), ("linear", [1, 0.75, 0]), ("cosine", [1, 0.853553, 0])]
)
def test_schedules(name, values):
    assert [schedule(name, p) for p in (0.0, 0.25, 1.0)] == pytest.approx(values, abs=1e-6)


def test_a_schedule_past_its_end_stays_there():
    assert schedule("linear", 1.3) == 0.0


def test_the_critic_has_its_own_learning_rate_on_request():
    network = model(shared=False)
    optimizer = build_optimizer(network, TrainConfig(lr=0.2, critic_lr=0.6, shared=False))
    set_learning_rate(optimizer, 0.5)
    actor, critic = optimizer.param_groups
    assert (actor["lr"], critic["lr"]) == (0.1, 0.3)
    assert {id(p) for p in critic["params"]} == {
        id(p) for module in (network.critic_encoder, network.value_head) for p in module.parameters()
    }
    assert len(actor["params"]) + len(critic["params"]) == len(list(network.parameters()))
