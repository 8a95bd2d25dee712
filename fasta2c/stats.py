"""Statistics of scores: how sure a mean is, and means that a single odd run does not move.

After Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (NeurIPS 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
RESAMPLES = 2000

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over the first axis."""
    return values.mean(axis=0)


def interquartile_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over the middle half of the first axis, values at its edges counted by the part of them inside."""
    count = len(values)
    ranked = np.sort(values, axis=0)
    # How much of each of the `count` equal parts of [0, 1] lies in [1/4, 3/4].
    edges = np.clip(np.arange(count + 1) / count, 0.25, 0.75)
    weights = np.diff(edges) * 2
    return np.tensordot(weights, ranked, axes=1)


def bootstrap_interval(
    values: ArrayLike,
    statistic: Statistic = mean,
    *,
    strata: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bounds between which `statistic` lies with probability `level`, by the percentiles of bootstrap resamples.

    Args:
        values: [n, ...] independent along the first axis, such as the scores of n games or the curves of n runs.
        statistic: from [n, ...] to [...].
        strata: which stratum (task) each of the n is of; each is resampled by itself, so that the interval tells how
            much runs differ, not tasks.
        resamples: how many samples of n are drawn, with replacement, always the same.
        level: of confidence.

    Returns:
        lower and upper bounds [...]; NaN where there is a single value, which says nothing of the others.
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        unknown = np.full(array.shape[1:], np.nan)
        return unknown, unknown
    random = np.random.default_rng(0)
    labels = np.zeros(len(array)) if strata is None else np.unique(strata, return_inverse=True)[1]
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    drawn = np.stack(
        [
            statistic(array[np.concatenate([own[random.integers(len(own), size=len(own))] for own in members])])
            for _ in range(resamples)
        ]
    )
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high
