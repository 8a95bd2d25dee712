"""The settings of a sweep, tried and being tried, kept on disk by optuna for all processes that share the work."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fasta2c.errors import RunError, UserError, one_line, reason
from fasta2c.presets import read_yaml
from fasta2c.run.files import write_atomically

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

# Nothing is given up before so many reports of its runs, nor before so many others have ended.
WARM_UP_REPORTS, WARM_UP_TRIALS = 3, 5


@contextlib.contextmanager
def join(folder: Path, about: dict[str, Any]) -> Iterator[str]:
    """The name of this process among those at work in `folder`, which is begun where it is new.

    Whoever is at work holds a lock on a file of its name, which the system takes from the dead.

    Raises `UserError` where `folder` is something else, of another sweep than `about` tells, or cannot be written.
    """
    name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        os.path.abspath(folder).encode()
        if folder.is_dir() and not (folder / "workers").exists() and any(folder.iterdir()):
            raise UserError(f"{folder} is not empty and holds no sweep; choose a new folder.")
        (folder / "workers").mkdir(parents=True, exist_ok=True)
        with lock(folder / ".lock"):
            file = folder / "sweep.yaml"
            if not file.exists():
                write_atomically(file, yaml.safe_dump(about, sort_keys=False).encode())
            before = read_yaml(file)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name, or what is not UTF-8
        raise UserError(f"{folder} cannot be written ({reason(error)}); choose another folder.") from None
    changed = [key for key in about if before.get(key) != yaml.safe_load(yaml.safe_dump(about[key]))]
    if changed:
        raise UserError(f"{folder} holds a sweep with another {' and '.join(changed)}; choose a new folder.")
    try:
        with lock(folder / "workers" / name):
            yield name
    finally:
        (folder / "workers" / name).unlink(missing_ok=True)


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
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


def open_study(folder: Path, sampler: str, prune: bool) -> optuna.Study:
    """The study in `folder`, begun where there is none."""
    import optuna

    # What others are at counts as bad, so that not all try the same.
    tpe, random = optuna.samplers.TPESampler(constant_liar=True), optuna.samplers.RandomSampler()
    median = optuna.pruners.MedianPruner(n_startup_trials=WARM_UP_TRIALS, n_warmup_steps=WARM_UP_REPORTS)
    with lock(folder / ".lock"):  # of several that make the tables at once, all but one fail
        return optuna.create_study(
            storage=_storage(folder),
            study_name="sweep",
            load_if_exists=True,
            direction="maximize",
            sampler=tpe if sampler == "tpe" else random,
            pruner=median if prune else optuna.pruners.NopPruner(),
        )


@contextlib.contextmanager
def database_errors_told(folder: Path) -> Iterator[None]:
    """Inside, what is wrong with the database in `folder` (a full disk, a damaged file) becomes a `RunError`."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        origin = getattr(error.__cause__ or error, "orig", None) or error
        file = folder / "study.db"
        raise RunError(f"{file} cannot be used ({one_line(origin)}); the runs beside it are whole.") from None


def _storage(folder: Path) -> str:
    """The address of the database in `folder`, whatever that is called."""
    from sqlalchemy.engine import URL

    return URL.create("sqlite", database=str(folder.resolve() / "study.db")).render_as_string(hide_password=False)


def next_trial(
    study: optuna.Study, folder: Path, space: Mapping[str, Any], worker: str, trials: int, *, grid: bool
) -> optuna.Trial | None:
    """The next setting to try: one that was interrupted, or a new one; None where all are tried or being tried.

    Args:
        study: of the sweep.
        folder: the sweep's.
        space: what is searched.
        worker: the name of this process there, which the setting is given to.
        trials: how many settings are tried in all.
        grid: try all combinations in turn, rather than what the study's sampler draws.
    """
    from optuna.trial import TrialState

    while True:
        with lock(folder / ".lock"):
            _fail_orphans(study, folder)
            known = study.get_trials(deepcopy=False)
            running = [t for t in known if t.state == TrialState.RUNNING]
            done = ended(study)
            if len(done) + len(running) >= trials:
                return None
            taken = [t.params for t in (*done, *running)]
            if not any(t.state == TrialState.WAITING for t in known):  # else somebody was killed before the next line
                _enqueue(study, space, taken, grid)
            trial = study.ask()
            trial.set_user_attr("worker", worker)
            trial.set_user_attr("values", {name: _suggested(trial, name, of) for name, of in space.items()})
            if trial.params not in [t.params for t in running]:
                return trial
            trial.set_user_attr("duplicate", True)  # somebody is at it, in the very folders it would be run in
            study.tell(trial, state=TrialState.FAIL)
        time.sleep(1.0)


def _fail_orphans(study: optuna.Study, folder: Path) -> None:
    """Mark what the dead were at as interrupted."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        if not _is_at_work(folder, trial.user_attrs.get("worker", "?")):
            study.tell(trial.number, state=TrialState.FAIL)


def _enqueue(study: optuna.Study, space: Mapping[str, Any], taken: list[dict[str, Any]], grid: bool) -> None:
    """Say which setting is next, if that is not the sampler's to draw: one that was interrupted, or the grid's next."""
    left = [t.params for t in study.get_trials(deepcopy=False) if _interrupted(t) and len(t.params) == len(space)]
    if again := [params for params in left if params not in taken]:
        study.enqueue_trial(again[0])
    elif grid:
        combinations = itertools.product(*([json.dumps(value) for value in of] for of in space.values()))
        all_of_them = (dict(zip(space, values, strict=True)) for values in combinations)
        study.enqueue_trial(next(setting for setting in all_of_them if setting not in taken))


def ended(study: optuna.Study) -> list[FrozenTrial]:
    """The settings that are done with: to the end, given up or failed."""
    trials = study.get_trials(deepcopy=False)
    return [t for t in trials if t.state.is_finished() and not _interrupted(t) and "duplicate" not in t.user_attrs]


def _interrupted(trial: FrozenTrial) -> bool:
    """Whether a signal or a kill ended it, rather than something of its own."""
    return trial.state.name == "FAIL" and not {"failed", "duplicate"} & trial.user_attrs.keys()


def _suggested(trial: optuna.Trial, name: str, of: Any) -> Any:
    if isinstance(of, list):  # as text, for optuna's choices are plain
        return json.loads(trial.suggest_categorical(name, [json.dumps(value) for value in of]))
    low, high, log = of["low"], of["high"], of.get("log", False)
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, log=log)
    return trial.suggest_float(name, low, high, log=log)
