"""The same network and the same update as plain PyTorch has them: what fasta2c's own driving of it is measured against.

The precision is the same (autocast); PyTorch's own threads, tanh and memory layout; frames stacked before they are
handed over; a forward pass to act and another to learn; a Python loop for the advantages; `torch.distributions` and
`torch.optim`.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fasta2c import accel
from fasta2c.config import TrainConfig
from fasta2c.models.actor_critic import ActorCritic
from fasta2c.models.distributions import Categorical, Gaussian
from fasta2c.models.images import NatureCNN
from fasta2c.models.layers import Tanh
from fasta2c.rollout.buffer import RolloutBuffer


class _PlainCNN(nn.Module):
    """NatureCNN's layers alone."""

    def __init__(self, network: NatureCNN) -> None:
        super().__init__()
        self.convolutions, self.projection = network.convolutions, network.projection

    def forward(self, images: Tensor) -> Tensor:
        return self.projection(self.convolutions(images.float()))


class Plain:
    """Acts and updates over the observations of a filled rollout."""

    def __init__(self, config: TrainConfig, rollout: RolloutBuffer, model: ActorCritic) -> None:
        self._config = config
        self._model = copy.deepcopy(model)
        self._device = rollout.values_T1E.device
        for module in list(self._model.modules()):
            for name, child in module.named_children():
                if isinstance(child, Tanh):
                    setattr(module, name, nn.Tanh())
                elif isinstance(child, NatureCNN):
                    setattr(module, name, _PlainCNN(child))
        self._optimizer = torch.optim.RMSprop(self._model.parameters(), lr=config.lr, alpha=0.99, eps=1e-5)
        T, E = rollout.num_steps, rollout.num_envs
        rows = [rollout.observations(slice(t, t + 1), slice(0, E)).clone() for t in range(T + 1)]
        self._observations_T1E = torch.stack(rows)
        self._rewards_TE = rollout.rewards_TE.clone()
        self._done_TE = (rollout.terminated_TE | rollout.truncated_TE).clone()

    def _policy(self, policy_BP: Tensor) -> torch.distributions.Distribution:
        """What its numbers make, as PyTorch has it."""
        head = self._model.distribution
        if isinstance(head, Gaussian):
            mean_BD, log_std_BD = policy_BP.chunk(2, dim=-1)
            return torch.distributions.Independent(torch.distributions.Normal(mean_BD, log_std_BD.exp()), 1)
        assert isinstance(head, Categorical)
        choices = torch.distributions.Categorical(logits=policy_BP.unflatten(1, head.grid))
        return torch.distributions.Independent(choices, 1)

    def __call__(self) -> int:
        """One rollout and its update; returns how many samples it had."""
        with accel.threads(accel.cores()):
            return self._iterate()

    def _iterate(self) -> int:
        config, rewards_TE, done_TE = self._config, self._rewards_TE, self._done_TE.float()
        T = len(rewards_TE)
        actions, values = [], []
        with torch.no_grad():
            for t in range(T):
                logits_EA, values_E = self._model(self._observations_T1E[t])
                actions.append(self._policy(logits_EA).sample())
                values.append(values_E)
                actions[-1].cpu().numpy()
            values.append(self._model(self._observations_T1E[T])[1])
            advantages: list[Tensor] = []
            last_E = torch.zeros_like(values[0])
            for t in reversed(range(T)):
                going_on = 1 - done_TE[t]
                delta_E = rewards_TE[t] + config.gamma * values[t + 1] * going_on - values[t]
                last_E = delta_E + config.gamma * config.gae_lambda * going_on * last_E
                advantages.insert(0, last_E)
            advantages_B = torch.cat(advantages)
            returns_B = advantages_B + torch.cat(values[:-1])
        logits_BA, values_B = self._model(self._observations_T1E[:T].flatten(0, 1))
        policy = self._policy(logits_BA)
        policy_loss = -(policy.log_prob(torch.cat(actions)) * advantages_B).mean()
        value_loss = 0.5 * (values_B - returns_B).square().mean()
        loss = policy_loss + config.vf_coef * value_loss - config.ent_coef * policy.entropy().mean()
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), config.max_grad_norm)
        self._optimizer.step()
        return len(returns_B)
