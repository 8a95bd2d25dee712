"""Plays whole, unclipped games with a policy, none favoured for being short.

Shapes: E environments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fasta2c import randomness
from fasta2c.config import TrainConfig
from fasta2c.envs.base import spread_seeds
from fasta2c.envs.ids import resolve
from fasta2c.envs.make import TRAINING_ONLY, VectorEnvs, make_host_envs
from fasta2c.envs.pictures import make_drawn_envs
from fasta2c.errors import UserError
from fasta2c.fields import Count, Seed, check, checked
from fasta2c.policy import Policy, load_policy
from fasta2c.run.progress import Progress
from fasta2c.stats import bootstrap_interval

# Evaluation draws its environments' seeds from a stream that no training run uses.
_SEED_STREAM = 2**31


class Games(NamedTuple):
    """The games under way, or just over, on E environments."""

    scores: NDArray[np.float64]
    """[E] so far."""
    lengths: NDArray[np.int64]
    """[E] env steps so far."""
    counted: NDArray[np.bool_]
    """[E] whether this one is asked for, rather than played because the others are not over yet."""


@dataclass(frozen=True)
class EvalResult:
    """Scores of whole games; lengths in env steps."""

    mean_return: float
    std_return: float
    min_return: float
    max_return: float
    mean_length: float
    episodes: int
    low_return: float | None
    high_return: float | None
    """The mean's 95 % bootstrap interval; None of a single game."""


def evaluate(
    run_dir: str | Path,
    *,
    episodes: int = 100,
    checkpoint: str = "latest",
    greedy: bool = False,
    device: str = "auto",
    seed: int | None = None,
    num_envs: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> EvalResult:
    """Play `episodes` games with the policy of a run.

    Args:
        run_dir: a run directory, or a checkpoint file.
        episodes: games to play.
        checkpoint: "latest", "best" or a file's path.
        greedy: take the likeliest action instead of sampling.
        device: "auto", "cpu", "cuda" or "cuda:N".
        seed: of environments and sampling; the run's own unless given.
        num_envs: environments that share the games; at most 32 unless given.
        env_kwargs: options of the environment, laid over those that it was trained with.
        progress: show how many games have ended.

    Raises:
        UserError: no such run or device, a checkpoint that cannot be used, a count, seed or option that cannot be, or
            options that the environment does not take or that change what is observed.
    """
    episodes = checked("episodes", episodes, Count)
    num_envs, seed = checked("num_envs", num_envs, Count | None), checked("seed", seed, Seed | None)
    if env_kwargs is not None:
        check("env_kwargs", dict(env_kwargs) if isinstance(env_kwargs, Mapping) else env_kwargs, dict[str, Any])
    policy = load_policy(run_dir, checkpoint=checkpoint, device=device, seed=seed)
    num_envs = min(episodes, num_envs or 32)
    with eval_envs(policy.config, num_envs, policy.device, seed, env_kwargs=env_kwargs) as envs:
        check_fit(policy, envs, env_kwargs)
        with Progress(episodes, description="evaluating", unit="episodes", quiet=not progress) as display:
            return play(policy, envs, episodes, greedy=greedy, on_episode=counted_on(display))


def check_fit(policy: Policy, envs: VectorEnvs, env_kwargs: Mapping[str, Any] | None) -> None:
    """Raise `UserError` where `policy` was trained with other observations or actions than those of `envs`."""
    if envs.spec.fits(policy.spec):
        return
    if env_kwargs:
        raise UserError("env_kwargs: the policy was trained with other observations or actions than these give.")
    raise UserError(f"{policy.config.env} observes or takes other things by now than when the policy was trained.")


def counted_on(display: Progress) -> Callable[[float], None]:
    """Shows, told of the score of each game that has ended, how many there are and their mean."""
    ended: list[float] = []

    def show(score: float) -> None:
        ended.append(score)
        display.update(len(ended), sps=None, episode_return=sum(ended) / len(ended))

    return show


@contextmanager
def eval_envs(
    config: TrainConfig,
    num_envs: int,
    device: torch.device,
    seed: int | None = None,
    *,
    env_kwargs: Mapping[str, Any] | None = None,
    render: bool = False,
) -> Iterator[VectorEnvs]:
    """The run's environments without what only training wants (clipped rewards, lives as ends), freshly seeded.

    They may draw from generators that are not their own; after this context those go on as if nothing had been.

    Args:
        config: of the run.
        num_envs: E.
        device: where their tensors are.
        seed: of the environments; the run's own unless given.
        env_kwargs: options laid over the run's.
        render: they are to draw pictures.

    Raises:
        UserError: options that the environment does not take, or it cannot be drawn.
    """
    options = {k: v for k, v in config.env_kwargs.items() if k not in TRAINING_ONLY} | dict(env_kwargs or {})
    seed = config.seed if seed is None else seed
    seeds = spread_seeds(seed, num_envs, stream=_SEED_STREAM)
    make = make_drawn_envs if render else make_host_envs
    with randomness.kept(device):
        randomness.seed(seed)
        made = make(
            resolve(config.env),
            num_envs,
            seeds=seeds,
            options=options,
            num_threads=config.thread_count,
            device=device,
            timeout=config.env_timeout,
        )
        envs = VectorEnvs(made, device)
        try:
            yield envs
        finally:
            envs.close()


def pictures(policy: Policy, envs: VectorEnvs, rows: int) -> Iterator[NDArray[np.uint8]]:
    """Pictures of a game [height, width, 3]: of its start and of each step, to its end or for so many `rows`.

    Args:
        policy: who plays.
        envs: a single environment that draws.
        rows: the most steps.
    """
    observations, opens, over = envs.reset(), torch.ones(1, dtype=torch.bool), False
    yield envs.render()[0]
    for _ in range(rows):
        observations, _, _, _, infos = envs.step(policy.act(observations, opens=opens))
        yield envs.render()[0]
        opens, over = infos["opens"], bool(infos["game_over"])
        if over:
            return


def play(
    policy: Policy,
    envs: VectorEnvs,
    episodes: int,
    *,
    greedy: bool = False,
    on_episode: Callable[[float], None] = lambda score: None,
    on_row: Callable[[Games], None] = lambda games: None,
) -> EvalResult:
    """Play `episodes` games on `envs`, each environment a fixed share of them.

    Taking the first games to end would favour short ones; so each environment plays its share to the end, and what
    it plays beyond that is not counted.

    Args:
        policy: who plays.
        envs: where.
        episodes: games to play.
        greedy: take the likeliest action instead of sampling.
        on_episode: told the score of each game that is over and counts.
        on_row: told of all games at their start and after each step, an end included.
    """
    shares = np.full(envs.num_envs, episodes // envs.num_envs)
    shares[: episodes % envs.num_envs] += 1
    score_now = np.zeros(envs.num_envs)
    length_now = np.zeros(envs.num_envs, dtype=np.int64)
    scores: list[float] = []
    lengths: list[int] = []
    observations, opens = envs.reset(), torch.ones(envs.num_envs, dtype=torch.bool)
    on_row(Games(score_now, length_now, shares > 0))
    while shares.any():
        observations, _, _, _, infos = envs.step(policy.act(observations, greedy=greedy, opens=opens))
        opens = infos["opens"]
        valid, score, over = (infos[k].cpu().numpy() for k in ("valid", "score", "game_over"))
        score_now += np.where(valid, score, 0.0)
        length_now += valid
        on_row(Games(score_now, length_now, shares > 0))
        for e in np.flatnonzero(over & valid):
            if shares[e]:
                shares[e] -= 1
                scores.append(float(score_now[e]))
                lengths.append(int(length_now[e]))
                on_episode(scores[-1])
            score_now[e], length_now[e] = 0.0, 0
    bounded = len(scores) > 1 and all(map(math.isfinite, scores))
    low, high = (float(bound) for bound in bootstrap_interval(scores)) if bounded else (None, None)
    with np.errstate(invalid="ignore"):  # of scores that are not finite
        average, deviation = float(np.mean(scores)), float(np.std(scores))
    return EvalResult(
        mean_return=average,
        std_return=deviation,
        min_return=min(scores),
        max_return=max(scores),
        mean_length=float(np.mean(lengths)),
        episodes=len(scores),
        low_return=low,
        high_return=high,
    )
