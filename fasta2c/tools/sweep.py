"""Searches for settings: a grid, random or TPE, each setting with every seed."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import math
import re
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import yaml

from fasta2c import accel, custom
from fasta2c.callbacks import Callback
from fasta2c.config import TrainConfig, from_plain, to_dict, to_plain
from fasta2c.envs.ids import resolve
from fasta2c.envs.make import look_up_spec
from fasta2c.errors import DiskError, RunError, UserError, did_you_mean, reason, warn
from fasta2c.fields import Count, Seed, check, checked, kind_of, plain, show
from fasta2c.launch import train
from fasta2c.presets import load_preset
from fasta2c.run.files import write_atomically
from fasta2c.run.progress import Progress
from fasta2c.tools.plot import plot
from fasta2c.tools.study import database_errors_told, ended, join, next_trial, open_study
from fasta2c.trainer import Trainer

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

Sampler = Literal["grid", "random", "tpe"]
# What a sweep sets itself, or what would make scores incomparable.
_NOT_SEARCHED = frozenset({"env", "seed", "run_dir", "init_from", "quiet", "total_steps", "stop_at_return", "wandb"})
# How often in each run it is asked whether the setting is worth going on with.
REPORTS = 10
# The best of which learning curves are drawn.
DRAWN = 5


@dataclass(frozen=True)
class Trial:
    """A setting that was tried."""

    values: dict[str, Any]
    """Of what was searched."""
    scores: list[float]
    """The mean return of the last 100 games by seed; the last of a pruned one is what it stood at."""
    state: str
    """complete, pruned (given up) or fail."""
    runs: list[Path]
    failure: str = ""
    """Why it failed."""

    @property
    def mean(self) -> float:
        """Of the scores; minus infinity without any."""
        return statistics.fmean(self.scores) if self.scores else -math.inf

    def __str__(self) -> str:
        told = ", ".join(f"{name} {value}" for name, value in self.values.items())
        spread = f" ± {statistics.stdev(self.scores):,.2f}" if len(self.scores) > 1 else ""
        if self.state == "fail":
            return f"failed  {told}: {self.failure}"
        return f"{self.mean:,.2f}{spread}  {told}" + ("  (given up)" if self.state == "pruned" else "")


def sweep(
    config: TrainConfig,
    space: Mapping[str, Any],
    folder: str | Path,
    *,
    seeds: Sequence[int] = (0,),
    sampler: Sampler = "grid",
    trials: int | None = None,
    prune: bool = True,
) -> list[Trial]:
    """Try settings, each with every seed, and tell by the mean return of the last 100 games which is best.

    All of it is kept in `folder`. Called again with the same arguments it goes on, after a kill too, and several
    processes that are given the same folder share the work.

    Args:
        config: of every run; fields that were not given take the environment's preset.
        space: by field of `TrainConfig` a list of values, or `{"low": …, "high": …}`, with `"log": true` where it is
            the magnitude that counts.
        folder: holds the study, the runs, and what came of them: `trials.csv`, `best.yaml` and `curves.png`.
        seeds: of each setting's runs.
        sampler: "grid" tries all combinations of lists; "random" and "tpe" (tree-structured Parzen estimator) draw.
        trials: how many settings are tried, in all processes and calls together; all of a grid unless given.
        prune: give up settings that stand below the median of what others had at the same time.

    Returns:
        what was tried, the best first.

    Raises:
        UserError: a field or value that cannot be, or a folder of something else.
        RunError: nothing that was tried came to an end, or the disk refused; with room again, the same call goes on.
        Stopped: a signal ended it.
    """
    _check_optuna()
    check("sampler", sampler, Sampler)
    env_id = resolve(config.env)
    config = config.with_preset(load_preset(env_id.family, env_id.name))
    seeds = [checked("seeds", seed, Seed) for seed in _listed("seeds", seeds)]
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError("seeds: at least one is needed, and none twice.")
    trials = checked("trials", trials, Count | None)
    space = _checked(space, config, sampler)
    if config.num_envs == "auto" or "auto" in space.get("num_envs", ()):
        raise UserError("num_envs: auto would choose anew for each run; give a number.")
    if sampler == "grid":
        size = math.prod(len(values) for values in space.values())
        trials = min(trials or size, size)
    elif trials is None:
        raise UserError(f"trials: {sampler} has no end; say how many settings it is to try.")
    _check_shared(config, space)
    folder = Path(folder)
    about = {"config": _shared(config), "space": dict(space), "seeds": list(seeds), "sampler": sampler}
    with (
        join(folder, about) as worker,
        database_errors_told(folder),
        Progress(trials, description="sweep", unit="settings", quiet=config.quiet) as shown,
    ):
        study = open_study(folder, sampler, prune)
        shown.say(f"{config.env}: {trials} settings with {len(seeds)} seeds each, in {folder}")
        shown.update(len(ended(study)))
        while (trial := next_trial(study, folder, space, worker, trials, grid=sampler == "grid")) is not None:
            _run(study, trial, config, seeds, folder, prune)
            shown.say(str(_told(study.trials[trial.number], folder)))
            shown.update(len(ended(study)))
        tried = _conclude(study, config, folder)
    if len(tried) >= trials and all(trial.state == "fail" for trial in tried):  # else others are at work still
        raise RunError(f"no setting came to an end ({folder / 'trials.csv'} has why): {tried[0].failure}")
    return tried


def _check_optuna() -> None:
    try:
        import optuna
    except ModuleNotFoundError:
        raise UserError("sweeps are kept by optuna: pip install '.[sweep]' in its source folder.") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def _checked(space: Mapping[str, Any], config: TrainConfig, sampler: Sampler) -> dict[str, Any]:
    """`space`, the ends of ranges as its fields have them, whole or real.

    Raises `UserError` for a field that there is not, and for values that it does not take.
    """
    found = {}
    if not isinstance(space, Mapping) or not space:
        raise UserError("space: nothing to search; write something like '{\"lr\": [1e-4, 1e-3]}'.")
    for name, given in sorted(space.items(), key=lambda item: str(item[0])):  # one and the same in any order
        if name not in to_dict(config) or name in _NOT_SEARCHED:
            known = to_dict(config).keys() - _NOT_SEARCHED
            raise UserError(f"space: {name!r} is nothing to search.{did_you_mean(str(name), known)}")
        values = _plain(given)
        ends: list[Any] = [values.get("low"), values.get("high")] if isinstance(values, dict) else []
        numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends)
        if isinstance(values, dict) and (not numbers or values.keys() - {"low", "high", "log"} or ends[0] >= ends[1]):
            raise UserError(f'space.{name}: {values} is no range; write {{"low": 1e-4, "high": 1e-2, "log": true}}.')
        if not isinstance(values, dict | list) or not values:
            raise UserError(f"space.{name}: {values!r} is neither a list of values nor a range with low and high.")
        if sampler == "grid" and isinstance(values, dict):
            raise UserError(f"space.{name}: a grid needs a list of values; random and tpe take ranges.")
        log = values.get("log", False) if isinstance(values, dict) else False
        if not isinstance(log, bool) or (log and ends[0] <= 0):
            raise UserError(f"space.{name}: {values}: log is true or false, and true only of a range above 0.")
        taken = [from_plain({name: value}, "space")[name] for value in ends or values]
        for number, value in enumerate(taken):
            TrainConfig(**{name: value})
            if value in taken[:number]:
                raise UserError(f"space.{name}: {values} has {value} twice.")
        found[name] = {**values, "low": taken[0], "high": taken[1]} if isinstance(values, dict) else values
    return found


def _plain(values: Any) -> Any:
    """`values` with numpy's numbers and arrays as Python's, which the study can keep."""
    if isinstance(values, np.ndarray):
        return values.tolist()
    if isinstance(values, dict):
        return {name: _plain(value) for name, value in values.items()}
    return [_plain(value) for value in values] if isinstance(values, list | tuple) else plain(values)


def _listed(name: str, values: Any) -> list[Any]:
    """`values` in a list; raises `UserError` for what cannot be gone through."""
    try:
        return [*values]
    except TypeError:
        raise UserError(f"{name}: expected a list, found {kind_of(values)} ({show(values)}).") from None


def _check_shared(config: TrainConfig, space: Mapping[str, Any]) -> None:
    """Raise `UserError` for what no run could begin with, whatever is tried of `space`."""
    device = accel.resolve_device("auto" if "device" in space else config.device)
    if "env_kwargs" not in space:
        look_up_spec(resolve(config.env), config.env_kwargs, device)
    if ":" in config.encoder and "encoder" not in space:
        custom.load(config.encoder, "encoder")


def _shared(config: TrainConfig) -> dict[str, Any]:
    """The plain values that all runs have in common."""
    return {name: value for name, value in to_plain(config).items() if name not in ("seed", "run_dir", "quiet")}


def _run(
    study: optuna.Study, trial: optuna.Trial, config: TrainConfig, seeds: Sequence[int], folder: Path, prune: bool
) -> None:
    """Run a setting with every seed, and tell the study what came of it."""
    from optuna.trial import TrialState

    values = trial.user_attrs["values"]
    scores: list[float] = []
    runs = [folder / "runs" / _name(values, seed) for seed in seeds]
    trial.set_user_attr("runs", [run.name for run in runs])
    watch = _Reporter(trial, scores, prune)
    try:
        for seed, run in zip(seeds, runs, strict=True):
            score = _score(_with(config, {**values, "seed": seed, "run_dir": run, "quiet": True}), watch)
            if score is None:
                raise RunError(f"{run}: no episode has ended; give the runs more --total-steps.")
            scores.append(score)
            trial.set_user_attr("scores", scores)
            if watch.pruned:
                trial.set_user_attr("runs", [run.name for run in runs[: len(scores)]])
                study.tell(trial, state=TrialState.PRUNED)
                return
    except DiskError:  # of no setting's own: with room again, the next call tries this one again
        study.tell(trial, state=TrialState.FAIL)
        raise
    except (RunError, UserError) as error:  # values that are no good together, numbers that ran away
        trial.set_user_attr("failed", str(error))
        study.tell(trial, state=TrialState.FAIL)
    except BaseException:
        study.tell(trial, state=TrialState.FAIL)  # without a reason of its own it is tried again
        raise
    else:
        study.tell(trial, statistics.fmean(scores))


def _with(config: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """`config` with `values` laid over it, of the environment's options each by itself."""
    options = {**config.env_kwargs, **values.get("env_kwargs", {})}
    return TrainConfig(**{**to_dict(config), **values, "env_kwargs": options})


def _name(values: Mapping[str, Any], seed: int) -> str:
    """A folder's name that tells a setting to people, and apart from others."""
    told = ",".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in values.items()
    )
    mark = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9._=,+-]', '', told)[:80]}-{mark}-s{seed}"


def _score(config: TrainConfig, watch: _Reporter) -> float | None:
    """The mean return of a run's last 100 games; a run that was begun before is gone on with."""
    path = config.run_dir
    assert path is not None
    # Not there, cut short, or no run's.
    with contextlib.suppress(OSError, ValueError, AttributeError, LookupError, TypeError):
        summary = json.loads((path / "summary.json").read_text())
        if summary.get("status") == "done" and summary["env_steps"] >= config.total_steps:
            return summary["mean_return"]
    if (path / "checkpoints" / "latest.pt").exists():
        return train(TrainConfig(quiet=True), resume=path, callbacks=[watch]).mean_return
    shutil.rmtree(path, ignore_errors=True)  # killed before its first checkpoint
    return train(config, callbacks=[watch]).mean_return


class _Reporter(Callback):
    """Reports how a setting stands, by the scores of its runs so far and the present one; ends what is not worth it."""

    def __init__(self, trial: optuna.Trial, scores: Sequence[float], prune: bool) -> None:
        self._trial, self._before, self._prune = trial, scores, prune
        self._reported = 0
        self.pruned = False

    def on_update(self, run: Trainer) -> None:
        """Once in a while."""
        reports = len(self._before) * REPORTS + min(run.env_steps * REPORTS // run.config.total_steps, REPORTS)
        if reports == self._reported or run.mean_return is None:
            return
        self._reported = reports
        self._trial.report(statistics.fmean([*self._before, run.mean_return]), reports)
        if self._prune and run.env_steps < run.config.total_steps and self._trial.should_prune():
            self.pruned = True
            run.stop()


def _told(trial: FrozenTrial, folder: Path) -> Trial:
    attributes = trial.user_attrs
    runs = [folder / "runs" / name for name in attributes.get("runs", [])]
    values, scores, failure = (
        attributes.get(name, none) for name, none in (("values", {}), ("scores", []), ("failed", ""))
    )
    return Trial(values, scores, trial.state.name.lower(), runs, failure)


def _conclude(study: optuna.Study, config: TrainConfig, folder: Path) -> list[Trial]:
    """Write down what came of it: all settings, the best as a configuration, and curves of the best few."""
    tried = [_told(trial, folder) for trial in ended(study)]
    tried.sort(key=lambda trial: (trial.state == "complete", trial.mean), reverse=True)
    if not tried:
        return []
    table = io.StringIO()
    rows = csv.writer(table)
    searched = sorted({name for trial in tried for name in trial.values})
    rows.writerow(["rank", "state", "mean_return", "scores", *searched, "failure"])
    for rank, trial in enumerate(tried, 1):
        mean = trial.mean if trial.scores else ""
        scores = " ".join(f"{s:g}" for s in trial.scores)
        values = (trial.values.get(name, "") for name in searched)
        rows.writerow([rank, trial.state, mean, scores, *values, trial.failure])
    complete = [trial for trial in tried if trial.state == "complete"]
    try:
        write_atomically(folder / "trials.csv", table.getvalue().encode())
        if complete:
            best = _shared(_with(config, complete[0].values))
            write_atomically(folder / "best.yaml", yaml.safe_dump(best, sort_keys=False, allow_unicode=True).encode())
    except OSError as error:
        raise RunError(f"{folder} cannot be written ({reason(error)}).") from None
    runs = [run for trial in complete[:DRAWN] for run in trial.runs]
    if there := [run for run in runs if (run / "metrics.csv").exists()]:
        plot(there, folder / "curves.png")
    if len(there) < len(runs):
        warn(f"{folder / 'curves.png'} lacks the runs that were removed.")
    return tried
