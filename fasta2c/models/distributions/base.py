"""What the kinds of action distribution have in common.

Shapes: B samples, P numbers that make a distribution, H of them by a network's head, F features it has them from.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Distribution(nn.Module):
    """What the kinds of distribution have in common."""

    width: int
    """P."""
    heads: int
    """H."""

    def forward(self, outputs_BH: Tensor, features_BF: Tensor, mask: Tensor | None = None) -> Tensor:
        """What a network's head gives, the features it has that from, and a mask of legal options, to [B, P]."""
        raise NotImplementedError

    def sample(
        self, policy_BP: Tensor, generator: torch.Generator | None = None, exploration: Tensor | None = None
    ) -> Tensor:
        """Actions [B, ...] drawn without waiting for the device; `exploration` as `explore` gave it, for B samples."""
        raise NotImplementedError

    def explore(self, num_envs: int, generator: torch.Generator | None = None) -> Tensor | None:
        """Random numbers [num_envs, ...] that actions of several rows are drawn by; None if each row has its own."""
        return None

    def mode(self, policy_BP: Tensor) -> Tensor:
        """The likeliest actions [B, ...]."""
        raise NotImplementedError

    def log_prob(self, policy_BP: Tensor, actions: Tensor) -> Tensor:
        """Log-probabilities [B] of drawn `actions` [B, ...], differentiable."""
        raise NotImplementedError

    def log_prob_and_entropy(self, policy_BP: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities [B] of drawn `actions` [B, ...] and entropies [B] in nats, both differentiable."""
        raise NotImplementedError

    def excess(self, policy_BP: Tensor) -> Tensor:
        """How far the likeliest actions lie beyond the bounds, squared and summed over their numbers, [B]."""
        raise NotImplementedError

    def env_actions(self, actions: Tensor) -> Tensor:
        """Drawn `actions` as the environment takes them, [B, ...]."""
        raise NotImplementedError
