"""`fasta2c eval`, and how a trained agent plays for any verb."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fasta2c.errors import UserError
from fasta2c.fields import Range, check_ranges
from fasta2c.flags import flags_of
from fasta2c.run.files import finite

if TYPE_CHECKING:
    from fasta2c.evaluation import EvalResult


@dataclass(frozen=True, kw_only=True)
class PlayerFlags:
    """How a trained agent plays."""

    checkpoint: str = "latest"
    """latest, best, or a file."""
    greedy: bool = False
    """Take the likeliest action instead of sampling."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda or cuda:N."""
    seed: int | None = None
    """Seed of environments and sampling; the run's own unless given."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Options of the environment as JSON, laid over those it was trained with."""
    quiet: bool = False
    """Show no progress."""


@dataclass(frozen=True, kw_only=True)
class EvalFlags(PlayerFlags):
    """Play whole, unclipped episodes with a run's policy, none favoured for being short. Several runs get a table."""

    run_dir: tuple[Path, ...]
    """Run directories, or checkpoint files."""
    episodes: int = 100
    """Episodes to play with each."""
    num_envs: int | None = None
    """Environments that share the episodes; at most 32 unless given."""
    json: bool = False
    """Print one JSON object; of several runs, a list of them."""

    def __post_init__(self) -> None:
        check_ranges(self, {"episodes": Range(1, 10**9), "num_envs": Range(1, 10**6), "seed": Range(0, 2**63 - 1)})


def run(argv: list[str]) -> None:
    """Play whole episodes with trained agents."""
    with flags_of(EvalFlags, "eval", argv) as flags:
        if not flags.run_dir:
            raise UserError("RUN_DIR is missing; see fasta2c eval --help.")
        from fasta2c.evaluation import evaluate
        from fasta2c.run import checkpoint

        for run_dir in flags.run_dir:
            checkpoint.resolve(run_dir, flags.checkpoint)  # a mistake in the last shows before the first has played
        # What environments print must not get between what a program is to read.
        with contextlib.redirect_stdout(sys.stderr) if flags.json else contextlib.nullcontext():
            results = [
                evaluate(
                    run_dir,
                    episodes=flags.episodes,
                    checkpoint=flags.checkpoint,
                    greedy=flags.greedy,
                    device=flags.device,
                    seed=flags.seed,
                    num_envs=flags.num_envs,
                    env_kwargs=flags.env_kwargs,
                    progress=not (flags.json or flags.quiet),
                )
                for run_dir in flags.run_dir
            ]
    told = [dataclasses.asdict(result) for result in results]
    if len(told) > 1:
        told = [{"run_dir": str(run_dir), **values} for run_dir, values in zip(flags.run_dir, told, strict=True)]
    if flags.json:
        print(json.dumps(finite(told[0] if len(told) == 1 else told), allow_nan=False))
        return
    if len(told) > 1:
        print(_table(flags.run_dir, results))
        return
    (result,) = results
    print(f"mean return  {result.mean_return:,.2f} ± {result.std_return:,.2f} (standard deviation)")
    if result.low_return is not None:
        print(f"             {result.low_return:,.2f} to {result.high_return:,.2f} with 95 % confidence")
    print(f"range        {result.min_return:,.2f} to {result.max_return:,.2f}")
    print(f"mean length  {result.mean_length:,.1f} env steps")
    print(f"episodes     {result.episodes:,}")


def _table(run_dirs: Sequence[Path], results: Sequence[EvalResult]) -> str:
    """Results of several runs, a line each."""
    rows = [("run", "mean return", "95 % of means", "deviation", "range", "length", "episodes")]
    for run_dir, r in zip(run_dirs, results, strict=True):
        interval = f"{r.low_return:,.2f} to {r.high_return:,.2f}" if r.low_return is not None else ""
        span = f"{r.min_return:,.2f} to {r.max_return:,.2f}"
        numbers = (f"{r.mean_return:,.2f}", interval, f"{r.std_return:,.2f}", span, f"{r.mean_length:,.1f}")
        rows.append((str(run_dir), *numbers, f"{r.episodes:,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
    return "\n".join("  ".join(line) for line in lines)
