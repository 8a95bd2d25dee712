"""`fasta2c train`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fasta2c.config import TrainConfig
from fasta2c.flags import errors_named, parse, scan
from fasta2c.verbs.settings import base_config

if TYPE_CHECKING:  # it imports torch, which a misspelt flag needs none of
    from fasta2c.records import TrainResult


@dataclass(frozen=True, kw_only=True)
class TrainFlags:
    """Train an agent. Later ones win: defaults, the environment's preset, --config, flags."""

    config: Path | None = None
    """YAML file of settings, such as a run's config.yaml, or a recipe's name; over the preset, below flags."""
    resume: Path | None = None
    """Run directory to go on with; the run may be made longer, not learn differently."""
    settings: TrainConfig = field(default_factory=TrainConfig)
    """What a run is made of. The defaults shown are those of the environment given, or of the run resumed."""


def run(argv: list[str]) -> None:
    """Train an agent."""
    given = scan(argv, TrainFlags)
    origins = {name: g.flag for name, g in given.items()}
    with errors_named(origins):
        base = base_config(given, origins)
        flags = parse(TrainFlags, "train", argv, given, TrainFlags(settings=base), env_kwargs=base.env_kwargs)
        from fasta2c.distributed import Ranks
        from fasta2c.launch import train

        config = flags.settings
        result = train(config) if flags.resume is None else train(config, resume=flags.resume)
    ranks = Ranks.from_environment()
    if not ranks.leads:
        return
    if config.quiet:
        print(result.run_dir)
        return
    mean, best = (f"{r:,.2f}" if r is not None else None for r in (result.mean_return, result.best_return))
    games = f"{n} games" if (n := min(result.episodes, 100)) > 1 else "game"
    print(f"mean return    {f'{mean} over the last {games} (best {best})' if mean else 'no episode has ended'}")
    speed = f"{result.sps:,.0f} env steps per second, " if result.sps else ""
    print(f"speed          {speed}{result.env_steps:,} env steps in all")
    if result.warm_up_seconds > 1:
        print(f"warm-up        {result.warm_up_seconds:,.1f} s, compilation included, not in the speed")
    if (report := result.time_report) is not None:
        print(f"time           {report.shares}")
        print(f"limit          {report.limit}")
        print(f"advice         {report.advice}")
    run_dir = shlex.quote(str(result.run_dir))
    print(f"run directory  {result.run_dir}")
    print(f"evaluate it:   fasta2c eval {run_dir}")
    print(f"go on with it: {ranks.program} train --resume {run_dir}{_further(config, result)}")


def _further(config: TrainConfig, result: TrainResult) -> str:
    """The flags without which a run that has ended would end again at once."""
    flags, steps, target = "", config.total_steps, config.stop_at_return
    while steps <= result.env_steps:
        steps *= 2
        flags = f" --total-steps {steps}"
    if target is not None and result.mean_return is not None and result.mean_return >= target:
        flags += " --stop-at-return None"
    return flags
