"""Distributions over real numbers.

Shapes: B samples, P numbers that make a distribution, H of them by a network's head, F features it has them from, D
real numbers, Q points of a quadrature.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from fasta2c.models.distributions.base import Distribution
from fasta2c.spaces import Continuous

# Standard deviations outside tell of divergence, and make NaN of the loss.
LOG_STD_RANGE = (-20.0, 4.0)


class Gaussian(Distribution):
    """Independent normal distributions, one a real number.

    A number with two finite bounds is in units of half their distance, counted from their middle: -1 to 1 covers what
    the environment takes. A number that lacks one is in the environment's own units.

    Args:
        actions: the numbers and their bounds.
        squash: bring what was drawn inside by tanh, its density changed accordingly; else it is clipped there, as
            something that the environment does, and the density is that of the number drawn.
        log_std: what the logarithms of the standard deviations, which are learnt, begin with.
    """

    log_std: nn.Parameter

    _middle_D: Tensor
    _half_D: Tensor
    _low_D: Tensor
    _high_D: Tensor
    _bounded_D: Tensor
    _least_D: Tensor
    _most_D: Tensor
    _nodes_Q: Tensor
    _weights_Q: Tensor

    def __init__(self, actions: Continuous, *, squash: bool, log_std: float) -> None:
        super().__init__()
        self.log_std = nn.Parameter(torch.full((len(actions.low),), log_std))
        low, high = torch.tensor(actions.low), torch.tensor(actions.high)
        bounded = torch.isfinite(low) & torch.isfinite(high) & torch.isfinite(high - low)  # not float32's own ends
        self._env_shape = actions.shape
        self._squash = squash and bool(bounded.any())
        self.heads = len(actions.low)
        self.width = 2 * self.heads
        self.register_buffer("_low_D", low, persistent=False)
        self.register_buffer("_high_D", high, persistent=False)
        self.register_buffer("_bounded_D", bounded, persistent=False)
        self.register_buffer("_middle_D", torch.where(bounded, (low + high) / 2, 0.0), persistent=False)
        self.register_buffer("_half_D", torch.where(bounded, (high - low) / 2, 1.0), persistent=False)
        # The bounds in the units of the means, where means may differ and are clipped there.
        clipped = (self._half_D > 0) & (not self._squash)
        for name, bound, none in (("_least_D", low, -math.inf), ("_most_D", high, math.inf)):
            in_units = torch.where(clipped, (bound - self._middle_D) / self._half_D, none)
            self.register_buffer(name, in_units, persistent=False)
        # Gauss-Hermite: the entropy that squashing takes away is an expectation under a normal distribution.
        nodes, weights = np.polynomial.hermite_e.hermegauss(32)
        self.register_buffer("_nodes_Q", torch.tensor(nodes, dtype=torch.float32), persistent=False)
        weights = weights / weights.sum()
        self.register_buffer("_weights_Q", torch.tensor(weights, dtype=torch.float32), persistent=False)

    def forward(self, outputs_BH: Tensor, features_BF: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Means from the head, and log standard deviations that are the same everywhere."""
        return torch.cat([outputs_BH, self.log_std.expand_as(outputs_BH)], dim=1)

    def sample(
        self, policy_BP: Tensor, generator: torch.Generator | None = None, exploration: Tensor | None = None
    ) -> Tensor:
        """Drawn from the normal distributions, neither clipped nor squashed."""
        mean_BD, log_std_BD = self._moments(policy_BP)
        return mean_BD + log_std_BD.exp() * torch.empty_like(mean_BD).normal_(generator=generator)

    def mode(self, policy_BP: Tensor) -> Tensor:
        """The means."""
        return policy_BP[:, : self.heads]

    def log_prob(self, policy_BP: Tensor, actions: Tensor) -> Tensor:
        """Of the numbers drawn; if these are squashed, of what they become, in units of half the bounds' distance."""
        return self._log_prob(*self._moments(policy_BP), actions)

    def log_prob_and_entropy(self, policy_BP: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """As `log_prob` has them; a squashed entropy is that of the normal distribution plus E[log(1 - tanh(x)^2)].

        The expectation is by 32-point quadrature.
        """
        mean_BD, log_std_BD = self._moments(policy_BP)
        entropies_BD = log_std_BD + 0.5 * math.log(2 * math.pi * math.e)
        if self._squash:
            points_BDQ = mean_BD.unsqueeze(-1) + log_std_BD.exp().unsqueeze(-1) * self._nodes_Q
            lost_BD = (_log_slope(points_BDQ) * self._weights_Q).sum(dim=-1)
            entropies_BD = entropies_BD + torch.where(self._bounded_D, lost_BD, 0.0)
        return self._log_prob(mean_BD, log_std_BD, actions), entropies_BD.sum(dim=-1)

    def _log_prob(self, mean_BD: Tensor, log_std_BD: Tensor, actions: Tensor) -> Tensor:
        z_BD = (actions - mean_BD) / log_std_BD.exp()
        log_probs_BD = -0.5 * z_BD.square() - log_std_BD - 0.5 * math.log(2 * math.pi)
        if self._squash:
            log_probs_BD = log_probs_BD - torch.where(self._bounded_D, _log_slope(actions), 0.0)
        return log_probs_BD.sum(dim=-1)

    def excess(self, policy_BP: Tensor) -> Tensor:
        """In the units of the means; nothing where actions are squashed, unbounded, or have no room to differ."""
        mean_BD = self.mode(policy_BP)
        return (mean_BD - mean_BD.clamp(self._least_D, self._most_D)).square().sum(dim=-1)

    def env_actions(self, actions: Tensor) -> Tensor:
        """Real numbers [B, *shape of the environment's action], within its bounds; 0 of these units for NaN."""
        actions = actions.nan_to_num(0.0, math.inf, -math.inf)  # which some simulators would never get rid of
        if self._squash:
            actions = torch.where(self._bounded_D, torch.tanh(actions), actions)
        scaled_BD = torch.clamp(self._middle_D + self._half_D * actions, self._low_D, self._high_D)
        return scaled_BD.view(-1, *self._env_shape)

    def _moments(self, policy_BP: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log standard deviations, [B, D] each."""
        mean_BD, log_std_BD = policy_BP[:, : self.heads], policy_BP[:, self.heads : 2 * self.heads]
        return mean_BD, log_std_BD.clamp(*LOG_STD_RANGE)


class StateDependentGaussian(Gaussian):
    """Normal distributions whose spread depends on the features (gSDE, Raffin et al. 2021, arXiv:2005.05719).

    For several rows the noise is one linear function of the features, drawn anew from time to time: exploration is
    smooth. Each single action has the distribution that `log_prob_and_entropy` tells of.

    Args:
        actions: the numbers and their bounds.
        squash: as in `Gaussian`.
        log_std: what the logarithms of the functions' standard deviations begin with.
        features: F.
    """

    def __init__(self, actions: Continuous, *, squash: bool, log_std: float, features: int) -> None:
        super().__init__(actions, squash=squash, log_std=log_std)
        self.log_std = nn.Parameter(torch.full((features, self.heads), log_std))
        self.width = 2 * self.heads + features

    def forward(self, outputs_BH: Tensor, features_BF: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Means from the head, log standard deviations from the features, and these, which get no gradient by them."""
        assert features_BF is not None
        features_BF = features_BF.detach()
        variance_BD = features_BF.square() @ self.log_std.clamp(*LOG_STD_RANGE).mul(2).exp()
        return torch.cat([outputs_BH, 0.5 * torch.log(variance_BD + 1e-6), features_BF], dim=1)

    def explore(self, num_envs: int, generator: torch.Generator | None = None) -> Tensor | None:
        """Linear functions of the features, [num_envs, F, D]."""
        noise_EFD = torch.empty((num_envs, *self.log_std.shape), device=self.log_std.device)
        return noise_EFD.normal_(generator=generator) * self.log_std.detach().clamp(*LOG_STD_RANGE).exp()

    def sample(
        self, policy_BP: Tensor, generator: torch.Generator | None = None, exploration: Tensor | None = None
    ) -> Tensor:
        """Means plus the noise that `exploration` makes of the features; without it, each action's noise is its own."""
        if exploration is None:
            return super().sample(policy_BP, generator)
        log_std_BD, features_BF = policy_BP[:, self.heads :].split([self.heads, self.width - 2 * self.heads], dim=1)
        noise_BD = (features_BF.unsqueeze(1) @ exploration).squeeze(1)
        # Of large features the noise is as much larger than it may be.
        return policy_BP[:, : self.heads] + noise_BD * (log_std_BD.clamp(*LOG_STD_RANGE) - log_std_BD).exp()


def _log_slope(x: Tensor) -> Tensor:
    """log(1 - tanh(x)^2), without loss of precision where tanh is 1."""
    return 2 * (math.log(2) - x - nn.functional.softplus(-2 * x))
