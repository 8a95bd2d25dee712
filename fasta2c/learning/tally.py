"""Means of what updates tell, for the log: added up on the device, so that no update waits for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fasta2c.learning.learner import METRICS


class Tally:
    """Sums of updates' `METRICS`; a number that is not finite counts for nothing."""

    def __init__(self, device: torch.device) -> None:
        self._sums_and_counts = torch.zeros(2, len(METRICS), device=device)

    def add(self, metrics: Tensor) -> None:
        """Add one update's metrics [len(METRICS)]."""
        finite = torch.isfinite(metrics)
        self._sums_and_counts += torch.stack([torch.where(finite, metrics, 0.0), finite])

    def take_means(self) -> dict[str, float]:
        """Means since the last call, NaN where there were no numbers. Waits for the device."""
        sums, counts = self._sums_and_counts
        means = (sums / counts).tolist()
        self._sums_and_counts.zero_()
        return dict(zip(METRICS, means, strict=True))

    def state_dict(self) -> dict[str, list[float]]:
        """By metric its sum and its count, as plain numbers."""
        return dict(zip(METRICS, self._sums_and_counts.T.tolist(), strict=True))

    def load_state_dict(self, state: Mapping[str, Sequence[float]]) -> None:
        """Go on from `state_dict`; a metric it does not know starts at nothing."""
        kept = [state.get(name, (0.0, 0.0)) for name in METRICS]
        self._sums_and_counts.copy_(torch.tensor(kept).T)
