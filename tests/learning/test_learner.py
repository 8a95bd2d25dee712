"""One update: micro-batches add up, reset rows do not matter, the clip comes before the step."""

import math
from dataclasses import replace

import pytest
import torch
from gymnasium.spaces import Box
from helpers import env_spec, vtrace_reference

from fasta2c.config import TrainConfig
from fasta2c.graphs import Graphs
from fasta2c.learning.advantages import gae
from fasta2c.learning.forwards import Forwards
from fasta2c.learning.learner import METRICS, Learner
from fasta2c.learning.loss import loss_sums
from fasta2c.learning.optim import build_optimizer
from fasta2c.learning.rewards import RewardScaler
from fasta2c.models.actor_critic import ActorCritic
from fasta2c.rollout.buffer import RolloutBuffer
from fasta2c.rollout.passes import Passes
from fasta2c.spaces import spec_of

T, E = 5, 6
SPEC = env_spec((3,), "float32", stack=1, actions=4)


def rollout(seed=0):
    generator = torch.Generator().manual_seed(seed)
    buffer = RolloutBuffer(T, E, SPEC, torch.device("cpu"))
    buffer.frames.normal_(generator=generator)
    buffer.rewards_TE.normal_(generator=generator)
    buffer.values_T1E.normal_(generator=generator)
    buffer.actions_TE.random_(0, 4, generator=generator)
    buffer.valid_TE.fill_(True)
    return buffer


def learner(micro_batch=1024, keep_graph=True, **config):
    settings = TrainConfig(**{"lr": 0.05, "optimizer": "rmsprop", **config})
    torch.manual_seed(1)
    model = ActorCritic(SPEC, settings)
    scaler = RewardScaler(E, settings.gamma) if settings.normalize_rewards else None
    return model, learner_of(model, settings, micro_batch, keep_graph=keep_graph, reward_scaler=scaler)


def learner_of(model, settings, micro_batch, *, reward_scaler=None, keep_graph=True, **passes):
    passes = replace(Passes.of(model), **passes)
    return Learner(
        model,
        build_optimizer(model, settings),
        settings,
        forwards=Forwards(passes, model.distribution, micro_batch=micro_batch, keep_recomputed=keep_graph),
        micro_batch=micro_batch,
        threads=1,
        graphs=Graphs(torch.device("cpu")),
        num_minibatches=settings.minibatches(E),
        reward_scaler=reward_scaler,
    )


def parameters_after(buffer, micro_batch=1024, **config):
    model, learn = learner(micro_batch, **config)
    metrics = learn.update(buffer, 0.0)
    return torch.cat([p.detach().flatten() for p in model.parameters()]), metrics


@pytest.mark.parametrize("micro_batch", [1, 4, 6, 12, 13])
@pytest.mark.parametrize("normalize_advantage", [False, True])
def test_micro_batches_make_the_same_update(micro_batch, normalize_advantage):
    buffer = rollout()
    buffer.truncated_TE[1, 2] = True
    buffer.valid_TE[2, 2] = False
    options = {"ent_coef": 0.1, "normalize_advantage": normalize_advantage, "optimizer": "rmsprop-tf"}
    whole, metrics = parameters_after(buffer, **options)
    split, split_metrics = parameters_after(buffer, micro_batch, **options)
    torch.testing.assert_close(whole, split, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(metrics, split_metrics, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("poison", [math.nan, 1e6, -1e6])
@pytest.mark.parametrize("cause", ["terminated", "truncated"])
@pytest.mark.parametrize(
    "normalize",
    [
        {},
        {"normalize_advantage": True},
        {"normalize_rewards": True, "reward_clip": 1.0},
        {"shared": False, "critic_updates": 2, "critic_target": "td0"},
    ],
)
def test_a_poisoned_reset_row_moves_nothing(poison, cause, normalize):
    def make(poisoned):
        buffer = rollout()
        (buffer.terminated_TE if cause == "terminated" else buffer.truncated_TE)[1, 2] = True
        buffer.valid_TE[2, 2] = False
        if poisoned:
            buffer.rewards_TE[2, 2] = poison
            buffer.actions_TE[2, 2] = 10**9
            if cause == "terminated":
                buffer.values_T1E[2, 2] = poison
        return parameters_after(buffer, ent_coef=0.1, **normalize)

    (clean, clean_metrics), (dirty, dirty_metrics) = make(False), make(True)
    assert torch.equal(clean, dirty) and torch.isfinite(clean).all()
    assert torch.equal(clean_metrics, dirty_metrics)


def test_losses_are_means_over_valid_rows():
    """Environment 0 alone is valid: the update is that of a rollout that has no other."""
    buffer = rollout()
    buffer.valid_TE[:, 1:] = False
    alone = RolloutBuffer(T, 1, SPEC, torch.device("cpu"))
    for name in ("frames", "rewards_TE", "values_T1E", "actions_TE", "valid_TE"):
        getattr(alone, name).copy_(getattr(buffer, name)[:, :1])
    masked, masked_metrics = parameters_after(buffer, optimizer="rmsprop-tf")
    single, single_metrics = parameters_after(alone, optimizer="rmsprop-tf")
    torch.testing.assert_close(masked, single, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(masked_metrics, single_metrics, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["rmsprop", "rmsprop-tf", "adam", "muon"])
@pytest.mark.parametrize("separate", [{}, {"shared": False, "critic_updates": 2}], ids=["shared", "critic apart"])
def test_a_rollout_of_reset_rows_alone_moves_nothing_whatever_has_momentum(optimizer, separate):
    model, learn = learner(optimizer=optimizer, ent_coef=0.01, **separate)
    learn.update(acted(learn, model), 0.0)
    before = [p.detach().clone() for p in model.parameters()]
    buffer = acted(learn, model)
    buffer.valid_TE.fill_(False)
    metrics = learn.update(buffer, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert torch.isnan(metrics).all() and learn.watch.report() is None


def test_a_minibatch_of_reset_rows_alone_is_no_step_and_dilutes_no_mean():
    """Of two minibatches one has no valid row: the update is that of the other alone."""
    both = {"num_minibatches": 2, "optimizer": "adam", "ent_coef": 0.01}
    model, learn = learner(**both)
    buffer = acted(learn, model)
    buffer.valid_TE[:, E // 2 :] = False
    metrics = learn.update(buffer, 0.0)
    alone, learn_alone = learner(**{**both, "num_minibatches": 1})
    expected = learn_alone.update(buffer, 0.0)
    for found, parameter in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(found, parameter, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(metrics, expected)


def test_the_cut_is_of_what_the_scale_has_made():
    """By hand: the first rollout's returns have the deviation that scales it; what is above 1 then is cut to 1."""
    _, learn = learner(normalize_rewards=True, reward_clip=1.0, gamma=0.0)
    buffer = rollout()
    buffer.rewards_TE *= 100
    buffer.rewards_TE[0, 0] = 1e4
    scaled_TE = buffer.rewards_TE / buffer.rewards_TE.double().std(correction=0)
    assert scaled_TE.abs().max() > 1 and scaled_TE.abs().median() < 1
    torch.testing.assert_close(learn._rewards(buffer), scaled_TE.float().clamp(-1, 1))


def test_the_clip_comes_before_the_step():
    """SGD-like arithmetic: with RMSprop-TF's first step, the move is bounded by lr * norm / sqrt(alpha)."""
    buffer = rollout()
    buffer.rewards_TE *= 1e4
    model, learn = learner(optimizer="rmsprop-tf", max_grad_norm=1e-3, lr=1.0)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    grad_norm = learn.update(buffer, 0.0)[METRICS.index("grad_norm")]
    moved = (torch.cat([p.detach().flatten() for p in model.parameters()]) - before).norm()
    assert grad_norm > 1.0
    assert moved <= 1e-3 / math.sqrt(0.99) * 1.01


def acted(learn, model, seed=0):
    """A rollout whose actions' probabilities are those of `model`."""
    buffer = rollout(seed)
    with torch.no_grad():
        policy, values = model(buffer.observations(slice(0, T), slice(0, E)))
        actions = buffer.actions_TE.flatten()
        buffer.log_probs_TE.copy_(model.distribution.log_prob_and_entropy(policy, actions)[0].view(T, E))
        buffer.values_T1E[:T] = values.view(T, E)
    return buffer


def after_steps(**config):
    model, learn = learner(**config)
    metrics = learn.update(acted(learn, model), 0.0)
    return torch.cat([p.detach().flatten() for p in model.parameters()]), metrics


def test_steps_end_where_the_policy_has_gone_far_enough():
    once, once_metrics = after_steps()
    four, four_metrics = after_steps(num_epochs=4)
    near, near_metrics = after_steps(num_epochs=4, target_kl=1e-12)
    free, free_metrics = after_steps(num_epochs=4, target_kl=1e9)
    assert torch.equal(near, once) and torch.equal(near_metrics, once_metrics)
    assert torch.equal(free, four) and torch.equal(free_metrics, four_metrics)
    assert not torch.equal(once, four)


@pytest.mark.parametrize(
    ("settings", "made"),
    [
        ({"target_kl": 0.02, "lr": 0.01, "critic_updates": 2}, range(1, 2)),
        ({"target_kl": 0.02, "lr": 0.001}, range(3, 16)),
        ({"target_kl": 1.0, "lr": 1e15}, range(1, 2)),
    ],
)
def test_steps_that_are_made_in_vain_leave_nothing_behind(settings, made, monkeypatch):
    """On a GPU steps go on after the one that the policy has gone far enough with, without effect."""

    def updated(breaks_off):
        model, learn = learner(num_minibatches=2, num_epochs=8, shared=False, **settings)
        learn._breaks_off = learn.watch._on_host = breaks_off
        steps = []
        step_on = learn._step_on
        monkeypatch.setattr(learn, "_step_on", lambda *arguments: steps.append(1) or step_on(*arguments))
        metrics = learn.update(acted(learn, model), 0.0)
        assert learn.watch.report() is None and (len(steps) in made if breaks_off else len(steps) == 16)
        return torch.cat([p.detach().flatten() for p in model.parameters()]), metrics

    (found, told), (expected, right) = updated(False), updated(True)
    assert torch.equal(found, expected) and torch.equal(told, right)


def test_what_no_step_was_made_of_is_in_no_mean():
    """Of two minibatches the second is left out: the means are those of a rollout of the first alone."""
    first, metrics = after_steps(num_minibatches=2, target_kl=1e-12)
    model, learn = learner()
    half = RolloutBuffer(T, E // 2, SPEC, torch.device("cpu"))
    whole = acted(learn, model)
    for name in ("frames", "rewards_TE", "values_T1E", "actions_TE", "valid_TE", "log_probs_TE"):
        getattr(half, name).copy_(getattr(whole, name)[:, : E // 2])
    half_metrics = learn.update(half, 0.0)
    torch.testing.assert_close(first, torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(metrics, half_metrics)


def test_a_step_that_is_too_far_is_not_made_where_the_device_is_not_asked():
    """On a GPU all steps are recorded, and those left out move nothing."""
    model, learn = learner()
    buffer = acted(learn, model)
    before = [p.detach().clone() for p in model.parameters()]
    forwards = learn._forwards.acted(buffer, slice(0, E))
    advantages, returns = torch.ones(T, E), torch.ones(T, E)
    count = torch.tensor(T * E)
    sums, _ = learn._step_on(buffer, slice(0, E), forwards, advantages, returns, torch.tensor(False), count)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)) and sums.all()


@pytest.mark.parametrize("micro_batch", [1024, 7])
def test_means_beyond_their_bounds_are_drawn_back_with_the_weight_given(micro_batch):
    """No advantages, and values without weight: what is left of the gradient is the bounds'."""
    spec = spec_of(Box(-9, 9, (3,)), Box(-2, 2, (2,)), env_id="test", stack=1)
    settings = TrainConfig(bounds_coef=0.3, vf_coef=0.0, lr=0.05)
    model = ActorCritic(spec, settings)
    with torch.no_grad():
        model.policy_head.bias.copy_(torch.tensor([3.0, -0.5]))
    buffer = RolloutBuffer(T, E, spec, torch.device("cpu"))
    buffer.frames.normal_(generator=torch.Generator().manual_seed(0))
    buffer.valid_TE.fill_(True)
    buffer.valid_TE[2, 3:] = False
    means_BD = model(buffer.frames[:T].flatten(0, 1))[0][:, :2]
    beyond_B = ((means_BD - 1).clamp(min=0) ** 2 + (-1 - means_BD).clamp(min=0) ** 2).sum(dim=1)
    expected = 0.3 * beyond_B[buffer.valid_TE.flatten()].mean()
    gradient = torch.autograd.grad(expected, [*model.policy_head.parameters(), *model.encoder.parameters()])
    learn = learner_of(model, settings, micro_batch)
    metrics = dict(zip(METRICS, learn.update(buffer, 0.0).tolist(), strict=True))
    assert metrics["grad_norm"] == pytest.approx(torch.cat([g.flatten() for g in gradient]).norm().item(), rel=1e-5)
    assert model.policy_head.bias[0] < 3.0 and model.policy_head.bias[1] == -0.5


def test_the_learning_rate_follows_its_schedule():
    before, _ = learner(lr_schedule="linear")
    model, learn = learner(lr_schedule="linear")
    learn.update(rollout(), 1.0)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), model.parameters(), strict=True))


def test_the_critic_alone_learns_values_when_separate():
    model, learn = learner(shared=False, vf_coef=0.0)
    before = [p.detach().clone() for p in model.critic_parameters()]
    learn.update(rollout(), 0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.critic_parameters(), strict=True))


def test_rewards_are_scaled_and_then_cut():
    """What is learnt from rewards of 100 that are cut at 1 is what is learnt from ones."""
    large, small = rollout(), rollout()
    large.rewards_TE.fill_(100.0)
    small.rewards_TE.fill_(1.0)
    assert torch.equal(parameters_after(large, reward_clip=1.0)[0], parameters_after(small)[0])
    scaled = parameters_after(large, normalize_rewards=True)[0]
    by_hand = RewardScaler(E, 0.99)(large.rewards_TE, large.terminated_TE, large.valid_TE)
    large.rewards_TE.copy_(by_hand)
    assert torch.equal(parameters_after(large)[0], scaled)


def test_observations_count_only_once_the_update_is_made():
    """Within a rollout all is normalised alike; the next one knows of this one's observations."""
    model, learn = learner(micro_batch=7, normalize_observations=True)
    plain, learn_plain = learner(micro_batch=7)
    buffer = rollout()
    buffer.terminated_TE[1, 2] = True
    buffer.valid_TE[2, 2] = False
    metrics, expected = learn.update(buffer, 0.0), learn_plain.update(buffer, 0.0)
    torch.testing.assert_close(metrics, expected)  # before the first update mean and variance are 0 and 1
    seen = buffer.observations(slice(0, T), slice(0, E)).double()[buffer.valid_TE.flatten()]
    assert model.moments.count == len(seen) < T * E
    torch.testing.assert_close(model.moments.mean_D, seen.mean(dim=0))
    torch.testing.assert_close(model.moments.variance_D, seen.var(dim=0, correction=0))


def one_by_one(buffer, settings, steps):
    """The parameters after `steps` (slices of environments): each an update by the definition, in plain sums."""
    torch.manual_seed(1)
    model = ActorCritic(SPEC, settings)
    optimizer = build_optimizer(model, settings)
    values = buffer.values_T1E.clone()
    for number, envs in enumerate(steps):
        policies, fresh = [], []
        for t in range(T + 1):
            policy, value = model(buffer.observations(slice(t, t + 1), envs))
            policies.append(policy)
            fresh.append(value)
        log_probs, entropies = model.distribution.log_prob_and_entropy(
            torch.cat(policies[:T]), buffer.actions_TE[:, envs].flatten()
        )
        ratios = torch.ones(T, envs.stop - envs.start)
        if number:  # only the first is by the policy that acted
            values[:, envs] = torch.stack(fresh).detach()
            ratios = (log_probs.detach().view_as(ratios) - buffer.log_probs_TE[:, envs]).exp()
        rows = [x[:, envs].numpy() for x in (buffer.rewards_TE, values, buffer.terminated_TE, buffer.truncated_TE)]
        advantages = torch.tensor(vtrace_reference(*rows, ratios.numpy(), settings.gamma, settings.gae_lambda)).float()
        valid = buffer.valid_TE[:, envs].flatten()
        target_lambda = {"gae": settings.gae_lambda, "nstep": 1.0, "td0": 0.0}[settings.critic_target]
        errors = torch.tensor(vtrace_reference(*rows, ratios.numpy(), settings.gamma, target_lambda)).float()
        targets = (errors + values[:T, envs]).flatten()
        loss = (
            -(log_probs * advantages.flatten())[valid].mean()
            + settings.vf_coef * 0.5 * (torch.cat(fresh[:T]) - targets)[valid].square().mean()
            - settings.ent_coef * entropies[valid].mean()
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
        for _ in range(settings.critic_updates - 1):
            fresh = torch.stack([model.values(buffer.observations(slice(t, t + 1), envs)) for t in range(T + 1)])
            rows[1] = fresh.detach().numpy()
            errors = torch.tensor(vtrace_reference(*rows, ratios.numpy(), settings.gamma, target_lambda)).float()
            wrong = (fresh[:T] - fresh[:T].detach() - errors).flatten()
            optimizer.zero_grad()
            (settings.vf_coef * 0.5 * wrong[valid].square().mean()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
            optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("keep_graph", [True, False])
@pytest.mark.parametrize("micro_batch", [1024, 4])
@pytest.mark.parametrize(("num_minibatches", "num_epochs"), [(1, 1), (2, 1), (4, 1), (1, 2), (3, 3)])
def test_minibatches_are_steps_of_their_own(num_minibatches, num_epochs, micro_batch, keep_graph):
    buffer = rollout()
    buffer.log_probs_TE.copy_(torch.linspace(-3, 0, T * E).view(T, E))
    buffer.truncated_TE[1, 2] = buffer.terminated_TE[2, 5] = True
    buffer.valid_TE[2, 2] = buffer.valid_TE[3, 5] = False
    options = {"num_minibatches": num_minibatches, "num_epochs": num_epochs, "ent_coef": 0.1, "lr": 0.01}
    bounds = [E * n // num_minibatches for n in range(num_minibatches + 1)]
    steps = [slice(*pair) for pair in zip(bounds, bounds[1:], strict=False)] * num_epochs
    expected = one_by_one(buffer, TrainConfig(optimizer="rmsprop-tf", **options), steps)
    got, metrics = parameters_after(buffer, micro_batch, optimizer="rmsprop-tf", keep_graph=keep_graph, **options)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(metrics).all()


@pytest.mark.parametrize("micro_batch", [1024, 4])
@pytest.mark.parametrize(("num_minibatches", "num_epochs"), [(1, 1), (2, 2)])
@pytest.mark.parametrize("critic_updates", [1, 3])
@pytest.mark.parametrize("critic_target", ["gae", "nstep", "td0"])
def test_the_critic_has_targets_and_steps_of_its_own(
    critic_target, critic_updates, num_minibatches, num_epochs, micro_batch
):
    buffer = rollout()
    buffer.log_probs_TE.copy_(torch.linspace(-3, 0, T * E).view(T, E))
    buffer.truncated_TE[1, 2] = buffer.terminated_TE[2, 5] = True
    buffer.valid_TE[2, 2] = buffer.valid_TE[3, 5] = False
    options = {"num_minibatches": num_minibatches, "num_epochs": num_epochs, "gae_lambda": 0.7, "lr": 0.01}
    options |= {"critic_target": critic_target, "critic_updates": critic_updates, "shared": False}
    options |= {"optimizer": "rmsprop-tf"}
    steps = [slice(0, E)] if num_minibatches == 1 else [slice(0, E // 2), slice(E // 2, E)] * num_epochs
    expected = one_by_one(buffer, TrainConfig(**options), steps)
    got, metrics = parameters_after(buffer, micro_batch, **options)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(metrics).all()


def test_further_steps_of_the_critic_leave_the_actor():
    def actor_and_critic(**config):
        model, learn = learner(shared=False, optimizer="adam", **config)
        learn.update(rollout(), 0.0)
        return [torch.cat([p.flatten() for p in part()]) for part in (model.actor_parameters, model.critic_parameters)]

    (actor, critic), (same, other) = actor_and_critic(), actor_and_critic(critic_updates=2)
    assert torch.equal(actor, same) and not torch.equal(critic, other)


def test_further_steps_are_not_made_where_the_numbers_are_bad():
    buffer = rollout()
    buffer.rewards_TE[0, 0] = math.nan
    model, learn = learner(shared=False, critic_updates=3)
    before = [p.detach().clone() for p in model.parameters()]
    learn.update(buffer, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_poisoned_reset_row_moves_nothing_by_vtrace():
    def make(poison):
        buffer = rollout()
        buffer.terminated_TE[1, 2] = True
        buffer.valid_TE[2, 2] = False
        for x in (buffer.rewards_TE, buffer.values_T1E, buffer.log_probs_TE):
            x[2, 2] = poison
        return parameters_after(buffer, ent_coef=0.1, num_minibatches=2, num_epochs=2)[0]

    clean = make(0.0)
    assert torch.isfinite(clean).all()
    for poison in (math.nan, math.inf, -1e6):
        assert torch.equal(clean, make(poison))


@pytest.mark.parametrize(
    "again",
    [
        {"num_epochs": 2},
        {"critic_updates": 2, "shared": False},
        {"num_epochs": 2, "critic_updates": 2, "shared": False},
    ],
)
@pytest.mark.parametrize("keep_graph", [True, False])
def test_a_second_step_of_a_network_with_memory_unrolls_it_anew(keep_graph, again):
    """With a learning rate of 0 a second step's values, the one after the last row too, are those of the first."""
    settings = TrainConfig(recurrent="gru", recurrent_size=5, optimizer="adam", lr=1e-30, **again)
    torch.manual_seed(1)
    model = ActorCritic(SPEC, settings)
    buffer = rollout_of(model)
    buffer.first_state_ES.normal_(generator=torch.Generator().manual_seed(3))
    buffer.fills[2, 1] = True
    rows = slice(0, T + 1), slice(0, E)
    policies, values, _ = model.unroll(buffer.observations(*rows), buffer.first_state_ES, buffer.opens(*rows))
    expected = values.detach().view(T + 1, E)
    log_probs, _ = model.distribution.log_prob_and_entropy(policies[: T * E], buffer.actions_TE.flatten())
    buffer.log_probs_TE.copy_(log_probs.detach().view(T, E))
    learn = learner_of(model, settings, 2 * T, keep_graph=keep_graph)
    buffer.values_T1E.copy_(expected)
    metrics = dict(zip(METRICS, learn.update(buffer, 0.0).tolist(), strict=True))
    torch.testing.assert_close(buffer.values_T1E, expected)
    learn._forwards.write_values(buffer, (slice(0, T), slice(0, E)), again := torch.empty_like(expected))
    torch.testing.assert_close(again.detach(), expected)
    advantages, _ = gae(
        buffer.rewards_TE, expected, buffer.terminated_TE, buffer.truncated_TE, gamma=0.99, gae_lambda=0.95
    )
    # Both epochs have the ratios 1, and so this loss.
    assert metrics["policy_loss"] == pytest.approx(-(buffer.log_probs_TE * advantages).mean().item(), rel=1e-4)


def rollout_of(model):
    """The same as `rollout`, with room for what a network with memory remembers."""
    buffer, whole = RolloutBuffer(T, E, SPEC, torch.device("cpu"), state_size=model.state_size), rollout()
    for name in ("frames", "rewards_TE", "values_T1E", "actions_TE", "valid_TE"):
        getattr(buffer, name).copy_(getattr(whole, name))
    return buffer


@pytest.mark.parametrize("optimizer", ["adam", "muon", "rmsprop-tf"])
def test_steps_of_the_critic_alone_leave_the_actor_though_its_gradients_are_zeros(optimizer):
    """Compiled code gives parameters that a loss does not depend on gradients of 0, where plain code gives none."""

    def learnt(as_compiled):
        settings = TrainConfig(
            recurrent="gru", recurrent_size=5, shared=False, critic_updates=3, optimizer=optimizer, lr=0.05
        )
        torch.manual_seed(1)
        model = ActorCritic(SPEC, settings)

        def unroll(*arguments):
            policy, values, state = model.unroll(*arguments)
            return policy, values + 0.0 * policy.sum() if as_compiled else values, state

        buffer = rollout_of(model)
        learn = learner_of(model, settings, 2 * T, unroll=unroll)
        for _ in range(2):
            learn.update(buffer, 0.0)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(learnt(True), learnt(False))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_backpropagation_goes_through_all_rows(kind, shared):
    """Against one graph of row-by-row calls: the gradient of the whole rollout, in micro-batches of environments."""
    settings = TrainConfig(
        recurrent=kind, recurrent_size=5, shared=shared, optimizer="rmsprop", max_grad_norm=1e9, lr=0.05
    )
    torch.manual_seed(1)
    model = ActorCritic(SPEC, settings)
    generator = torch.Generator().manual_seed(3)
    buffer = rollout_of(model)
    buffer.first_state_ES.normal_(generator=generator)
    buffer.fills[2, 1] = buffer.fills[1, 4] = True
    state, policies, values = buffer.first_state_ES, [], []
    for t in range(T):
        rows = slice(t, t + 1), slice(0, E)
        policy, value, state = model.unroll(buffer.observations(*rows), state, buffer.opens(*rows))
        policies.append(policy)
        values.append(value)
    advantages, returns = gae(
        buffer.rewards_TE, buffer.values_T1E, buffer.terminated_TE, buffer.truncated_TE, gamma=0.99, gae_lambda=0.95
    )
    sums = loss_sums(
        model.distribution,
        torch.cat(policies),
        torch.cat(values),
        *(x.flatten() for x in (buffer.actions_TE, advantages, returns, buffer.valid_TE)),
        value_loss="mse",
    )
    ((sums.policy + 0.5 * sums.value) / (T * E)).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    norm = torch.cat([g.flatten() for g in expected.values()]).norm()
    learn = learner_of(model, settings, 2 * T)
    metrics = dict(zip(METRICS, learn.update(buffer, 0.0).tolist(), strict=True))
    assert metrics["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-4, atol=1e-6)


def test_explained_variance_is_of_the_values_acted_by_and_of_returns():
    """Whatever the critic learns, and however often: not of what it has just been fitted to."""
    found = [
        parameters_after(rollout(), shared=False, **config)[1][METRICS.index("explained_variance")]
        for config in ({}, {"critic_target": "td0"}, {"critic_target": "nstep", "critic_updates": 4})
    ]
    buffer = rollout()
    _, returns = gae(
        buffer.rewards_TE, buffer.values_T1E, buffer.terminated_TE, buffer.truncated_TE, gamma=0.99, gae_lambda=0.95
    )
    expected = 1 - (returns - buffer.values_T1E[:-1]).var() / returns.var()
    torch.testing.assert_close(torch.stack(found), expected.expand(3), rtol=1e-4, atol=1e-5)
