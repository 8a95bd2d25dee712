"""Running mean and variance, on the device.

Shapes: B samples, D numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fasta2c.distributed import ALONE, Ranks


class Moments(NamedTuple):
    """Of some samples, in float64."""

    number: Tensor
    """Of samples, 0-dimensional."""
    mean_D: Tensor
    squares_D: Tensor
    """Sums of squared deviations from the mean."""

    def joined(self, other: Moments) -> Moments:
        """Of these samples and those of `other` (Chan et al. 1983, doi:10.2307/2683386)."""
        number = self.number + other.number
        share = other.number / number.clamp_min(1)
        between_D = other.mean_D - self.mean_D
        squares_D = self.squares_D + other.squares_D + between_D.square() * self.number * share
        return Moments(number, self.mean_D + between_D * share, squares_D)


class RunningMoments(nn.Module):
    """Mean and variance of all samples so far, accumulated in float64.

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
    def measure(self, samples_BD: Tensor, valid_B: Tensor) -> Moments:
        """The moments of the samples that are `valid_B`: whatever stands in the others does not matter.

        A number that is not finite counts as the mean so far: one of them must not spoil all that follow.
        """
        samples_BD = samples_BD.to(torch.float64)
        samples_BD = torch.where(torch.isfinite(samples_BD), samples_BD, self.mean_D)
        valid_B1 = valid_B.unsqueeze(1)
        number = valid_B1.sum().to(torch.float64)
        mean_D = torch.where(valid_B1, samples_BD, 0.0).sum(dim=0) / number.clamp_min(1)
        squares_D = torch.where(valid_B1, samples_BD - mean_D, 0.0).square().sum(dim=0)
        return Moments(number, mean_D, squares_D)

    @torch.no_grad()
    def update(self, batches: Iterable[Moments], ranks: Ranks = ALONE) -> None:
        """Take in what was measured of some batches, here and by the other `ranks`."""
        new = reduce(Moments.joined, batches)
        told = ranks.all_gather(torch.cat([new.number.unsqueeze(0), new.mean_D, new.squares_D]))
        size = len(new.mean_D)
        heard = [Moments(x[0], x[1 : size + 1], x[size + 1 :]) for x in told]
        # Before the first sample the variance stands at 1 and weighs nothing.
        so_far = Moments(self.count, self.mean_D, self.variance_D * self.count)
        count, mean_D, squares_D = so_far.joined(reduce(Moments.joined, heard))
        self.variance_D.copy_(torch.where(count > 0, squares_D / count.clamp_min(1), self.variance_D))
        self.mean_D.copy_(mean_D)
        self.count.copy_(count)
        self.shift_D.copy_(mean_D)
        self.scale_D.copy_((self.variance_D + 1e-8).rsqrt())
