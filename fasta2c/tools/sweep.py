"""Searches for settings: a grid, random or TPE, each setting with every seed, kept on disk by optuna."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import io
import itertools
import json
import math
import os
import re
import shutil
import socket
import statistics
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from fasta2c.callbacks import Callback
from fasta2c.config import TrainConfig, from_plain, to_dict, to_plain
from fasta2c.envs.ids import resolve
from fasta2c.errors import RunError, UserError, did_you_mean
from fasta2c.presets import load_preset
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
        Stopped: a signal ended it.
    """
    _check_optuna()
    env_id = resolve(config.env)
    config = config.with_preset(load_preset(env_id.family, env_id.name))
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError("seeds: at least one is needed, and none twice.")
    _check_space(space, config, sampler)
    if config.num_envs == "auto":
        raise UserError("num_envs: auto would choose anew for each run; give a number.")
    if sampler == "grid":
        size = math.prod(len(values) for values in space.values())
        trials = min(trials or size, size)
    elif trials is None:
        raise UserError(f"trials: {sampler} has no end; say how many settings it is to try.")
    folder = Path(folder)
    about = {"config": _shared(config), "space": dict(space), "seeds": list(seeds), "sampler": sampler}
    with (
        _worker(folder, about) as worker,
        Progress(trials, description="sweep", unit="settings", quiet=config.quiet) as shown,
    ):
        study = _study(folder, about, prune)
        shown.say(f"{config.env}: {trials} settings with {len(seeds)} seeds each, in {folder}")
        shown.update(len(_ended(study)))
        while (trial := _next(study, about, folder, worker, trials)) is not None:
            _run(study, trial, config, seeds, folder, prune)
            shown.say(str(_told(study.trials[trial.number], folder)))
            shown.update(len(_ended(study)))
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


@contextlib.contextmanager
def _worker(folder: Path, about: dict[str, Any]) -> Iterator[str]:
    """The name of this process among those at work in `folder`, which is begun where it is new.

    Whoever is at work holds a lock on a file of its name, which the system takes from the dead.
    """
    name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        if folder.is_dir() and not (folder / "workers").exists() and any(folder.iterdir()):
            raise UserError(f"{folder} is not empty and holds no sweep; choose a new folder.")
        (folder / "workers").mkdir(parents=True, exist_ok=True)
        with _lock(folder / ".lock"):
            file = folder / "sweep.yaml"
            if not file.exists():
                write_atomically(file, yaml.safe_dump(about, sort_keys=False).encode())
            before = yaml.safe_load(file.read_text())
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror or error}); choose another folder.") from None
    changed = [name for name in about if before.get(name) != yaml.safe_load(yaml.safe_dump(about[name]))]
    if changed:
        raise UserError(f"{folder} holds a sweep with another {' and '.join(changed)}; choose a new folder.")
    with _lock(folder / "workers" / name):
        yield name
    (folder / "workers" / name).unlink(missing_ok=True)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Inside, nobody else holds the lock on `path`."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_at_work(folder: Path, worker: str) -> bool:
    try:
        with (folder / "workers" / worker).open("r") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def _study(folder: Path, about: dict[str, Any], prune: bool) -> optuna.Study:
    import optuna

    median = optuna.pruners.MedianPruner(n_startup_trials=WARM_UP_TRIALS, n_warmup_steps=WARM_UP_REPORTS)
    tpe = about["sampler"] == "tpe"
    with _lock(folder / ".lock"):  # of several that make the tables at once, all but one fail
        return optuna.create_study(
            storage=f"sqlite:///{folder.resolve() / 'study.db'}",
            study_name="sweep",
            load_if_exists=True,
            direction="maximize",
            # What others are at counts as bad, so that not all try the same.
            sampler=optuna.samplers.TPESampler(constant_liar=True) if tpe else optuna.samplers.RandomSampler(),
            pruner=median if prune else optuna.pruners.NopPruner(),
        )


def _next(study: optuna.Study, about: dict[str, Any], folder: Path, worker: str, trials: int) -> optuna.Trial | None:
    """The next setting to try: one that was interrupted, or a new one; None where all are tried or being tried."""
    from optuna.trial import TrialState

    space = about["space"]
    while True:
        with _lock(folder / ".lock"):
            known = study.get_trials(deepcopy=False)
            for dead in known:
                if dead.state == TrialState.RUNNING and not _is_at_work(folder, dead.user_attrs.get("worker", "?")):
                    study.tell(dead.number, state=TrialState.FAIL)
            ended = _ended(study)
            running = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.RUNNING]
            if len(ended) + len(running) >= trials:
                return None
            taken = [t.params for t in (*ended, *running)]
            left = [
                t.params for t in study.get_trials(deepcopy=False) if _interrupted(t) and len(t.params) == len(space)
            ]
            again = [params for params in left if params not in taken]
            if any(t.state == TrialState.WAITING for t in known):
                pass  # somebody was killed between the lines below
            elif again:
                study.enqueue_trial(again[0])
            elif about["sampler"] == "grid":
                combinations = itertools.product(*([json.dumps(value) for value in of] for of in space.values()))
                study.enqueue_trial(
                    next(c for values in combinations if (c := dict(zip(space, values, strict=True))) not in taken)
                )
            trial = study.ask()
            trial.set_user_attr("worker", worker)
            trial.set_user_attr("values", {name: _suggested(trial, name, of) for name, of in space.items()})
            if trial.params not in [t.params for t in running]:
                return trial
            trial.set_user_attr("duplicate", True)  # somebody is at it, in the very folders it would be run in
            study.tell(trial, state=TrialState.FAIL)
        time.sleep(1.0)


def _ended(study: optuna.Study) -> list[FrozenTrial]:
    """The settings that are done with: to the end, given up or failed."""
    trials = study.get_trials(deepcopy=False)
    return [t for t in trials if t.state.is_finished() and not _interrupted(t) and "duplicate" not in t.user_attrs]


def _interrupted(trial: FrozenTrial) -> bool:
    """Whether a signal or a kill ended it, rather than something of its own."""
    return trial.state.name == "FAIL" and not {"failed", "duplicate"} & trial.user_attrs.keys()


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
            score = _score(
                TrainConfig(**{**to_dict(config), **values, "seed": seed, "run_dir": run, "quiet": True}), watch
            )
            if score is None:
                raise RunError(f"{run}: no episode has ended; give the runs more --total-steps.")
            scores.append(score)
            trial.set_user_attr("scores", scores)
            if watch.pruned:
                trial.set_user_attr("runs", [run.name for run in runs[: len(scores)]])
                study.tell(trial, state=TrialState.PRUNED)
                return
    except (RunError, UserError) as error:  # values that are no good together, numbers that ran away
        trial.set_user_attr("failed", str(error))
        study.tell(trial, state=TrialState.FAIL)
    except BaseException:
        study.tell(trial, state=TrialState.FAIL)  # without a reason of its own it is tried again
        raise
    else:
        study.tell(trial, statistics.fmean(scores))


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
