"""Shapes, precision and initialisation of the actor-critic."""

import pytest
import torch

from fasta2c.config import TrainConfig
from fasta2c.models.actor_critic import ActorCritic


def test_shapes_and_dtypes_stay_float32_in_bf16():
    network = ActorCritic((4, 84, 84), "uint8", 6, TrainConfig(), torch.bfloat16)
    logits, values = network(torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8))
    assert (logits.shape, values.shape) == ((3, 6), (3,))
    assert (logits.dtype, values.dtype) == (torch.float32, torch.float32)
    assert all(p.dtype is torch.float32 for p in network.parameters())


def test_bf16_is_close_to_fp32():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (8, 4, 84, 84), dtype=torch.uint8)
    exact = ActorCritic((4, 84, 84), "uint8", 6, TrainConfig())
    rough = ActorCritic((4, 84, 84), "uint8", 6, TrainConfig(), torch.bfloat16)
    rough.load_state_dict(exact.state_dict())
    values, rough_values = exact(images)[1], rough(images)[1]
    assert (values - rough_values).abs().max() < 0.05 * values.abs().max()
    assert not torch.equal(values, rough_values)


def test_heads_begin_with_gains_a_hundredth_and_one():
    network = ActorCritic((4,), "float32", 5, TrainConfig())
    torch.testing.assert_close(
        network.policy_head.weight @ network.policy_head.weight.T, 1e-4 * torch.eye(5), rtol=1e-3, atol=1e-7
    )
    assert network.value_head.weight.norm().item() == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("shared", [True, False])
def test_actor_and_critic_share_what_they_are_told_to(shared):
    network = ActorCritic((4,), "float32", 2, TrainConfig(shared=shared))
    logits, values = network(torch.randn(5, 4))
    values.sum().backward()
    touched = any(p.grad is not None for p in network.encoder.parameters())
    assert touched is shared
    parts = [*network.actor_parameters(), *network.critic_parameters()]
    assert {id(p) for p in parts} == {id(p) for p in network.parameters()}
    assert len(parts) == len(list(network.parameters()))
