"""Distributions over choices.

Shapes: B samples, P numbers that make a distribution, H of them by a network's head, K choices made at once, N options
of each.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fasta2c.models.distributions.base import Distribution
from fasta2c.spaces import Choices


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
