"""What the ranks of a run tell each other at its start and at every rollout, so that all do the same next."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import NamedTuple

from fasta2c import accel
from fasta2c.config import TrainConfig, to_plain
from fasta2c.distributed import Ranks
from fasta2c.envs.episodes import Game
from fasta2c.errors import UserError
from fasta2c.rollout.counts import RolloutCounts
from fasta2c.run.provenance import versions


def start_alike(ranks: Ranks, config: TrainConfig) -> None:
    """Make sure that all ranks train by the same `config`, and leave each its part of the machine it is on.

    Raises `UserError`, on all of them, where they were started with other settings or have other versions.
    """
    if ranks.world_size == 1:
        return
    told = ranks.all_gather_object(
        (socket.gethostname(), accel.own_cores(), {**to_plain(config), "versions": versions()})
    )
    settings = [plain for _, _, plain in told]
    if different := [name for name in settings[0] if any(plain[name] != settings[0][name] for plain in settings)]:
        raise UserError(f"{', '.join(different)}: not the same on all ranks; start them alike.")
    accel.share_machine([cores for host, cores, _ in told if host == socket.gethostname()])


class Wishes(NamedTuple):
    """What ends a run early, or has it saved before its time."""

    signal: int = 0
    """That asks the run to stop; 0 for none."""
    stop: bool = False
    """Somebody's code asks for it."""
    save: bool = False
    """The last checkpoint is as old as one may get."""


class Agreement:
    """What one rank asks for, all ranks do after the same update; a single rank does it at once.

    Args:
        ranks: who they are.
        own: this rank's wishes as they are now.
        restarts: environments that failed here and were made anew so far.
        first_env: the number that this rank's first environment has among all of them.
    """

    def __init__(self, ranks: Ranks, own: Callable[[], Wishes], restarts: Callable[[], int], first_env: int) -> None:
        self._ranks = ranks
        self._own = own
        self._restarts = restarts
        self._first_env = first_env
        self._agreed = Wishes()
        self._restarts_told = 0

    @property
    def wishes(self) -> Wishes:
        """What is to be done."""
        return self._own() if self._ranks.world_size == 1 else self._agreed

    @property
    def env_restarts(self) -> int:
        """Environments of all ranks that failed and were made anew in this session."""
        return self._restarts() if self._ranks.world_size == 1 else self._restarts_told

    def exchange(self, here: RolloutCounts) -> Callable[[], list[RolloutCounts]]:
        """Tell what happened here in a rollout, without waiting.

        Returns:
            what waits, and returns what happened on every rank, environments numbered through.
        """
        if self._ranks.world_size == 1:
            return lambda: [here]
        own = self._own()
        numbers = [*own, self._restarts(), here.env_steps, here.dropped_games, here.dropped_env_steps]
        games = [game._replace(env=self._first_env + game.env) for game in here.games]
        hear = self._ranks.exchange(numbers, games, width=len(Game._fields))

        def settle() -> list[RolloutCounts]:
            heard = hear()
            signals, stops, saves, restarts = zip(*(told[:4] for told, _ in heard), strict=True)
            self._agreed = Wishes(int(max(signals)), any(stops), any(saves))
            self._restarts_told = int(sum(restarts))
            return [
                RolloutCounts(
                    int(steps), [Game(int(env), score, int(length)) for env, score, length in rows], *map(int, lost)
                )
                for (_, _, _, _, steps, *lost), rows in heard
            ]

        return settle
