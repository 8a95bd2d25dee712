"""The actor-critic: raw observations in, float32 numbers that make an action distribution, and values, out.

Shapes: T rows, B samples or environments, P numbers of an action distribution, S numbers of state, F features.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from fasta2c import accel
from fasta2c.config import TrainConfig
from fasta2c.distributed import ALONE, Ranks
from fasta2c.models.distributions import build_distribution
from fasta2c.models.encoders import build_encoder, is_convolutional
from fasta2c.models.layers import orthogonal
from fasta2c.models.normalize import RunningMoments
from fasta2c.models.recurrent import Memory
from fasta2c.spaces import EnvSpec

# A mask of more options than this is not looked at beside being obeyed: it would outgrow the network.
MOST_OPTIONS_SEEN = 1024
# Normalised numbers are cut here, as Stable-Baselines3 and RL-Zoo do.
MOST_DEVIATIONS = 10.0


class ActorCritic(nn.Module):
    """Policy and value heads over one shared encoder (and memory), or over one each.

    Args:
        spec: what is observed, and what actions there are.
        config: its `shared`, `encoder`, `hidden_sizes`, `activation`, `recurrent`, `action_bounds`, `sde`,
            `log_std_init` and `normalize_observations`.
        precision: dtype of the encoders' arithmetic; heads and results are float32 always.
    """

    def __init__(self, spec: EnvSpec, config: TrainConfig, precision: torch.dtype = torch.float32) -> None:
        super().__init__()
        self._layout = spec.layout
        self._mask = spec.mask
        leaves = self._layout.leaves
        beside = [i for i in range(len(leaves)) if i != self._mask]
        small = self._mask is not None and leaves[self._mask].size <= MOST_OPTIONS_SEEN
        self._seen = beside if beside and not small else list(range(len(leaves)))
        seen = [leaves[i] for i in self._seen]
        self._real = [n for n, leaf in enumerate(seen) if leaf.real and config.normalize_observations]
        self._sizes = [seen[n].size for n in self._real]
        self.moments = RunningMoments(sum(self._sizes)) if self._real else None
        self.precision = precision
        self.convolutional = is_convolutional(config.encoder, leaves)
        """Whether it looks at images with convolutions."""
        self.encoder = build_encoder(seen, config)
        self.critic_encoder = None if config.shared else build_encoder(seen, config)
        features = self.encoder.features
        self.memory: Memory | None = None
        self.critic_memory: Memory | None = None
        if config.recurrent != "none":
            self.memory = Memory(config.recurrent, features, config.recurrent_size)
            self.critic_memory = None if config.shared else Memory(config.recurrent, features, config.recurrent_size)
            features = self.memory.features
        self._states = [memory.state_size for memory in (self.memory, self.critic_memory) if memory is not None]
        self.distribution = build_distribution(
            spec.actions,
            bounds=config.action_bounds,
            log_std=config.log_std_init,
            state_dependent=features if config.sde else 0,
        )
        self.policy_head = orthogonal(nn.Linear(features, self.distribution.heads), 0.01)
        self.value_head = orthogonal(nn.Linear(features, 1), 1.0)
        self.has_modes = ":" in config.encoder
        """Whether it may do otherwise while it learns than while it acts: a user's own encoder may."""
        self.set_learning(False)

    def forward(self, observations: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Observations [B, ...], as a rollout holds them or leaf by leaf, to distributions [B, P] and values [B]."""
        leaves, mask = self._observe(observations)
        features = self._encode(self.encoder, leaves)
        critic = features if self.critic_encoder is None else self._encode(self.critic_encoder, leaves)
        return self.distribution(self.policy_head(features), features, mask), self.value_head(critic).squeeze(-1)

    def set_learning(self, learning: bool) -> None:
        """Tell a user's own encoder, whose dropout and batch statistics go by it, what its outputs are wanted for."""
        if self.has_modes:
            self.train(learning)

    def statistics(self) -> list[Tensor]:
        """What a user's own encoder gathers of the samples that it learns from, such as a batch normalisation's."""
        encoders = [encoder for encoder in (self.encoder, self.critic_encoder) if encoder is not None]
        buffers = [x for encoder in encoders for x in encoder.buffers()] if self.has_modes else []
        return [x for x in buffers if x.is_floating_point()]

    @property
    def state_size(self) -> int:
        """S: numbers remembered from row to row; 0 without memory."""
        return sum(self._states)

    def unroll(
        self, observations: Tensor | Sequence[Tensor], state_BS: Tensor, opens_TB: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Distributions [T * B, P], values [T * B] and the state [B, S] after T rows, of a network with memory.

        Args:
            observations: [T * B, ...], row by row, packed or leaf by leaf.
            state_BS: what was remembered before them.
            opens_TB: whether an observation opens a game, whose first row remembers nothing.
        """
        assert self.memory is not None
        leaves, mask = self._observe(observations)
        states = list(state_BS.split(self._states, dim=1))
        grid = (len(opens_TB), -1)  # B left open, as an exported network has it
        features, states[0] = self.memory(self._encode(self.encoder, leaves).unflatten(0, grid), states[0], opens_TB)
        critic = features
        if self.critic_encoder is not None and self.critic_memory is not None:
            seen = self._encode(self.critic_encoder, leaves).unflatten(0, grid)
            critic, states[1] = self.critic_memory(seen, states[1], opens_TB)
        features, critic = features.flatten(0, 1), critic.flatten(0, 1)
        policy = self.distribution(self.policy_head(features), features, mask)
        return policy, self.value_head(critic).squeeze(-1), torch.cat(states, dim=1)

    def policy(self, observations: Tensor) -> Tensor:
        """Observations [B, ...] to distributions [B, P] alone, which with `shared` is no less work."""
        leaves, mask = self._observe(observations)
        features = self._encode(self.encoder, leaves)
        return self.distribution(self.policy_head(features), features, mask)

    def values(self, observations: Tensor) -> Tensor:
        """Observations [B, ...] to values [B] alone."""
        leaves, _ = self._observe(observations)
        return self.value_head(self._encode(self.critic_encoder or self.encoder, leaves)).squeeze(-1)

    def update_moments(self, batches: Iterable[tuple[Tensor, Tensor]], ranks: Ranks = ALONE) -> None:
        """Take batches, and other ranks', into what later observations are normalised by on every rank, if any are.

        Args:
            batches: observations [B, ...], and which of them count [B].
            ranks: who normalises alike.
        """
        if self.moments is not None:
            self.moments.update((self.moments.measure(self._numbers(x), valid_B) for x, valid_B in batches), ranks)

    def _numbers(self, observations: Tensor) -> Tensor:
        """The real numbers of observations [B, ...], those of a sample side by side."""
        leaves = self._layout.unpack(observations)
        real = [leaves[self._seen[n]].reshape(len(observations), -1) for n in self._real]
        return torch.cat(real, dim=1) if len(real) > 1 else real[0]

    def _observe(self, observations: Tensor | Sequence[Tensor]) -> tuple[Sequence[Tensor], Tensor | None]:
        """The leaves that encoders see, normalised, and the mask of legal actions."""
        if isinstance(observations, Tensor) and not self._layout.packed and self._mask is None and self.moments is None:
            return [observations], None
        leaves = self._layout.unpack(observations) if isinstance(observations, Tensor) else observations
        mask = None if self._mask is None else leaves[self._mask]
        seen = [leaves[i] for i in self._seen]
        if self.moments is not None:
            start = 0
            for n, size in zip(self._real, self._sizes, strict=True):
                flat = seen[n].flatten(1) if seen[n].dim() > 1 else seen[n].unsqueeze(1)
                span = slice(start, start + size)
                normal = (flat - self.moments.shift_D[span]) * self.moments.scale_D[span]
                seen[n] = normal.clamp(-MOST_DEVIATIONS, MOST_DEVIATIONS).view_as(seen[n])
                start += size
        return seen, mask

    def _encode(self, encoder: nn.Module, leaves: Sequence[Tensor]) -> Tensor:
        """float32 features [B, F]."""
        with accel.autocast(leaves[0].device, self.precision):
            features: Tensor = encoder(leaves)
        return features.float()

    def critic_parameters(self) -> Iterator[nn.Parameter]:
        """What only the value depends on: the value head, and the critic's encoder if it has its own."""
        for module in (self.critic_encoder, self.critic_memory, self.value_head):
            if module is not None:
                yield from module.parameters()

    def actor_parameters(self) -> Iterator[nn.Parameter]:
        """Everything else: the actor's (or shared) encoder and memory, the policy head and the distribution."""
        for module in (self.encoder, self.memory, self.policy_head, self.distribution):
            if module is not None:
                yield from module.parameters()

    def hidden_matrices(self) -> Iterator[nn.Parameter]:
        """Weights of two dimensions or more between observations and heads."""
        for module in (self.encoder, self.critic_encoder, self.memory, self.critic_memory):
            if module is not None:
                yield from (p for p in module.parameters() if p.dim() >= 2)
