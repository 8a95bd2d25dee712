"""Action distributions: what can be drawn, how likely it was, and what the environment is told.

A distribution is made of P numbers a sample, `policy_BP`: logits, or means and log standard deviations. Drawn actions
are kept as they were drawn (the index of a joint choice, a number before it is clipped or squashed); `env_actions`
makes of them what the environment takes.

Shapes: B samples, P numbers that make a distribution, H of them by a network's head, F features it has them from,
K choices made at once, N options of each, D real numbers, Q points of a quadrature.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from fasta2c.errors import UserError
from fasta2c.spaces import Actions, Choices, Continuous

# Standard deviations outside tell of divergence, and make NaN of the loss.
LOG_STD_RANGE = (-20.0, 4.0)


def build_distribution(
    actions: Actions,
    *,
    bounds: Literal["clip", "squash"] = "clip",
    log_std: float = 0.0,
    state_dependent: int = 0,
) -> Distribution:
    """The distribution over `actions`.

    Args:
        actions: what is drawn.
        bounds: whether real numbers are clipped where these are, or squashed by tanh.
        log_std: what the logarithm of their standard deviations begins with.
        state_dependent: features that their exploration depends on (F); 0 if it depends on none.

    Raises:
        UserError: choices whose exploration should depend on the state.
    """
    if isinstance(actions, Choices):
        if state_dependent:
            raise UserError("sde: it is for real-valued actions; these are choices.")
        return Categorical(actions)
    if state_dependent:
        return StateDependentGaussian(actions, squash=bounds == "squash", log_std=log_std, features=state_dependent)
    return Gaussian(actions, squash=bounds == "squash", log_std=log_std)


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


class Categorical(Distribution):
    """One choice, or K independent ones; illegal options have logits of minus infinity.

    Args:
        choices: what is chosen from; of a joint choice every combination is one option.
    """

    _illegal_KN: Tensor
    _existing: Tensor
    _starts_K: Tensor
    _strides_K: Tensor
    _sizes_K: Tensor

    def __init__(self, choices: Choices) -> None:
        super().__init__()
        self._joint = choices.joint
        self._env_shape = choices.shape
        sizes = (math.prod(choices.sizes),) if choices.joint else choices.sizes
        self.grid = (len(sizes), max(sizes))
        """K and N."""
        self._single = len(sizes) == 1
        self.width = self.heads = self.grid[0] * self.grid[1]
        self._ragged = len(set(sizes)) > 1
        self._offset = any(choices.starts)
        # Choices with fewer options than others have some that never are legal.
        options = torch.arange(self.grid[1])
        self.register_buffer("_illegal_KN", options >= torch.tensor(sizes).unsqueeze(1), persistent=False)
        existing = (~self._illegal_KN).flatten().nonzero().squeeze(1)
        self.register_buffer("_existing", existing, persistent=False)
        self.register_buffer("_starts_K", torch.tensor(choices.starts), persistent=False)
        self.register_buffer("_sizes_K", torch.tensor(choices.sizes), persistent=False)
        # Of choices that are not joint the combinations may be more than any integer counts.
        strides = [math.prod(choices.sizes[k + 1 :]) for k in range(len(choices.sizes))] if choices.joint else []
        self.register_buffer("_strides_K", torch.tensor(strides), persistent=False)

    def forward(self, outputs_BH: Tensor, features_BF: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Logits: the head's, with minus infinity where `mask` [B, ...] is 0 or an option does not exist.

        A mask without any legal option is that of an episode's end, or a mistake: it is ignored.
        """
        if not self._ragged and mask is None:
            return outputs_BH
        logits_BKN = outputs_BH.unflatten(1, self.grid)
        if self._ragged:
            logits_BKN = logits_BKN.masked_fill(self._illegal_KN, -torch.inf)
        if mask is not None:
            legal_BP = mask.flatten(1) != 0
            if legal_BP.shape[1] != self.width:  # the options that exist, one choice after another
                legal_BP = torch.zeros_like(outputs_BH, dtype=torch.bool).index_copy(1, self._existing, legal_BP)
            legal_BKN = legal_BP.unflatten(1, self.grid)
            if self._ragged:
                legal_BKN = legal_BKN & ~self._illegal_KN
            illegal_BKN = ~legal_BKN & legal_BKN.any(dim=-1, keepdim=True)
            logits_BKN = logits_BKN.masked_fill(illegal_BKN, -torch.inf)
        return logits_BKN.flatten(1)

    def sample(
        self, policy_BP: Tensor, generator: torch.Generator | None = None, exploration: Tensor | None = None
    ) -> Tensor:
        """Drawn by the exponential race: argmax of log p - log Exp(1), shifted by any constant.

        It runs in log space, so that an illegal option loses it however small the probabilities of the legal ones.
        """
        race_BP = torch.empty_like(policy_BP).exponential_(generator=generator)
        # exponential_ can return 0, whose logarithm would win every race.
        return self._argmax(policy_BP - race_BP.clamp_min_(1e-30).log_())

    def mode(self, policy_BP: Tensor) -> Tensor:
        """The likeliest option of each choice."""
        return self._argmax(policy_BP)

    def _argmax(self, scores_BP: Tensor) -> Tensor:
        return scores_BP.argmax(dim=-1) if self._single else scores_BP.unflatten(1, self.grid).argmax(dim=-1)

    def log_prob(self, policy_BP: Tensor, actions: Tensor) -> Tensor:
        """Sums over the choices, which are independent."""
        return self._chosen(self._log_softmax(policy_BP), actions)

    def log_prob_and_entropy(self, policy_BP: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over the choices, which are independent."""
        log_probs = self._log_softmax(policy_BP)
        # 0 * -inf would be NaN: an illegal option adds nothing.
        finite = log_probs.clamp_min(torch.finfo(log_probs.dtype).min)
        entropies = -(log_probs.exp() * finite).sum(dim=-1)
        return self._chosen(log_probs, actions), entropies if self._single else entropies.sum(dim=-1)

    def _log_softmax(self, policy_BP: Tensor) -> Tensor:
        """[B, N] of a single choice, else [B, K, N]."""
        return torch.log_softmax(policy_BP if self._single else policy_BP.unflatten(1, self.grid), dim=-1)

    def _chosen(self, log_probs: Tensor, actions: Tensor) -> Tensor:
        chosen = log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        return chosen if self._single else chosen.sum(dim=-1)

    def env_actions(self, actions: Tensor) -> Tensor:
        """Whole numbers [B, *shape of the environment's action]."""
        if self._joint:
            actions = actions.unsqueeze(-1) // self._strides_K % self._sizes_K
        elif self._single and self._env_shape:
            actions = actions.unsqueeze(-1)
        if self._offset:
            actions = actions + (self._starts_K if self._env_shape else self._starts_K[0])
        return actions.view(-1, *self._env_shape) if len(self._env_shape) > 1 else actions


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
