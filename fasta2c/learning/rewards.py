"""Rewards scaled by how much returns vary; the learner clips them afterwards. Scores stay the game's own.

Shapes: T rows, E environments; `TE` in a name is [T, E].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fasta2c.distributed import ALONE, Ranks
from fasta2c.models.normalize import RunningMoments


class RewardScaler(nn.Module):
    """Divides rewards by the standard deviation of discounted returns so far, as OpenAI Baselines' VecNormalize does.

    Rewards are neither shifted nor divided by less than 1e-4. A rollout's own returns count already. While returns do
    not vary (by a ten-thousandth of their mean), rewards are left as they are.

    Args:
        num_envs: E.
        gamma: discount of the returns.
        ranks: whose returns count as well, each with environments of its own.
    """

    return_E: Tensor

    def __init__(self, num_envs: int, gamma: float, ranks: Ranks = ALONE) -> None:
        super().__init__()
        self._gamma = gamma
        self._ranks = ranks
        self.moments = RunningMoments(1)
        # Where each environment's episode stands.
        self.register_buffer("return_E", torch.zeros(num_envs, dtype=torch.float64))

    @torch.no_grad()
    def forward(self, rewards_TE: Tensor, done_TE: Tensor, valid_TE: Tensor) -> Tensor:
        """Rewards [T, E] as the learner uses them; what stands in rows that are not valid does not matter.

        A reward that is not finite stays so, and counts as 0 for the scale.
        """
        paid_TE = torch.where(valid_TE & torch.isfinite(rewards_TE), rewards_TE, 0.0).to(torch.float64)
        carried_E, nothing, returns = self.return_E, paid_TE.new_zeros(()), []
        for paid_E, done_E in zip(paid_TE.unbind(), done_TE.unbind(), strict=True):
            returns.append(torch.add(paid_E, carried_E, alpha=self._gamma))
            carried_E = torch.where(done_E, nothing, returns[-1])
        self.return_E.copy_(carried_E)
        returns_TE = torch.stack(returns)
        new = self.moments.measure(returns_TE.flatten().unsqueeze(1), valid_TE.flatten())
        self.moments.update([new], self._ranks)
        vary = self.moments.variance_D > 1e-8 * self.moments.mean_D.square()
        return rewards_TE * torch.where(vary, self.moments.scale_D, 1.0)

    def load_moments(self, state: dict[str, Tensor]) -> None:
        """Go on from the scale of `state_dict`, all environments beginning new episodes."""
        prefix = "moments."
        self.moments.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        self.return_E.zero_()
