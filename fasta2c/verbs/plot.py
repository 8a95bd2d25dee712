"""`fasta2c plot`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fasta2c.errors import UserError
from fasta2c.fields import Range, check_ranges
from fasta2c.flags import flags_of


@dataclass(frozen=True, kw_only=True)
class PlotFlags:
    """Draw learning curves: return and episode length; seeds of one setting become a mean with a 95 % band."""

    run_dir: tuple[Path, ...]
    """Run directories, or folders that hold some."""
    out: Path = Path("plot")
    """The plot: a .png, .svg or .pdf file; without an ending both a .png and an .svg."""
    x: Literal["env-steps", "wall-time"] = "env-steps"
    """What to draw over."""
    smoothing: float = 0.05
    """Share of the x axis that is averaged over; 0 for none."""

    def __post_init__(self) -> None:
        check_ranges(self, {"smoothing": Range(0, 1)})


def run(argv: list[str]) -> None:
    """Draw learning curves of runs."""
    with flags_of(PlotFlags, "plot", argv) as flags:
        if not flags.run_dir:
            raise UserError("RUN_DIR is missing; see fasta2c plot --help.")
        from fasta2c.tools.plot import plot

        for file in plot(flags.run_dir, flags.out, x=flags.x, smoothing=flags.smoothing):
            print(file)
