"""`fasta2c play`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fasta2c.fields import Range, check_ranges
from fasta2c.flags import flags_of
from fasta2c.verbs.eval import PlayerFlags


@dataclass(frozen=True, kw_only=True)
class PlayFlags(PlayerFlags):
    """Film whole episodes of a run's policy, as the real game shows them."""

    run_dir: Path
    """Run directory, or a checkpoint file."""
    out: Path = Path("play.mp4")
    """The film: a .mp4 or .gif file."""
    episodes: int | None = None
    """Episodes to play; one for each environment unless given."""
    num_envs: int = 1
    """Environments shown side by side."""
    fps: float | None = None
    """Env steps shown in a second; the game's own pace unless given."""
    captions: bool = True
    """Write score and step below each picture."""

    def __post_init__(self) -> None:
        check_ranges(self, {"episodes": Range(1, 10**6), "seed": Range(0, 2**63 - 1)})


def run(argv: list[str]) -> None:
    """Film whole episodes of a trained agent."""
    with flags_of(PlayFlags, "play", argv) as flags:
        from fasta2c.tools.play import record

        film = record(
            flags.run_dir,
            flags.out,
            episodes=flags.episodes or flags.num_envs,
            num_envs=flags.num_envs,
            checkpoint=flags.checkpoint,
            greedy=flags.greedy,
            device=flags.device,
            seed=flags.seed,
            env_kwargs=flags.env_kwargs,
            fps=flags.fps,
            captions=flags.captions,
            progress=not flags.quiet,
        )
    if flags.quiet:
        print(film.path)
        return
    print(f"mean return  {film.result.mean_return:,.2f} over {film.result.episodes:,} episodes")
    print(f"film         {film.path}, {film.pictures / film.fps:,.1f} s at {film.fps:g} env steps per second")
