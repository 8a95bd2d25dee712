"""A trained policy, ready to act on raw observations: what `load_policy` returns.

Shapes: B observations as `make_envs` returns them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fasta2c import accel
from fasta2c.config import TrainConfig, from_plain
from fasta2c.envs.base import EnvSpec
from fasta2c.errors import UserError
from fasta2c.models import distributions
from fasta2c.models.actor_critic import ActorCritic
from fasta2c.models.encoders import choose_encoder
from fasta2c.run import checkpoint


def build_model(spec: EnvSpec, config: TrainConfig, device: torch.device) -> ActorCritic:
    """The network that `config` describes for environments of `spec`, on `device`, freshly initialised.

    Sets torch's threads to what suits it.
    """
    shape = spec.observation_shape
    convolutional = choose_encoder(config.encoder, shape) == "nature-cnn"
    accel.set_threads(convolutional=convolutional)
    precision = accel.resolve_precision(config.precision, device, convolutional=convolutional)
    return ActorCritic(shape, spec.dtype, spec.num_actions, config, precision).to(device)


def load_state(file: Path) -> dict[str, Any]:
    """What a run saved in the checkpoint `file`.

    Raises:
        UserError: as `checkpoint.load`, and where the configuration, spaces or parameters are missing.
    """
    state = checkpoint.load(file)
    if not all(isinstance(state.get(key), dict) for key in ("config", "spec", "model")):
        raise UserError(f"{file} lacks what a checkpoint of a run holds; give a run directory or another checkpoint.")
    return state


def load_parameters(model: ActorCritic, parameters: dict[str, Any], source: Path) -> None:
    """Put a checkpoint's `parameters` into `model`; raises `UserError` where they do not fit it."""
    try:
        model.load_state_dict(parameters)
    except (RuntimeError, KeyError, AttributeError, TypeError):
        raise UserError(
            f"{source}: its network does not fit this run's (another environment, encoder or --shared)."
        ) from None


class Policy:
    """A network and what it takes to use it.

    Args:
        model: the network; it keeps learning if it does elsewhere.
        spec: what it observes.
        config: of the run it came from.
        device: where it is.
        seed: of the sampling.
    """

    def __init__(
        self, model: ActorCritic, spec: EnvSpec, config: TrainConfig, device: torch.device, seed: int = 0
    ) -> None:
        self.model = model
        self.spec = spec
        self.config = config
        self.device = device
        self._generator = torch.Generator(device).manual_seed(seed)
        self._samples = accel.micro_batch(0, device, convolutional=model.convolutional)

    def act(self, observations: Tensor | np.ndarray[Any, Any], *, greedy: bool = False) -> Tensor:
        """Actions [B] for observations [B, ...]: sampled, or the likeliest ones if `greedy`."""
        logits_BA, _ = self._forward(observations)
        return logits_BA.argmax(dim=-1) if greedy else distributions.sample(logits_BA, self._generator)

    def value(self, observations: Tensor | np.ndarray[Any, Any]) -> Tensor:
        """Values [B] of observations [B, ...]: the discounted return expected from each."""
        return self._forward(observations)[1]

    @torch.no_grad()
    def _forward(self, observations: Tensor | np.ndarray[Any, Any]) -> tuple[Tensor, Tensor]:
        batch = torch.as_tensor(observations)
        if tuple(batch.shape[1:]) != self.spec.observation_shape:
            raise ValueError(
                f"expected observations of shape [B, {', '.join(map(str, self.spec.observation_shape))}], "
                f"got {list(batch.shape)}"
            )
        parts = [self.model(part.to(self.device)) for part in batch.split(self._samples)]
        return torch.cat([logits for logits, _ in parts]), torch.cat([values for _, values in parts])


def load_policy(path: str | Path, *, checkpoint_name: str = "latest", device: str = "auto", seed: int = 0) -> Policy:
    """The policy of a run.

    Args:
        path: a run directory, or a checkpoint file.
        checkpoint_name: "latest", "best" or a file's path.
        device: "auto", "cpu", "cuda" or "cuda:N".
        seed: of the sampling.

    Raises:
        UserError: no run there, or a checkpoint that cannot be used.
    """
    file = checkpoint.resolve(Path(path), checkpoint_name)
    target = accel.resolve_device(device)
    state = load_state(file)
    config = TrainConfig(**from_plain(state["config"], str(file)))
    spec = EnvSpec.from_plain(state["spec"])
    model = build_model(spec, config, target)
    load_parameters(model, state["model"], file)
    return Policy(model, spec, config, target, seed)
