"""One synchronous A2C update of a rollout: advantages, loss, backward, clip, step; of several steps, by V-trace.

Shapes: T rows, E environments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from fasta2c import accel
from fasta2c.config import TrainConfig
from fasta2c.distributed import ALONE, Ranks
from fasta2c.graphs import Graphs
from fasta2c.learning.advantages import build_estimators, standardise
from fasta2c.learning.forwards import Forwards
from fasta2c.learning.loss import bounds_loss_sum, loss_sums, value_loss_sum
from fasta2c.learning.measures import explained_variance, mean_kl
from fasta2c.learning.optim import clip_grad_norm, schedule, set_learning_rate, step_where, sum_gradients
from fasta2c.learning.rewards import RewardScaler
from fasta2c.learning.watch import NumberWatch
from fasta2c.models.actor_critic import ActorCritic
from fasta2c.rollout.buffer import Forward, RolloutBuffer

# What a critic's target is the return of.
TARGET_LAMBDAS = {"td0": 0.0, "nstep": 1.0}
# Values [T + 1, E] and lambda to advantages and returns [T, envs].
Estimate = Callable[[Tensor, float], tuple[Tensor, Tensor]]
METRICS = ("policy_loss", "value_loss", "entropy", "explained_variance", "grad_norm")


class Learner:
    """Makes updates of `model`; nothing here waits for the device.

    Args:
        model: what learns.
        optimizer: moves its parameters.
        config: coefficients, schedules and how advantages are computed.
        forwards: makes the model's outputs, differentiable.
        micro_batch: samples whose gradient is computed at once; gradients of one optimizer step add up.
        threads: torch's, on a CPU, while it updates.
        graphs: record the update on a GPU.
        num_minibatches: optimizer steps of an epoch, each on as large a share of the environments.
        reward_scaler: of the rewards that are learnt from, if they are to be scaled.
        ranks: who learns the same from rollouts of their own: gradients are of all ranks' valid rows together.
    """

    def __init__(
        self,
        model: ActorCritic,
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
        *,
        forwards: Forwards,
        micro_batch: int,
        threads: int,
        graphs: Graphs,
        num_minibatches: int,
        reward_scaler: RewardScaler | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self._model = model
        # As lists, for a walk through the modules costs as much as a small layer.
        self._parameters, self._critic_parameters = list(model.parameters()), list(model.critic_parameters())
        self._actor_parameters = list(model.actor_parameters())
        self._optimizer = optimizer
        self._config = config
        self._forwards = forwards
        self._micro_batch = micro_batch
        self._threads = threads
        self._graphs = graphs
        self.reward_scaler = reward_scaler
        self._num_minibatches = num_minibatches
        self._ranks = ranks
        device = self._parameters[0].device
        self._gae, self._vtrace = build_estimators(config.gae, device)
        self._target_lambda = TARGET_LAMBDAS.get(config.critic_target, config.gae_lambda)
        self.watch = NumberWatch(device, freeze=config.on_nan == "stop")
        self._breaks_off = device.type == "cpu"  # elsewhere that would wait for the device: steps are made in vain
        self.lr, self.ent_coef = config.lr, config.ent_coef
        """Of the last update, as their schedules have them."""
        self._ent_coef = torch.tensor(config.ent_coef, device=device)
        self._rollout: RolloutBuffer | None = None
        self._step: Callable[[], Tensor] | None = None

    def update(self, rollout: RolloutBuffer, progress: float) -> Tensor:
        """Learn from `rollout`, at `progress` (0 to 1) of the run: an optimizer step for each minibatch of each epoch.

        Returns:
            the values of `METRICS`, on the device: means over all ranks' valid rows, and of the gradient's norm before
            clipping; NaN where there is no such row.
        """
        config = self._config
        # All that differs between updates beside the rollout's contents; the rest may be a recorded graph.
        factor = schedule(config.lr_schedule, progress)
        set_learning_rate(self._optimizer, factor)
        self.lr, self.ent_coef = config.lr * factor, config.ent_coef * schedule(config.ent_schedule, progress)
        self._ent_coef.fill_(self.ent_coef)
        if self._step is None or rollout is not self._rollout:
            self._rollout, self._step = rollout, self._graphs.wrap(partial(self._update, rollout))
        self._model.set_learning(True)
        try:
            with accel.threads(self._threads), torch.enable_grad():  # which some simulators switch off for good
                return self._step()
        finally:
            self._model.set_learning(False)

    def _update(self, rollout: RolloutBuffer) -> Tensor:
        self.watch.examine(rollout)
        statistics = [x.clone() for x in self._model.statistics()]
        rewards_TE = self._rewards(rollout)
        advantages_TE, returns_TE = torch.empty_like(rewards_TE), torch.zeros_like(rewards_TE)
        targets_TE = returns_TE if self._target_lambda == self._config.gae_lambda else torch.empty_like(returns_TE)
        # Of the last step on each row: what the critic said, and that there was one.
        values_TE, learnt_TE = torch.zeros_like(rewards_TE), torch.zeros_like(rollout.valid_TE)
        totals = torch.zeros(6, device=returns_TE.device)
        wanted = torch.ones((), dtype=torch.bool, device=returns_TE.device)
        minibatches = list(rollout.minibatches(self._num_minibatches))
        counts = self._count(rollout, minibatches)
        for number, (envs, count) in enumerate([*zip(minibatches, counts, strict=True)] * self._config.num_epochs):
            # The first step is that of the policy that acted; what follows learns from another's actions.
            if number == 0:
                forwards, ratios_TE = self._forwards.acted(rollout, envs), None
            else:
                forwards, ratios_TE = self._forwards.recomputed(rollout, envs)
            if ratios_TE is not None and self._config.target_kl:
                kl = mean_kl(ratios_TE, rollout.valid_TE[:, envs], self._ranks)
                wanted = wanted & (kl <= self._config.target_kl)
                if self._breaks_off and not wanted:
                    break
            moves = wanted & (count > 0)  # without a valid row an optimizer's momentum would move them all the same
            estimate = self._estimator(rollout, rewards_TE, envs, ratios_TE)
            advantages_TE[:, envs], returns = self._advantages(rollout, envs, estimate)
            for kept_TE, new in ((returns_TE, returns), (values_TE, rollout.values_T1E[:-1, envs])):
                kept_TE[:, envs] = new if self._breaks_off else torch.where(wanted, new, kept_TE[:, envs])
            if targets_TE is not returns_TE:
                targets_TE[:, envs] = estimate(rollout.values_T1E, self._target_lambda)[1]
            sums, grad_norm = self._step_on(rollout, envs, forwards, advantages_TE, targets_TE, moves, count)
            for _ in range(self._config.critic_updates - 1):
                self._step_critic(rollout, envs, estimate, moves, count)
            made = torch.stack([count, grad_norm, torch.ones_like(grad_norm)])
            totals += torch.where(moves, torch.cat([sums, made]), 0.0)
            learnt_TE[:, envs] |= rollout.valid_TE[:, envs] & wanted
        self._settle_statistics(statistics)
        self.watch.conclude()
        if self._model.moments is not None:  # only now: within an update all is normalised alike
            chunks = rollout.chunks(self._micro_batch)
            seen = ((rollout.observations(*chunk), rollout.valid_TE[chunk].flatten()) for chunk in chunks)
            self._model.update_moments(seen, self._ranks)
        means = totals[:3] / totals[3]
        explained = explained_variance(values_TE, returns_TE, learnt_TE, self._ranks)
        return torch.cat([means, torch.stack([explained, totals[4] / totals[5]])])

    def _settle_statistics(self, before: list[Tensor]) -> None:
        """Bring what an encoder gathers to the mean of all ranks; as it was `before` where the numbers were bad."""
        for x, old in zip(self._model.statistics(), before, strict=True):
            mean = self._ranks.all_reduce(x.clone()) / self._ranks.world_size
            x.copy_(torch.where(self.watch.bad, old, mean))

    def _count(self, rollout: RolloutBuffer, minibatches: list[slice]) -> Tensor:
        """All ranks' valid rows in each of `minibatches` [number]; with it they tell if numbers are bad."""
        own = [rollout.valid_TE[:, envs].sum() for envs in minibatches]
        *counts, bad = self._ranks.all_reduce(torch.stack([*own, self.watch.bad.long()]))
        if self._ranks.world_size > 1:
            self.watch.hear(bad > 0)
        return torch.stack(counts)

    def _advantages(self, rollout: RolloutBuffer, envs: slice, estimate: Estimate) -> tuple[Tensor, Tensor]:
        """Advantages and returns of `envs` by gae_lambda."""
        advantages_TE, returns_TE = estimate(rollout.values_T1E, self._config.gae_lambda)
        if self._config.normalize_advantage:
            advantages_TE = standardise(advantages_TE, rollout.valid_TE[:, envs], self._ranks)
        return advantages_TE, returns_TE

    def _estimator(self, rollout: RolloutBuffer, rewards_TE: Tensor, envs: slice, ratios_TE: Tensor | None) -> Estimate:
        """Makes advantages and returns of `envs`, whose actions' probabilities have changed by `ratios_TE`."""
        ends = (rollout.terminated_TE[:, envs], rollout.truncated_TE[:, envs])
        changed = () if ratios_TE is None else (ratios_TE,)
        scan = self._gae if ratios_TE is None else self._vtrace

        def estimate(values_T1E: Tensor, gae_lambda: float) -> tuple[Tensor, Tensor]:
            rows = (rewards_TE[:, envs], values_T1E[:, envs], *ends, *changed)
            return scan(*rows, gamma=self._config.gamma, gae_lambda=gae_lambda)

        return estimate

    def _step_on(
        self,
        rollout: RolloutBuffer,
        envs: slice,
        forwards: Iterable[Forward],
        advantages_TE: Tensor,
        targets_TE: Tensor,
        moves: Tensor,
        count: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """One optimizer step on the rows of `envs`.

        Args:
            rollout: all rows.
            envs: whose rows these are.
            forwards: the model's outputs, which together cover them.
            advantages_TE: those of `envs` up to date.
            targets_TE: of the values, those of `envs` up to date.
            moves: whether the step is to be made at all.
            count: valid rows of all ranks that the gradient is the mean of.

        Returns:
            the sums of its losses over all ranks, and the norm of its gradient.
        """
        totals = torch.zeros(3, device=count.device)
        self._optimizer.zero_grad(set_to_none=True)
        learnt = (rollout.actions_TE, advantages_TE, targets_TE, rollout.valid_TE)
        for (rows, part), policy_BP, values_B in forwards:
            samples = [x[rows, part].flatten(0, 1) for x in learnt]
            sums = loss_sums(
                self._model.distribution,
                policy_BP,
                values_B,
                *samples,
                value_loss=self._config.value_loss,
            )
            loss = sums.policy + self._config.vf_coef * sums.value - self._ent_coef * sums.entropy
            if self._config.bounds_coef:
                excess = bounds_loss_sum(self._model.distribution, policy_BP, samples[-1])
                loss = loss + self._config.bounds_coef * excess
            (loss / count.clamp_min(1)).backward()
            totals += torch.stack(sums).detach()
        totals = sum_gradients(self._parameters, totals, self._ranks)
        grad_norm = clip_grad_norm(self._parameters, self._config.max_grad_norm)
        step_where(self._optimizer, self.watch.allows(moves, totals, grad_norm))
        return totals, grad_norm

    def _step_critic(
        self, rollout: RolloutBuffer, envs: slice, estimate: Estimate, moves: Tensor, count: Tensor
    ) -> None:
        """One more optimizer step of the critic alone on the rows of `envs`, after the policy's.

        Its targets are made of its values as they are by now; what the rollout holds stays what the policy learnt from.
        """
        valid_TE, chunks = rollout.valid_TE, list(rollout.chunks(self._micro_batch, envs))
        total = torch.zeros(1, device=moves.device)
        values_T1E, targets_TE = torch.empty_like(rollout.values_T1E), torch.empty_like(rollout.rewards_TE)
        for chunk in chunks:
            self._forwards.write_values(rollout, chunk, values_T1E)
        targets_TE[:, envs] = estimate(values_T1E, self._target_lambda)[1]
        self._optimizer.zero_grad(set_to_none=True)
        for chunk in chunks:
            values_B = self._forwards.values(rollout, chunk)
            targets_B, valid_B = targets_TE[chunk].flatten(), valid_TE[chunk].flatten()
            loss = value_loss_sum(values_B, targets_B, valid_B, self._config.value_loss)
            (self._config.vf_coef * loss / count.clamp_min(1)).backward()
            total += loss.detach()
        for parameter in self._actor_parameters:
            parameter.grad = None  # compiled code may have made it 0, and an optimizer would take that for a step
        total = sum_gradients(self._critic_parameters, total, self._ranks)
        grad_norm = clip_grad_norm(self._critic_parameters, self._config.max_grad_norm)
        step_where(self._optimizer, self.watch.allows(moves, total, grad_norm))

    def _rewards(self, rollout: RolloutBuffer) -> Tensor:
        """The rewards [T, E] that are learnt from."""
        rewards_TE = rollout.rewards_TE
        if self.reward_scaler is not None:
            done_TE = rollout.terminated_TE | rollout.truncated_TE
            rewards_TE = self.reward_scaler(rewards_TE, done_TE, rollout.valid_TE)
        clip = self._config.reward_clip
        return rewards_TE.clamp(-clip, clip) if clip else rewards_TE
