"""Numbers that are not finite: found without waiting for the device, kept from the parameters, and told to the host.

Shapes: T rows, E environments.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fasta2c.rollout.buffer import RolloutBuffer

# What can be at fault, in the order of its numbers from 1; the last, what another rank tells more of.
KINDS = ("reward", "observation", "loss or gradient", "number")
REWARD, OBSERVATION, LOSS, ELSEWHERE = range(1, 5)


class Fault(NamedTuple):
    """The first number that was not finite, and how many updates it and others cost, since the last report."""

    update: int
    """1 for the learner's first."""
    what: str
    row: int | None
    """Of the rollout; None for a loss or a gradient, in which all rows meet."""
    env: int | None
    skipped: int
    """Updates that were not applied, or not altogether."""
    longest: int
    """The most in a row that were not, whatever has been reported of them."""

    @property
    def vague(self) -> int:
        """Higher than another rank's where that says more about the same update."""
        return KINDS.index(self.what)

    def told(self, before: int, env_steps: int) -> str:
        """It in words, `before` updates made before the learner's first, the run now at `env_steps`."""
        where = "" if self.row is None else f" of environment {self.env} in row {self.row}"
        how_much = "" if self.row is not None else " from there on"
        return (
            f"the {self.what}{where} of update {before + self.update} is NaN or infinite (by {env_steps:,} env steps); "
            f"the update was not applied{how_much}"
        )


class NumberWatch:
    """Watches rewards, observations, losses and gradients of updates; everything it knows is on the device.

    For each update `examine` comes first, then `hear` with several ranks, then `allows` for each optimizer step, then
    `conclude`. All ranks come to the same end.

    Args:
        device: where the learner is.
        freeze: whether nothing is applied any more after the first fault.
    """

    def __init__(self, device: torch.device, *, freeze: bool) -> None:
        self._freeze = freeze
        self._on_host = device.type == "cpu"
        self._first = torch.zeros(4, dtype=torch.int64, device=device)  # update, kind, row, environment; 0: none yet
        self._updates, self._skipped, self._in_a_row, self._longest = torch.zeros(
            4, dtype=torch.int64, device=device
        ).unbind()
        self._bad = torch.zeros((), dtype=torch.bool, device=device)  # this update

    def examine(self, rollout: RolloutBuffer) -> None:
        """Look through the rewards and observations of a rollout that anything is learnt from."""
        self._updates += 1
        self._bad.copy_(self._longest > 0) if self._freeze else self._bad.zero_()
        numbers = rollout.real_observations()
        # Any number that is not finite spoils a sum. On a GPU a look at it would wait for the device.
        if self._on_host and all(torch.isfinite(x.sum()) for x in (rollout.rewards_TE, *numbers)):
            return
        self._note_first(REWARD, ~torch.isfinite(rollout.rewards_TE) & rollout.valid_TE)
        # The last observation of an episode that was cut has a value to learn from; of one that ended it has none.
        learnt_T1E = torch.cat([rollout.valid_TE[:1], ~rollout.terminated_TE])
        for x_T1EN in numbers:
            self._note_first(OBSERVATION, ~torch.isfinite(x_T1EN).all(dim=2) & learnt_T1E)

    @property
    def bad(self) -> Tensor:
        """Whether anything was found in this update so far, 0-dimensional."""
        return self._bad

    def hear(self, bad: Tensor) -> None:
        """Take in whether any rank has found something."""
        self._note(ELSEWHERE, bad)

    def allows(self, wanted: Tensor, *numbers: Tensor) -> Tensor:
        """Whether an optimizer step is to be applied, 0-dimensional: it is `wanted`, and all is finite.

        What is in the `numbers` of a step that is not wanted does not matter.
        """
        finite = torch.isfinite(torch.cat([x.flatten() for x in numbers]).sum())
        if not (self._on_host and finite):
            self._note(LOSS, ~finite & wanted)
        return wanted & ~self._bad

    def conclude(self) -> None:
        """Count the update."""
        if self._on_host and not self._bad:
            self._in_a_row.zero_()
            return
        self._skipped += self._bad
        self._in_a_row.copy_(torch.where(self._bad, self._in_a_row + 1, 0))
        torch.maximum(self._longest, self._in_a_row, out=self._longest)

    def report(self) -> Fault | None:
        """The first fault since the last report, None without one. Waits for the device."""
        update, kind, row, env = self._first.tolist()
        if not update:
            return None
        row, env = (None, None) if kind >= LOSS else (row, env)
        fault = Fault(update, KINDS[kind - 1], row, env, int(self._skipped), int(self._longest))
        self._first.zero_()
        self._skipped.zero_()
        return fault

    def _note_first(self, kind: int, bad_TE: Tensor) -> None:
        """Note the earliest row of `bad_TE` that is True, if one is."""
        at = bad_TE.flatten().int().argmax()
        self._note(kind, bad_TE.any(), at // bad_TE.shape[1], at % bad_TE.shape[1])

    def _note(self, kind: int, bad: Tensor, row: Tensor | None = None, env: Tensor | None = None) -> None:
        zero = torch.zeros_like(self._updates)
        new = torch.stack([self._updates, zero + kind, zero if row is None else row, zero if env is None else env])
        self._first.copy_(torch.where(bad & ~self._bad & (self._first[0] == 0), new, self._first))
        self._bad |= bad
