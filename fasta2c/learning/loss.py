"""The A2C loss, as sums over samples, so that micro-batches of one rollout add up to the whole.

Shapes: B samples.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fasta2c.models import distributions


class LossSums(NamedTuple):
    """Sums over the valid samples of a batch, 0-dimensional."""

    policy: Tensor
    value: Tensor
    entropy: Tensor


def loss_sums(
    logits_BA: Tensor,
    values_B: Tensor,
    actions_B: Tensor,
    advantages_B: Tensor,
    returns_B: Tensor,
    valid_B: Tensor,
    *,
    value_loss: str,
) -> LossSums:
    """Sums of policy loss, value loss and entropy over valid samples (Mnih et al. 2016, arXiv:1602.01783).

    Whatever stands in the actions, advantages and returns of the other samples reaches neither sums nor gradients.

    Args:
        logits_BA: [B, A], differentiable.
        values_B: [B], differentiable.
        actions_B: [B] taken.
        advantages_B: [B], no gradient.
        returns_B: [B] value targets, no gradient.
        valid_B: [B] bool.
        value_loss: "mse" (half the squared error) or "huber" (threshold 1).
    """
    actions_B = torch.where(valid_B, actions_B, 0)
    advantages_B = torch.where(valid_B, advantages_B, 0.0)
    log_probs_B, entropies_B = distributions.log_prob_and_entropy(logits_BA, actions_B)
    # A sample whose value is its own target has no value loss and no gradient.
    targets_B = torch.where(valid_B, returns_B, values_B.detach())
    if value_loss == "huber":
        value_sum = functional.huber_loss(values_B, targets_B, reduction="sum")
    else:
        value_sum = 0.5 * functional.mse_loss(values_B, targets_B, reduction="sum")
    return LossSums(
        policy=-(log_probs_B * advantages_B).sum(),
        value=value_sum,
        entropy=torch.where(valid_B, entropies_B, 0.0).sum(),
    )
