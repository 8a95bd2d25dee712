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
    directory = RunDirectory.open(folder, lock=True) if ranks.leads else RunDirectory(folder)
    resources.callback(directory.close)
    return directory, ranks.broadcast_object(snapshot.read(resume, RESUMED) if ranks.leads else None)


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
    below = _elsewhere(here)
    made = (
        RunDirectory.create(config.run_dir, env=config.env, seed=config.seed, job=job, below=below)
        if ranks.leads
        else None
    )
    path = ranks.broadcast_object(made and made.path)
    directory = made or RunDirectory(path)
    resources.callback(directory.close)
    return directory


def load_initial(model: ActorCritic, init_from: Path, ranks: Ranks, *, here: Path | None) -> None:
    """Begin with the parameters of another run, or of one of its checkpoints, a path below `here`.

    Raises:
        UserError: there are none, or they are of another network.
    """
    below = _elsewhere(here) or Path()
    file, parameters = ranks.broadcast_object(_parameters(below / init_from) if ranks.leads else None)
    load_parameters(model, parameters, file)


def _parameters(init_from: Path) -> tuple[Path, dict[str, Any]]:
    file = checkpoint.resolve(init_from)
    return file, load_state(file)["model"]


def _elsewhere(here: Path | None) -> Path | None:
    """`here` where an environment has changed the working directory; None where paths mean what they did."""
    return None if working_directory() == here else here
