"""The A2C loss, as sums over samples, so that micro-batches of one rollout add up to the whole.

Shapes: B samples, P numbers of an action distribution.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fasta2c.models.distributions import Distribution


class LossSums(NamedTuple):
    """Sums over the valid samples of a batch, 0-dimensional."""

    policy: Tensor
    value: Tensor
    entropy: Tensor


def loss_sums(
    distribution: Distribution,
    policy_BP: Tensor,
    values_B: Tensor,
    actions: Tensor,
    advantages_B: Tensor,
    returns_B: Tensor,
    valid_B: Tensor,
    *,
    value_loss: str,
) -> LossSums:
    """Sums of policy loss, value loss and entropy over valid samples (Mnih et al. 2016, arXiv:1602.01783).

    Whatever stands in the actions, advantages and returns of the other samples reaches neither sums nor gradients.

    Args:
        distribution: what `policy_BP` makes.
        policy_BP: [B, P], differentiable.
        values_B: [B], differentiable.
        actions: [B, ...] as they were drawn.
        advantages_B: [B], no gradient.
        returns_B: [B] value targets, no gradient.
        valid_B: [B] bool.
        value_loss: "mse" (half the squared error) or "huber" (threshold 1).
    """
    valid_like_actions = valid_B.view(-1, *(1,) * (actions.dim() - 1))
    actions = torch.where(valid_like_actions, actions, 0)
    advantages_B = torch.where(valid_B, advantages_B, 0.0)
    log_probs_B, entropies_B = distribution.log_prob_and_entropy(policy_BP, actions)
    # Action 0 may be illegal there, of probability 0.
    log_probs_B = torch.where(valid_B, log_probs_B, 0.0)
    return LossSums(
        policy=-(log_probs_B * advantages_B).sum(),
        value=value_loss_sum(values_B, returns_B, valid_B, value_loss),
        entropy=torch.where(valid_B, entropies_B, 0.0).sum(),
    )


def value_loss_sum(values_B: Tensor, returns_B: Tensor, valid_B: Tensor, value_loss: str) -> Tensor:
    """The value loss alone, 0-dimensional; arguments as for `loss_sums`."""
    # A sample whose value is its own target has no value loss and no gradient.
    targets_B = torch.where(valid_B, returns_B, values_B.detach())
    if value_loss == "huber":
        return functional.huber_loss(values_B, targets_B, reduction="sum")
    return 0.5 * functional.mse_loss(values_B, targets_B, reduction="sum")


def bounds_loss_sum(distribution: Distribution, policy_BP: Tensor, valid_B: Tensor) -> Tensor:
    """What means beyond their bounds cost, 0-dimensional (rl_games' bounds loss); arguments as for `loss_sums`."""
    return torch.where(valid_B, distribution.excess(policy_BP), 0.0).sum()
