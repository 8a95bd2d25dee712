"""Ranks: the processes that share one run under torchrun, what they tell each other, and what they add up.

A process by itself is `ALONE`, for which all of this does nothing. What ranks exchange goes through torch.distributed:
numbers of the device by NCCL on GPUs and gloo on CPUs, the host's by gloo.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import itertools
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from fasta2c.errors import PeerLost, RunError, UserError, is_out_of_memory, one_line

T = TypeVar("T")

# How long a rank waits for the others: rank 0 may play an evaluation meanwhile, or another compile.
PATIENCE = timedelta(hours=1)
# How long Python hears of no signal at most while it waits for other hosts.
HEARING = timedelta(seconds=0.5)
# What torchrun tells each rank.
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# What torch says of a process that is no longer there.
_GONE = re.compile(
    "clos(ed|ure) by (a |remote )?peer|reset by peer|broken pipe|connection refused|process exited|likely closed",
    re.IGNORECASE,
)
# Rows of numbers that `Ranks.exchange` sends at once.
ROWS_AT_ONCE = 32
_calls = itertools.count()


@dataclass(frozen=True)
class Ranks:
    """This process among those of its run.

    Its methods are collective from `connect` on: all ranks call the same ones in the same order, and wait for each
    other. They raise `PeerLost` where one has gone.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Among those on this machine."""
    local_world_size: int = 1

    @classmethod
    def from_environment(cls) -> Ranks:
        """The rank that torchrun has made of this process; `ALONE` where it has not."""
        given = [os.environ.get(name, "") for name in _VARIABLES]
        numbers = given[:4]
        if not (all(given) and all(n.isascii() and n.isdecimal() for n in numbers)):
            return ALONE
        rank, world_size, local_rank, local_world_size = map(int, numbers)
        return cls(rank, world_size, local_rank, local_world_size) if world_size > 1 else ALONE

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which alone writes and speaks."""
        return self.rank == 0

    @property
    def program(self) -> str:
        """What starts a run of as many ranks, as messages spell it."""
        return "fasta2c" if self.world_size == 1 else "torchrun … -m fasta2c"

    def share(self, total: int) -> slice:
        """This rank's part of `total` things, which are shared out as equally as can be."""
        return slice(total * self.rank // self.world_size, total * (self.rank + 1) // self.world_size)

    def seed(self, seed: int) -> int:
        """A seed of this rank's own; rank 0's is `seed` itself."""
        if self.leads:
            return seed
        sequence = np.random.SeedSequence(seed, spawn_key=(0, self.rank))
        return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))

    def connect(self) -> None:
        """Meet the other ranks; the connection lasts as long as Python."""
        if self.world_size == 1 or dist.is_initialized():
            return
        given: dict[str, Any] = {}
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            given = {"store": self._fresh_store(), "rank": self.rank, "world_size": self.world_size}
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        with _together():
            dist.init_process_group(backend, timeout=PATIENCE, **given)
        atexit.register(dist.destroy_process_group)

    def _fresh_store(self) -> Any:
        """Where ranks find each other, kept by rank 0.

        torchrun's own outlives ranks that it restarts, and tells them where those before them were to be found: it is
        used for nothing but the port of this one. An old port leads nowhere.
        """
        key, host = "fasta2c/port", os.environ["MASTER_ADDR"]
        with _together():
            theirs = _store(host, int(os.environ["MASTER_PORT"]), timeout=PATIENCE)
            if self.leads:
                store = _store(host, 0, timeout=PATIENCE, is_master=True)
                theirs.set(key, str(store.port))
                return store
            deadline = time.monotonic() + PATIENCE.total_seconds()
            while True:
                port = int(theirs.get(key))
                try:
                    store = _store(host, port, timeout=timedelta(seconds=2))
                    store.set_timeout(PATIENCE)
                    return store
                except dist.DistNetworkError:
                    if time.monotonic() > deadline:
                        raise

    def all_reduce(self, x: Tensor) -> Tensor:
        """`x` plus those of all other ranks, in place: the same bits on each rank."""
        if self.world_size > 1:
            with _together():
                _wait(dist.all_reduce(x, async_op=not x.is_cuda))
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """The `x` of every rank, [ranks, ...]."""
        if self.world_size == 1:
            return x.unsqueeze(0)
        stacked = torch.empty((self.world_size, *x.shape), dtype=x.dtype, device=x.device)
        with _together():
            _wait(dist.all_gather(list(stacked.unbind()), x, async_op=not x.is_cuda))
        return stacked

    def exchange(
        self, numbers: Sequence[float], rows: Sequence[Sequence[float]], *, width: int
    ) -> Callable[[], list[tuple[list[float], list[list[float]]]]]:
        """Send `numbers`, as many everywhere, and `rows` of `width` numbers each, without waiting.

        Returns:
            what waits, and returns those of every rank; collective as well.
        """
        head = 1 + len(numbers)
        table = torch.tensor(rows, dtype=torch.float64).view(len(rows), width)
        first = torch.zeros(head + ROWS_AT_ONCE * width, dtype=torch.float64)
        first[:head] = torch.tensor([len(rows), *numbers], dtype=torch.float64)
        first[head:].view(-1, width)[: len(rows)] = table[:ROWS_AT_ONCE]
        told = torch.empty(self.world_size, len(first), dtype=torch.float64)
        with _together():
            sent = dist.all_gather(list(told.unbind()), first, async_op=True)

        def hear() -> list[tuple[list[float], list[list[float]]]]:
            with _together():
                _wait(sent)
            tables = told[:, head:].view(self.world_size, -1, width)
            if (most := int(told[:, 0].max())) > ROWS_AT_ONCE:
                rest = torch.zeros(most - ROWS_AT_ONCE, width, dtype=torch.float64)
                rest[: max(len(rows) - ROWS_AT_ONCE, 0)] = table[ROWS_AT_ONCE:]
                tables = torch.cat([tables, self.all_gather(rest)], dim=1)
            return [(x[1:head].tolist(), own[: int(x[0])].tolist()) for x, own in zip(told, tables, strict=True)]

        return hear

    def all_gather_object(self, value: Any) -> list[Any]:
        """The plain `value` of every rank. Slower than `all_gather`."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        with _together():
            dist.all_gather_object(values, value)
        return values

    def gather_object(self, value: Any) -> list[Any]:
        """The plain `value` of every rank, for rank 0; the others get nothing."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size if self.leads else []
        with _together():
            dist.gather_object(value, values if self.leads else None, dst=0)
        return values

    def of_leader(self, work: Callable[[], T]) -> T:
        """What `work` returns on rank 0 (a plain value), or the error of ours that it raises there, on every rank."""
        if self.world_size == 1:
            return work()
        outcome: Any = None
        if self.leads:
            try:
                outcome = work()
            except (UserError, RunError) as error:
                if isinstance(error, PeerLost):
                    raise
                outcome = error
        outcome = self.broadcast_object(outcome)
        if isinstance(outcome, UserError | RunError):
            raise outcome
        return outcome

    def broadcast_object(self, value: Any) -> Any:
        """The plain `value` of rank 0."""
        if self.world_size == 1:
            return value
        values = [value]
        with _together():
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def broadcast(self, tensors: list[Tensor]) -> None:
        """Overwrite `tensors` with those of rank 0."""
        if self.world_size > 1:
            with _together():
                for x in tensors:
                    dist.broadcast(x.detach(), src=0)


ALONE = Ranks()


def next_job() -> str | None:
    """What tells this run of torchrun's job from all others, and is the same when torchrun has restarted its ranks.

    None without torchrun. A script that trains several times does so in the same order each time.
    """
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    if run_id is None:
        return None
    if run_id == "none":  # torchrun was given no name for it; its own process lasts as long as the job
        run_id = f"{socket.gethostname()}-{os.getppid()}"
        with contextlib.suppress(OSError, IndexError):
            run_id += f"-{Path(f'/proc/{os.getppid()}/stat').read_text().rpartition(')')[2].split()[19]}"
    return f"{run_id}#{next(_calls)}"


def restarts() -> str:
    """How often torchrun has started its ranks anew, as it tells it; "0" without it."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def speaks_first(message: str, *, for_another: bool = False) -> bool:
    """Whether this rank is the one to show `message`, which others may have as well; True for a process by itself.

    Args:
        message: what went wrong; one that differs in its numbers alone is the same.
        for_another: with another rank, which may have shown something itself: then this one stays silent.
    """
    if Ranks.from_environment().world_size == 1:
        return True
    try:
        # Not the process group's own: this one need not have come so far.
        store = _store(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=timedelta(seconds=5))
        spoken = f"fasta2c/spoken/{restarts()}"
        first = store.add(spoken, 1) == 1
        if for_another:
            return first
        alike = re.sub(r"[\d.,]+", "", message)  # how much memory was free, say
        return store.add(f"{spoken}/{hashlib.sha256(alike.encode()).hexdigest()}", 1) == 1
    except (RuntimeError, ValueError):  # whoever kept it has gone
        return True


def _store(host: str, port: int, *, timeout: timedelta, is_master: bool = False) -> Any:
    """The store kept at `host` and `port`, or a new one there."""
    TCPStore = dist.TCPStore  # type: ignore[attr-defined]  # noqa: N806 - a class
    return TCPStore(host, port, is_master=is_master, timeout=timeout, wait_for_workers=False)


def _wait(work: dist.Work | None) -> None:
    """Wait for what gloo does, and let Python's signal handlers run meanwhile: rank 0 may be long about something."""
    while work is not None:
        try:
            work.wait(HEARING)
            return
        except RuntimeError:
            if work.is_completed():
                work.wait()  # which says why it failed; or it has ended since
                return


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """Inside, torch's errors of a connection become `PeerLost`."""
    try:
        with torch.no_grad():
            yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise PeerLost("" if _GONE.search(str(error)) else one_line(error)) from error
