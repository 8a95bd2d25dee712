"""How much memory a run needs, whether that is there, and what would fit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from fasta2c import accel
from fasta2c.errors import UserError, is_out_of_memory
from fasta2c.models.actor_critic import ActorCritic
from fasta2c.rollout.buffer import RolloutBuffer, rollout_bytes
from fasta2c.rollout.reuse import graph_bytes
from fasta2c.spaces import EnvSpec


@dataclass(frozen=True)
class Needs:
    """What a run keeps: its rollout, and the graph of one micro-batch; optimizer and emulators come on top."""

    num_envs: int
    num_steps: int
    samples: int
    """Of a micro-batch."""
    row_bytes: int
    """Of a row of all environments."""
    rollout_bytes: int
    sample_bytes: int
    """Of a sample's graph."""
    free_bytes: int
    """What this process may still take on the device."""

    @property
    def fit(self) -> bool:
        """Whether there is room."""
        return self.rollout_bytes + self.samples * self.sample_bytes <= self.free_bytes

    def __str__(self) -> str:
        room = self.free_bytes - self.samples * self.sample_bytes
        most = {
            "--num-envs": room * self.num_envs // self.rollout_bytes,
            "--num-steps": self.num_steps - -(-(self.rollout_bytes - room) // self.row_bytes),
            "--micro-batch": (self.free_bytes - self.rollout_bytes) // max(self.sample_bytes, 1),
        }
        given = {"--num-envs": self.num_envs, "--num-steps": self.num_steps, "--micro-batch": self.samples}
        fitting = " or ".join(f"{flag} {count:,}" for flag, count in most.items() if 1 <= count < given[flag])
        advice = f"At most {fitting} would fit." if fitting else "Take fewer of all of them."
        batch = f", a micro-batch of {self.samples:,} samples {_told(self.samples * self.sample_bytes)}," * bool(
            self.samples
        )
        return (
            f"{self.num_envs:,} environments of {self.num_steps:,} rows take {_told(self.rollout_bytes)}{batch} and "
            f"{_told(self.free_bytes)} are free. {advice}"
        )

    def failed(self, free_bytes: int) -> str:
        """What to say when a run that was to fit has not, `free_bytes` being free beside its rollout."""
        # Gradients of activations, and convolutions' workspaces, come on top of a graph.
        tight = replace(self, sample_bytes=2 * self.sample_bytes, free_bytes=self.rollout_bytes + free_bytes)
        if not tight.fit:
            return str(tight)
        halves = f"--micro-batch {self.samples // 2:,}, --num-envs {self.num_envs // 2:,}"
        return (
            f"{self.num_envs:,} environments of {self.num_steps:,} rows with a micro-batch of {self.samples:,} samples "
            f"do not fit. Try half of one: {halves} or --num-steps {self.num_steps // 2:,}."
        )


def needs(model: ActorCritic, spec: EnvSpec, num_envs: int, num_steps: int, *, samples: int) -> Needs:
    """What a run of `num_envs` environments and `num_steps` rows needs on the model's device.

    Args:
        model: the network.
        spec: what it observes.
        num_envs: E.
        num_steps: T.
        samples: the most observations whose gradient is computed at once.
    """
    device = next(model.parameters()).device
    whole, shorter = (rollout_bytes(t, num_envs, spec, model.state_size) for t in (num_steps, num_steps - 1))
    small = RolloutBuffer(1, 8, spec, device, state_size=model.state_size)
    return Needs(
        num_envs=num_envs,
        num_steps=num_steps,
        samples=samples,
        row_bytes=whole - shorter,
        rollout_bytes=whole,
        sample_bytes=graph_bytes(model, small, 8) // 8 + 1,
        free_bytes=accel.free_memory(device),
    )


@contextlib.contextmanager
def for_network() -> Iterator[None]:
    """Raise `UserError` where memory runs out inside, which makes the network."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            "out of memory: the network does not fit in what is free; take smaller --hidden-sizes or --recurrent-size."
        ) from None


def check_rollout(spec: EnvSpec, num_envs: int, num_steps: int, device: torch.device) -> None:
    """Raise `UserError` where there is no room even for the rollout: before emulators are made, which takes minutes."""
    whole, shorter = (rollout_bytes(t, num_envs, spec) for t in (num_steps, num_steps - 1))
    check(Needs(num_envs, num_steps, 0, whole - shorter, whole, 0, accel.free_memory(device)))


def check(needed: Needs) -> None:
    """Raise `UserError` where there is no room: better than to be killed by the system while training."""
    if not needed.fit:
        raise UserError(f"out of memory: {needed}")


def _told(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
