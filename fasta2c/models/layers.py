"""What encoders are built of: initialisation, activations, fully connected layers.

Shapes: B samples, C channels, H and W pixels, F features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


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

    def __init__(
        self, channels: int, filters: int, kernel: int, *, scale: float, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__(channels, filters, kernel, stride=stride, padding=padding)
        self.scale = scale

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] to [B, filters, H', W']."""
        return self._conv_forward(images, self.weight * self.scale, self.bias)


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


class MLP(nn.Sequential):
    """Fully connected layers, orthogonally initialised.

    Args:
        width: numbers a sample.
        hidden_sizes: widths of the layers.
        activation: "tanh" or "relu".
    """

    def __init__(self, width: int, hidden_sizes: Sequence[int], activation: str) -> None:
        nonlinearity = {"tanh": Tanh, "relu": nn.ReLU}[activation]
        layers: list[nn.Module] = []
        for size in hidden_sizes:
            layers += [orthogonal(nn.Linear(width, size), math.sqrt(2)), nonlinearity()]
            width = size
        super().__init__(*layers)
        self.features = width
