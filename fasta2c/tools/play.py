"""Films of a trained agent at play."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from fasta2c.envs.base import PACES
from fasta2c.errors import UserError
from fasta2c.evaluation import EvalResult, Games, check_fit, counted_on, eval_envs, play
from fasta2c.fields import Count, Range, Seed, checked
from fasta2c.policy import load_policy
from fasta2c.run.film import Film, check_film, tiled
from fasta2c.run.progress import Progress


@dataclass(frozen=True)
class Recording:
    """A film, and the games it shows."""

    path: Path
    pictures: int
    fps: float
    result: EvalResult


def record(
    run_dir: str | Path,
    out: str | Path,
    *,
    episodes: int = 1,
    num_envs: int = 1,
    checkpoint: str = "latest",
    greedy: bool = False,
    device: str = "auto",
    seed: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    fps: float | None = None,
    captions: bool = True,
    progress: bool = False,
) -> Recording:
    """Film whole games of a run's policy, as the real game shows them.

    Args:
        run_dir: a run directory, or a checkpoint file.
        out: the film, `.mp4` or `.gif`; replaced when the new one is whole.
        episodes: games to play.
        num_envs: environments side by side that share them; one that has played its share stands still.
        checkpoint: "latest", "best" or a file's path.
        greedy: take the likeliest action instead of sampling.
        device: "auto", "cpu", "cuda" or "cuda:N".
        seed: of environments and sampling; the run's own unless given.
        env_kwargs: options of the environment, laid over those that it was trained with.
        fps: env steps shown in a second; the game's own pace unless given.
        captions: write score and step below each picture.
        progress: show how many games have ended.

    Raises:
        UserError: numbers out of range, no such run, a file that cannot be made, an environment that cannot be drawn,
            or options that it does not take or that change what is observed.
        RunError: the film cannot be written to its end.
    """
    out = Path(out)
    check_film(out)
    episodes, seed = checked("episodes", episodes, Count), checked("seed", seed, Seed | None)
    num_envs = checked("num_envs", num_envs, Annotated[int, Range(1, 64)])
    fps = checked("fps", fps, Annotated[float, PACES] | None)
    if episodes < num_envs:
        raise UserError(f"episodes: {episodes} for {num_envs} environments; each needs one to show.")
    policy = load_policy(run_dir, checkpoint=checkpoint, device=device, seed=seed)
    with eval_envs(policy.config, num_envs, policy.device, seed, env_kwargs=env_kwargs, render=True) as envs:
        check_fit(policy, envs, env_kwargs)
        pace = fps or envs.fps
        with (
            Film(out, pace) as film,
            Progress(episodes, description="playing", unit="episodes", quiet=not progress) as display,
        ):
            shown = np.zeros(0, np.uint8)
            texts = [""] * num_envs

            def draw(games: Games) -> None:
                nonlocal shown
                pictures = envs.render()
                if not len(shown):
                    shown = pictures.copy()
                shown[games.counted] = pictures[games.counted]
                for e in np.flatnonzero(games.counted) if captions else ():
                    texts[e] = f"score {_plain(games.scores[e])}   step {games.lengths[e]:,}"
                film.add(tiled(shown, texts))

            result = play(policy, envs, episodes, greedy=greedy, on_episode=counted_on(display), on_row=draw)
        return Recording(out, film.pictures, pace, result)


def _plain(score: float) -> str:
    return f"{score:,.0f}" if score.is_integer() else f"{score:,.2f}"
