"""Learning curves of runs: read, put together by what they differ in, and brought to means with bands."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fasta2c.config import RESUMABLE
from fasta2c.errors import UserError, reason, warn
from fasta2c.fields import LARGEST, show
from fasta2c.presets import PROVENANCE, read_yaml
from fasta2c.run.directory import RunDirectory
from fasta2c.stats import bootstrap_interval, interquartile_mean, mean

AXES = {"env-steps": "env_steps", "wall-time": "wall_seconds"}
METRICS = {"return": "episode_return_mean", "episode length": "episode_length_mean"}
# Points of a curve that is a mean of several, or smoothed.
POINTS = 400
# What tells two runs of one setting apart, or changes nothing of what is learnt.
_NO_SETTING = ({"env", "seed", "run_dir", "init_from"} | RESUMABLE | PROVENANCE) - {"total_steps"}


@dataclass(frozen=True)
class Run:
    """A run's metrics: columns [rows], of the rows that have all that is drawn."""

    path: Path
    config: dict[str, Any]
    """As its file has it, of whatever version."""
    columns: dict[str, NDArray[np.float64]]

    def curve(self, axis: str, metric: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """x and y [points], x rising."""
        return self.columns[AXES[axis]], self.columns[METRICS[metric]]


@dataclass(frozen=True)
class Group:
    """Runs of one environment that differ in nothing but their seeds."""

    env: str
    setting: dict[str, Any]
    runs: list[Run]


@dataclass(frozen=True)
class Band:
    """A mean over runs, smoothed, and where it lies with 95 % confidence [points]; NaN bounds of a single run."""

    x: NDArray[np.float64]
    middle: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def find_runs(paths: Iterable[Path]) -> list[Run]:
    """The runs at `paths`, and those in folders of runs, each once.

    Raises:
        UserError: a path where no run is, or a run that has nothing to show yet (in a folder of others it is left out,
            with a warning).
    """
    found: dict[str, Run] = {}
    refusal = UserError("no run is named; give run directories, or folders that hold some.")
    for path in paths:
        folders = _runs_below(path)
        for folder in folders or [path]:
            try:
                directory = RunDirectory.open(folder, lock=False)
                found.setdefault(os.path.realpath(folder), _read(directory))
            except UserError as error:
                if not folders:  # asked for by name
                    raise
                refusal = error
                warn(f"left out: {error}")
    if not found:
        raise refusal
    return list(found.values())


def _runs_below(path: Path) -> list[Path]:
    """The runs in a folder that is none itself; raises `UserError` where `path` cannot be looked into."""
    try:
        if not path.is_dir() or (path / "config.yaml").is_file():
            return []
        found: dict[str, Path] = {}
        for follows in (False, True):  # people gather runs by links; a run that is there itself keeps its name
            seen = set()
            for folder, below, files in os.walk(path, followlinks=follows):
                below.sort()
                real = os.path.realpath(folder)
                if real in seen:  # in a circle
                    below.clear()
                    continue
                seen.add(real)
                if {"config.yaml", "metrics.csv"} <= {*files}:
                    found.setdefault(real, Path(folder))
        return sorted(found.values())
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"{path} cannot be read ({reason(error)}).") from None


def _read(directory: RunDirectory) -> Run:
    config = read_yaml(directory.config_file)
    kinds = {"env": str, "seed": int}
    if missing := [name for name, kind in kinds.items() if not isinstance(config.get(name), kind)]:
        raise UserError(f"{directory.config_file} lacks {' and '.join(missing)}; give the folder of a run.")
    if odd := [key for key in config if not isinstance(key, str)]:
        raise UserError(f"{directory.config_file}: {show(odd[0])} is no setting's name; give the folder of a run.")
    needed = [*AXES.values(), *METRICS.values()]
    try:
        with directory.metrics_file.open(newline="", encoding="utf-8-sig", errors="replace") as file:
            whole = (line for line in file if "\0" not in line)  # a power cut leaves zeros
            rows = [
                [_number(row.get(name)) for name in needed] for row in csv.DictReader(whole, quoting=csv.QUOTE_NONE)
            ]
    except (OSError, csv.Error) as error:
        raise UserError(f"{directory.metrics_file} cannot be read ({reason(error)}).") from None
    table = np.array(rows, dtype=np.float64).reshape(-1, len(needed))
    table = table[(np.abs(table) <= LARGEST).all(axis=1)]
    if not len(table):
        raise UserError(
            f"{directory.path} has nothing to show yet: no episode had ended by the last row of metrics.csv."
        )
    return Run(directory.path, config, dict(zip(needed, table.T, strict=True)))


def _number(cell: str | None) -> float:
    try:
        return float(cell or "nan")
    except ValueError:
        return math.nan


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Runs by environment and setting, in the order they came."""
    groups: dict[tuple[str, str], Group] = {}
    for run in runs:
        setting = {name: value for name, value in run.config.items() if name not in _NO_SETTING}
        key = str(run.config["env"]), repr([(name, _exact(setting[name])) for name in sorted(setting)])
        groups.setdefault(key, Group(key[0], setting, [])).runs.append(run)
    return list(groups.values())


def names_of(groups: Sequence[Group]) -> list[str]:
    """For each group the settings that differ among groups of its environment (`lr 0.001, num_envs 16`), or nothing.

    What presets make different from one environment to the next does not count.
    """
    telling: list[str] = []
    for env in dict.fromkeys(group.env for group in groups):
        settings = [group.setting for group in groups if group.env == env]
        known = {name: None for setting in settings for name in setting}
        telling += [name for name in known if any(s.get(name) != settings[0].get(name) for s in settings)]
    told = list(dict.fromkeys(telling))
    return [", ".join(f"{name} {_shown(group.setting.get(name))}" for name in told) for group in groups]


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else _exact(value)


def _exact(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # Python prints no whole numbers of thousands of digits
        return show(value)


def band(
    curves: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
    *,
    smoothing: float,
    tasks: Sequence[str] | None = None,
) -> Band:
    """The mean of `curves` where all of them are; of several tasks their interquartile mean.

    Args:
        curves: x and y of each, x rising.
        smoothing: share of the x axis that is averaged over; 0 leaves curves as they are.
        tasks: which task each is of, if there are several.
    """
    start, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    grid = np.linspace(start, max(start, end), POINTS)
    smooth = np.stack([_smoothed(np.interp(grid, x, y), round(smoothing * POINTS)) for x, y in curves])
    statistic = interquartile_mean if tasks else mean
    low, high = bootstrap_interval(smooth, statistic, strata=tasks)
    return Band(grid, statistic(smooth), low, high)


def _smoothed(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Means over `window` neighbours on both sides together; fewer at the ends, as many on each side."""
    half = window // 2
    if not half:
        return values
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    reach = np.minimum(np.minimum(index, len(values) - 1 - index), half)
    return (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)


def scaled_to_budget(
    groups: Sequence[Group],
) -> dict[str, tuple[list[tuple[NDArray[np.float64], NDArray[np.float64]]], list[str]]]:
    """By name of the setting, curves of all tasks made comparable, and their tasks; settings of one task are left out.

    x is the share of the longest run of the task, y the return between the least (0) and the greatest (1) of the task.
    """
    curves: dict[str, list[tuple[NDArray[np.float64], NDArray[np.float64]]]] = {}
    tasks: dict[str, list[str]] = {}
    for env in dict.fromkeys(group.env for group in groups):
        these = [
            (group, run.curve("env-steps", "return")) for group in groups if group.env == env for run in group.runs
        ]
        longest = max(x[-1] for _, (x, _) in these)
        low, high = min(y.min() for _, (_, y) in these), max(y.max() for _, (_, y) in these)
        names = dict(zip(map(id, groups), names_of(groups), strict=True))
        for group, (x, y) in these:
            name = names[id(group)]
            curves.setdefault(name, []).append((x / max(longest, 1), (y - low) / max(high - low, 1e-12)))
            tasks.setdefault(name, []).append(env)
    return {name: (found, tasks[name]) for name, found in curves.items() if len(set(tasks[name])) > 1}
