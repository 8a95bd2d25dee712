"""Plots of learning curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fasta2c.errors import RunError, UserError, reason
from fasta2c.fields import Unit, check
from fasta2c.run.files import check_output, temporary_beside
from fasta2c.tools.curves import METRICS, Band, Group, band, find_runs, group_runs, names_of, scaled_to_budget

Axis = Literal["env-steps", "wall-time"]
SUFFIXES = (".png", ".svg", ".pdf")
# Okabe and Ito's colours, which those who see fewer tell apart; the styles of lines serve print without any.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3)))
MOST_GROUPS = 49
MOST_COLUMNS = 3
_HOUR = 3600.0


def plot(
    run_dirs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    x: Axis = "env-steps",
    smoothing: float = 0.05,
) -> list[Path]:
    """Draw the learning curves of runs: return and episode length, a column for each environment.

    Runs that differ in nothing but their seeds become one mean with a 95 % bootstrap band, over what all of them have
    reached; of several environments there is the interquartile mean of their scaled returns too.

    Args:
        run_dirs: run directories, or folders that hold some.
        out: `.png`, `.svg` or `.pdf`; a name without any of these gets both a PNG and an SVG.
        x: what to draw over.
        smoothing: share of the x axis that is averaged over; 0 for none.

    Returns:
        the files written.

    Raises:
        UserError: a path where no run is, nothing to draw, or a file that cannot be made.
    """
    check("x", x, Axis)
    check("smoothing", smoothing, Unit)
    files = _files(Path(out))
    groups = group_runs(find_runs(map(Path, [run_dirs] if isinstance(run_dirs, str | Path) else run_dirs)))
    if (count := len(set(names_of(groups)))) > MOST_GROUPS:
        raise UserError(f"{count} settings are more than the {MOST_GROUPS} that can be told apart; plot fewer.")
    figure = _draw(groups, x, smoothing)
    for file in files:
        temporary = temporary_beside(file)
        try:
            figure.savefig(temporary, format=file.suffix[1:], dpi=150)
            temporary.replace(file)
        except OSError as error:
            raise RunError(f"{file} cannot be written ({reason(error)}).") from None
        finally:
            temporary.unlink(missing_ok=True)
    return files


def _files(out: Path) -> list[Path]:
    if out.name in ("", ".."):
        raise UserError(f"{out} is a folder; name a file in it.")
    files = [out] if out.suffix.lower() in SUFFIXES else [Path(f"{out}{suffix}") for suffix in SUFFIXES[:2]]
    if out.suffix and files != [out]:
        raise UserError(f"{out} must end in {' or '.join(SUFFIXES)}, or have no ending.")
    for file in files:
        check_output(file)
    return files


def _draw(groups: list[Group], axis: str, smoothing: float) -> Any:
    """A matplotlib figure, made without pyplot and so without a screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    envs = list(dict.fromkeys(group.env for group in groups))
    names = names_of(groups)
    settings = list(dict.fromkeys(names))
    look_of = {
        name: {"color": colour, "linestyle": style}
        for name, (colour, style) in zip(settings, looks(len(settings)), strict=True)
    }
    together = scaled_to_budget(groups) if len(envs) > 1 else {}
    count = len(envs) + bool(together)
    columns = min(count, MOST_COLUMNS)
    blocks = math.ceil(count / columns)  # of a row of returns above one of lengths
    figure = Figure(figsize=(max(5.2 * columns, 6.4), 6.4 * blocks), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2 * blocks, columns, squeeze=False)
    for place in range(columns * blocks):
        above, below = (panels[2 * (place // columns) + row][place % columns] for row in range(2))
        if place < len(envs):
            these = [(group, name) for group, name in zip(groups, names, strict=True) if group.env == envs[place]]
            for panel, metric in zip((above, below), METRICS, strict=True):
                for group, name in these:
                    _draw_group(panel, group, axis, metric, smoothing, look_of[name], _label(name, group))
                _finish(panel, metric, axis)
            above.set_title(_plain(envs[place]))
            above.set_xlabel("")
            above.legend(loc="best", fontsize="small", framealpha=0.8)
        else:
            below.set_axis_off()
            if place == len(envs) and together:
                _draw_together(above, together, smoothing, look_of)
            else:
                above.set_axis_off()
    return figure


def looks(count: int) -> list[tuple[str, Any]]:
    """Colours and styles of `count` lines, those next to each other different in both."""
    return [(COLOURS[n % len(COLOURS)], STYLES[(n + n // len(COLOURS)) % len(STYLES)]) for n in range(count)]


def _label(name: str, group: Group) -> str:
    seeds = [run.config["seed"] for run in group.runs]
    kind = "seeds" if len(set(seeds)) == len(seeds) else "runs"
    who = f"{len(seeds)} {kind}" if len(seeds) > 1 else f"seed {seeds[0]}"
    return _plain(f"{name} ({who})" if name else who)


def _plain(text: str) -> str:
    """`text` as matplotlib is to draw it, which would take what stands between dollars for a formula."""
    return text.replace("$", r"\$")


def _draw_group(
    panel: Any, group: Group, axis: str, metric: str, smoothing: float, look: dict[str, Any], label: str
) -> None:
    """Raw curves, faint; their smoothed mean, and its band."""
    curves = [(x / _HOUR if axis == "wall-time" else x, y) for x, y in (run.curve(axis, metric) for run in group.runs)]
    for x, y in curves:
        panel.plot(x, y, color=look["color"], linewidth=0.8, alpha=0.35 if len(curves) == 1 else 0.2)
    _draw_band(panel, band(curves, smoothing=smoothing), look, label)


def _draw_band(panel: Any, mean: Band, look: dict[str, Any], label: str) -> None:
    panel.plot(mean.x, mean.middle, linewidth=2.0, label=label, **look)
    if np.isfinite(mean.low).all():
        panel.fill_between(mean.x, mean.low, mean.high, color=look["color"], alpha=0.15, linewidth=0)


def _draw_together(panel: Any, curves: dict[str, Any], smoothing: float, look_of: dict[str, dict[str, Any]]) -> None:
    for name, (found, tasks) in curves.items():
        _draw_band(
            panel,
            band(found, smoothing=smoothing, tasks=tasks),
            look_of[name],
            _plain(f"{name} ({len(found)} runs)" if name else f"{len(found)} runs"),
        )
    panel.set_title("all environments")
    panel.set_xlabel("share of the longest run")
    panel.set_ylabel("interquartile mean, returns from 0 to 1")
    panel.grid(alpha=0.3)
    panel.legend(loc="best", fontsize="small", framealpha=0.8)


def _finish(panel: Any, metric: str, axis: str) -> None:
    from matplotlib.ticker import EngFormatter

    panel.grid(alpha=0.3)
    panel.set_ylabel(
        {"return": "return, mean of 100 episodes", "episode length": "episode length in env steps"}.get(metric, "")
    )
    panel.set_xlabel({"env-steps": "env steps", "wall-time": "wall time in hours"}.get(axis, ""))
    if axis == "env-steps":
        panel.xaxis.set_major_formatter(EngFormatter(sep=" "))
