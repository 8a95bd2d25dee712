"""Searches for settings: a grid, random or TPE, each setting with every seed, kept on disk by optuna."""

from __future__ import annotations

import csv
import fcntl
import functools
import hashlib
import io
import json
import math
import os
import re
import shutil
import socket
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from fasta2c.callbacks import Callback
from fasta2c.config import TrainConfig, from_plain, load_preset, to_dict, to_plain
from fasta2c.envs.ids import resolve
from fasta2c.errors import RunError, Stopped, UserError, did_you_mean
from fasta2c.run.directory import write_atomically
from fasta2c.run.progress import Progress
from fasta2c.tools.plot import plot
from fasta2c.trainer import Trainer, train

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

Sampler = Literal["grid", "random", "tpe"]
# What a sweep sets itself, or what would make scores incomparable.
_NOT_SEARCHED = frozenset({"env", "seed", "run_dir", "init_from", "quiet", "total_steps", "stop_at_return", "wandb"})
# How often in each run it is asked whether the setting is worth going on with: not before three of ten, nor before
# five others have ended.
REPORTS, WARM_UP_REPORTS, WARM_UP_TRIALS = 10, 3, 5
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

    @property
    def mean(self) -> float:
        """Of the scores; minus infinity without any."""
        return statistics.fmean(self.scores) if self.scores else -math.inf

    def __str__(self) -> str:
        told = ", ".join(f"{name} {value}" for name, value in self.values.items())
        spread = f" ± {statistics.stdev(self.scores):,.2f}" if len(self.scores) > 1 else ""
        return f"{self.mean:,.2f}{spread}  {told}" + ("" if self.state == "complete" else f"  ({self.state})")


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
        Stopped: a signal ended it.
    """
    _check_optuna()
    env_id = resolve(config.env)
    config = config.with_preset(load_preset(env_id.family, env_id.name))
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError("seeds: at least one is needed, and none twice.")
    _check_space(space, config, sampler)
    if sampler == "grid":
        size = math.prod(len(values) for values in space.values())
        trials = min(trials or size, size)
    elif trials is None:
        raise UserError(f"trials: {sampler} has no end; say how many settings it is to try.")
    folder = Path(folder)
    about = {"config": _shared(config), "space": dict(space), "seeds": list(seeds), "sampler": sampler}
    study = _open(folder, about, prune)
    _retry_interrupted(study)
    with Progress(trials, description="sweep", unit="settings", quiet=config.quiet) as progress:

        def count(study: optuna.Study, last: FrozenTrial | None) -> None:
            ended = _ended(study)
            if last is not None and last.number in {trial.number for trial in ended}:
                progress.say(str(_told(last, folder)))
            progress.update(len(ended), sps=None)
            if len(ended) >= trials:
                study.stop()

        progress.say(f"{config.env}: {trials} settings with {len(seeds)} seeds each, in {folder}")
        if len(_ended(study)) < trials:
            objective = functools.partial(_try, config=config, space=space, seeds=seeds, folder=folder, prune=prune)
            study.optimize(objective, callbacks=[count], catch=(RunError,))
    return _conclude(study, config, folder)


def _check_optuna() -> None:
    try:
        import optuna
    except ModuleNotFoundError:
        raise UserError("sweeps are kept by optuna: pip install 'fasta2c[sweep]'.") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def _check_space(space: Mapping[str, Any], config: TrainConfig, sampler: Sampler) -> None:
    """Raise `UserError` for a field that there is not, and for values that it does not take."""
    if not space:
        raise UserError("space: nothing to search; write something like '{\"lr\": [1e-4, 1e-3]}'.")
    for name, values in space.items():
        if name not in to_dict(config) or name in _NOT_SEARCHED:
            known = to_dict(config).keys() - _NOT_SEARCHED
            raise UserError(f"space: {name!r} is nothing to search.{did_you_mean(name, known)}")
        ends: list[Any] = [values.get("low"), values.get("high")] if isinstance(values, dict) else []
        numbers = all(isinstance(end, int | float) for end in ends)
        if isinstance(values, dict) and (not numbers or values.keys() - {"low", "high", "log"} or ends[0] >= ends[1]):
            raise UserError(f'space.{name}: {values} is no range; write {{"low": 1e-4, "high": 1e-2, "log": true}}.')
        if not isinstance(values, dict | list) or not values:
            raise UserError(f"space.{name}: {values!r} is neither a list of values nor a range with low and high.")
        if sampler == "grid" and isinstance(values, dict):
            raise UserError(f"space.{name}: a grid needs a list of values; random and tpe take ranges.")
        for value in ends or values:
            TrainConfig(**from_plain({name: value}, "space"))


def _shared(config: TrainConfig) -> dict[str, Any]:
    """The plain values that all runs have in common."""
    return {name: value for name, value in to_plain(config).items() if name not in ("seed", "run_dir", "quiet")}


def _open(folder: Path, about: dict[str, Any], prune: bool) -> optuna.Study:
    """The study in `folder`, begun or gone on with."""
    import optuna

    file = folder / "sweep.yaml"
    try:
        if folder.is_dir() and any(folder.iterdir()) and not file.exists():
            raise UserError(f"{folder} is not empty and holds no sweep; choose a new folder.")
        folder.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            write_atomically(file, yaml.safe_dump(about, sort_keys=False).encode())
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror or error}); choose another folder.") from None
    before = yaml.safe_load(file.read_text())
    changed = [name for name in about if before.get(name) != yaml.safe_load(yaml.safe_dump(about[name]))]
    if changed:
        raise UserError(f"{folder} holds a sweep with another {' and '.join(changed)}; choose a new folder.")
    space = {name: [json.dumps(value) for value in values] for name, values in about["space"].items()}
    samplers = {
        "grid": lambda: optuna.samplers.GridSampler(space, seed=0),
        "random": lambda: optuna.samplers.RandomSampler(),
        "tpe": lambda: optuna.samplers.TPESampler(constant_liar=True),
    }
    median = optuna.pruners.MedianPruner(n_startup_trials=WARM_UP_TRIALS, n_warmup_steps=WARM_UP_REPORTS)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several that make the tables at once, all but one fail
        return optuna.create_study(
            storage=f"sqlite:///{folder.resolve() / 'study.db'}",
            study_name="sweep",
            load_if_exists=True,
            direction="maximize",
            sampler=samplers[about["sampler"]](),
            pruner=median if prune else optuna.pruners.NopPruner(),
        )


def _retry_interrupted(study: optuna.Study) -> None:
    """Queue what a signal or a kill has ended."""
    from optuna.storages import RetryHeartbeatStaleTrialCallback
    from optuna.trial import TrialState

    retried = _retried(study.trials)
    for trial in study.trials:
        interrupted = trial.state == TrialState.FAIL and "interrupted" in trial.user_attrs
        if trial.state == TrialState.RUNNING and not _is_alive(trial.user_attrs.get("worker")):
            study.tell(trial.number, state=TrialState.FAIL)
            interrupted = True
        if interrupted and trial.number not in retried:
            RetryHeartbeatStaleTrialCallback()(study, trial)


def _retried(trials: Sequence[FrozenTrial]) -> set[int]:
    """The numbers of those in whose place others have come."""
    return {number for trial in trials for number in trial.system_attrs.get("retry_history", ())}


def _is_alive(worker: list[Any] | None) -> bool:
    """Whether the process (host, pid) is there; that of another host is thought to be."""
    if worker is None or worker[0] != socket.gethostname():
        return worker is not None
    try:
        os.kill(worker[1], 0)
    except ProcessLookupError:
        return False
    return True


def _ended(study: optuna.Study) -> list[FrozenTrial]:
    """The settings that are done with: not those interrupted, nor those that another process was at."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    left_out = _retried(trials)
    left_out |= {t.number for t in trials if t.state == TrialState.FAIL and "interrupted" in t.user_attrs}
    left_out |= {t.number for t in trials if "duplicate" in t.user_attrs}
    return [t for t in trials if t.state.is_finished() and t.number not in left_out]


def _try(
    trial: optuna.Trial,
    *,
    config: TrainConfig,
    space: Mapping[str, Any],
    seeds: Sequence[int],
    folder: Path,
    prune: bool,
) -> float:
    """Run a setting with every seed; its mean score."""
    import optuna

    trial.set_user_attr("worker", [socket.gethostname(), os.getpid()])
    values = {name: _suggested(trial, name, of) for name, of in space.items()}
    others = trial.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
    if any(t.number < trial.number and t.params == trial.params for t in others):  # the last of a grid
        trial.set_user_attr("duplicate", True)
        trial.study.stop()
        raise optuna.TrialPruned
    trial.set_user_attr("values", values)
    scores: list[float] = []
    runs: list[str] = []
    for seed in seeds:
        path = folder / "runs" / _name(values, seed)
        runs.append(path.name)
        trial.set_user_attr("runs", runs)
        watch = _Reporter(trial, scores, prune)
        try:
            score = _score(
                TrainConfig(**{**to_dict(config), **values, "seed": seed, "run_dir": path, "quiet": True}), watch
            )
        except Stopped:
            trial.set_user_attr("interrupted", True)
            raise
        if score is None:
            raise RunError(f"{path}: no episode has ended; give the runs more --total-steps.")
        scores.append(score)
        trial.set_user_attr("scores", scores)
        if watch.pruned:
            raise optuna.TrialPruned
    return statistics.fmean(scores)


def _suggested(trial: optuna.Trial, name: str, of: Any) -> Any:
    if isinstance(of, list):  # as text, for optuna's choices are plain
        return json.loads(trial.suggest_categorical(name, [json.dumps(value) for value in of]))
    low, high, log = of["low"], of["high"], of.get("log", False)
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, log=log)
    return trial.suggest_float(name, low, high, log=log)


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
    if (path / "summary.json").exists():
        summary = json.loads((path / "summary.json").read_text())
        if summary["status"] == "done" and summary["env_steps"] >= config.total_steps:
            return summary["mean_return"]
    if (path / "checkpoints" / "latest.pt").exists():
        return train(TrainConfig(quiet=True), resume=path, callbacks=[watch]).mean_return
    shutil.rmtree(path, ignore_errors=True)  # killed before its first checkpoint
    return train(config, callbacks=[watch]).mean_return


class _Reporter(Callback):
    """Reports how a run stands, and ends it where that is not worth going on."""

    def __init__(self, trial: optuna.Trial, scores: Sequence[float], prune: bool) -> None:
        self._trial, self._before, self._prune = trial, list(scores), prune
        self._reported = 0
        self.pruned = False

    def on_update(self, run: Trainer) -> None:
        """Once in a while."""
        reports = min(run.env_steps * REPORTS // run.config.total_steps, REPORTS)
        if reports == self._reported or run.mean_return is None:
            return
        self._reported = reports
        self._trial.report(statistics.fmean([*self._before, run.mean_return]), len(self._before) * REPORTS + reports)
        if self._prune and run.env_steps < run.config.total_steps and self._trial.should_prune():
            self.pruned = True
            run.stop()


def _told(trial: FrozenTrial, folder: Path) -> Trial:
    attributes = trial.user_attrs
    runs = [folder / "runs" / name for name in attributes.get("runs", [])]
    return Trial(attributes.get("values", {}), attributes.get("scores", []), trial.state.name.lower(), runs)


def _conclude(study: optuna.Study, config: TrainConfig, folder: Path) -> list[Trial]:
    """Write down what came of it: all settings, the best as a configuration, and curves of the best few."""
    tried = [_told(trial, folder) for trial in _ended(study)]
    tried.sort(key=lambda trial: (trial.state == "complete", trial.mean), reverse=True)
    if not tried:
        return []
    table = io.StringIO()
    rows = csv.writer(table)
    rows.writerow(["rank", "state", "mean_return", "scores", *tried[0].values])
    for rank, trial in enumerate(tried, 1):
        mean = trial.mean if trial.scores else ""
        rows.writerow([rank, trial.state, mean, " ".join(f"{s:g}" for s in trial.scores), *trial.values.values()])
    complete = [trial for trial in tried if trial.state == "complete"]
    try:
        write_atomically(folder / "trials.csv", table.getvalue().encode())
        if complete:
            best = _shared(TrainConfig(**{**to_dict(config), **complete[0].values}))
            write_atomically(folder / "best.yaml", yaml.safe_dump(best, sort_keys=False, allow_unicode=True).encode())
    except OSError as error:
        raise RunError(f"{folder} cannot be written ({error.strerror or error}).") from None
    if complete:
        plot([run for trial in complete[:DRAWN] for run in trial.runs], folder / "curves.png")
    return tried
