"""Shapes, precision, initialisation, masks and normalisation of the actor-critic."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary
from helpers import env_spec

from fasta2c.config import TrainConfig
from fasta2c.models.actor_critic import MOST_OPTIONS_SEEN, ActorCritic
from fasta2c.spaces import spec_of

PIXELS = env_spec((4, 84, 84), "uint8", actions=6)


def test_shapes_and_dtypes_stay_float32_in_bf16():
    network = ActorCritic(PIXELS, TrainConfig(), torch.bfloat16)
    logits, values = network(torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8))
    assert (logits.shape, values.shape) == ((3, 6), (3,))
    assert (logits.dtype, values.dtype) == (torch.float32, torch.float32)
    assert all(p.dtype is torch.float32 for p in network.parameters())


def test_bf16_is_close_to_fp32():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (8, 4, 84, 84), dtype=torch.uint8)
    exact = ActorCritic(PIXELS, TrainConfig())
    rough = ActorCritic(PIXELS, TrainConfig(), torch.bfloat16)
    rough.load_state_dict(exact.state_dict())
    values, rough_values = exact(images)[1], rough(images)[1]
    assert (values - rough_values).abs().max() < 0.05 * values.abs().max()
    assert not torch.equal(values, rough_values)


def test_heads_begin_with_gains_a_hundredth_and_one():
    network = ActorCritic(env_spec((4,), "float32", actions=5), TrainConfig())
    torch.testing.assert_close(
        network.policy_head.weight @ network.policy_head.weight.T, 1e-4 * torch.eye(5), rtol=1e-3, atol=1e-7
    )
    assert network.value_head.weight.norm().item() == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("actions", [Discrete(2), Box(-1, 1, (3,))])
def test_actor_and_critic_share_what_they_are_told_to(shared, actions):
    spec = spec_of(Box(-np.inf, np.inf, (4,)), actions, env_id="test")
    network = ActorCritic(spec, TrainConfig(shared=shared))
    _, values = network(torch.randn(5, 4))
    values.sum().backward()
    touched = any(p.grad is not None for p in network.encoder.parameters())
    assert touched is shared
    parts = [*network.actor_parameters(), *network.critic_parameters()]
    assert {id(p) for p in parts} == {id(p) for p in network.parameters()}
    assert len(parts) == len(list(network.parameters()))


@pytest.mark.parametrize("shared", [True, False])
def test_parts_alone_are_parts_of_the_whole(shared):
    network = ActorCritic(env_spec((4,), "float32", actions=5), TrainConfig(shared=shared))
    observations = torch.randn(7, 4)
    policy, values = network(observations)
    torch.testing.assert_close(network.policy(observations), policy)
    torch.testing.assert_close(network.values(observations), values)


def masked_spec(legal):
    space = Dict({"state": Box(-1, 1, (3,)), "action_mask": MultiBinary(legal)})
    return spec_of(space, Discrete(legal), env_id="test")


def test_a_mask_in_the_observation_is_obeyed():
    spec = masked_spec(5)
    network = ActorCritic(spec, TrainConfig())
    mask = np.array([[1, 0, 0, 1, 0], [0, 0, 1, 0, 0]])
    packed = spec.layout.pack([mask, np.zeros((2, 3), np.float32)])
    assert spec.layout.leaves[0].path == ("action_mask",), "in the space's own order"
    for logits in (network(torch.from_numpy(packed))[0], network.policy(torch.from_numpy(packed))):
        assert torch.equal(torch.isfinite(logits), torch.from_numpy(mask != 0))


def test_a_mask_of_many_options_is_obeyed_but_not_looked_at():
    narrow, wide = ActorCritic(masked_spec(1024), TrainConfig()), ActorCritic(masked_spec(1025), TrainConfig())
    assert (narrow.encoder.trunk[0].in_features, wide.encoder.trunk[0].in_features) == (3 + 1024, 3)


def test_a_mask_alone_is_obeyed():
    spec = spec_of(Dict({"action_mask": MultiBinary(3)}), Discrete(3), env_id="test")
    logits, _ = ActorCritic(spec, TrainConfig())(torch.tensor([[1, 0, 0]], dtype=torch.uint8))
    assert torch.isfinite(logits).tolist() == [[True, False, False]]


def test_real_numbers_are_normalised_and_images_are_not():
    space = Dict({"pixels": Box(0, 255, (40, 40, 3), np.uint8), "a": Box(-9, 9, (2,)), "b": Box(-9, 9, ())})
    spec = spec_of(space, Discrete(2), env_id="test")
    network = ActorCritic(spec, TrainConfig(normalize_observations=True))
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (500, 40, 40, 3), dtype=np.uint8)
    a, b = rng.normal((5, -100), (3, 0.1), (500, 2)), rng.normal(1e4, 1, 500)
    by_name = {"pixels": pixels, "a": a, "b": b}
    packed = torch.from_numpy(spec.layout.pack([by_name[leaf.path[0]] for leaf in spec.leaves]))
    network.update_moments([(packed, torch.ones(len(packed), dtype=torch.bool))])
    seen, _ = network._observe(packed)
    found = {leaf.path[0]: x for leaf, x in zip(spec.leaves, seen, strict=True)}
    assert np.array_equal(found["pixels"], pixels)
    for name in ("a", "b"):
        expected = (by_name[name] - by_name[name].mean(axis=0)) / by_name[name].std(axis=0)
        assert np.allclose(found[name], expected, atol=2e-2), name
    restored = ActorCritic(spec, TrainConfig(normalize_observations=True))
    restored.load_state_dict(network.state_dict())
    assert torch.equal(restored(packed)[1], network(packed)[1]), "statistics are part of what is saved"


def test_what_lies_far_out_is_cut():
    network = ActorCritic(env_spec((1,), "float32"), TrainConfig(normalize_observations=True))
    network.update_moments([(torch.randn(1000, 1), torch.ones(1000, dtype=torch.bool))])
    far = torch.tensor([[1e30], [-1e30]])
    assert [x.tolist() for x in network._observe(far)[0]] == [[[10.0], [-10.0]]]


def test_log_std_begins_where_it_is_told_to():
    spec = spec_of(Box(-1, 1, (4,)), Box(-1, 1, (3,)), env_id="test")
    policy, _ = ActorCritic(spec, TrainConfig(log_std_init=-1.5))(torch.zeros(2, 4))
    assert policy[:, 3:].tolist() == [[-1.5] * 3] * 2


def test_a_large_mask_that_is_all_there_is_to_see_is_looked_at():
    options = MOST_OPTIONS_SEEN + 1
    spec = spec_of(Dict({"action_mask": MultiBinary(options)}), Discrete(options), env_id="test")
    mask = torch.zeros(2, options, dtype=torch.uint8)
    mask[:, 3] = 1
    policy, values = ActorCritic(spec, TrainConfig())(mask)
    assert torch.isfinite(policy).nonzero()[:, 1].tolist() == [3, 3] and values.shape == (2,)
