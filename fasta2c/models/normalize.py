"""Running mean and variance, on the device.

Shapes: B samples, D numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RunningMoments(nn.Module):
    """Mean and variance of all samples so far, accumulated in float64 (Chan et al. 1983, doi:10.2307/2683386).

    Args:
        size: D.
    """

    shift_D: Tensor
    scale_D: Tensor
    count: Tensor
    mean_D: Tensor
    variance_D: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean_D", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("variance_D", torch.ones(size, dtype=torch.float64))
        # What brings samples to mean 0 and variance 1, in float32: (samples - shift) * scale.
        self.register_buffer("shift_D", torch.zeros(size))
        self.register_buffer("scale_D", torch.ones(size))

    @torch.no_grad()
    def update(self, samples_BD: Tensor, valid_B: Tensor | None = None) -> None:
        """Take in samples, or those that are `valid_B`: whatever stands in the others does not matter.

        A number that is not finite counts as the mean so far: one of them must not spoil all that follow.
        """
        samples_BD = samples_BD.to(torch.float64)
        samples_BD = torch.where(torch.isfinite(samples_BD), samples_BD, self.mean_D)
        valid_B1 = torch.ones_like(samples_BD[:, :1], dtype=torch.bool) if valid_B is None else valid_B.unsqueeze(1)
        added = valid_B1.sum()
        mean_D = torch.where(valid_B1, samples_BD, 0.0).sum(dim=0) / added.clamp_min(1)
        squares_D = torch.where(valid_B1, samples_BD - mean_D, 0.0).square().sum(dim=0)
        total = self.count + added
        share = added / total.clamp_min(1)
        between_D = mean_D - self.mean_D
        # Before the first sample the variance stands at 1 and weighs nothing.
        squares_D += self.variance_D * self.count + between_D.square() * self.count * share
        self.variance_D.copy_(torch.where(total > 0, squares_D / total.clamp_min(1), self.variance_D))
        self.mean_D += between_D * share
        self.count += added
        self.shift_D.copy_(self.mean_D)
        self.scale_D.copy_((self.variance_D + 1e-8).rsqrt())
