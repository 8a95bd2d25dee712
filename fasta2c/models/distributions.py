"""The categorical action distribution, as pure functions of float32 logits.

Shapes: B samples, A actions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sample(logits_BA: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Actions [B] drawn from softmax(logits), without waiting for the device.

    The exponential race: argmax of log p - log Exp(1), shifted by any constant, picks each action with its probability.
    """
    race_BA = torch.empty_like(logits_BA).exponential_(generator=generator)
    # exponential_ can return 0, whose logarithm would win every race.
    return (logits_BA - race_BA.clamp_min_(1e-30).log_()).argmax(dim=-1)


def log_prob_and_entropy(logits_BA: Tensor, actions_B: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities [B] of `actions_B` and entropies [B] in nats, both differentiable."""
    log_probs_BA = torch.log_softmax(logits_BA, dim=-1)
    log_probs_B = log_probs_BA.gather(-1, actions_B.unsqueeze(-1)).squeeze(-1)
    return log_probs_B, -(log_probs_BA.exp() * log_probs_BA).sum(dim=-1)
