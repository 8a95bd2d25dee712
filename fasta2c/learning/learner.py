"""One synchronous A2C update of a rollout: advantages, loss, backward, clip, step.

Shapes: T rows, E environments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from fasta2c import accel
from fasta2c.config import TrainConfig
from fasta2c.graphs import Graphs
from fasta2c.learning.advantages import build_gae, standardise
from fasta2c.learning.loss import loss_sums
from fasta2c.learning.optim import clip_grad_norm, schedule, set_learning_rate
from fasta2c.learning.rewards import RewardScaler
from fasta2c.models.actor_critic import ActorCritic
from fasta2c.rollout.buffer import Chunk, Forward, RolloutBuffer, Unroll, env_slices

METRICS = ("policy_loss", "value_loss", "entropy", "explained_variance", "grad_norm")


class Learner:
    """Makes updates of `model`; nothing here waits for the device.

    Args:
        model: what learns.
        optimizer: moves its parameters.
        config: coefficients, schedules and how advantages are computed.
        forward: the model's forward pass, compiled or not.
        samples: samples whose gradient is computed at once; gradients of one rollout add up.
        threads: torch's, on a CPU, while it updates.
        apart: observations to action distributions, and to values, if rollouts come without values: the learner then
            makes these, many rows at once, and differentiates the very ones that advantages are made of.
        unroll: what a network with memory is called by instead of `forward`: backpropagation goes through all rows.
        graphs: record the update on a GPU.
        reward_scaler: of the rewards that are learnt from, if they are to be scaled.
    """

    def __init__(
        self,
        model: ActorCritic,
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
        *,
        forward: torch.nn.Module,
        samples: int,
        threads: int,
        graphs: Graphs,
        apart: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None = None,
        unroll: Unroll | None = None,
        reward_scaler: RewardScaler | None = None,
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._config = config
        self._forward = forward
        self._samples = samples
        self._threads = threads
        self._graphs = graphs
        self._apart = apart
        self._unroll = unroll
        self.reward_scaler = reward_scaler
        device = next(model.parameters()).device
        self._gae = build_gae(config.gae, device)
        self._ent_coef = torch.tensor(config.ent_coef, device=device)
        self._rollout: RolloutBuffer | None = None
        self._step: Callable[[], Tensor] | None = None

    def update(self, rollout: RolloutBuffer, progress: float) -> Tensor:
        """One optimizer step on `rollout`, at `progress` (0 to 1) of the run.

        Returns:
            the values of `METRICS`, on the device: means over valid rows, and the gradient's norm before clipping.
        """
        config = self._config
        # All that differs between updates beside the rollout's contents; the rest may be a recorded graph.
        set_learning_rate(self._optimizer, schedule(config.lr_schedule, progress))
        self._ent_coef.fill_(config.ent_coef * schedule(config.ent_schedule, progress))
        if self._step is None or rollout is not self._rollout:
            self._rollout, self._step = rollout, self._graphs.wrap(partial(self._update, rollout))
        with accel.threads(self._threads):
            return self._step()

    def _update(self, rollout: RolloutBuffer) -> Tensor:
        config = self._config
        forwards = self._forwards(rollout)
        advantages_TE, returns_TE = self._gae(
            self._rewards(rollout),
            rollout.values_T1E,
            rollout.terminated_TE,
            rollout.truncated_TE,
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
        )
        valid_TE = rollout.valid_TE
        count = valid_TE.sum().clamp_min(1)
        explained = explained_variance(rollout.values_T1E[:-1], returns_TE, valid_TE)
        if config.normalize_advantage:
            advantages_TE = standardise(advantages_TE, valid_TE)

        self._optimizer.zero_grad(set_to_none=True)
        totals = torch.zeros(3, device=count.device)
        for (rows, envs), policy_BP, values_B in forwards:
            sums = loss_sums(
                self._model.distribution,
                policy_BP,
                values_B,
                *(x[rows, envs].flatten(0, 1) for x in (rollout.actions_TE, advantages_TE, returns_TE, valid_TE)),
                value_loss=config.value_loss,
            )
            ((sums.policy + config.vf_coef * sums.value - self._ent_coef * sums.entropy) / count).backward()
            totals += torch.stack(sums).detach()
        grad_norm = clip_grad_norm(self._model.parameters(), config.max_grad_norm)
        self._optimizer.step()
        if self._model.moments is not None:  # only now: within a rollout all is normalised alike
            for chunk in rollout.chunks(self._samples):
                self._model.update_moments(rollout.observations(*chunk))
        return torch.cat([totals / count, torch.stack([explained, grad_norm])])

    def _rewards(self, rollout: RolloutBuffer) -> Tensor:
        """The rewards [T, E] that are learnt from."""
        rewards_TE = rollout.rewards_TE
        if self.reward_scaler is not None:
            done_TE = rollout.terminated_TE | rollout.truncated_TE
            rewards_TE = self.reward_scaler(rewards_TE, done_TE, rollout.valid_TE)
        clip = self._config.reward_clip
        return rewards_TE.clamp(-clip, clip) if clip else rewards_TE

    def _forwards(self, rollout: RolloutBuffer) -> Iterator[Forward]:
        """The model's outputs over the rollout, made when asked for; its values are complete when this returns."""
        if rollout.forwards:
            return _popped(rollout.forwards)
        chunks = list(rollout.chunks(self._samples))
        if self._unroll is not None:
            return self._unrolled(rollout, self._unroll, chunks)
        if self._apart is None:
            return (Forward(chunk, *self._forward(rollout.observations(*chunk))) for chunk in chunks)
        policy, critic = self._apart
        values = []
        for chunk in chunks:
            values.append(critic(rollout.observations(*chunk)))
            rollout.values_T1E[chunk] = values[-1].detach().view_as(rollout.values_T1E[chunk])
        last = slice(rollout.num_steps, rollout.num_steps + 1)
        with torch.no_grad():
            for envs in env_slices(slice(0, rollout.num_envs), self._samples):
                rollout.values_T1E[last, envs] = critic(rollout.observations(last, envs))
        return (
            Forward(chunk, policy(rollout.observations(*chunk)), values_B)
            for chunk, values_B in zip(chunks, values, strict=True)
        )

    def _unrolled(self, rollout: RolloutBuffer, unroll: Unroll, chunks: list[Chunk]) -> Iterator[Forward]:
        for rows, envs in chunks:
            state = rollout.first_state_ES[envs]
            policy_BP, values_B, _ = unroll(rollout.observations(rows, envs), state, rollout.opens(rows, envs))
            yield Forward((rows, envs), policy_BP, values_B)


def _popped(forwards: list[Forward]) -> Iterator[Forward]:
    """Those that acted, each let go when done with."""
    while forwards:
        yield forwards.pop(0)


def explained_variance(values_TE: Tensor, returns_TE: Tensor, valid_TE: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over valid rows, 0-dimensional; NaN where the returns do not vary."""
    count = valid_TE.sum().clamp_min(1)

    def variance(x_TE: Tensor) -> Tensor:
        mean = torch.where(valid_TE, x_TE, 0.0).sum() / count
        return torch.where(valid_TE, x_TE - mean, 0.0).square().sum() / count

    total = variance(returns_TE)
    return torch.where(total > 0, 1 - variance(returns_TE - values_TE) / total, torch.nan)
