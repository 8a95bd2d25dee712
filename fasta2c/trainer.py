"""A session of training: collect, update, log, save, until the budget of env steps is spent."""

from __future__ import annotations

import contextlib
import math
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from fasta2c import accel, opening, snapshot
from fasta2c.agreement import Agreement, Wishes, start_alike
from fasta2c.callbacks import Callback
from fasta2c.config import TrainConfig
from fasta2c.distributed import ALONE, Ranks
from fasta2c.envs.base import HostEnvs
from fasta2c.envs.torch import TorchEnvs
from fasta2c.errors import RunError, Stopped
from fasta2c.faults import Faults, explained
from fasta2c.graphs import warm_up_updates
from fasta2c.parts import assemble, make_envs
from fasta2c.policy import Policy
from fasta2c.records import Records, Standing, TrainResult, shown
from fasta2c.run import checkpoint, wandb
from fasta2c.run.clock import Clock
from fasta2c.run.progress import Progress
from fasta2c.run.signals import SignalWatch
from fasta2c.run.watchdog import Watchdog
from fasta2c.sideshow import Sideshow
from fasta2c.snapshot import Saved

# With several ranks, how long a signal may wait for Python: a process that takes longer is taken to be stuck, waiting
# on its GPU for a rank that has gone, and ended.
HEARING_SECONDS = 10.0


class Trainer:
    """Everything a run is made of, built from its configuration or from its last checkpoint.

    With several ranks, whatever waits for the others (a rollout, an update, a checkpoint) comes in the same order on
    each of them.
    """

    def __init__(
        self,
        config: TrainConfig,
        resume: Path | None = None,
        callbacks: Sequence[Callback] = (),
        *,
        ranks: Ranks = ALONE,
        job: str | None = None,
    ) -> None:
        self.ranks = ranks
        self._callbacks = callbacks if ranks.leads else ()
        self._stopping = False
        self._signals = SignalWatch(patience=HEARING_SECONDS if ranks.world_size > 1 else 0.0)
        with ExitStack() as resources:
            self._build(config, resume, job, resources)
            self._resources = resources.pop_all()

    def _build(self, config: TrainConfig, resume: Path | None, job: str | None, resources: ExitStack) -> None:
        """Put everything together; what has to be closed goes into `resources`. New files come last."""
        ranks, here = self.ranks, opening.working_directory()
        saved = None
        if resume is not None:
            self.directory, saved = opening.reopen(resume, ranks, resources)
            config = saved.completed(config)
        self.config = config
        start_alike(ranks, config)
        self.device = accel.resolve_device(
            config.device, local_rank=ranks.local_rank, local_world_size=ranks.local_world_size
        )
        self.resumes = saved.state["resumes"] + 1 if saved is not None else 0
        self._quiet = config.quiet or not ranks.leads
        self._assemble(resources)
        self._check()
        self._begin(saved, here)
        if saved is None:
            self.directory = opening.make_directory(config, ranks, resources, job=job, here=here)
        self._keep_records(saved, resources)
        if saved.older if saved is not None else job is not None:
            # What torchrun restarts goes on from here at least, and not from what an older one has undone.
            self._save()

    def _assemble(self, resources: ExitStack) -> None:
        """Make the environments and all that learns from them."""
        config, ranks = self.config, self.ranks
        envs = self._make_envs(resources)
        if config.deterministic:
            was_on = torch.are_deterministic_algorithms_enabled()
            resources.callback(torch.use_deterministic_algorithms, was_on)
        assert isinstance(config.num_envs, int)
        self._first_env = ranks.share(config.num_envs).start
        self._agreement = Agreement(
            ranks, self._wishes, lambda: sum(group.restarts for group in envs), first_env=self._first_env
        )
        self.parts = assemble(
            config,
            envs,
            self.device,
            ranks=ranks,
            exchange=self._agreement.exchange,
            resetting=self._watchdog(envs, lambda: 0.0),
        )
        resources.callback(self.parts.graphs.release)
        self.collector, self.learner, self.timer = self.parts.collector, self.parts.learner, self.parts.timer
        self.counts = self.collector.counts
        self._sideshow = Sideshow(config, self.device, self._make_policy)

    def _check(self) -> None:
        """Raise `UserError` for what would fail later, while there is nothing to lose."""
        self.ranks.of_leader(self._check_shown)
        snapshot.check(self.parts, self.config)

    def _check_shown(self) -> None:
        """What rank 0 alone shows."""
        self._sideshow.check()
        if self.config.wandb:
            wandb.check()

    def _begin(self, saved: Saved | None, here: Path | None) -> None:
        """Begin with what was `saved`, with another run's parameters (a path below `here`), or with fresh ones."""
        self.update = 0
        self._restarts_before = 0
        self._notes = [self.parts.note] if self.parts.note else []
        before = 0.0
        if saved is not None:
            with checkpoint.understood(saved.file):
                games = snapshot.restore(self.parts, saved, self.config, self.device, self.ranks)
                self._notes.append(f"goes on at {self.env_steps:,} env steps; {games}")
                self.update, self._restarts_before = saved.state["update"], saved.state["env_restarts"]
                before = saved.state["wall_seconds"]
        elif self.config.init_from is not None:
            opening.load_initial(self.parts.model, self.config.init_from, self.ranks, here=here)
        self.clock = Clock(self.timer, update=self.update, env_steps=self.env_steps, wall_before=before)

    def _keep_records(self, saved: Saved | None, resources: ExitStack) -> None:
        """Open what the run writes to, and watch its numbers."""
        config, ranks = self.config, self.ranks
        self._faults = Faults(
            self.learner.watch,
            on_nan=config.on_nan,
            ranks=ranks,
            directory=self.directory,
            first_env=self._first_env,
            update=self.update,
            skipped=saved.state["skipped"] if saved is not None else 0,
        )
        if config.wandb and ranks.leads:  # before there is a log
            resources.callback(wandb.sync(self.directory.root, shown(config)))
        self.records = Records(
            config, self.parts, self.directory, self.clock, device=self.device, ranks=ranks, saved=saved
        )
        resources.callback(self.records.close)

    def _make_envs(self, resources: ExitStack) -> list[HostEnvs | TorchEnvs]:
        config = self.config
        if isinstance(config.num_envs, int) and config.num_envs >= 256:  # 10 s for as many emulators on two cores
            Progress(0, quiet=self._quiet).say(f"making {config.num_envs:,} environments")
        # A resumed run starts new games: with other seeds, so that it does not replay the old ones.
        envs = make_envs(config, self.device, stream=self.resumes, ranks=self.ranks)
        for group in envs:
            resources.callback(self._close_envs, group)
        return envs

    @property
    def env_steps(self) -> int:
        """Valid rows so far, the run's earlier sessions included."""
        return self.counts.env_steps

    @property
    def standing(self) -> Standing:
        """How far the run has come."""
        return Standing(self.update, self.env_steps, self._faults.skipped, self.resumes, self.env_restarts)

    @property
    def mean_return(self) -> float | None:
        """Over the last 100 games; None before the first has ended."""
        return self.counts.episodes.mean_return

    @property
    def run_dir(self) -> Path:
        """Where the run's files are."""
        return self.directory.path

    @cached_property
    def policy(self) -> Policy:
        """The policy as it is now; it goes on learning."""
        return self._make_policy()

    def _make_policy(self) -> Policy:
        """With randomness, and a memory, of its own."""
        return Policy(self.parts.model, self.parts.envs[0].spec, self.config, self.device, seed=self.config.seed)

    def stop(self) -> None:
        """End the run after this update, as if its budget were spent."""
        self._stopping = True

    def run(self) -> TrainResult:
        """Train until `total_steps`; the run directory is whole however this ends."""
        with self._signals:
            self._session()
        if signum := self._agreement.wishes.signal:
            folder = shlex.quote(str(self.directory.path))
            raise Stopped(signum, f"go on with: {self.ranks.program} train --resume {folder}")
        return self.records.result(self.standing)

    def _session(self) -> None:
        """Go through the loop, and leave the run directory whole."""
        status = "failed"
        try:
            with (
                explained(self.config, self.parts, self.device),
                Progress(self.config.total_steps, initial=self.env_steps, quiet=self._quiet) as progress,
                self._watchdog(self.parts.envs, self._waiting),
            ):
                self._loop(progress)
                self._faults.check(self.env_steps)
                self.records.finish(self.standing)
                self._save()
            status = "stopped" if self._agreement.wishes.signal else "done"
        finally:
            # A run that failed has its own error to tell; that the disk is full as well must not hide it.
            with contextlib.suppress(*([RunError] if status == "failed" else [])):
                self.records.write_summary(status, self.standing)

    def _loop(self, progress: Progress) -> None:
        config, counts, timer = self.config, self.counts, self.timer
        where = f"{self.device}" + f" and {self.ranks.world_size - 1} more" * (self.ranks.world_size > 1)
        progress.say(f"{config.env} on {where}: {config.num_envs} environments, run in {self.directory.path}")
        for note in self._notes:
            progress.say(note)
        warm_update = self.update + warm_up_updates(self.device)
        while not self._done:
            fraction = self.env_steps / config.total_steps
            rollout = self.collector.collect()
            with timer("update"):
                with explained(config, self.parts, self.device, learning=True):
                    metrics = self.learner.update(rollout, fraction)
                counts.settle()  # from here games and env steps count, which ranks have told each other meanwhile
                self._take(metrics)
            if self.update == warm_update:
                self.clock.end_warm_up(update=self.update, env_steps=self.env_steps)
            with timer("log"):
                self._tell_callbacks()
                if self.ranks.leads:
                    self._show()
                if self._due(config.log_interval):
                    self._faults.check(self.env_steps)
                    self.records.row(self.standing)
                if self._due(config.checkpoint_interval) or self._agreement.wishes.save:
                    self._save()
                progress.update(self.env_steps, sps=self.sps, episode_return=counts.episodes.mean_return)

    def _show(self) -> None:
        """Play games beside the training, and show parameters, where these are due."""
        config, log = self.config, self.records.log
        if self._due(config.eval_interval):
            self.records.eval_return = self._sideshow.evaluate()
        if self._due(config.histogram_interval):
            named = [(f"parameters/{name}", x) for name, x in self.parts.model.named_parameters()]
            log.add_histograms(named, env_steps=self.env_steps)
        if self._due(config.video_interval) and (film := self._sideshow.film()) is not None:
            log.add_film("episode/film", film, env_steps=self.env_steps)

    def _watchdog(self, envs: Sequence[HostEnvs | TorchEnvs], waiting: Callable[[], Any]) -> Watchdog:
        """Of environments, where they do not know themselves how long they may take."""
        timeout = self.config.env_timeout if not all(group.times_out for group in envs) else 0.0
        return Watchdog(timeout, waiting, f"{self.config.env} has not answered within {timeout:g} s (--env-timeout).")

    def _waiting(self) -> tuple[float, ...] | None:
        """What is equal as long as one and the same row of environments is waited for."""
        if self._sideshow.rows is not None:
            return (self._sideshow.rows,)
        since = self.timer.since("env")
        return None if since is None else (since, sum(group.restarts for group in self.parts.envs))

    @property
    def env_restarts(self) -> int:
        """Environments that failed and were made anew, earlier sessions included."""
        return self._restarts_before + self._agreement.env_restarts

    @property
    def _done(self) -> bool:
        """Whether the budget is spent, the games of late are as good as was asked for, or somebody said so."""
        wishes = self._agreement.wishes
        return bool(wishes.signal or wishes.stop or self._is_good or self.env_steps >= self.config.total_steps)

    @property
    def _is_good(self) -> bool:
        """Whether the last 100 games average what was asked for; rewards may be float32, in which 0.9 is a bit less."""
        target, episodes = self.config.stop_at_return, self.counts.episodes
        if target is None or not episodes.full or (mean := episodes.mean_return) is None:
            return False
        return mean >= target or math.isclose(mean, target, rel_tol=1e-6)

    def _wishes(self) -> Wishes:
        """This rank's own."""
        minutes = self.config.checkpoint_minutes
        overdue = minutes > 0 and time.monotonic() - self.records.saved_at >= 60 * minutes
        return Wishes(self._signals.received or 0, self._stopping, overdue)

    def _due(self, interval: int) -> bool:
        """Whether so many updates have been made, once or several times; never of 0."""
        return interval > 0 and self.update % interval == 0

    @property
    def sps(self) -> float:
        """Env steps per second of this session, its warm-up left out."""
        return self.clock.sps(self.env_steps)

    def close(self) -> None:
        """Give back environments, log and directory."""
        self._resources.close()

    def _close_envs(self, group: HostEnvs | TorchEnvs) -> None:
        """Close some environments, which may never end with it."""
        with self._watchdog([group], lambda: 0.0):
            group.close()

    def _take(self, metrics: torch.Tensor) -> None:
        """Count an update and keep its metrics."""
        self.update += 1
        self.records.add(metrics)
        if self.device.type == "cpu":  # elsewhere whoever asks waits, and asks when a row or a checkpoint is due
            self._faults.check(self.env_steps)

    def _tell_callbacks(self) -> None:
        for callback in self._callbacks:
            for game in self.counts.ended:
                callback.on_episode_end(self, game)
            callback.on_update(self)

    def _save(self) -> None:
        self._faults.check(self.env_steps)
        self.records.save(self.standing)
        for callback in self._callbacks:
            callback.on_checkpoint(self, self.directory.latest)
