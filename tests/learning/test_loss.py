"""The loss against hand-computed values, and reset rows that must not move it."""

import math

import pytest
import torch

from fasta2c.learning.loss import bounds_loss_sum, loss_sums
from fasta2c.models.distributions import build_distribution
from fasta2c.spaces import Choices, Continuous


def batch():
    return {
        "distribution": build_distribution(Choices((), (2,), (0,))),
        "policy_BP": torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]], requires_grad=True),
        "values_B": torch.tensor([1.0, 5.0], requires_grad=True),
        "actions": torch.tensor([1, 0]),
        "advantages_B": torch.tensor([2.0, 10.0]),
        "returns_B": torch.tensor([4.0, 7.0]),
        "valid_B": torch.tensor([True, True]),
    }


def test_hand_computed_sums():
    sums = loss_sums(**batch(), value_loss="mse")
    # probabilities: 1/4, 3/4 and 1/2, 1/2
    assert sums.policy.item() == pytest.approx(-2 * math.log(0.75) - 10 * math.log(0.5))
    assert sums.value.item() == pytest.approx(0.5 * (3**2 + 2**2))
    assert sums.entropy.item() == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) + math.log(2))


def test_huber_is_linear_beyond_one():
    sums = loss_sums(**{**batch(), "returns_B": torch.tensor([4.0, 5.5])}, value_loss="huber")
    assert sums.value.item() == pytest.approx((3 - 0.5) + 0.5 * 0.5**2)


@pytest.mark.parametrize("value_loss", ["mse", "huber"])
@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e6, -1e6])
def test_poisoned_reset_rows_move_neither_loss_nor_gradient(value_loss, poison):
    def run(**changed):
        inputs = {**batch(), "valid_B": torch.tensor([True, False]), **changed}
        sums = loss_sums(**inputs, value_loss=value_loss)
        (sums.policy + sums.value - sums.entropy).backward()
        return [*sums, inputs["policy_BP"].grad, inputs["values_B"].grad]

    clean = run()
    dirty = run(
        actions=torch.tensor([1, 10**6]),
        advantages_B=torch.tensor([2.0, poison]),
        returns_B=torch.tensor([4.0, poison]),
    )
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a, b)
    assert clean[3][1].abs().sum() == 0 and clean[4][1] == 0


def test_policy_gradient_raises_the_probability_of_a_good_action():
    inputs = batch()
    loss_sums(**inputs, value_loss="mse").policy.backward()
    # d/dlogit of -A log p(a): -A (1 - p) at the action taken
    assert inputs["policy_BP"].grad[0].tolist() == pytest.approx([2 * 0.25, -2 * 0.25])
    assert inputs["values_B"].grad is None


@pytest.mark.parametrize("poison", [0.0, 1e6, -1e6])
def test_means_beyond_their_bounds_cost_their_squared_distance_in_valid_rows_alone(poison):
    head = build_distribution(Continuous((1,), (-2.0,), (2.0,)))
    policy = torch.tensor([[1.5, 0.0], [-3.0, 0.0], [poison, 0.0]], requires_grad=True)
    loss = bounds_loss_sum(head, policy, torch.tensor([True, True, False]))
    loss.backward()
    assert loss.item() == pytest.approx(0.5**2 + 2**2)
    assert policy.grad.tolist() == [[1.0, 0], [-4.0, 0], [0, 0]]
