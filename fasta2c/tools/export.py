"""Ships a trained policy as one file for another runtime, tried there beside the policy before it counts.

Shapes: B samples, D real numbers of an action, K choices of N options, S numbers of memory.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import fasta2c
from fasta2c.envs.make import VectorEnvs
from fasta2c.errors import RunError, UserError, reason
from fasta2c.evaluation import eval_envs
from fasta2c.models.actor_critic import ActorCritic
from fasta2c.models.distributions import Categorical
from fasta2c.models.layers import Tanh
from fasta2c.policy import Policy, load_policy
from fasta2c.run.files import check_output, finite, write_atomically
from fasta2c.run.progress import Progress
from fasta2c.spaces import Choices
from fasta2c.tools.formats import FORMATS, FormatName, Runtime, Signature, choose, quiet

# How far a file's numbers may be from the policy's; of numbers above 1, as a share of them.
TOLERANCE = 1e-4
# What it is tried on.
ENVS, ROWS = 4, 64


@dataclass(frozen=True)
class Export:
    """A file that plays as its policy does."""

    path: Path
    format: FormatName
    inputs: Signature
    outputs: Signature
    difference: float
    """The largest one between the file's numbers and the policy's; of numbers above 1, as a share of them."""
    observations: int
    """How many it was tried on."""


def export(
    run_dir: str | Path,
    out: str | Path | None = None,
    *,
    format: FormatName | Literal["auto"] = "auto",
    checkpoint: str = "latest",
    progress: bool = False,
) -> Export:
    """Write a run's policy to a file for another runtime, which is tried on real observations first.

    The file takes observations as `make_envs` gives them (bytes of images, frames stacked), scales and normalises
    them itself, and computes in float32, whatever their number. Its metadata, JSON called `fasta2c`, says what each
    tensor is, and of what environment.

    Args:
        run_dir: a run directory, or a checkpoint file.
        out: the file, replaced when the new one is whole; `policy` with the format's ending unless given.
        format: "onnx" (ONNX Runtime), "torchscript" (`torch.jit.load`, also of C++) or "pt2" (`torch.export.load`);
            "auto" goes by the ending of `out`, and without that is "onnx".
        checkpoint: "latest", "best" or a file's path.
        progress: show how far the trial is.

    Raises:
        UserError: no such run, no place for the file, an ending that says nothing or something else, packages that are
            missing, or a network that the format cannot hold.
        RunError: the file plays otherwise than its policy, or the disk refuses it; what was there before stays.
    """
    path = Path(out or f"policy{FORMATS[choose(format)].endings[0]}")
    check_output(path)
    name = choose(format, path)
    kind = FORMATS[name]
    kind.check()
    policy = load_policy(run_dir, checkpoint=checkpoint, device="cpu")
    policy.model.precision = torch.float32
    policy.model.requires_grad_(False)
    with eval_envs(policy.config, ENVS, policy.device) as envs:
        observations = envs.reset()
        examples = tuple(x[:2].clone() for x in _inputs(policy, observations, torch.ones(ENVS, dtype=torch.bool)))
        shipped = Shipped(_traceable(policy.model)).eval()
        takes = _described(_input_meanings(policy), examples)
        gives = _described(_output_meanings(policy), shipped(*examples))
        try:
            with quiet():
                data = kind.write(
                    shipped, examples, takes, gives, json.dumps(finite(_about(policy, takes, gives)), allow_nan=False)
                )
                runtime = kind.read(data)
        except Exception as error:  # exporters can raise anything of a network that they do not understand
            told = str(error).strip().partition("\n")[0]
            raise UserError(f"{run_dir}: {name} cannot hold its network ({type(error).__name__}: {told}).") from None
        difference = _try(runtime, policy, envs, observations, path, progress)
    try:
        write_atomically(path, data)
    except OSError as error:
        raise RunError(f"{path} cannot be written ({reason(error)}); make room or name another.") from None
    return Export(path, name, takes, gives, difference, ENVS * ROWS)


class Shipped(nn.Module):
    """What a file holds: observations in, the likeliest actions out, and what they were chosen by.

    Args:
        model: the network.
    """

    def __init__(self, model: ActorCritic) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """An observation's leaves [B, ...]; with memory also what is remembered [B, S] and whether a game opens [B].

        Returns actions [B, ...] as the environment takes them, values [B], of choices logits [B, N] or [B, K, N], of
        real numbers means and log standard deviations [B, D], and with memory what is remembered now [B, S].
        """
        model = self.model
        memory: tuple[Tensor, ...] = ()
        if model.memory is None:
            policy, values = model(inputs)
        else:
            *leaves, state, opens = inputs
            policy, values, state = model.unroll(leaves, state, opens.unsqueeze(0))
            memory = (state,)
        distribution = model.distribution
        actions = distribution.env_actions(distribution.mode(policy))
        if isinstance(distribution, Categorical):
            logits = policy if distribution.grid[0] == 1 else policy.unflatten(1, distribution.grid)
            return actions, values, logits, *memory
        width = distribution.heads
        return actions, values, policy[:, :width], policy[:, width : 2 * width], *memory


def _inputs(policy: Policy, observations: Any, opens_B: Tensor) -> list[Tensor]:
    """What `Shipped` takes; the memory is of a game before, to be forgotten where one opens."""
    leaves = [
        torch.as_tensor(x).to(getattr(torch, leaf.dtype))
        for leaf, x in zip(policy.spec.leaves, policy.spec.layout.flatten(observations), strict=True)
    ]
    if policy.model.memory is None:
        return leaves
    return [*leaves, torch.ones(len(opens_B), policy.model.state_size), opens_B]


def _traceable(model: ActorCritic) -> ActorCritic:
    """A copy whose tanh is torch's own, which exporters can look into."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, Tanh):
                setattr(module, name, nn.Tanh())
    return model


def _try(runtime: Runtime, policy: Policy, envs: VectorEnvs, observations: Any, path: Path, progress: bool) -> float:
    """Let `policy` play from `observations` on, the file beside it, and tell their largest difference.

    Raises:
        RunError: it is too large.
    """
    distribution, reference = policy.model.distribution, Shipped(policy.model)
    remembers = policy.model.memory is not None
    opens, largest = torch.ones(ENVS, dtype=torch.bool), 0.0
    ours = theirs = _inputs(policy, observations, opens)
    with Progress(ROWS * ENVS, description="trying", unit="observations", quiet=not progress) as display:
        for row in range(ROWS):
            found, alone = runtime(theirs), runtime([x[:1] for x in theirs])
            wanted = reference(*ours)
            values = policy.value(observations, opens=opens)
            largest = max(
                largest,
                _difference([*found[1:], found[1]], [*wanted[1:], values]),
                _difference(alone[1:], [x[:1] for x in wanted[1:]]),
            )
            # Not beside the policy's own: the last bit decides between two options as good as each other.
            chosen = distribution.env_actions(distribution.mode(found[2].flatten(1)))
            if not max(largest, _difference(found[:1], [chosen])) <= TOLERANCE:
                raise RunError(
                    f"{path}: the file differs from its policy by {largest:.1g} at row {row}, or in what it chooses; "
                    "it was not written."
                )
            observations, _, _, _, infos = envs.step(policy.act(observations, opens=opens))
            opens = infos["opens"]
            ours = _inputs(policy, observations, opens)
            theirs = list(ours)
            if remembers:
                ours[-2], theirs[-2] = wanted[-1], found[-1]
            display.update((row + 1) * ENVS, sps=None, episode_return=None)
    return largest


def _difference(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest one, of numbers above 1 as a share of them; infinite where shapes or infinities differ."""
    largest = 0.0
    for a, b in zip(found, wanted, strict=True):
        if a.shape != b.shape:
            return float("inf")
        apart = (a.double() - b.double()).abs() / b.double().abs().clamp_min(1)
        apart = torch.where(a == b, 0.0, apart).nan_to_num(float("inf"))
        largest = max(largest, float(apart.max()) if apart.numel() else 0.0)
    return largest


def _input_meanings(policy: Policy) -> dict[str, str]:
    """By the names of `Shipped`'s inputs, in order."""
    meanings: dict[str, str] = {}
    for leaf in policy.spec.leaves:
        if policy.spec.stack > 1:
            meaning = f"{policy.spec.stack} frames, the newest last; where a game opens all of them its first"
        else:
            meaning = f"from {leaf.low:g} to {leaf.high:g}" if leaf.classes else "as the environment gives it"
        name = ".".join(("observations", *leaf.path))
        while name in meanings:  # of a key with a dot in it, and one inside another
            name += "_"
        meanings[name] = meaning
    if policy.model.memory is not None:
        meanings["memory"] = "what next_memory was before; anything where a game opens"
        meanings["opens"] = "whether an observation opens a game"
    return meanings


def _output_meanings(policy: Policy) -> dict[str, str]:
    """By the names of `Shipped`'s outputs, in order."""
    meanings = {
        "actions": "the likeliest, as the environment takes them",
        "values": "discounted sum of learning rewards expected",
    }
    if isinstance(policy.spec.actions, Choices):
        some_illegal = policy.spec.mask is not None or len(set(policy.spec.actions.sizes)) > 1
        meanings["logits"] = "of each option" + ("; minus infinity where it is illegal" if some_illegal else "")
    else:
        squashed = policy.config.action_bounds == "squash"
        unit = "-1 and 1 are the bounds of a number that has two" + ("; tanh is yet to come" if squashed else "")
        meanings["means"] = f"of normal distributions to draw actions from; {unit}"
        meanings["log_stds"] = "logarithms of their standard deviations"
    if policy.model.memory is not None:
        meanings["next_memory"] = "what is remembered now"
    return meanings


def _described(meanings: Mapping[str, str], tensors: Sequence[Tensor]) -> Signature:
    return {
        name: {"shape": ["B", *x.shape[1:]], "dtype": str(x.dtype).removeprefix("torch."), "meaning": meaning}
        for (name, meaning), x in zip(meanings.items(), tensors, strict=True)
    }


def _about(policy: Policy, takes: Signature, gives: Signature) -> dict[str, Any]:
    """What a file tells of itself."""
    config = policy.config
    return {
        "fasta2c": fasta2c.__version__,
        "env": config.env,
        "env_kwargs": config.env_kwargs,
        "frame_stack": policy.spec.stack,
        "spaces": policy.spec.to_plain(),
        "inputs": takes,
        "outputs": gives,
        "normalised": "in the file" if policy.model.moments is not None else "no",
        "learning": {name: getattr(config, name) for name in ("gamma", "reward_clip", "normalize_rewards", "seed")},
    }
