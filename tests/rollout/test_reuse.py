"""When the graphs of the acting forward passes are kept, and what they take."""

import pytest
import torch
from helpers import env_spec

from fasta2c.config import TrainConfig
from fasta2c.models.actor_critic import ActorCritic
from fasta2c.rollout.buffer import RolloutBuffer
from fasta2c.rollout.reuse import WORTHWHILE, Reuse, decide, graph_bytes

PIXELS = env_spec((1, 36, 36), "uint8", stack=4, actions=3)
VECTOR = env_spec((3,), "float32", stack=1, actions=4)


def parts(spec, num_envs, num_steps=2, **settings):
    config = TrainConfig(hidden_sizes=(8,), **settings)
    model = ActorCritic(spec, config)
    return model, RolloutBuffer(num_steps, num_envs, spec, torch.device("cpu"))


@pytest.mark.parametrize(
    ("spec", "num_envs", "kept"), [(PIXELS, WORTHWHILE - 1, False), (PIXELS, WORTHWHILE, True), (VECTOR, 4096, False)]
)
def test_auto_keeps_the_graphs_of_long_rows_of_images(spec, num_envs, kept):
    assert decide("auto", *parts(spec, num_envs), micro_batch=256, budget=10**12) == Reuse(kept)
    assert decide("on", *parts(spec, num_envs), micro_batch=256, budget=10**12) == Reuse(True)
    assert decide("off", *parts(spec, num_envs), micro_batch=256, budget=10**12) == Reuse(False)


def test_a_critic_of_its_own_runs_once_where_its_graph_fits():
    model, buffer = parts(VECTOR, 8, shared=False)
    for requested, critic in (("auto", True), ("off", False)):
        assert decide(requested, model, buffer, micro_batch=256, budget=10**12) == Reuse(False, values_later=critic)
    assert decide("on", model, buffer, micro_batch=256, budget=10**12) == Reuse(True)
    assert decide("auto", model, buffer, micro_batch=256, budget=100) == Reuse(False)
    several = {"micro_batch": 256, "num_minibatches": 4, "num_epochs": 2}
    assert decide("auto", model, buffer, budget=10**12, **several) == Reuse(False, values_later=True, recomputed=True)
    needed = graph_bytes(model, buffer, 256)
    assert decide("auto", model, buffer, budget=needed // 4, **several).values_later, (
        "a minibatch's graph is all there is"
    )
    assert not decide("auto", model, buffer, budget=needed // 5, **several).values_later


@pytest.mark.parametrize("requested", ["auto", "on"])
def test_graphs_beyond_the_budget_are_not_kept_and_the_user_is_told(requested):
    keep, critic, _, note = decide(requested, *parts(PIXELS, 64), micro_batch=256, budget=1000)
    assert not keep and not critic and "--num-envs" in note


def test_the_measure_grows_with_the_rollout():
    model, buffer = parts(VECTOR, 4)
    small = graph_bytes(model, buffer, 256)
    assert graph_bytes(*parts(VECTOR, 4, num_steps=20), 256) == pytest.approx(10 * small, rel=0.01)
    assert graph_bytes(*parts(VECTOR, 40), 256) == pytest.approx(10 * small, rel=0.01)


def test_the_measure_is_what_a_graph_takes():
    """By hand: a layer of 8 keeps its 3 inputs and 8 outputs, and the heads the same 8; the input may be a view."""
    model, buffer = parts(VECTOR, 1000, num_steps=1)
    assert 1000 * (8 * 4) <= graph_bytes(model, buffer, 1000) <= 1000 * (3 + 8 + 8) * 4


def test_measuring_leaves_no_gradient_behind():
    model, buffer = parts(PIXELS, 4)
    graph_bytes(model, buffer, 256)
    assert all(p.grad is None for p in model.parameters())
