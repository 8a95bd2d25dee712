"""A trained policy, ready to act on raw observations: what `load_policy` returns.

Shapes: B observations as `make_envs` returns them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fasta2c import accel, randomness
from fasta2c.config import TrainConfig, from_plain
from fasta2c.errors import UserError
from fasta2c.models.actor_critic import ActorCritic
from fasta2c.models.encoders import is_convolutional
from fasta2c.run.checkpoint import load, resolve, understood
from fasta2c.spaces import EnvSpec, as_tensor


def build_model(spec: EnvSpec, config: TrainConfig, device: torch.device) -> ActorCritic:
    """The network that `config` describes for environments of `spec`, on `device`, freshly initialised.

    Sets torch's threads to what suits it.
    """
    convolutional = is_convolutional(config.encoder, spec.leaves)
    accel.set_threads(convolutional=convolutional)
    precision = accel.resolve_precision(config.precision, device, convolutional=convolutional)
    return ActorCritic(spec, config, precision).to(device)


def load_state(file: Path) -> dict[str, Any]:
    """What a run saved in the checkpoint `file`.

    Raises:
        UserError: as `checkpoint.load` does, and where the configuration, spaces or parameters are missing.
    """
    state = load(file)
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
        self._layout = spec.layout
        self._state_BS = torch.zeros((0, model.state_size), device=device)
        self._samples = accel.micro_batch(0, device, convolutional=model.convolutional)

    def act(self, observations: Any, *, greedy: bool = False, opens: Any = None) -> Tensor:
        """Actions [B, ...] as the environment takes them: sampled, or the likeliest ones if `greedy`.

        A policy with memory remembers the observations that it acted on, of each of B environments. With another B it
        begins anew.

        Args:
            observations: [B, ...] as `make_envs` returns them: a tensor or an array, or dicts of them.
            greedy: take the likeliest actions; the means, of real numbers.
            opens: [B] whether an observation opens a game (`infos["opens"]`), before which nothing is remembered.
        """
        policy_BP, _, self._state_BS = self._forward(observations, opens)
        distribution = self.model.distribution
        actions = distribution.mode(policy_BP) if greedy else distribution.sample(policy_BP, self._generator)
        return distribution.env_actions(actions)

    def reset(self) -> None:
        """Forget what was remembered: the next observations open games."""
        self._state_BS = self._state_BS.new_zeros(0, self.model.state_size)

    def value(self, observations: Any, *, opens: Any = None) -> Tensor:
        """Values [B] of observations [B, ...]: the discounted return expected from each.

        With memory: of observations that were not acted on yet; `opens` as for `act`. Nothing is remembered of them.
        """
        return self._forward(observations, opens)[1]

    @torch.no_grad()
    def _forward(self, observations: Any, opens: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Distributions [B, P], values [B] and the state [B, S] after them."""
        packed = self._packed(observations)
        count = len(packed)
        state_BS = (
            self._state_BS if len(self._state_BS) == count else self._state_BS.new_zeros(count, self.model.state_size)
        )
        opens_B = torch.zeros(count, dtype=torch.bool) if opens is None else torch.as_tensor(opens, dtype=torch.bool)
        if opens_B.shape != (count,):
            raise ValueError(f"expected opens of shape [{count}], one for each observation, got {list(opens_B.shape)}")
        parts = []
        for part, state, opened in zip(*(x.split(self._samples) for x in (packed, state_BS, opens_B)), strict=True):
            if self.model.memory is None:
                parts.append((*self.model(part.to(self.device)), state))
            else:
                parts.append(self.model.unroll(part.to(self.device), state, opened.to(self.device).unsqueeze(0)))
        policy, values, states = (torch.cat(list(x)) for x in zip(*parts, strict=True))
        return policy, values, states

    def _packed(self, observations: Any) -> Tensor:
        """Observations as a rollout holds them; raises `ValueError` where they are not those of the spec."""
        arrays = []
        for leaf, value in zip(self._layout.leaves, self._layout.flatten(observations), strict=True):
            tensor = as_tensor(value)
            if tuple(tensor.shape[1:]) != leaf.shape:
                name = ".".join(leaf.path) or "observations"
                shape = ", ".join(map(str, ("B", *leaf.shape)))
                raise ValueError(f"expected {name} of shape [{shape}], got {list(tensor.shape)}")
            arrays.append(tensor)
        return self._layout.pack_tensors(arrays)


def load_policy(
    path: str | Path, *, checkpoint: str = "latest", device: str = "auto", seed: int | None = None
) -> Policy:
    """The policy of a run. Sets torch's number of threads in this process to what suits its network.

    Args:
        path: a run directory, or a checkpoint file.
        checkpoint: "latest", "best" or a file's path.
        device: "auto", "cpu", "cuda" or "cuda:N".
        seed: of the sampling; the run's own unless given.

    Raises:
        UserError: no run there, or a checkpoint that cannot be used.
    """
    file = resolve(Path(path), checkpoint)
    target = accel.resolve_device(device)
    state = load_state(file)
    with understood(file):
        config = TrainConfig(**from_plain(state["config"], str(file)))
        spec = EnvSpec.from_plain(state["spec"])
        with randomness.kept(target):  # somebody may be training
            model = build_model(spec, config, target)
        load_parameters(model, state["model"], file)
    return Policy(model, spec, config, target, config.seed if seed is None else seed)
