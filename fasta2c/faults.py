"""What goes wrong in a run, in the user's words: errors of torch's, and numbers that are not finite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fasta2c import accel, custom
from fasta2c.config import TrainConfig
from fasta2c.distributed import Ranks
from fasta2c.errors import RunError, is_out_of_memory, warn
from fasta2c.learning.watch import NumberWatch
from fasta2c.parts import Parts
from fasta2c.run.directory import RunDirectory

# With --on-nan skip, so many updates in a row without one that could be applied end the run.
SKIPS_IN_A_ROW = 10


@contextmanager
def explained(config: TrainConfig, parts: Parts, device: torch.device, *, learning: bool = False) -> Iterator[None]:
    """Inside, what the user can see to becomes a `RunError` that says so.

    While `learning`, that is whatever fails with an encoder of the user's own: its backward pass can raise anything.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            told = f"out of memory: {parts.needs.failed(accel.free_memory(device))}"
        elif config.deterministic and "deterministic" in str(error):
            told = f"deterministic: {str(error).partition(', but you set')[0]}."
        elif learning and parts.model.has_modes:
            told = f"encoder: {config.encoder} cannot be learnt with: {custom.told(error)}"
        else:
            raise
        raise RunError(told) from error


class Faults:
    """Goes on or ends where numbers are not finite, as `on_nan` says.

    Asks the watch of a learner's numbers what it has seen; every rank comes to the same end.

    Args:
        watch: what it saw has been kept from the parameters.
        on_nan: "stop" or "skip".
        ranks: who learns alike.
        directory: where the last checkpoint is.
        first_env: the number that this rank's first environment has among all of them.
        update: updates of earlier sessions.
        skipped: those of them that were not applied.
    """

    def __init__(
        self,
        watch: NumberWatch,
        *,
        on_nan: str,
        ranks: Ranks,
        directory: RunDirectory,
        first_env: int,
        update: int,
        skipped: int,
    ) -> None:
        self._watch = watch
        self._skips = on_nan == "skip"
        self._ranks = ranks
        self._directory = directory
        self._first_env = first_env
        self._session_began = update
        self.skipped = skipped
        """Updates that were not applied, or not altogether, earlier sessions included."""

    def check(self, env_steps: int) -> None:
        """Tell of what there is to tell, the run now at `env_steps`; waits for the device.

        Raises:
            RunError: the run is to end.
        """
        fault = self._watch.report()
        if fault is None:
            return  # on every rank
        if fault.env is not None:
            fault = fault._replace(env=self._first_env + fault.env)
        fault = min(self._ranks.all_gather_object(fault), key=lambda there: there.vague)
        told = fault.told(self._session_began, env_steps)
        self.skipped += fault.skipped
        if self._skips and fault.longest < SKIPS_IN_A_ROW:
            if self._ranks.leads:
                warn(f"{told}; {self.skipped} so far.")
            return
        if self._skips:
            told += f"; {fault.longest} updates in a row were skipped, and so the run stops"
        advice = "Try a lower --lr or --max-grad-norm." if fault.row is None else "Look for it in the environment."
        if self._directory.latest.exists():
            advice += f" The last checkpoint in {self._directory.checkpoints} is from before."
        raise RunError(f"{told}. {advice}")
