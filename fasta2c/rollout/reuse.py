"""Whether the forward passes that act are kept, with their graphs, for the update to differentiate.

Plain A2C makes one optimizer step on the very parameters that acted, so the outputs that chose the actions are those
the loss needs: keeping them saves the update's own forward pass, a quarter of NatureCNN's arithmetic, and costs memory.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fasta2c.models.actor_critic import ActorCritic
from fasta2c.rollout.buffer import RolloutBuffer

# The fewest samples a row of images must have for its graph to be worth keeping, as the backward pass goes row by row
# then. Measured on two cores, times the speed of collect and update without environments: NatureCNN (T = 8) 0.75 at
# E = 16, 0.96 at 32, 1.04 at 64, 1.25 at 256. Small networks gain nothing: an MLP (T = 16) trains CartPole at 0.6 of
# the speed at E = 1,024, at 1.0 at 4,096.
WORTHWHILE = 64


class Reuse(NamedTuple):
    """Which graphs are kept, and if there would be more but for their size, a line for the user."""

    acting: bool
    """Those of the forward passes that act."""
    values_later: bool = False
    """Those of a critic of its own, which evaluates the first optimizer step's rows once the rollout is complete."""
    recomputed: bool = False
    """Those that V-trace makes before the optimizer steps after the first."""
    note: str = ""


def decide(
    requested: str,
    model: ActorCritic,
    buffer: RolloutBuffer,
    *,
    micro_batch: int,
    budget: int,
    num_minibatches: int = 1,
    num_epochs: int = 1,
) -> Reuse:
    """Whether a run keeps its graphs.

    Args:
        requested: "on", "off", or "auto": on a CPU with long rows of images, never on a GPU, whose rows are cheap.
            A critic of its own acts for nobody: where no graph that acts is kept, it is left to the update, unless
            "off" or its graph does not fit.
        model: the network.
        buffer: the rollout to fill.
        micro_batch: the most observations the model is called with at once.
        budget: bytes the graphs may take; beyond, they are not kept, whatever is requested.
        num_minibatches: shares of the rollout that have an optimizer step each; after the first of several, the
            parameters are no longer those that acted.
        num_epochs: times that the rollout is gone through.
    """
    if requested == "off":
        return Reuse(False)
    asked = requested == "on"
    if model.memory is not None:
        return Reuse(False, note="a network with memory is unrolled by the update, and its graph is not kept." * asked)
    needed = graph_bytes(model, buffer, micro_batch)
    fits = needed / num_minibatches <= budget
    apart = model.critic_encoder is not None and fits
    if num_minibatches * num_epochs > 1:
        note = "only an update of one optimizer step can keep the graph that acted." * asked
        return Reuse(False, values_later=apart, recomputed=fits, note=note)
    if model.has_modes:
        note = "an encoder of your own may do otherwise while it learns: the graph that acted is not kept." * asked
        return Reuse(False, values_later=apart, note=note)
    worthwhile = model.convolutional and buffer.num_envs >= WORTHWHILE
    if requested == "auto" and not (worthwhile and buffer.actions_TE.device.type == "cpu"):
        return Reuse(False, values_later=apart)
    if fits:
        return Reuse(True)
    return Reuse(
        False,
        note=f"keeping the rollout's graph would take {needed / 1e9:,.1f} GB of the {budget / 1e9:,.1f} GB allowed; "
        "the update makes its own forward passes (fewer --num-envs or --num-steps would keep it).",
    )


def graph_bytes(model: ActorCritic, buffer: RolloutBuffer, micro_batch: int) -> int:
    """Memory that a whole rollout of `buffer` keeps, measured on two small batches of what it holds.

    Args:
        model: observations to outputs with gradients.
        buffer: the rollout.
        micro_batch: the most observations the model is called with at once.
    """
    sizes = sorted({1, min(8, buffer.num_envs)})
    kept = [_kept_by(model, buffer.observations(slice(0, 1), slice(0, size)).clone()) for size in sizes]
    per_sample = (kept[-1] - kept[0]) / (sizes[-1] - sizes[0]) if len(sizes) > 1 else kept[0]
    per_call = max(kept[0] - per_sample, 0.0)
    calls = -(-buffer.num_envs // micro_batch)
    return int(buffer.num_steps * (buffer.num_envs * per_sample + calls * per_call))


def _kept_by(model: ActorCritic, observations: Tensor) -> int:
    """Bytes that one forward pass keeps for its backward pass, parameters themselves left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the graph must not hold its own output, or it would never be freed

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        outputs: tuple[Tensor, ...]
        if model.memory is None:
            outputs = model(observations)
        else:
            number, device = len(observations), observations.device
            opens_TB = torch.ones((1, number), dtype=torch.bool, device=device)
            outputs = model.unroll(observations, torch.zeros((number, model.state_size), device=device), opens_TB)
    del outputs
    return sum(found.values())
