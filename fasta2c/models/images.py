"""Convolutional encoders of images and grids.

Shapes: B samples, C channels, H and W pixels, F features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fasta2c.models.layers import ScaledConv2d, orthogonal


class _ImageEncoder(nn.Module):
    """What the encoders of images have in common."""

    minimum: int
    """Pixels a side that the convolutions leave something of."""
    convolutions: nn.Sequential
    """From images to flat vectors."""
    projection: nn.Module
    """From these to features."""
    features: int

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] of any dtype to features [B, F]."""
        return self.projection(self.convolutions(self._images(images)))

    def _images(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] in the dtype of the convolutions."""
        # Under autocast the convolutions would cast float32 images again: go to their dtype at once.
        device = images.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        if device == "cpu" and dtype is torch.float32 and images.is_contiguous():
            # Channels last in memory, the same images: forward and backward pass take 0.57 of the time at 256 samples
            # on two cores, 0.85 at 16; in bfloat16 0.98, not worth it. `stack` is the quickest to transpose bytes.
            images = torch.stack(images.unbind(1), dim=-1).permute(0, 3, 1, 2)
        return images.to(dtype)


class NatureCNN(_ImageEncoder):
    """The convolutional encoder of Mnih et al. 2015 (doi:10.1038/nature14236), orthogonally initialised.

    Args:
        size: (C, H, W) of an image; H and W at least 36.
        scale: what its numbers are multiplied by.
    """

    minimum = 36

    def __init__(self, size: tuple[int, int, int], *, scale: float = 1.0) -> None:
        super().__init__()
        channels, height, width = size
        gain = math.sqrt(2)
        self.convolutions = nn.Sequential(
            orthogonal(ScaledConv2d(channels, 32, 8, stride=4, scale=scale), gain),
            nn.ReLU(),
            orthogonal(nn.Conv2d(32, 64, 4, stride=2), gain),
            nn.ReLU(),
            orthogonal(nn.Conv2d(64, 64, 3, stride=1), gain),
            nn.ReLU(),
            nn.Flatten(),
        )
        with torch.no_grad():
            flat = self.convolutions(torch.zeros(1, channels, height, width)).shape[1]
        self.projection = nn.Sequential(orthogonal(nn.Linear(flat, 512), gain), nn.ReLU())
        self.features = 512


class ImpalaResNet(_ImageEncoder):
    """The residual network of Espeholt et al. 2018 (arXiv:1802.01561, figure 3): channels 16, 32, 32, features 256.

    Args:
        size: (C, H, W) of an image; H and W at least 8.
        scale: what its numbers are multiplied by.
    """

    minimum = 8

    def __init__(self, size: tuple[int, int, int], *, scale: float = 1.0) -> None:
        super().__init__()
        channels, height, width = size
        layers: list[nn.Module] = []
        for section, filters in enumerate((16, 32, 32)):
            first = (
                ScaledConv2d(channels, filters, 3, padding=1, scale=scale)
                if section == 0
                else nn.Conv2d(channels, filters, 3, padding=1)
            )
            layers += [first, nn.MaxPool2d(3, stride=2, padding=1), _Residual(filters), _Residual(filters)]
            channels, height, width = filters, -(-height // 2), -(-width // 2)
        self.convolutions = nn.Sequential(*layers, nn.ReLU(), nn.Flatten())
        self.projection = nn.Sequential(orthogonal(nn.Linear(channels * height * width, 256), math.sqrt(2)), nn.ReLU())
        self.features = 256


class _Residual(nn.Module):
    """Two convolutions, each behind a ReLU, added to what went in."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(filters, filters, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(filters, filters, 3, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] to the same shape."""
        return images + self.layers(images)


class SmallCNN(_ImageEncoder):
    """Two convolutions of 3 x 3 for grids of a few cells, where each cell matters: 16 and 32 filters, no striding.

    Args:
        size: (C, H, W) of a grid; H and W at least 5.
        scale: what its numbers are multiplied by.
    """

    minimum = 5

    def __init__(self, size: tuple[int, int, int], *, scale: float = 1.0) -> None:
        super().__init__()
        channels, height, width = size
        gain = math.sqrt(2)
        self.convolutions = nn.Sequential(
            orthogonal(ScaledConv2d(channels, 16, 3, scale=scale), gain),
            nn.ReLU(),
            orthogonal(nn.Conv2d(16, 32, 3), gain),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.projection = nn.Identity()  # fully connected layers come behind it, beside what else is observed
        self.features = 32 * (height - 4) * (width - 4)
