"""RMSprop's two forms against float64 arithmetic, clipping, schedules and parameter groups."""

import copy
import math

import pytest
import torch
from helpers import env_spec

from fasta2c.config import TrainConfig
from fasta2c.learning import muon
from fasta2c.learning.muon import orthogonal
from fasta2c.learning.optim import (
    RMSpropTF,
    build_optimizer,
    clip_grad_norm,
    load_optimizer_state,
    schedule,
    set_learning_rate,
)
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


def test_orthogonal_is_near_the_polar_factor():
    generator = torch.Generator().manual_seed(0)
    for shape in ((40, 40), (20, 70), (70, 20)):
        x = torch.randn(shape, generator=generator)
        u, _, vt = torch.linalg.svd(x.double(), full_matrices=False)
        got = orthogonal(x).double()
        values = torch.linalg.svdvals(got)
        # Random square matrices have a singular value near 0, which five iterations do not bring to 1.
        assert values.max() < 1.25 and values.quantile(0.1) > 0.6
        alike = (got * (u @ vt)).sum() / (got.norm() * (u @ vt).norm())
        assert alike > 0.97
        torch.testing.assert_close(orthogonal(1e-3 * x), orthogonal(x), rtol=0.05, atol=0.02)
    assert orthogonal(torch.zeros(3, 4)).abs().max() == 0


def test_muon_steps_by_hand_and_leaves_the_rest_to_adam(monkeypatch):
    monkeypatch.setattr(muon, "orthogonal", lambda matrix: matrix / matrix.norm())
    kernel = torch.nn.Parameter(torch.zeros(2, 1, 3, 3))
    vector, other = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizer = muon.Muon([{"params": [kernel], "orthogonal": True}, {"params": [vector]}], lr=0.1, eps=1e-5)
    adam = torch.optim.Adam([other], lr=0.1, eps=1e-5)
    average, expected = torch.zeros_like(kernel), torch.zeros_like(kernel)
    for n in range(3):
        gradient = torch.randn(kernel.shape, generator=torch.Generator().manual_seed(n))
        kernel.grad, vector.grad, other.grad = gradient.clone(), gradient[0, 0, 0].clone(), gradient[0, 0, 0].clone()
        optimizer.step()
        adam.step()
        average = 0.95 * average + 0.05 * gradient
        ahead = 0.05 * gradient + 0.95 * average
        expected -= 0.1 * 0.2 * math.sqrt(9) * ahead / ahead.norm()
    torch.testing.assert_close(kernel.detach(), expected)
    assert torch.equal(vector, other)


@pytest.mark.parametrize("options", [{}, {"critic_lr": 0.6, "shared": False}, {"recurrent": "gru"}])
def test_muon_takes_the_matrices_of_hidden_layers(options):
    network = model(**options)
    optimizer = build_optimizer(network, TrainConfig(optimizer="muon", **options))
    orthogonal_ids = {id(p) for g in optimizer.param_groups if g["orthogonal"] for p in g["params"]}
    heads = {id(p) for head in (network.policy_head, network.value_head) for p in head.parameters()}
    expected = {id(p) for p in network.parameters() if p.dim() >= 2} - heads
    assert orthogonal_ids == expected and expected
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(network.parameters()))


def test_muon_resumes_from_its_state_dict():
    def make():
        torch.manual_seed(0)
        network = model()
        return network, build_optimizer(network, TrainConfig(optimizer="muon", lr=0.01))

    def step(network, optimizer, n):
        for p in network.parameters():
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(n))
        optimizer.step()

    (a, first), (b, second) = make(), make()
    step(a, first, 1)
    b.load_state_dict(a.state_dict())
    load_optimizer_state(second, copy.deepcopy(first.state_dict()))
    step(a, first, 2)
    step(b, second, 2)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_averages_saved_in_another_memory_layout_are_those_of_the_same_parameters():
    def stepped(saved_as):
        network = torch.nn.Conv2d(3, 4, 2)
        saved = build_optimizer(network, TrainConfig(optimizer="adam", lr=0.1))
        for n, p in enumerate(network.parameters()):
            torch.nn.init.constant_(p, 0.5)
            p.grad = torch.arange(p.numel(), dtype=p.dtype).view_as(p) + n
        saved.step()
        state = copy.deepcopy(saved.state_dict())
        network.to(memory_format=saved_as)
        resumed = build_optimizer(network, TrainConfig(optimizer="adam", lr=0.1))
        load_optimizer_state(resumed, state)
        for p in network.parameters():
            p.grad = torch.empty_like(p).copy_(torch.arange(p.numel(), dtype=p.dtype).view(p.shape).flip(0))
        resumed.step()
        return network.weight.detach().contiguous()

    torch.testing.assert_close(stepped(torch.channels_last), stepped(torch.contiguous_format))


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_a_parameter_with_gaps_in_its_memory_is_learnt_as_any_other(optimizer):
    def stepped(make):
        network = model()
        network.odd = torch.nn.Parameter(make())
        chosen = build_optimizer(network, TrainConfig(optimizer=optimizer, lr=0.1))
        network.odd.grad = torch.arange(6.0).view(2, 3) - 2
        chosen.step()
        return network.odd.detach().contiguous()

    expected = stepped(lambda: torch.zeros(2, 3))
    torch.testing.assert_close(stepped(lambda: torch.zeros(2, 6)[:, :3]), expected)
    assert expected.count_nonzero() == 5


def test_averages_of_an_unfused_step_are_gone_on_with():
    def stepped(fused):
        p = torch.nn.Parameter(torch.ones(3))
        network = torch.nn.Module()
        network.p = p
        first = torch.optim.Adam([p], lr=0.1, eps=1e-5, fused=fused)
        p.grad = torch.tensor([1.0, -2.0, 3.0])
        first.step()
        second = build_optimizer(network, TrainConfig(optimizer="adam", lr=0.1, optimizer_eps=1e-5))
        load_optimizer_state(second, copy.deepcopy(first.state_dict()))
        p.grad = torch.tensor([-1.0, 5.0, 0.5])
        second.step()
        return p.detach().clone()

    torch.testing.assert_close(stepped(None), stepped(True))


@pytest.mark.parametrize(("shape", "exact"), [((64, 64), True), ((255, 300), True), ((256, 300), False)])
def test_muon_takes_bfloat16_for_large_matrices_alone_on_a_cpu(monkeypatch, shape, exact):
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("fasta2c.accel.has_fast_bf16", lambda device: False)
    wanted = orthogonal(gradient)
    monkeypatch.setattr("fasta2c.accel.has_fast_bf16", lambda device: True)
    assert torch.equal(orthogonal(gradient), wanted) == exact


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
