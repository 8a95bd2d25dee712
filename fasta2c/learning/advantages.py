"""Advantages over T x E tensors, vectorised over environments: GAE, V-trace, and their standardisation.

Shapes: T rows, E environments; `TE` in a name is [T, E], `T1E` is [T + 1, E].
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fasta2c import accel
from fasta2c.distributed import ALONE, Ranks
from fasta2c.errors import UserError


class AdvantageFunction(Protocol):
    """What `gae` and its compiled form have in common."""

    def __call__(
        self,
        rewards: Tensor,
        values: Tensor,
        terminated: Tensor,
        truncated: Tensor,
        *,
        gamma: float,
        gae_lambda: float,
    ) -> tuple[Tensor, Tensor]: ...


def gae(
    rewards: Tensor, values: Tensor, terminated: Tensor, truncated: Tensor, *, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Advantages and value targets, by a reverse scan (Schulman et al. 2016, arXiv:1506.02438, equation 16).

    A terminated row has no future; a truncated one bootstraps from `values[t + 1]`, the value of its true last
    observation; terminated wins where both are set. Neither lets anything of later rows through, so what stands in
    the reset row after a done (and in its value, after a termination) does not matter, NaN included.

    Args:
        rewards: [T, E].
        values: [T + 1, E] values of the observations the rows started from, and of the last row's successor.
        terminated: [T, E] bool.
        truncated: [T, E] bool.
        gamma: discount for one row.
        gae_lambda: 1 for n-step returns, 0 for one-step TD errors.

    Returns:
        advantages and returns (advantages + values), [T, E] each, in the dtype of `values`. A reset row's mean nothing.
    """
    return _scan(rewards, values, terminated, truncated, None, gamma, gae_lambda)


def vtrace(
    rewards: Tensor,
    values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    ratios: Tensor,
    *,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """`gae` of rows that another policy acted in: V-trace (Espeholt et al. 2018, arXiv:1802.01561) with GAE's lambda.

    `A[t] = rho[t] (delta[t] + gamma lambda A[t + 1])` with `rho = min(ratio, 1)`: as both of V-trace's bounds are 1,
    the weight of the policy's gradient and the step from a value to its target are this one number. Where no ratio is
    below 1 it is GAE. Ends of episodes are those of `gae`.

    Args:
        rewards, values, terminated, truncated, gamma, gae_lambda: as `gae` has them; values by the policy that learns.
        ratios: [T, E] probability of each action by the policy that learns over that by the one that acted.

    Returns:
        advantages, weighted, and value targets (advantages + values), [T, E] each. A reset row's mean nothing.
    """
    return _scan(rewards, values, terminated, truncated, ratios.clamp(max=1.0), gamma, gae_lambda)


def _scan(
    rewards: Tensor,
    values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    weights_TE: Tensor | None,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Advantages and value targets, a row's advantage multiplied by its weight before it is carried on."""
    values_TE, next_values_TE = values[:-1], values[1:]
    # Selected, never multiplied by a mask: 0 * NaN would be NaN.
    future_TE = torch.where(terminated, 0.0, next_values_TE)
    deltas_TE, decay = rewards + gamma * future_TE - values_TE, gamma * gae_lambda
    if weights_TE is None:
        decays_TE = torch.full_like(deltas_TE, decay)
    else:
        deltas_TE, decays_TE = weights_TE * deltas_TE, weights_TE * decay
    # Two calls a row: with few environments a scan costs what its calls do.
    nothing, carried_E, advantages = deltas_TE.new_zeros(()), torch.zeros_like(deltas_TE[0]), []
    rows = zip(deltas_TE.unbind(), decays_TE.unbind(), (terminated | truncated).unbind(), strict=True)
    for delta_E, decay_E, done_E in reversed(list(rows)):
        carried_E = torch.addcmul(delta_E, decay_E, torch.where(done_E, nothing, carried_E))
        advantages.append(carried_E)
    advantages_TE = torch.stack(advantages[::-1])
    return advantages_TE, advantages_TE + values_TE


class Estimators(NamedTuple):
    """`gae` and `vtrace` in one of their forms."""

    gae: AdvantageFunction
    vtrace: Callable[..., tuple[Tensor, Tensor]]


def build_estimators(name: str, device: torch.device) -> Estimators:
    """The form called "auto", "scan", "compiled" or "triton"; auto is Triton's on a GPU, else the scan.

    Raises:
        UserError: "triton" where it cannot run.
    """
    has_triton = device.type == "cuda" and importlib.util.find_spec("triton") is not None
    if name == "triton" and not has_triton:
        raise UserError(f"gae: triton needs a CUDA device and the package triton, not {device}; use auto.")
    if name == "triton" or (name == "auto" and has_triton):
        from fasta2c.learning.gae_triton import gae_triton, vtrace_triton

        return Estimators(gae_triton, vtrace_triton)
    compiled = partial(accel.maybe_compile, enabled=name == "compiled")
    return Estimators(compiled(gae), compiled(vtrace))


def standardise(advantages_TE: Tensor, valid_TE: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Advantages with mean 0 and variance 1 over all ranks' valid rows; the others are left at 0."""
    exact_TE = torch.where(valid_TE, advantages_TE, 0.0).double()  # what rounding makes of equal ones must not count
    total, count = ranks.all_reduce(torch.stack([exact_TE.sum(), valid_TE.sum()]))
    count = count.clamp_min(1)
    centred_TE = torch.where(valid_TE, exact_TE - total / count, 0.0)
    deviation = (ranks.all_reduce(centred_TE.square().sum()) / count).sqrt()
    return (centred_TE / deviation.clamp_min(1e-8)).to(advantages_TE.dtype)
