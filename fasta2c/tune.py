"""Finds a fast number of environments, of their groups and of EnvPool's threads by trying some."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from fasta2c import accel
from fasta2c.config import TrainConfig
from fasta2c.envs.ids import resolve
from fasta2c.errors import UserError, is_out_of_memory
from fasta2c.graphs import warm_up_updates
from fasta2c.parts import Parts, assemble, make_envs

# Numbers of environments that are tried, as long as they pay.
NUM_ENVS = (16, 64, 256, 1024, 4096)
# The smallest number wins that reaches this share of the best speed: more environments mean fewer updates.
NEARLY = 0.9
# Updates that a run must have left at least, so that it can learn.
UPDATES = 200


class Trial(NamedTuple):
    """What one setting reached."""

    settings: dict[str, Any]
    """Fields of `TrainConfig`."""
    sps: float
    """Env steps a second, environments, acting and updating together."""
    seconds: float
    """What the trial took, environments made included."""

    def __str__(self) -> str:
        flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in self.settings.items())
        return f"{flags}: {self.sps:,.0f} env steps/s"


def tune(
    config: TrainConfig, device: torch.device, *, seconds: float = 45.0, say: Callable[[str], None] = lambda line: None
) -> TrainConfig:
    """`config` with a fast number of environments, and groups and threads where others than the usual were faster.

    Args:
        config: what a run is made of.
        device: where it trains.
        seconds: that the trials may take; those that would take longer are left out.
        say: told what is tried, line by line.

    Raises:
        UserError: environments that cannot be made, or more minibatches than any number of them.
    """
    trials = []
    for trial in sweep(config, device, seconds=seconds):
        trials.append(trial)
        say(f"  {trial}")
    found = choose(trials)
    say(f"taken: {found}")
    return dataclasses.replace(config, **found.settings)


def choose(trials: list[Trial]) -> Trial:
    """Of the trials nearly as fast as the fastest, the one with the fewest environments, and of these the fastest."""
    best = max(trial.sps for trial in trials)
    nearly = [trial for trial in trials if trial.sps >= NEARLY * best]
    return min(nearly, key=lambda trial: (trial.settings["num_envs"], -trial.sps))


def sweep(config: TrainConfig, device: torch.device, *, seconds: float) -> Iterator[Trial]:
    """Try numbers of environments, and with the best of them groups and threads; at least one trial is made.

    A trial is left out where it would, going by those before, exceed what is left of `seconds`.
    """
    deadline = time.perf_counter() + seconds
    trials: list[Trial] = []
    enough = [n for n in NUM_ENVS if config.minibatches(n) <= n]
    if not enough:
        raise UserError(f"num_minibatches: {config.num_minibatches} are more than any number of environments tried.")
    most = config.total_steps // (UPDATES * config.num_steps)
    for num_envs in [n for n in enough if n <= most] or enough[:1]:
        if trials and _estimate(trials[-1], num_envs) > deadline - time.perf_counter():
            break
        settings = {"num_envs": num_envs}
        trial = _try_to_fit(config, device, settings) if trials else _try(config, device, settings)
        if trial is None:
            break  # so many do not fit; those before do
        trials.append(trial)
        yield trial
        if len(trials) > 2 and max(trial.sps for trial in trials[-2:]) < trials[-3].sps:
            break  # twice in a row, more were no faster
    best = choose(trials)
    for other in _variants(config, best.settings["num_envs"]):
        if best.seconds > deadline - time.perf_counter():
            break
        trial = _try_to_fit(config, device, {"num_envs": best.settings["num_envs"], **other})
        if trial is not None:
            yield trial


def _estimate(last: Trial, num_envs: int) -> float:
    """Seconds that a trial of `num_envs` would take, were all of the last one's in proportion to its environments."""
    return last.seconds * num_envs / last.settings["num_envs"]


def _variants(config: TrainConfig, num_envs: int) -> Iterator[dict[str, Any]]:
    """Groups and threads worth a trial, where they are not given and the environments have threads of their own."""
    if not resolve(config.env).pooled:
        return
    if config.env_groups == "auto":
        yield {"env_groups": 1}
        yield {"env_groups": 2}
    if config.thread_count == 0:
        for threads in sorted({1, accel.cores() // 2} - {0, accel.cores()}):
            if threads < num_envs:
                yield {"env_threads": threads}


def _try(config: TrainConfig, device: torch.device, settings: dict[str, Any]) -> Trial:
    """Make what `settings` say and train a second or two with it; nothing of it is left."""
    began = time.perf_counter()
    try:
        sps = _measure(dataclasses.replace(config, **settings, compile=False), device)  # or each would be compiled
    finally:
        _forget(device)
    return Trial(settings, sps, time.perf_counter() - began)


def _try_to_fit(config: TrainConfig, device: torch.device, settings: dict[str, Any]) -> Trial | None:
    """As `_try`; None where memory ran out."""
    try:
        return _try(config, device, settings)
    except (MemoryError, RuntimeError, UserError) as error:
        if not is_out_of_memory(error):
            raise
    _forget(device)  # only now: the error held on to what it came from
    return None


def _forget(device: torch.device) -> None:
    """Give back the memory of what was tried, which refers to itself and may be large."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _measure(config: TrainConfig, device: torch.device) -> float:
    """Env steps a second of a run of `config`, its warm-up left out."""
    envs = make_envs(config, device)
    try:
        parts = assemble(config, envs, device)
        for _ in range(warm_up_updates(device)):
            _train(parts, 0.0)
        _train(parts, 0.3)
        return _train(parts, 1.0)
    finally:
        for group in envs:
            group.close()


def _train(parts: Parts, seconds: float) -> float:
    """Env steps a second of whole updates that take at least `seconds`."""
    start, steps = time.perf_counter(), parts.collector.counts.env_steps
    while True:
        metrics = parts.learner.update(parts.collector.collect(), 0.0)
        float(metrics[0])  # wait for the device
        if (passed := time.perf_counter() - start) >= seconds:
            return (parts.collector.counts.env_steps - steps) / passed
