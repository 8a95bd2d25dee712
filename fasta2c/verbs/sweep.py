"""`fasta2c sweep`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fasta2c.config import TrainConfig
from fasta2c.errors import UserError
from fasta2c.fields import Range, check_ranges
from fasta2c.flags import errors_named, json_object, parse, scan
from fasta2c.verbs.settings import base_config


@dataclass(frozen=True, kw_only=True)
class SweepFlags:
    """Search settings, each tried with every seed; called again with the same --sweep-dir it goes on."""

    space: str = ""
    """What to search, as JSON: '{"lr": [1e-4, 1e-3], "gamma": {"low": 0.9, "high": 0.999}}'; ranges not in a grid."""
    sweep_dir: Path = Path("sweep")
    """Folder of the sweep; several processes that are given the same share the work."""
    sampler: Literal["grid", "random", "tpe"] = "grid"
    """grid tries all combinations; random and tpe (tree-structured Parzen estimator) draw --trials of them."""
    trials: int | None = None
    """Settings to try; all of a grid unless given."""
    seeds: tuple[int, ...] = (0,)
    """Seeds that each setting is run with."""
    prune: bool = True
    """Give up settings that stand below the median of the others."""
    config: Path | None = None
    """YAML file of settings for every run, or a recipe's name."""
    settings: TrainConfig = field(default_factory=TrainConfig)
    """Settings of every run. The defaults shown are those of the environment given."""

    def __post_init__(self) -> None:
        check_ranges(self, {"trials": Range(1, 10**6)})


def run(argv: list[str]) -> None:
    """Search for good settings."""
    given = scan(argv, SweepFlags)
    origins = {name: g.flag for name, g in given.items()}
    for name in ("seed", "run_dir", "init_from"):
        if name in given:
            raise UserError(f"{given[name].flag} is set by the sweep; see --seeds and --sweep-dir.")
    with errors_named(origins):
        base = base_config(given, origins)
        if "space" not in given and not {"-h", "--help"} & set(argv):
            raise UserError("--space is missing; see fasta2c sweep --help.")
        flags = parse(SweepFlags, "sweep", argv, given, SweepFlags(settings=base), env_kwargs=base.env_kwargs)
        from fasta2c.tools.sweep import sweep

        tried = sweep(
            flags.settings,
            json_object(flags.space, "space", '{"lr": [1e-4, 1e-3]}'),
            flags.sweep_dir,
            seeds=flags.seeds,
            sampler=flags.sampler,
            trials=flags.trials,
            prune=flags.prune,
        )
    best = flags.sweep_dir / "best.yaml"
    for trial in tried if not flags.settings.quiet else []:
        print(trial)
    if best.exists():  # others may be at work still, or have given all of them up
        print(best if flags.settings.quiet else f"train the best:  fasta2c train --config {shlex.quote(str(best))}")
