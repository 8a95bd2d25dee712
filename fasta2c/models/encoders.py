"""Encoders: from a batch of raw observations to a batch of features.

Shapes: B samples, C channels, H and W pixels, F features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fasta2c.errors import UserError

# The smallest image that NatureCNN's three convolutions leave something of.
NATURE_MINIMUM = 36


def orthogonal(layer: nn.Linear | nn.Conv2d, gain: float) -> nn.Linear | nn.Conv2d:
    """`layer` with orthogonal weights of the given gain and zero biases."""
    nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class ScaledConv2d(nn.Conv2d):
    """A convolution of `scale` times its input, which it applies to its weights: a pass over the images saved.

    bfloat16 holds bytes exactly, so that they lose nothing before the scale either.
    """

    def __init__(self, channels: int, filters: int, kernel: int, *, stride: int, scale: float) -> None:
        super().__init__(channels, filters, kernel, stride=stride)
        self.scale = scale

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] to [B, filters, H', W']."""
        return self._conv_forward(images, self.weight * self.scale, self.bias)


class NatureCNN(nn.Module):
    """The convolutional encoder of Mnih et al. 2015 (doi:10.1038/nature14236), orthogonally initialised.

    Args:
        shape: (C, H, W) of an image, H and W at least 36; the last axis may hold the channels instead.
    """

    def __init__(self, shape: tuple[int, ...], *, scale: float) -> None:
        super().__init__()
        self._channels_last = shape[0] > 4 and shape[2] <= 4
        channels, height, width = (shape[2], shape[0], shape[1]) if self._channels_last else shape
        if min(height, width) < NATURE_MINIMUM:
            raise UserError(f"encoder: nature-cnn needs images of {NATURE_MINIMUM} pixels and more, not {shape}.")
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

    def forward(self, observations: Tensor) -> Tensor:
        """Images [B, ...] of any dtype to features [B, 512]."""
        images = observations.permute(0, 3, 1, 2) if self._channels_last else observations
        # Under autocast the convolutions would cast float32 images again: go to their dtype at once.
        device = images.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        if device == "cpu" and dtype is torch.float32 and not self._channels_last:
            # Channels last in memory, the same images: forward and backward pass take 0.57 of the time at 256 samples
            # on two cores, 0.85 at 16; in bfloat16 0.98, not worth it. `stack` is the quickest to transpose bytes.
            images = torch.stack(images.unbind(1), dim=-1).permute(0, 3, 1, 2)
        return self.projection(self.convolutions(images.to(dtype)))


class _Tanh(torch.autograd.Function):
    """tanh by numpy, its derivative by torch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Any shape to the same shape, kept for the derivative."""
        y = torch.empty_like(x)
        np.tanh(x.detach().numpy(), out=y.numpy())
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(gradient, y)


class Tanh(nn.Module):
    """tanh, on a CPU by numpy: torch's own takes ten times as long (2.1 ns an element against 0.2)."""

    # Below, to call numpy costs more than it saves. (With a gradient it costs more up to 4,096; but an output must not
    # depend, be it in its last bit, on whether one is wanted.)
    LONG = 1024

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape."""
        if x.numel() < self.LONG or x.is_cuda or x.dtype is not torch.float32 or torch.compiler.is_compiling():
            return torch.tanh(x)
        if not x.requires_grad:
            return torch.from_numpy(np.tanh(x.numpy()))
        return _Tanh.apply(x)


class MLP(nn.Module):
    """Fully connected layers over the flattened observation.

    Args:
        shape: of one observation.
        hidden_sizes: widths of the layers.
        activation: "tanh" or "relu".
    """

    def __init__(self, shape: tuple[int, ...], hidden_sizes: Sequence[int], activation: str, *, scale: float) -> None:
        super().__init__()
        self._scale = scale
        nonlinearity = {"tanh": Tanh, "relu": nn.ReLU}[activation]
        layers: list[nn.Module] = []
        width = math.prod(shape)
        for size in hidden_sizes:
            layers += [orthogonal(nn.Linear(width, size), math.sqrt(2)), nonlinearity()]
            width = size
        self.layers = nn.Sequential(*layers)
        self.features = width

    def forward(self, observations: Tensor) -> Tensor:
        """Observations [B, ...] of any dtype to features [B, F]."""
        flat = observations.flatten(1) if observations.dim() > 1 else observations.unsqueeze(1)
        flat = flat.to(torch.float32)
        return self.layers(flat if self._scale == 1.0 else flat * self._scale)


def choose_encoder(name: str, shape: tuple[int, ...]) -> str:
    """`name`, or for "auto" what suits observations of `shape`: "nature-cnn" for images large enough, else "mlp"."""
    if name != "auto":
        return name
    sides = shape[:2] if len(shape) == 3 and shape[0] > 4 and shape[2] <= 4 else shape[1:]
    return "nature-cnn" if len(shape) == 3 and min(sides) >= NATURE_MINIMUM else "mlp"


def build_encoder(
    name: str, shape: tuple[int, ...], dtype: str, hidden_sizes: Sequence[int], activation: str
) -> NatureCNN | MLP:
    """The encoder `name` ("auto", "nature-cnn" or "mlp") for observations of `shape`; bytes are scaled to [0, 1].

    Raises:
        UserError: nature-cnn over something that is no image of 36 pixels and more.
    """
    scale = 1 / 255 if dtype == "uint8" else 1.0
    if choose_encoder(name, shape) == "nature-cnn":
        if len(shape) != 3:
            raise UserError(f"encoder: nature-cnn needs images, not observations of shape {shape}.")
        return NatureCNN(shape, scale=scale)
    return MLP(shape, hidden_sizes, activation, scale=scale)
