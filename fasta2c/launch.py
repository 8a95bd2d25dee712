"""How training begins: anew, from where a run was saved, or where torchrun has restarted it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fasta2c import accel
from fasta2c.callbacks import Callback
from fasta2c.config import TrainConfig
from fasta2c.distributed import Ranks, next_job, restarts
from fasta2c.envs.ids import resolve
from fasta2c.errors import UserError
from fasta2c.fields import show
from fasta2c.presets import load_preset
from fasta2c.records import TrainResult
from fasta2c.run.checkpoint import run_of
from fasta2c.run.directory import RunDirectory
from fasta2c.run.progress import Progress
from fasta2c.trainer import Trainer
from fasta2c.tune import tune


def train(
    config: TrainConfig, *, resume: str | Path | None = None, callbacks: Callback | Iterable[Callback] = ()
) -> TrainResult:
    """Train an agent; with `resume`, go on where a run was saved.

    Under torchrun all ranks call this, and train together; rank 0 alone writes. What torchrun has restarted goes on.

    Args:
        config: fields that were not given take the environment's preset, or the resumed run's values.
        resume: run directory to go on with, or one of its checkpoints.
        callbacks: told what happens; of several ranks, on rank 0.

    Raises:
        UserError: bad input; nothing has been written.
        RunError: the run failed (a loss that is not finite, a checkpoint that cannot be written), or another rank has.
        Stopped: SIGINT, SIGTERM or SIGHUP ended the run, after a checkpoint.
    """
    callbacks = _checked(callbacks)
    ranks, job = Ranks.from_environment(), next_job()
    ranks.connect()
    if resume is None and job is not None:
        resume = ranks.broadcast_object(RunDirectory.of_job(config.run_dir, env=config.env, job=job))
        if resume is not None and config.num_envs == "auto":
            config = config.without("num_envs")  # a number has been found
    elif resume is not None and restarts() != "0":
        resume = run_of(Path(resume))  # from where it was saved last, whatever checkpoint it began with
    if resume is None:
        env_id = resolve(config.env)
        config = config.with_preset(load_preset(env_id.family, env_id.name))
        if config.num_envs == "auto":
            if ranks.world_size > 1:
                raise UserError("num_envs: auto tries numbers in one process; give a number for all ranks together.")
            config = _tuned(config)
    trainer = Trainer(config, Path(resume) if resume is not None else None, callbacks, ranks=ranks, job=job)
    try:
        return trainer.run()
    finally:
        trainer.close()


def _checked(callbacks: Callback | Iterable[Callback]) -> tuple[Callback, ...]:
    """All of `callbacks`; raises `UserError` for what is none."""
    found = tuple(callbacks) if isinstance(callbacks, Iterable) else (callbacks,)
    for callback in found:
        if not isinstance(callback, Callback):
            raise UserError(f"callbacks: {show(callback)} is no Callback; give a list of instances.")
    return found


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
