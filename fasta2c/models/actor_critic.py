"""The actor-critic: raw observations in, float32 logits and values out.

Shapes: B samples, A actions.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fasta2c import accel
from fasta2c.config import TrainConfig
from fasta2c.models.encoders import MLP, NatureCNN, build_encoder, orthogonal


class ActorCritic(nn.Module):
    """Policy and value heads over one shared encoder, or over one each.

    Args:
        observation_shape: of one observation.
        dtype: of the observations, "uint8" or "float32".
        num_actions: A.
        config: its `shared`, `encoder`, `hidden_sizes` and `activation`.
        precision: dtype of the encoders' arithmetic; heads and results are float32 always.
    """

    def __init__(
        self,
        observation_shape: tuple[int, ...],
        dtype: str,
        num_actions: int,
        config: TrainConfig,
        precision: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()

        def encoder() -> NatureCNN | MLP:
            return build_encoder(config.encoder, observation_shape, dtype, config.hidden_sizes, config.activation)

        self.precision = precision
        self.encoder = encoder()
        self.critic_encoder = None if config.shared else encoder()
        self.policy_head = orthogonal(nn.Linear(self.encoder.features, num_actions), 0.01)
        self.value_head = orthogonal(nn.Linear(self.encoder.features, 1), 1.0)

    @property
    def convolutional(self) -> bool:
        """Whether it looks at images with convolutions."""
        return isinstance(self.encoder, NatureCNN)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Observations [B, ...] to logits [B, A] and values [B]."""
        if self.critic_encoder is not None:
            return self.logits(observations), self.values(observations)
        features = self._encode(self.encoder, observations)
        return self.policy_head(features), self.value_head(features).squeeze(-1)

    def logits(self, observations: Tensor) -> Tensor:
        """Observations [B, ...] to logits [B, A] alone, which with `shared` is no less work."""
        return self.policy_head(self._encode(self.encoder, observations))

    def values(self, observations: Tensor) -> Tensor:
        """Observations [B, ...] to values [B] alone."""
        return self.value_head(self._encode(self.critic_encoder or self.encoder, observations)).squeeze(-1)

    def _encode(self, encoder: NatureCNN | MLP, observations: Tensor) -> Tensor:
        """float32 features [B, F]."""
        with accel.autocast(observations.device, self.precision):
            features: Tensor = encoder(observations)
        return features.float()

    def critic_parameters(self) -> Iterator[nn.Parameter]:
        """What only the value depends on: the value head, and the critic's encoder if it has its own."""
        if self.critic_encoder is not None:
            yield from self.critic_encoder.parameters()
        yield from self.value_head.parameters()

    def actor_parameters(self) -> Iterator[nn.Parameter]:
        """Everything else: the actor's (or shared) encoder and the policy head."""
        yield from self.encoder.parameters()
        yield from self.policy_head.parameters()
