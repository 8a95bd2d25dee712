"""Advantage estimation as one Triton kernel: each input read from memory once, each output written once.

A program walks a few neighbouring environments from the last row to the first, a tile of rows at a time; inside a tile
the recursion A[t] = delta[t] + c[t] A[t + 1] is a scan of affine maps, which compose associatively.

Shapes: T rows, E environments; `TE` in a name is a tile of both.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_T, BLOCK_E = 16, 32


@triton.jit
def _compose(later_slope, later_offset, slope, offset):  # type: ignore[no-untyped-def]
    """The map (slope, offset) applied after the later rows' map; a slope of 0 lets nothing through, NaN included."""
    through = tl.where(slope == 0, 0.0, slope * later_offset)
    return slope * later_slope, offset + through


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    rewards,
    values,
    terminated,
    truncated,
    ratios,
    advantages,
    returns,
    T,
    E,
    gamma: tl.constexpr,
    decay: tl.constexpr,
    weighted: tl.constexpr,
    block_t: tl.constexpr,
    block_e: tl.constexpr,
):
    env_E = tl.program_id(0) * block_e + tl.arange(0, block_e)
    row_T = tl.arange(0, block_t)
    carried_E = tl.zeros([block_e], dtype=values.dtype.element_ty)
    for tile in range(tl.cdiv(T, block_t)):
        # The tile that reaches behind row 0 comes last, so that whole tiles carry into one another.
        t_T = T - (tile + 1) * block_t + row_T
        inside_TE = (t_T >= 0)[:, None] & (env_E < E)[None, :]
        at_TE = t_T[:, None].to(tl.int64) * E + env_E[None, :]
        reward_TE = tl.load(rewards + at_TE, inside_TE, 0.0)
        value_TE = tl.load(values + at_TE, inside_TE, 0.0)
        # Row t + 1 is row t of the tile's next line: the same bytes again, out of the cache.
        next_TE = tl.load(values + at_TE + E, inside_TE, 0.0)
        terminated_TE = tl.load(terminated + at_TE, inside_TE, 1) != 0
        done_TE = terminated_TE | (tl.load(truncated + at_TE, inside_TE, 1) != 0)
        # Selected, never multiplied by a mask: 0 * NaN would be NaN.
        delta_TE = reward_TE + gamma * tl.where(terminated_TE, 0.0, next_TE) - value_TE
        slope_TE = tl.where(done_TE, 0.0, decay).to(delta_TE.dtype)
        if weighted:
            # Of NaN and 1 the minimum is 1, so that slopes are finite.
            rho_TE = tl.minimum(tl.load(ratios + at_TE, inside_TE, 1.0), 1.0)
            slope_TE = tl.where(done_TE, 0.0, slope_TE * rho_TE)
            delta_TE *= rho_TE
        slope_TE, offset_TE = tl.associative_scan((slope_TE, delta_TE), 0, _compose, reverse=True)
        through_TE = tl.where(slope_TE == 0, 0.0, slope_TE * carried_E[None, :])
        advantage_TE = offset_TE + through_TE
        tl.store(advantages + at_TE, advantage_TE, inside_TE)
        tl.store(returns + at_TE, advantage_TE + value_TE, inside_TE)
        carried_E = tl.sum(tl.where((row_T == 0)[:, None], advantage_TE, 0.0), 0)


def gae_triton(
    rewards: Tensor, values: Tensor, terminated: Tensor, truncated: Tensor, *, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """What `fasta2c.learning.advantages.gae` computes, in one kernel; arguments and results as there.

    Runs on a CUDA device, or on a CPU under TRITON_INTERPRET=1 (slowly, for tests).
    """
    return _launch(rewards, values, terminated, truncated, None, gamma, gae_lambda)


def vtrace_triton(
    rewards: Tensor,
    values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    ratios: Tensor,
    *,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """What `fasta2c.learning.advantages.vtrace` computes, in one kernel; arguments and results as there."""
    return _launch(rewards, values, terminated, truncated, ratios, gamma, gae_lambda)


def _launch(
    rewards: Tensor,
    values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    ratios: Tensor | None,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    rewards, values, terminated, truncated = (x.contiguous() for x in (rewards, values, terminated, truncated))
    num_steps, num_envs = rewards.shape
    advantages, returns = (torch.empty_like(rewards, dtype=values.dtype) for _ in range(2))
    _kernel[(triton.cdiv(num_envs, BLOCK_E),)](
        rewards,
        values,
        # Triton has no pointers to bool; the bytes are the same.
        terminated.view(torch.int8),
        truncated.view(torch.int8),
        rewards if ratios is None else ratios.contiguous(),  # without ratios nothing is read there
        advantages,
        returns,
        num_steps,
        num_envs,
        gamma,
        gamma * gae_lambda,
        ratios is not None,
        BLOCK_T,
        BLOCK_E,
    )
    return advantages, returns
