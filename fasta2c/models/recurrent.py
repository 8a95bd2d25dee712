"""Memory: a recurrent layer between features and heads, cleared where an observation opens a game.

Shapes: T rows, B environments, F features, S numbers of state, M outputs.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn


class Memory(nn.Module):
    """One GRU or LSTM layer, orthogonally initialised, its biases zero.

    Args:
        kind: "gru" or "lstm".
        features: F.
        size: M.
    """

    def __init__(self, kind: Literal["gru", "lstm"], features: int, size: int) -> None:
        super().__init__()
        self.cell: nn.GRUCell | nn.LSTMCell = (nn.GRUCell if kind == "gru" else nn.LSTMCell)(features, size)
        for weight in (self.cell.weight_ih, self.cell.weight_hh):
            for gate in weight.chunk(len(weight) // size):
                nn.init.orthogonal_(gate)
        for bias in (self.cell.bias_ih, self.cell.bias_hh):
            nn.init.zeros_(bias)
        self.features = size
        self.state_size = size if kind == "gru" else 2 * size

    def forward(self, features_TBF: Tensor, state_BS: Tensor, opens_TB: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs [T, B, M] of a sequence, and the state after it.

        Args:
            features_TBF: of the observations.
            state_BS: what was remembered before the first of them.
            opens_TB: bool, whether an observation opens a game: what was remembered of the last one is forgotten.
        """
        outputs = []
        for features_BF, opens_B in zip(features_TBF, opens_TB, strict=True):
            # Selected, never multiplied: a state that is not finite must not survive its game.
            state_BS = torch.where(opens_B.unsqueeze(1), 0.0, state_BS)
            if isinstance(self.cell, nn.GRUCell):
                state_BS = self.cell(features_BF, state_BS)
                outputs.append(state_BS)
            else:
                hidden, carried = state_BS.chunk(2, dim=1)
                state_BS = torch.cat(self.cell(features_BF, (hidden, carried)), dim=1)
                outputs.append(state_BS[:, : self.features])
        return torch.stack(outputs), state_BS
