"""How far the policy has gone, and how well values foretell returns.

Shapes: T rows, E environments.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mean_kl(ratios_TE: Tensor, valid_TE: Tensor) -> Tensor:
    """Mean KL divergence over valid rows, 0-dimensional, of the policy that acted from one now `ratios_TE` as likely.

    By r - 1 - log r, which is unbiased and never negative (Schulman 2020, "Approximating KL Divergence").
    """
    terms_TE = torch.where(valid_TE, ratios_TE - 1 - ratios_TE.log(), 0.0)
    return terms_TE.sum() / valid_TE.sum().clamp_min(1)


def explained_variance(values_TE: Tensor, returns_TE: Tensor, valid_TE: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over valid rows, 0-dimensional; NaN where the returns do not vary."""
    count = valid_TE.sum().clamp_min(1)

    def variance(x_TE: Tensor) -> Tensor:
        mean = torch.where(valid_TE, x_TE, 0.0).sum() / count
        return torch.where(valid_TE, x_TE - mean, 0.0).square().sum() / count

    total = variance(returns_TE)
    return torch.where(total > 0, 1 - variance(returns_TE - values_TE) / total, torch.nan)
