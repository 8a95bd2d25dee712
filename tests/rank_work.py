"""What tests have several ranks do, each in a process of its own that gloo connects."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import distributed, nn

from fasta2c.config import TrainConfig
from fasta2c.distributed import ALONE, Ranks
from fasta2c.errors import RunError, UserError
from fasta2c.graphs import Graphs
from fasta2c.learning.forwards import Forwards
from fasta2c.learning.learner import Learner
from fasta2c.learning.optim import build_optimizer
from fasta2c.learning.rewards import RewardScaler
from fasta2c.models.actor_critic import ActorCritic
from fasta2c.rollout.buffer import RolloutBuffer
from fasta2c.rollout.passes import Passes
from fasta2c.spaces import spec_of

CPU = torch.device("cpu")
SPEC = spec_of(Box(-np.inf, np.inf, (5,), np.float32), Discrete(3), env_id="test")


class RankPool:
    """`count` connected ranks that do one thing after another together; a context that ends them."""

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["rank_work"])
        self._store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        port = self._store.port
        self._pipes, ends = zip(*(context.Pipe() for _ in range(count)), strict=True)
        self._processes = [
            context.Process(target=_serve, args=(rank, count, port, end), daemon=True) for rank, end in enumerate(ends)
        ]

    def __enter__(self) -> RankPool:
        for process in self._processes:
            process.start()
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    def __call__(self, work: Callable[..., Any], *args: Any) -> list[Any]:
        """What `work(ranks, *args)`, a function of an importable module, returns on each rank."""
        for pipe in self._pipes:
            pipe.send((work, args))
        told = []
        for pipe in self._pipes:
            assert pipe.poll(120), "a rank hangs"
            told.append(pipe.recv())
        failed = [text for fine, text in told if not fine]
        assert not failed, failed[0]
        return [result for _, result in told]


def _serve(rank: int, count: int, port: int, pipe: Any) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    torch.set_num_threads(1)
    ranks = Ranks.from_environment()
    ranks.connect()
    while True:
        work, args = pipe.recv()
        try:
            pipe.send((True, work(ranks, *args)))
        except Exception:
            pipe.send((False, traceback.format_exc()))


class Paired(Ranks):
    """One process that sends its messages as if there were another rank, which has nothing to say."""

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        stacked = x.new_empty((1, *x.shape))
        distributed.all_gather(list(stacked.unbind()), x)
        return stacked


def learns_alone(device_name: str) -> None:
    """Updates whose messages go round one process are those without messages, and the process then ends."""
    from fasta2c.parts import assemble, make_envs

    device = torch.device(device_name)
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    torch.backends.cudnn.deterministic = True
    normalised = {"normalize_observations": True, "normalize_rewards": True, "normalize_advantage": True}
    for settings in (normalised, {"num_minibatches": 4, "num_epochs": 2, "target_kl": 1.0}):
        config = TrainConfig(num_envs=40, lr_schedule="linear", precision="fp32", device=device_name, **settings)
        learnt = []
        for ranks in (ALONE, Paired(0, 2)):
            envs = make_envs(config, device)
            parts = assemble(config, envs, device, ranks=ranks)
            for n in range(6):
                parts.learner.update(parts.collector.collect(), n / 10)
            learnt.append(torch.cat([p.detach().flatten() for p in parts.model.parameters()]))
            parts.graphs.release()
            for group in envs:
                group.close()
        torch.testing.assert_close(*learnt, rtol=1e-4, atol=1e-5)
    distributed.destroy_process_group()
    print("learnt the same", flush=True)


class Doubled(nn.Module):
    """An encoder in whatever precision its parameters have."""

    features = 8

    def __init__(self, space: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(5, self.features)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.layer(observations.to(self.layer.weight.dtype)))


class Exact(ActorCritic):
    """The network without its step to float32 after the encoder."""

    def _encode(self, encoder: nn.Module, leaves: Any) -> torch.Tensor:
        return encoder(leaves)


def rollout(columns: list[int], num_envs: int, num_steps: int, state_size: int, dtype: torch.dtype, seed: int) -> Any:
    """Those `columns` of a rollout of `num_envs` environments; the first half of them end ten times as often."""
    rng = np.random.default_rng(seed)
    buffer = RolloutBuffer(num_steps, len(columns), SPEC, CPU, state_size=state_size)
    shape = (num_steps, num_envs)
    often = np.where(np.arange(num_envs) < num_envs // 2, 0.5, 0.05)
    ends, kind = rng.random(shape) < often, rng.random(shape)
    valid = np.ones(shape, bool)
    for t in range(num_steps):
        ends[t] &= valid[t]
        if t + 1 < num_steps:
            valid[t + 1] = ~ends[t]
    terminated, truncated = ends & (kind < 0.5), ends & (kind >= 0.5)
    values = rng.normal(size=(num_steps + 1, num_envs))
    values[1:][terminated] = np.nan  # what follows has no value
    rewards = np.where(valid, rng.normal(size=shape), np.nan)
    frames = rng.normal(3.0, 2.0, (num_steps + 1, num_envs, 5))
    filled = {
        "frames": frames,
        "fills": np.concatenate([np.zeros((1, num_envs), bool), ~valid]),
        "actions_TE": rng.integers(0, 3, shape),
        "rewards_TE": rewards,
        "terminated_TE": terminated,
        "truncated_TE": truncated,
        "valid_TE": valid,
        "values_T1E": values,
        "log_probs_TE": np.where(valid, rng.normal(-1.1, 0.1, shape), 0.0),
    }
    state = rng.normal(size=(num_envs, 64))[:, :state_size]
    for name in ("rewards_TE", "values_T1E", "log_probs_TE", "state_ES", "first_state_ES"):
        setattr(buffer, name, getattr(buffer, name).to(dtype))
    for name, array in filled.items():
        getattr(buffer, name).copy_(torch.from_numpy(array[:, columns]))
    buffer.first_state_ES.copy_(torch.from_numpy(state[columns]))
    return buffer


def learner_of(
    model: ActorCritic,
    config: TrainConfig,
    ranks: Ranks,
    *,
    micro_batch: int,
    reward_scaler: RewardScaler | None = None,
) -> Learner:
    """Learns `model` as one of `ranks`."""
    return Learner(
        model,
        build_optimizer(model, config),
        config,
        forwards=Forwards(Passes.of(model), model.distribution, micro_batch=micro_batch),
        micro_batch=micro_batch,
        threads=1,
        graphs=Graphs(CPU),
        num_minibatches=config.num_minibatches,
        reward_scaler=reward_scaler,
        ranks=ranks,
    )


def gradients(
    ranks: Ranks, settings: dict[str, Any], columns: list[list[int]], num_steps: int, dtype_name: str
) -> dict[str, Any]:
    """Two updates from `columns[rank]` of the same rollouts; the last gradient, metrics and all that was learnt."""
    dtype = getattr(torch, dtype_name)
    config = TrainConfig(encoder="rank_work:Doubled", lr=1e-3, ent_coef=0.01, **settings)
    torch.manual_seed(3)
    model = Exact(SPEC, config).to(dtype)
    own, num_envs = columns[ranks.rank], sum(map(len, columns))
    scaler = RewardScaler(len(own), config.gamma, ranks).to(dtype) if config.normalize_rewards else None
    learner = learner_of(model, config, ranks, micro_batch=2 * num_steps, reward_scaler=scaler)
    for seed in range(2):
        buffer = rollout(own, num_envs, num_steps, model.state_size, dtype, seed)
        metrics = learner.update(buffer, 0.0)
    assert learner.watch.report() is None
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]
    state = {**model.state_dict(), **({} if scaler is None else scaler.moments.state_dict(prefix="scale."))}
    return {
        "gradient": torch.cat([g.flatten() for g in grads]).double().numpy(),
        "metrics": metrics.numpy(),
        "state": {name: x.numpy() for name, x in state.items()},
    }


def bad_number(ranks: Ranks, where: str, clip: float) -> dict[str, Any]:
    """An update in which a number of rank 1's alone is infinite."""
    config = TrainConfig(reward_clip=clip)
    torch.manual_seed(3)
    model = ActorCritic(SPEC, config)
    before = [p.detach().clone() for p in model.parameters()]
    learner = learner_of(model, config, ranks, micro_batch=64)
    buffer = rollout([2 * ranks.rank, 2 * ranks.rank + 1], 4, 6, 0, torch.float32, 0)
    if ranks.rank == 1:
        buffer.valid_TE[:, 1] = True
        for name in ("rewards_TE", "values_T1E", "terminated_TE", "truncated_TE"):
            getattr(buffer, name)[:, 1] = 0
        getattr(buffer, where)[4 if where == "frames" else 3, 1] = torch.inf
    learner.update(buffer, 0.0)
    moved = any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    return {"moved": moved, "fault": learner.watch.report()}


def exchanges(ranks: Ranks, rows: list[int]) -> Any:
    """What ranks hear of each other's numbers, `rows[rank]` rows of them."""
    hear = ranks.exchange([ranks.rank, 2.5], [(n, ranks.rank + n / 8) for n in range(rows[ranks.rank])], width=2)
    ranks.all_reduce(torch.ones(3))  # something else meanwhile
    return hear()


def waits(ranks: Ranks, seconds: float) -> tuple[float, float]:
    """A sum that rank 1 comes to late: its result, and after how many seconds rank 0 heard of a signal."""
    heard = []
    signal.signal(signal.SIGUSR2, lambda *_: heard.append(time.monotonic()))
    began = time.monotonic()
    if ranks.rank == 1:
        time.sleep(seconds)
    else:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR2)).start()
    total = ranks.all_reduce(torch.ones(1)).item()
    return total, heard[0] - began if heard else seconds


def comes_apart(ranks: Ranks, run_dir: str) -> str:
    """A run whose rank 1 changes a parameter between two checkpoints; what comes of it."""
    from fasta2c.trainer import Trainer

    config = TrainConfig(num_envs=4, num_steps=4, total_steps=100, run_dir=Path(run_dir), quiet=True)
    trainer = Trainer(config, ranks=ranks)
    try:
        trainer._save()
        with torch.no_grad():
            next(trainer.parts.model.parameters())[0] += ranks.rank * 1e-7
        trainer._save()
    except RunError as error:
        return str(error)
    finally:
        trainer.close()
    return "nothing"


def is_refused(ranks: Ranks, settings: dict[str, Any], resume: Path | None) -> str:
    """What a run is refused by that rank 0 alone can tell of."""
    from fasta2c.trainer import Trainer

    try:
        Trainer(TrainConfig(num_envs=4, num_steps=4, total_steps=100, quiet=True, **settings), resume, ranks=ranks)
    except UserError as error:
        return str(error)
    return "nothing"


def recorded(ranks: Ranks, settings: dict[str, Any]) -> tuple[bool, int]:
    """Whether updates that are recorded, messages and all, make the parameters of those that are not; the replays."""
    import test_graphs

    with pytest.MonkeyPatch.context() as patch:
        expected, _, _ = test_graphs.run(6, Graphs, patch, ranks, **settings)
        found, _, graphs = test_graphs.run(6, test_graphs.StandIn, patch, ranks, **settings)
    return torch.equal(found, expected), graphs.replays


def trains(ranks: Ranks, settings: dict[str, Any], resume: Path | None) -> dict[str, Any]:
    """A run, as `fasta2c train` makes it."""
    from fasta2c.trainer import Trainer

    torch.manual_seed(0)  # whatever was done before, with the same generators
    config = TrainConfig(**settings)
    trainer = Trainer(config, resume, ranks=ranks)
    try:
        result = trainer.run()
    finally:
        trainer.close()
    return {
        "result": result,
        "parameters": {name: x.numpy() for name, x in trainer.parts.model.state_dict().items()},
        "seeds": [seed for group in trainer.parts.envs for seed in group.seeds],
        "actions_seed": trainer.parts.generator.initial_seed(),
        "episodes": trainer.collector.counts.episodes.state_dict(),
        "dropped": trainer.collector.counts.dropped,
    }
