"""How far the policy has gone, and how well values foretell returns.

Shapes: T rows, E environments.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fasta2c.distributed import ALONE, Ranks


def mean_kl(ratios_TE: Tensor, valid_TE: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Mean KL(policy that acted || policy by now) over all ranks' valid rows, 0-dimensional.

    `ratios_TE` are probabilities of the actions by now over those when they were drawn.
    By r - 1 - log r, which is unbiased and never negative (Schulman 2020, "Approximating KL Divergence").
    """
    terms_TE = torch.where(valid_TE, ratios_TE - 1 - ratios_TE.log(), 0.0)
    total, count = ranks.all_reduce(torch.stack([terms_TE.sum(), valid_TE.sum()]))
    return total / count.clamp_min(1)


def explained_variance(values_TE: Tensor, returns_TE: Tensor, valid_TE: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over all ranks' valid rows, 0-dimensional.

    NaN where the returns do not vary.
    """
    both_2TE = torch.stack([returns_TE - values_TE, returns_TE]).double()  # rounding would be a variance too
    sums_2 = torch.where(valid_TE, both_2TE, 0.0).sum(dim=(1, 2))
    sums_3 = ranks.all_reduce(torch.cat([sums_2, valid_TE.sum().unsqueeze(0)]))
    count = sums_3[2].clamp_min(1)
    means_211 = (sums_3[:2] / count).view(2, 1, 1)
    squares_2 = ranks.all_reduce(torch.where(valid_TE, both_2TE - means_211, 0.0).square().sum(dim=(1, 2)))
    unexplained, total = squares_2 / count
    return torch.where(total > 0, 1 - unexplained / total, torch.nan).to(returns_TE.dtype)
