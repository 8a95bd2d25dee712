"""Optimizers, gradient clipping and schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fasta2c.config import TrainConfig
from fasta2c.models.actor_critic import ActorCritic


class RMSpropTF(torch.optim.Optimizer):
    """RMSprop as TensorFlow 1 does it: eps inside the root, and the squared-gradient average starts at 1.

    step: s <- alpha s + (1 - alpha) g^2;  p <- p - lr g / sqrt(s + eps)

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        alpha: decay of the average.
        eps: added under the root.
    """

    def __init__(self, params: Any, lr: float, alpha: float = 0.99, eps: float = 1e-5) -> None:
        super().__init__(params, {"lr": lr, "alpha": alpha, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        if closure is not None:
            raise ValueError("RMSpropTF takes no closure.")
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p]["square_avg"] = torch.ones_like(p)
            grads = [p.grad for p in params]
            averages = [self.state[p]["square_avg"] for p in params]
            torch._foreach_mul_(averages, group["alpha"])
            torch._foreach_addcmul_(averages, grads, grads, value=1 - group["alpha"])
            roots = torch._foreach_add(averages, group["eps"])
            torch._foreach_sqrt_(roots)
            torch._foreach_addcdiv_(params, grads, roots, value=-group["lr"])


def build_optimizer(model: ActorCritic, config: TrainConfig) -> torch.optim.Optimizer:
    """The configured optimizer; the critic's own parameters are a group with a learning rate of their own if asked."""
    groups: list[dict[str, Any]] = [{"params": list(model.parameters())}]
    if config.critic_lr is not None:
        groups = [
            {"params": list(model.actor_parameters())},
            {"params": list(model.critic_parameters()), "lr": config.critic_lr},
        ]
    optimizer: torch.optim.Optimizer
    if config.optimizer == "adam":
        optimizer = torch.optim.Adam(groups, lr=config.lr, eps=config.optimizer_eps)
    elif config.optimizer == "rmsprop":
        optimizer = torch.optim.RMSprop(groups, lr=config.lr, alpha=config.rmsprop_alpha, eps=config.optimizer_eps)
    else:
        optimizer = RMSpropTF(groups, lr=config.lr, alpha=config.rmsprop_alpha, eps=config.optimizer_eps)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale the gradients down to the global norm `max_norm`; returns the norm before, on the device."""
    return nn.utils.clip_grad_norm_(parameters, max_norm, foreach=True)


def schedule(name: str, progress: float) -> float:
    """The factor of a schedule at `progress` (0 to 1): "constant" 1, "linear" and "cosine" from 1 down to 0."""
    progress = min(max(progress, 0.0), 1.0)
    if name == "constant":
        return 1.0
    if name == "linear":
        return 1.0 - progress
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's learning rate to `factor` times the one it began with."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
