"""What a run is made of, put together from its configuration: environments, network, collector and learner."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from fasta2c import accel, footprint, randomness
from fasta2c.config import TrainConfig
from fasta2c.distributed import ALONE, Ranks
from fasta2c.envs.base import HostEnvs, spread_seeds
from fasta2c.envs.ids import resolve
from fasta2c.envs.make import look_up_spec, make_env_groups
from fasta2c.envs.torch import TorchEnvs
from fasta2c.errors import UserError
from fasta2c.graphs import Graphs
from fasta2c.learning.forwards import Forwards
from fasta2c.learning.learner import Learner
from fasta2c.learning.optim import build_optimizer
from fasta2c.learning.rewards import RewardScaler
from fasta2c.models.actor_critic import ActorCritic
from fasta2c.models.encoders import is_convolutional
from fasta2c.policy import build_model
from fasta2c.rollout.buffer import RolloutBuffer
from fasta2c.rollout.collector import Collector
from fasta2c.rollout.counts import Counts, Exchange
from fasta2c.rollout.passes import Passes
from fasta2c.rollout.reuse import decide
from fasta2c.spaces import Choices
from fasta2c.timing import PhaseTimer


@dataclass(frozen=True)
class Parts:
    """One run's moving parts; `learner.update(collector.collect(), progress)` is the heart of its loop."""

    envs: Sequence[HostEnvs | TorchEnvs]
    """In groups that take turns."""
    model: ActorCritic
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    """Of the actions' randomness."""
    collector: Collector
    learner: Learner
    timer: PhaseTimer
    graphs: Graphs
    """Of what collector and learner do on a GPU."""
    needs: footprint.Needs
    """The memory that it takes, beside what was free."""
    keeps_graph: bool
    """Whether the update differentiates the forward passes that acted."""
    note: str
    """What the user should know of how they were put together; empty for nothing."""


def make_envs(
    config: TrainConfig, device: torch.device, *, stream: int = 0, ranks: Ranks = ALONE
) -> list[HostEnvs | TorchEnvs]:
    """The environments of a run of `config` (its preset filled in), in groups that take turns.

    Args:
        config: names them, and says how many.
        device: where the network is.
        stream: another one means other seeds.
        ranks: share the environments out; these are this rank's.

    Raises:
        UserError: as the backends say, or settings that exclude each other.
    """
    accel.select(device)
    randomness.seed(ranks.seed(config.seed + stream))  # environments may draw from generators that are not their own
    if config.num_envs == "auto":
        raise ValueError('num_envs is "auto": fasta2c.tune.tune finds a number.')
    if config.critic_updates > 1 and config.shared:
        raise UserError("critic_updates: steps of the critic alone need a network of its own; add --no-shared.")
    if config.num_envs < ranks.world_size:
        raise UserError(f"num_envs: {config.num_envs} environments are too few for {ranks.world_size} ranks.")
    env_id, own = resolve(config.env), ranks.share(config.num_envs)
    num_envs = own.stop - own.start
    if env_id.pooled:
        spec = look_up_spec(env_id, config.env_kwargs)
        footprint.check_rollout(spec, num_envs, config.num_steps, device)
    if config.env_groups != "auto":
        groups = config.env_groups
    elif not env_id.pooled:
        groups = 1  # these step while they are waited for, or on the device
    else:
        convolutional = is_convolutional(config.encoder, spec.leaves)
        groups = accel.env_groups(num_envs, device, convolutional=convolutional)
    return make_env_groups(
        env_id,
        num_envs,
        groups=groups,
        seeds=spread_seeds(config.seed, config.num_envs, stream=stream)[own],
        options=config.env_kwargs,
        num_threads=config.thread_count,
        device=device,
        timeout=config.env_timeout,
        restart=config.restart_envs,
    )


def assemble(
    config: TrainConfig,
    envs: Sequence[HostEnvs | TorchEnvs],
    device: torch.device,
    *,
    ranks: Ranks = ALONE,
    exchange: Exchange | None = None,
    resetting: AbstractContextManager[Any] | None = None,
) -> Parts:
    """The parts of a run of `config` (its preset filled in) over groups of `envs`, fresh parameters on `device`.

    Several `ranks` begin with the same parameters, and learn the same from environments of their own; they tell each
    other what they counted by `exchange`. Inside `resetting` the environments are reset, and little else done.
    """
    if (dtype := torch.get_default_dtype()) != torch.float32:
        raise UserError(f"{config.env}: somebody has called torch.set_default_dtype({dtype}); fasta2c needs float32.")
    spec, num_envs = envs[0].spec, sum(group.num_envs for group in envs)
    num_minibatches = _minibatches(config, num_envs, ranks)
    if config.bounds_coef and isinstance(spec.actions, Choices):
        raise UserError("bounds_coef: it is for real-valued actions; these are choices.")
    accel.prepare_training(device, deterministic=config.deterministic)
    torch.manual_seed(config.seed)
    with footprint.for_network():
        model = build_model(spec, config, device)
    ranks.broadcast([*model.parameters(), *model.buffers()])
    if not ranks.leads:
        torch.manual_seed(ranks.seed(config.seed))  # from here on only environments may draw from it
    optimizer = build_optimizer(model, config)
    generator = torch.Generator(device).manual_seed(ranks.seed(config.seed))
    timer = PhaseTimer()
    micro_batch = accel.micro_batch(config.micro_batch, device, convolutional=model.convolutional)
    minibatch = config.num_steps * num_envs // num_minibatches
    at_least = config.num_steps if model.memory is not None else 1  # through which a network with memory is unrolled
    needs = footprint.needs(model, spec, num_envs, config.num_steps, samples=max(min(micro_batch, minibatch), at_least))
    footprint.check(needs)
    buffer = RolloutBuffer(config.num_steps, num_envs, spec, device, state_size=model.state_size)
    reuse = decide(
        config.reuse_forward,
        model,
        buffer,
        micro_batch=micro_batch,
        budget=accel.graph_budget(device),
        num_minibatches=num_minibatches,
        num_epochs=config.num_epochs,
    )
    # The graph that autograd keeps is made by the calls themselves, which a recording would not make again.
    graphs = Graphs(device, enabled=config.cuda_graphs and not reuse.acting, generators=[generator])
    passes = Passes.of(model, compiled=config.compile, values_later=reuse.values_later)
    with resetting or nullcontext():
        collector = Collector(
            envs,
            passes,
            model.distribution,
            buffer,
            generator=generator,
            micro_batch=micro_batch,
            timer=timer,
            graphs=graphs,
            sde_interval=config.sde_interval,
            keep_log_probs=num_minibatches * config.num_epochs > 1,
            keep_graph=reuse.acting,
            counts=Counts(num_envs, exchange),
        )
    at_once = max(group.num_envs for group in envs) if reuse.acting else min(micro_batch, minibatch)
    threads = accel.update_threads(at_once, convolutional=model.convolutional)
    learner = Learner(
        model,
        optimizer,
        config,
        forwards=Forwards(passes, model.distribution, micro_batch=micro_batch, keep_recomputed=reuse.recomputed),
        micro_batch=micro_batch,
        threads=threads,
        graphs=graphs,
        num_minibatches=num_minibatches,
        reward_scaler=RewardScaler(num_envs, config.gamma, ranks).to(device) if config.normalize_rewards else None,
        ranks=ranks,
    )
    return Parts(envs, model, optimizer, generator, collector, learner, timer, graphs, needs, reuse.acting, reuse.note)


def _minibatches(config: TrainConfig, num_envs: int, ranks: Ranks) -> int:
    """Shares that every rank's rollout is cut into, this one's having `num_envs` environments.

    Raises:
        UserError: more than a rank has environments.
    """
    if ranks.world_size == 1:
        total = fewest = num_envs
    else:
        assert isinstance(config.num_envs, int)
        total, fewest = config.num_envs, config.num_envs // ranks.world_size
    number = config.minibatches(total)
    if config.num_minibatches == "auto":
        return min(number, fewest)
    if number > fewest:
        of_a_rank = " of a rank" * (ranks.world_size > 1)
        raise UserError(f"num_minibatches: {number} are more than the {fewest} environments{of_a_rank}.")
    return number
