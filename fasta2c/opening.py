"""What a session begins with: the saved run that it goes on with, or the folder and the parameters of a new one."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fasta2c import snapshot
from fasta2c.config import TrainConfig
from fasta2c.distributed import Ranks
from fasta2c.models.actor_critic import ActorCritic
from fasta2c.policy import load_parameters, load_state
from fasta2c.records import RESUMED
from fasta2c.run import checkpoint
from fasta2c.run.directory import RunDirectory
from fasta2c.snapshot import Saved


def working_directory() -> Path | None:
    """None where it has been removed."""
    try:
        return Path.cwd()
    except OSError:
        return None


def reopen(resume: Path, ranks: Ranks, resources: ExitStack) -> tuple[RunDirectory, Saved]:
    """The folder of a saved run, which rank 0 locks until `resources` are closed, and the checkpoint `resume` of it.

    Raises:
        UserError: there is no such run or checkpoint, it is in use, or it is damaged.
    """
    folder = checkpoint.run_of(resume)
    directory = RunDirectory(folder)

    def lock() -> Saved:
        nonlocal directory
        directory = RunDirectory.open(folder, lock=True)
        resources.callback(directory.close)
        return snapshot.read(resume, RESUMED)

    saved = ranks.of_leader(lock)  # before `directory` is asked for
    return directory, saved


def make_directory(
    config: TrainConfig, ranks: Ranks, resources: ExitStack, *, job: str | None, here: Path | None
) -> RunDirectory:
    """The folder of a new run, which rank 0 makes, and locks until `resources` are closed.

    Args:
        config: names it, or leaves it to us.
        ranks: of which the others never write.
        resources: what is closed at the end of the session.
        job: torchrun's, which can find the run again.
        here: the working directory as the user knows it.

    Raises:
        UserError: as `RunDirectory.create`.
    """
    made: RunDirectory | None = None

    def make() -> Path:
        nonlocal made
        made = RunDirectory.create(config.run_dir, env=config.env, seed=config.seed, job=job, below=_elsewhere(here))
        resources.callback(made.close)
        return made.path

    path = ranks.of_leader(make)
    return made or RunDirectory(path)


def load_initial(model: ActorCritic, init_from: Path, ranks: Ranks, *, here: Path | None) -> None:
    """Begin with the parameters of another run, or of one of its checkpoints, a path below `here`.

    Raises:
        UserError: there are none, or they are of another network.
    """
    below = _elsewhere(here) or Path()
    file, parameters = ranks.of_leader(lambda: _parameters(below / init_from))
    load_parameters(model, parameters, file)


def _parameters(init_from: Path) -> tuple[Path, dict[str, Any]]:
    file = checkpoint.resolve(init_from)
    return file, load_state(file)["model"]


def _elsewhere(here: Path | None) -> Path | None:
    """`here` where an environment has changed the working directory; None where paths mean what they did."""
    return None if working_directory() == here else here
