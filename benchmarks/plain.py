"""The same network and the same update as plain PyTorch has them: what fasta2c's own driving of it is measured against.

fp32, PyTorch's own threads and tanh, frames stacked before they are handed over, a forward pass to act and another to
learn, a Python loop for the advantages, `torch.distributions` and `torch.optim`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fasta2c.config import TrainConfig
from fasta2c.models.actor_critic import ActorCritic
from fasta2c.models.encoders import MLP
from fasta2c.rollout.buffer import RolloutBuffer


class Plain:
    """Acts and updates over the observations of a filled rollout."""

    def __init__(self, config: TrainConfig, spec: Any, rollout: RolloutBuffer, threads: int) -> None:
        device = rollout.values_T1E.device
        self._threads = threads
        self._config = config
        self._model = ActorCritic(spec.observation_shape, spec.dtype, spec.num_actions, config).to(device)
        for encoder in (self._model.encoder, self._model.critic_encoder):
            if isinstance(encoder, MLP) and config.activation == "tanh":
                encoder.layers = nn.Sequential(*(x if isinstance(x, nn.Linear) else nn.Tanh() for x in encoder.layers))
        self._optimizer = torch.optim.RMSprop(self._model.parameters(), lr=config.lr, alpha=0.99, eps=1e-5)
        T, E = rollout.num_steps, rollout.num_envs
        rows = [rollout.observations(slice(t, t + 1), slice(0, E)).clone() for t in range(T + 1)]
        self._observations_T1E = torch.stack(rows)
        self._rewards_TE = rollout.rewards_TE.clone()
        self._done_TE = (rollout.terminated_TE | rollout.truncated_TE).clone()

    def __call__(self) -> int:
        """One rollout and its update; returns how many samples it had."""
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            return self._iterate()
        finally:
            torch.set_num_threads(before)

    def _iterate(self) -> int:
        config, rewards_TE, done_TE = self._config, self._rewards_TE, self._done_TE.float()
        T = len(rewards_TE)
        actions, values = [], []
        with torch.no_grad():
            for t in range(T):
                logits_EA, values_E = self._model(self._observations_T1E[t])
                actions.append(torch.distributions.Categorical(logits=logits_EA).sample())
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
        policy = torch.distributions.Categorical(logits=logits_BA)
        policy_loss = -(policy.log_prob(torch.cat(actions)) * advantages_B).mean()
        value_loss = 0.5 * (values_B - returns_B).square().mean()
        loss = policy_loss + config.vf_coef * value_loss - config.ent_coef * policy.entropy().mean()
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), config.max_grad_norm)
        self._optimizer.step()
        return len(returns_B)
