"""The training run: collect, update, log, save, until the budget of env steps is spent."""

from __future__ import annotations

import contextlib
import math
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fasta2c import accel
from fasta2c.callbacks import Callback
from fasta2c.config import TrainConfig, check_resumable, from_plain, load_preset, to_plain
from fasta2c.envs.base import HostEnvs
from fasta2c.envs.ids import resolve
from fasta2c.envs.torch import TorchEnvs
from fasta2c.errors import RunError, Stopped, UserError, is_out_of_memory, warn
from fasta2c.graphs import warm_up_updates
from fasta2c.learning.optim import load_optimizer_state, schedule
from fasta2c.learning.tally import Tally
from fasta2c.parts import assemble, make_envs
from fasta2c.policy import Policy, load_parameters, load_state
from fasta2c.run import checkpoint, randomness, wandb
from fasta2c.run.clock import Clock
from fasta2c.run.directory import RunDirectory
from fasta2c.run.metrics import MetricsLog
from fasta2c.run.progress import Progress
from fasta2c.run.provenance import commit, versions
from fasta2c.run.report import TimeReport
from fasta2c.run.signals import SignalWatch
from fasta2c.run.watchdog import Watchdog
from fasta2c.sideshow import Sideshow
from fasta2c.tune import tune

# With --on-nan skip, so many updates in a row without one that could be applied end the run.
SKIPS_IN_A_ROW = 10

# What a checkpoint holds for --resume, beside what a policy is made of.
_RESUMED = frozenset(
    {
        "collector",
        "optimizer",
        "reward_scaler",
        "generator",
        "randomness",
        "skipped",
        "update",
        "resumes",
        "env_restarts",
        "wall_seconds",
        "best_return",
        "log",
    }
)


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    run_dir: Path
    env_steps: int
    updates: int
    episodes: int
    wall_seconds: float
    sps: float
    """Env steps per second of wall time, warm-up left out."""
    mean_return: float | None
    """Over the last 100 games; None if none has ended."""
    warm_up_seconds: float
    """What the first update took, compilation included; on a GPU the first three, of which graphs are recorded."""
    time_report: TimeReport | None
    """Where the time went; None after a single update."""
    best_return: float | None
    """The highest mean over 100 games seen; what best.pt holds."""


def train(config: TrainConfig, *, resume: str | Path | None = None, callbacks: Sequence[Callback] = ()) -> TrainResult:
    """Train an agent; with `resume`, go on where the run in that directory was saved.

    Args:
        config: fields that were not given take the environment's preset, or the resumed run's values.
        resume: run directory to go on with.
        callbacks: told what happens.

    Raises:
        UserError: bad input; nothing has been written.
        RunError: the run failed (a loss that is not finite, a checkpoint that cannot be written).
        Stopped: SIGINT, SIGTERM or SIGHUP ended the run, after a checkpoint.
    """
    if resume is None:
        env_id = resolve(config.env)
        config = config.with_preset(load_preset(env_id.family, env_id.name))
        if config.num_envs == "auto":
            config = _tuned(config)
    trainer = Trainer(config, Path(resume) if resume is not None else None, callbacks)
    try:
        return trainer.run()
    finally:
        trainer.close()


def _tuned(config: TrainConfig) -> TrainConfig:
    """`config` with a number of environments that was found to be fast here."""
    say = Progress(0, quiet=config.quiet).say
    device = accel.resolve_device(config.device)
    say(f"{config.env} on {device}: trying numbers of environments")
    config = tune(config, device, say=say)
    assert config.num_envs != "auto"
    updates = config.total_steps // (config.num_envs * config.num_steps)
    steps = updates * config.minibatches(config.num_envs) * config.num_epochs
    wish = "" if config.num_minibatches == "auto" else "; more environments want a higher --lr"
    say(f"a run of {config.total_steps:,} env steps makes {steps:,} optimizer steps{wish}")
    return config


class Trainer:
    """Everything a run is made of, built from its configuration or from its last checkpoint."""

    def __init__(self, config: TrainConfig, resume: Path | None = None, callbacks: Sequence[Callback] = ()) -> None:
        self._callbacks = callbacks
        self._stopping = False
        with ExitStack() as resources:
            self._build(config, resume, resources)
            self._resources = resources.pop_all()

    def _build(self, config: TrainConfig, resume: Path | None, resources: ExitStack) -> None:
        """Put everything together; what has to be closed goes into `resources`. Files come last."""
        state: dict[str, Any] | None = None
        if resume is not None:
            self.directory = RunDirectory.open(resume, lock=True)
            resources.callback(self.directory.close)
            file = checkpoint.resolve(resume)
            state = load_state(file)
            if missing := _RESUMED - state.keys():
                raise UserError(f"{file} lacks {', '.join(sorted(missing))}; resume from another checkpoint.")
            saved = from_plain(state["config"], str(file))
            config = config.with_preset(saved)
            check_resumable(config, TrainConfig(**saved))
        self.config = config
        self.device = accel.resolve_device(config.device)
        self.resumes = state["resumes"] + 1 if state is not None else 0

        if isinstance(config.num_envs, int) and config.num_envs >= 256:  # 10 s for as many emulators on two cores
            Progress(0, quiet=config.quiet).say(f"making {config.num_envs:,} environments")
        # A resumed run starts new games: with other seeds, so that it does not replay the old ones.
        envs = make_envs(config, self.device, stream=self.resumes)
        for group in envs:
            resources.callback(group.close)
        if config.deterministic:
            was_on = torch.are_deterministic_algorithms_enabled()
            resources.callback(torch.use_deterministic_algorithms, was_on)
        with self._watchdog(envs, lambda: 0.0):  # they are reset
            self.parts = assemble(config, envs, self.device)
        self.collector, self.learner, self.timer = self.parts.collector, self.parts.learner, self.parts.timer

        if config.wandb:
            wandb.check()
        self._sideshow = Sideshow(config, self.device, lambda: self.policy)
        try:
            checkpoint.serialise(self.collector.state_dict())
        except TypeError as error:
            raise UserError(f"{config.env}: its state_dict cannot be saved: {error}") from None

        self.update = 0
        self.best_return: float | None = None
        self._restarts_before = 0
        self._tally = Tally(self.device)
        self._skipped = 0
        self._logged = {"update": 0, "env_steps": 0, "wall_seconds": 0.0}
        self._eval_return: float | None = None
        self._notes = [self.parts.note] if self.parts.note else []
        if state is not None:
            self._restore(state, file)
        elif config.init_from is not None:
            file = checkpoint.resolve(config.init_from)
            load_parameters(self.parts.model, load_state(file)["model"], file)
        self._session_began = self.update
        before = state["wall_seconds"] if state is not None else 0.0
        self.clock = Clock(self.timer, update=self.update, env_steps=self.env_steps, wall_before=before)
        self._saved_at = time.monotonic()

        if state is None:
            self.directory = RunDirectory.create(config.run_dir, env=config.env, seed=config.seed)
            resources.callback(self.directory.close)
        plain = {k: v for k, v in to_plain(config).items() if k not in ("run_dir", "init_from")}
        if config.wandb:
            resources.callback(wandb.sync(self.directory.path, plain))
        self.directory.write_config({**plain, "versions": versions(), "commit": commit()})
        self.log = MetricsLog(self.directory.path, resume_at=self.env_steps if state else None)
        resources.callback(self.log.close)
        self.log.add_config(plain)

    def _restore(self, state: dict[str, Any], source: Path) -> None:
        """Go on from what `_state` told, read from `source`."""
        parts, config = self.parts, self.config
        load_parameters(parts.model, state["model"], source)
        load_optimizer_state(parts.optimizer, state["optimizer"])
        self.collector.load_state_dict(state["collector"])
        dropped = self.collector.dropped["games"] - state["collector"]["dropped"]["games"]
        games = f"{dropped} games that were under way begin anew" if dropped else "with all its games"
        self._notes.append(f"goes on at {self.env_steps:,} env steps; {games}")
        if (scaler := self.learner.reward_scaler) is not None:
            scaler.load_state_dict(state["reward_scaler"])
            if state["collector"]["games"] is None:
                scaler.drop_episodes()
        # A generator of another kind of device has another state: then the actions' randomness starts anew.
        if len(state["generator"]) == len(parts.generator.get_state()):
            parts.generator.set_state(state["generator"])
        else:
            parts.generator.manual_seed(config.seed + self.resumes)
        randomness.restore(state["randomness"], self.device)
        self.update, self.best_return = state["update"], state["best_return"]
        self._skipped, self._restarts_before = state["skipped"], state["env_restarts"]
        self._eval_return = state["log"]["eval_return"]
        self._tally.load_state_dict(state["log"]["metrics"])
        self._logged = {name: state["log"][name] for name in self._logged}

    @property
    def env_steps(self) -> int:
        """Valid rows so far, the run's earlier sessions included."""
        return self.collector.env_steps

    @property
    def mean_return(self) -> float | None:
        """Over the last 100 games; None before the first has ended."""
        return self.collector.episodes.mean_return

    @property
    def run_dir(self) -> Path:
        """Where the run's files are."""
        return self.directory.path

    @property
    def policy(self) -> Policy:
        """The policy as it is now; it goes on learning."""
        return Policy(self.parts.model, self.parts.envs[0].spec, self.config, self.device, seed=self.config.seed)

    def stop(self) -> None:
        """End the run behind this update, as if its budget were spent."""
        self._stopping = True

    def run(self) -> TrainResult:
        """Train until `total_steps`; the run directory is whole however this ends."""
        status = "failed"
        try:
            with (
                SignalWatch() as signals,
                Progress(self.config.total_steps, initial=self.env_steps, quiet=self.config.quiet) as progress,
                self._watchdog(self.parts.envs, self._waiting),
            ):
                self._loop(signals, progress)
                self._finish()
            status = "stopped" if signals.received is not None else "done"
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                told = self.parts.needs.failed(accel.free_memory(self.device))
                raise RunError(f"out of memory: {told}") from error
            if self.config.deterministic and "deterministic" in str(error):
                raise RunError(f"deterministic: {str(error).partition(', but you set')[0]}.") from error
            raise
        finally:
            # A run that failed has its own error to tell; that the disk is full as well must not hide it.
            with contextlib.suppress(*([RunError] if status == "failed" else [])):
                self.directory.write_summary({"status": status, **self._summary()})
        if signals.received is not None:
            folder = shlex.quote(str(self.directory.path))
            raise Stopped(signals.received, f"go on with: fasta2c train --resume {folder}")
        return TrainResult(
            run_dir=self.run_dir,
            env_steps=self.env_steps,
            updates=self.update,
            episodes=self.collector.episodes.count,
            wall_seconds=self.clock.wall_seconds,
            sps=self.sps,
            mean_return=self.mean_return,
            warm_up_seconds=self.clock.warm_up_seconds,
            time_report=self.time_report,
            best_return=self.best_return,
        )

    def _loop(self, signals: SignalWatch, progress: Progress) -> None:
        config, collector, timer = self.config, self.collector, self.timer
        progress.say(f"{config.env} on {self.device}: {config.num_envs} environments, run in {self.directory.path}")
        for note in self._notes:
            progress.say(note)
        warm_update = self.update + warm_up_updates(self.device)
        while not self._done and signals.received is None:
            fraction = self.env_steps / config.total_steps
            rollout = collector.collect()
            with timer("update"):
                self._take(self.learner.update(rollout, fraction))
            if self.update == warm_update:
                self.clock.end_warm_up(update=self.update, env_steps=self.env_steps)
            with timer("log"):
                self._tell_callbacks()
                if self._due(config.eval_interval):
                    self._eval_return = self._sideshow.evaluate()
                if self._due(config.histogram_interval):
                    named = [(f"parameters/{name}", x) for name, x in self.parts.model.named_parameters()]
                    self.log.add_histograms(named, env_steps=self.env_steps)
                if self._due(config.video_interval) and (film := self._sideshow.film()) is not None:
                    self.log.add_film("episode/film", film, env_steps=self.env_steps)
                if self._due(config.log_interval):
                    self._log()
                if self._due(config.checkpoint_interval) or self._overdue:
                    self._save()
                progress.update(self.env_steps, sps=self.sps, episode_return=collector.episodes.mean_return)

    def _watchdog(self, envs: Sequence[HostEnvs | TorchEnvs], waiting: Callable[[], Any]) -> Watchdog:
        """Of environments, where they do not know themselves how long they may take."""
        timeout = self.config.env_timeout if not all(group.times_out for group in envs) else 0.0
        return Watchdog(timeout, waiting, f"{self.config.env} has not answered within {timeout:g} s (--env-timeout).")

    def _waiting(self) -> tuple[float, ...] | None:
        """What is equal as long as one and the same row of environments is waited for."""
        if self._sideshow.rows is not None:
            return (self._sideshow.rows,)
        since = self.timer.since("env")
        return None if since is None else (since, self.env_restarts)

    @property
    def env_restarts(self) -> int:
        """Environments that failed and were made anew, earlier sessions included."""
        return self._restarts_before + sum(envs.restarts for envs in self.parts.envs)

    @property
    def _done(self) -> bool:
        """Whether the budget is spent, the games of late are as good as was asked for, or somebody said so."""
        target, episodes = self.config.stop_at_return, self.collector.episodes
        reached = target is not None and episodes.full and (episodes.mean_return or 0.0) >= target
        return self._stopping or reached or self.env_steps >= self.config.total_steps

    def _due(self, interval: int) -> bool:
        """Whether so many updates have been made, once or several times; never of 0."""
        return interval > 0 and self.update % interval == 0

    @property
    def _overdue(self) -> bool:
        """Whether the last checkpoint is older than one may get."""
        minutes = self.config.checkpoint_minutes
        return minutes > 0 and time.monotonic() - self._saved_at >= 60 * minutes

    @property
    def sps(self) -> float:
        """Env steps per second of this session, its warm-up left out."""
        return self.clock.sps(self.env_steps)

    def close(self) -> None:
        """Give back environments, log and directory."""
        self._resources.close()

    @property
    def time_report(self) -> TimeReport | None:
        """Where the time of this session went since its warm-up; None where there was nothing after it."""
        in_turn = self.parts.envs[0].in_turn
        return self.clock.report(
            update=self.update,
            env_steps=self.env_steps,
            num_steps=self.config.num_steps,
            on_gpu=self.device.type == "cuda",
            in_turn=in_turn,
            overlapped=len(self.parts.envs) > 1 and not in_turn,
        )

    def _take(self, metrics: torch.Tensor) -> None:
        """Count an update and keep its metrics."""
        self.update += 1
        self._tally.add(metrics)
        if self.device.type == "cpu":  # elsewhere whoever asks waits: see _log
            self._check_numbers()

    def _tell_callbacks(self) -> None:
        for callback in self._callbacks:
            for game in self.collector.ended:
                callback.on_episode_end(self, game)
            callback.on_update(self)

    def _check_numbers(self) -> None:
        """Tell of numbers that were not finite, and stop where the run is to."""
        fault = self.learner.watch.report()
        if fault is None:
            return
        told = fault.told(self._session_began, self.env_steps)
        self._skipped += fault.skipped
        if self.config.on_nan == "skip" and fault.longest < SKIPS_IN_A_ROW:
            warn(f"{told}; {self._skipped} so far.")
            return
        if self.config.on_nan == "skip":
            told += f", nor were {fault.longest} in a row"
        advice = "Try a lower --lr or --max-grad-norm." if fault.row is None else "Look for it in the environment."
        if self.directory.latest.exists():
            advice += f" The last checkpoint in {self.directory.checkpoints} is from before."
        raise RunError(f"{told}. {advice}")

    def _log(self) -> None:
        """Write the means since the last row; the one place beside checkpoints that waits for the device."""
        self._check_numbers()
        config, episodes = self.config, self.collector.episodes
        now, steps = self.clock.wall_seconds, self.env_steps
        fraction = steps / config.total_steps
        best = -math.inf if self.best_return is None else self.best_return
        if episodes.full and (episodes.mean_return or 0.0) > best:
            self._save_best()
        self.log.write(
            {
                "env_steps": steps,
                "update": self.update,
                "wall_seconds": now,
                "sps": (steps - self._logged["env_steps"]) / max(now - self._logged["wall_seconds"], 1e-9),
                "episode_return_mean": episodes.mean_return,
                "episode_length_mean": episodes.mean_length,
                "episodes": episodes.count,
                **self._tally.take_means(),
                "lr": config.lr * schedule(config.lr_schedule, fraction),
                "ent_coef": config.ent_coef * schedule(config.ent_schedule, fraction),
                "best_return": self.best_return,
                "eval_return_mean": self._eval_return,
                "skipped_updates": self._skipped,
                **{f"{phase}_fraction": self.clock.shares[phase] for phase in ("env", "act", "update")},
            }
        )
        self._eval_return = None
        self._logged = {"update": self.update, "env_steps": steps, "wall_seconds": now}

    def _finish(self) -> None:
        """The last row and the last checkpoint of a session."""
        if self.update > self._logged["update"]:
            self._log()
        if self.best_return is None and self.collector.episodes.count:
            self._save_best()
        self._save()
        if (report := self.time_report) is not None:
            self.log.add_text("time/report", f"{report.shares}  \n{report.limit}  \n{report.advice}")

    def _save(self) -> None:
        self._check_numbers()
        checkpoint.save(self.directory, self._state(), env_steps=self.env_steps)
        self._saved_at = time.monotonic()
        for callback in self._callbacks:
            callback.on_checkpoint(self, self.directory.latest)

    def _save_best(self) -> None:
        self.best_return = self.collector.episodes.mean_return
        checkpoint.save_best(self.directory, self._state())

    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds: tensors and plain values."""
        return {
            "config": to_plain(self.config),
            "spec": self.parts.envs[0].spec.to_plain(),
            "model": self.parts.model.state_dict(),
            "optimizer": self.parts.optimizer.state_dict(),
            "reward_scaler": scaler.state_dict() if (scaler := self.learner.reward_scaler) else {},
            "collector": self.collector.state_dict(),
            "generator": self.parts.generator.get_state(),
            "randomness": randomness.capture(self.device),
            "update": self.update,
            "resumes": self.resumes,
            "env_restarts": self.env_restarts,
            "wall_seconds": self.clock.wall_seconds,
            "best_return": self.best_return,
            "log": {**self._logged, "eval_return": self._eval_return, "metrics": self._tally.state_dict()},
            "skipped": self._skipped,
            "versions": versions(),
        }

    def _summary(self) -> dict[str, Any]:
        return {
            "env": self.config.env,
            "seed": self.config.seed,
            "env_steps": self.env_steps,
            "updates": self.update,
            "episodes": self.collector.episodes.count,
            "wall_seconds": self.clock.wall_seconds,
            "sps": self.sps,
            "mean_return": self.mean_return,
            "best_return": self.best_return,
            "skipped_updates": self._skipped,
            "dropped": self.collector.dropped,
            "env_restarts": self.env_restarts,
            "phase_seconds": self.clock.phase_seconds,
            "warm_up_seconds": self.clock.warm_up_seconds,
            "versions": versions(),
        }
