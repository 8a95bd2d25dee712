"""Muon: the gradient of a layer's matrix, made orthogonal, so that all of its directions are learnt at one pace.

Shapes: M and N, rows and columns of a matrix; a convolution's is [channels out, channels in * pixels of its kernel].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fasta2c import accel

MOMENTUM = 0.95
# A step's root mean square is then about Adam's, and so is the learning rate that suits it (Liu et al. 2025,
# arXiv:2502.16982).
SCALE = 0.2
# The quintic of Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/): steep at 0, and good enough at 1.
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
# The shorter side from which a CPU's bfloat16 is worth its conversions. Measured with AVX-512 BF16, times the speed of
# float32: 0.2 for 24 x 64, 0.4 for 64 x 64, 0.9 for 128 x 128, 1.9 for 256 x 256, 2.3 for 512 x 3,136.
LARGE = 256


class Muon(torch.optim.Adam):
    """Muon (Jordan et al. 2024) for groups that have "orthogonal" set, Adam for the others; without weight decay.

    step: B <- m B + (1 - m) g;  W <- W - lr 0.2 sqrt(max(M, N)) orthogonal((1 - m) g + m B), with m = 0.95

    Args:
        params: parameter groups; every parameter of an orthogonal one has two dimensions or more.
        options: Adam's.
    """

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        for group in self.param_groups:
            group.setdefault("orthogonal", False)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient; an orthogonal group's are used up by it."""
        if closure is not None:
            raise ValueError("Muon takes no closure.")
        for group in self.param_groups:
            if not group["orthogonal"]:
                continue
            for p in group["params"]:
                if p.grad is None:
                    continue
                if not self.state[p]:
                    # Adam looks for a number of steps wherever it loads a state.
                    self.state[p] = {"momentum": torch.zeros_like(p), "step": torch.zeros((), device=p.device)}
                average = self.state[p]["momentum"].lerp_(p.grad, 1 - MOMENTUM)
                ahead_MN = p.grad.lerp(average, MOMENTUM).flatten(1)
                step_MN = orthogonal(ahead_MN) * (SCALE * max(ahead_MN.shape) ** 0.5)
                p.sub_(step_MN.view_as(p) * group["lr"])
                p.grad = None  # the rest is Adam's
        super().step()


def orthogonal(matrix_MN: Tensor) -> Tensor:
    """About U V^T of `matrix_MN` = U S V^T: singular values between 0.7 and 1.2, those near 0 less; 0 stays 0.

    By Newton-Schulz iterations, in bfloat16 where the device is fast at that, and on a CPU the matrix is large.
    """
    a, b, c = QUINTIC
    worthwhile = matrix_MN.is_cuda or min(matrix_MN.shape) >= LARGE
    dtype = torch.bfloat16 if worthwhile and accel.has_fast_bf16(matrix_MN.device) else torch.float32
    tall = matrix_MN.shape[0] > matrix_MN.shape[1]
    x = (matrix_MN.mT if tall else matrix_MN).to(dtype)
    x = x / x.norm().clamp_min(1e-7)  # no singular value is above 1
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrix_MN.dtype)
