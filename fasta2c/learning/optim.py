"""Optimizers, gradient clipping and schedules."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fasta2c.config import TrainConfig
from fasta2c.distributed import Ranks
from fasta2c.learning.muon import Muon
from fasta2c.models.actor_critic import ActorCritic

# As wide as numbers of so many bytes.
WHOLE_NUMBERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class RMSpropTF(torch.optim.Optimizer):
    """RMSprop as TensorFlow 1 does it: eps inside the root, and the squared-gradient average starts at 1.

    step: s <- alpha s + (1 - alpha) g^2;  p <- p - lr g / sqrt(s + eps)

    Args:
        params: parameters or parameter groups.
        lr: learning rate; a tensor where it must change without being read on the host.
        alpha: decay of the average.
        eps: added under the root.
    """

    def __init__(self, params: Any, lr: float | Tensor, alpha: float = 0.99, eps: float = 1e-5) -> None:
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
            steps = torch._foreach_div(grads, roots)
            torch._foreach_mul_(steps, group["lr"])
            torch._foreach_sub_(params, steps)


def build_optimizer(model: ActorCritic, config: TrainConfig) -> torch.optim.Optimizer:
    """The configured optimizer; the critic's own parameters are a group with a learning rate of their own if asked.

    On a GPU its learning rates are tensors there, so that a CUDA graph of a step sees them change. On a CPU Adam's step
    is fused, three to ten times as fast as torch's loop over parameters, unless one of these has gaps in its memory.
    """
    groups: list[dict[str, Any]] = [{"params": list(model.parameters())}]
    if config.critic_lr is not None:
        groups = [
            {"params": list(model.actor_parameters())},
            {"params": list(model.critic_parameters()), "lr": config.critic_lr},
        ]
    device = next(model.parameters()).device
    on_gpu = device.type == "cuda"
    adam: dict[str, Any] = {
        "lr": config.lr,
        "eps": config.optimizer_eps,
        "capturable": on_gpu,
        "fused": True if not on_gpu and all(map(_is_dense, model.parameters())) else None,
    }
    optimizer: torch.optim.Optimizer
    if config.optimizer == "muon":
        hidden = {id(p) for p in model.hidden_matrices()}
        groups = [
            {**group, "params": [p for p in group["params"] if (id(p) in hidden) == inside], "orthogonal": inside}
            for group in groups
            for inside in (True, False)
        ]
        groups = [group for group in groups if group["params"]]
        optimizer = Muon(groups, **adam)
    elif config.optimizer == "adam":
        optimizer = torch.optim.Adam(groups, **adam)
    elif config.optimizer == "rmsprop":
        optimizer = torch.optim.RMSprop(
            groups,
            lr=config.lr,
            alpha=config.rmsprop_alpha,
            eps=config.optimizer_eps,
            capturable=on_gpu,
            foreach=True,
        )
    else:
        optimizer = RMSpropTF(groups, lr=config.lr, alpha=config.rmsprop_alpha, eps=config.optimizer_eps)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
        if on_gpu:
            group["lr"] = torch.tensor(group["lr"], device=device)
    if on_gpu:
        make_averages(optimizer)  # where a graph may be recorded before a step is allowed
    return optimizer


def _is_dense(parameter: Tensor) -> bool:
    """Whether a fused step understands it: real numbers that fill their memory, in whatever order."""
    return parameter.is_floating_point() and torch.empty_like(parameter).stride() == parameter.stride()


def make_averages(optimizer: torch.optim.Optimizer) -> None:
    """Make the averages that an optimizer otherwise makes at its first step, as they are before that."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    with warnings.catch_warnings():  # of a step that is not recorded, as torch has it once
        warnings.filterwarnings("ignore", message=".*capturable=True")
        optimizer.step()  # moves nothing
    for averages in optimizer.state.values():
        for x in averages.values():
            x.fill_(1.0 if isinstance(optimizer, RMSpropTF) else 0.0)
    optimizer.zero_grad(set_to_none=True)


def step_where(optimizer: torch.optim.Optimizer, allowed: Tensor) -> None:
    """`optimizer.step()` where `allowed`, a bool of no dimension, is True; else nothing changes, gradients aside.

    A GPU is not waited for; the optimizer's averages must have been made there (`make_averages`).
    """
    if not allowed.is_cuda:
        if allowed:
            optimizer.step()
        return
    moved = [p for group in optimizer.param_groups for p in group["params"]]
    moved += [x for averages in optimizer.state.values() for x in averages.values()]
    # As whole numbers, for a float that is not finite stays so when it is multiplied by 0.
    bits = [x.detach().view(WHOLE_NUMBERS[x.element_size()]) for x in moved]
    before = [x.clone() for x in bits]
    optimizer.step()
    torch._foreach_mul_(bits, allowed.int())
    torch._foreach_mul_(before, (~allowed).int())
    torch._foreach_add_(bits, before)


def load_optimizer_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Take over the averages of `saved`, a `state_dict` from any device; rates and options stay as they were built.

    They are laid out in memory as their parameters are, however the saved ones were: a fused step pairs elements by
    their position in memory.
    """
    own = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": saved["state"], "param_groups": own})
    for p, averages in optimizer.state.items():
        for name, x in averages.items():
            if x.shape == p.shape and x.stride() != p.stride():
                averages[name] = torch.empty_like(p).copy_(x)


def sum_gradients(parameters: Iterable[nn.Parameter], sums: Tensor, ranks: Ranks) -> Tensor:
    """Add up the gradients of `ranks`, and with them their `sums` [N], in one message; returns these.

    Gradients are parts of one sum over all ranks' rows, each divided by the number of all of them.
    """
    if ranks.world_size == 1:
        return sums
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = ranks.all_reduce(torch.cat([*(x.flatten() for x in grads), sums]))
    *parts, total = flat.split([*(x.numel() for x in grads), len(sums)])
    torch._foreach_copy_(grads, [part.view_as(x) for part, x in zip(parts, grads, strict=True)])
    return total


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
        rate = group["initial_lr"] * factor
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
