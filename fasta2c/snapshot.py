"""All that a run's parts would have to know to go on elsewhere: taken for a checkpoint, and put back from one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple

import torch

from fasta2c import randomness
from fasta2c.config import TrainConfig, check_resumable, from_plain, to_plain
from fasta2c.distributed import Ranks
from fasta2c.errors import RunError, UserError
from fasta2c.learning.optim import load_optimizer_state
from fasta2c.parts import Parts
from fasta2c.policy import load_parameters, load_state
from fasta2c.run import checkpoint
from fasta2c.run.provenance import versions
from fasta2c.spaces import EnvSpec

# What a checkpoint holds for `restore`, beside what a policy is made of, and of what kind it is. Of rank 0; the others'
# is in "others".
OWN = {"collector": dict, "reward_scaler": dict, "generator": torch.Tensor, "randomness": dict}


class Saved(NamedTuple):
    """A checkpoint that a run goes on from."""

    file: Path
    state: dict[str, Any]
    older: bool
    """Whether it may be from before the run's last."""

    def completed(self, config: TrainConfig) -> TrainConfig:
        """`config` with the run's own settings where it has none.

        Raises:
            UserError: it would learn differently.
        """
        settings = from_plain(self.state["config"], str(self.file))
        config = config.with_preset(settings)
        check_resumable(config, TrainConfig(**settings))
        return config


def take(parts: Parts, config: TrainConfig, device: torch.device, ranks: Ranks) -> dict[str, Any]:
    """Tensors and plain values, what each rank has of its own included; whole on rank 0 alone.

    Raises:
        RunError: the ranks have not learnt the same.
    """
    if ranks.world_size > 1:
        _check_alike(parts, ranks)
    scaler = parts.learner.reward_scaler
    own = {
        "collector": parts.collector.state_dict(),
        "reward_scaler": scaler.state_dict() if scaler else {},
        "generator": parts.generator.get_state(),
        "randomness": randomness.capture(device),
    }
    assert own.keys() == OWN.keys()
    return {
        "config": to_plain(config),
        "spec": parts.envs[0].spec.to_plain(),
        "model": parts.model.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
        **own,
        "others": ranks.gather_object(_on_host(own))[1:] if ranks.world_size > 1 else [],
        "versions": versions(),
    }


def _on_host(value: Any) -> Any:
    """`value`, its tensors brought to the host: another rank may lack the device that one is on."""
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, Mapping):
        return {name: _on_host(x) for name, x in value.items()}
    return type(value)(map(_on_host, value)) if isinstance(value, list | tuple) else value


def check(parts: Parts, config: TrainConfig) -> None:
    """Raise `UserError` if environments or an encoder that a user has written tell what a checkpoint cannot hold."""
    theirs: list[tuple[str, Any]] = [(config.env, parts.collector)]
    if ":" in config.encoder:
        theirs.append((f"encoder {config.encoder}", parts.model))
    for whose, part in theirs:
        try:
            checkpoint.serialise(part.state_dict())
        except TypeError as error:
            raise UserError(f"{whose}: its state_dict cannot be saved: {error}") from None


def _check_alike(parts: Parts, ranks: Ranks) -> None:
    """Raise `RunError` unless all ranks have the same parameters: nothing but equal arithmetic keeps them so."""
    digest = hashlib.sha256()
    for x in parts.model.state_dict().values():
        digest.update(x.detach().cpu().contiguous().numpy().tobytes())
    digests = ranks.all_gather_object(digest.digest())
    if apart := [n for n, theirs in enumerate(digests) if theirs != digests[0]]:
        told = ", ".join(map(str, apart[:10]))
        raise RunError(
            f"the parameters of rank {told} differ from those of rank 0; do all ranks have the same hardware and torch?"
        )


def read(path: Path, needed: Mapping[str, type | UnionType]) -> Saved:
    """The last checkpoint of a run, or the one that is `path`.

    It holds what `take` took, and what is `needed` beside, of these kinds.

    Raises:
        UserError: there is none, or it lacks something.
    """
    file = checkpoint.resolve(path)
    state = load_state(file)
    kinds = {**OWN, "optimizer": dict, **needed}
    if missing := [name for name, kind in kinds.items() if name not in state or not isinstance(state[name], kind)]:
        raise UserError(f"{file} lacks {', '.join(sorted(missing))}; resume from another checkpoint.")
    return Saved(file, state, older=path.is_file())


def restore(parts: Parts, source: Saved, config: TrainConfig, device: torch.device, ranks: Ranks) -> str:
    """Put back what `take` took; tells what became of the games under way.

    Ranks as many as there were go on from their own. With others all games, and the randomness of actions, begin anew.
    """
    state = source.state
    load_parameters(parts.model, state["model"], source.file)
    if not EnvSpec.from_plain(state["spec"]).fits(parts.envs[0].spec):
        raise UserError(f"{source.file}: {config.env} observes or takes other things by now than when this was saved.")
    load_optimizer_state(parts.optimizer, state["optimizer"])
    of_ranks = [{name: state[name] for name in OWN}, *state.get("others", [])]
    own = ranks.rank if len(of_ranks) == ranks.world_size else None
    mine = of_ranks[own or 0]
    already = state["collector"]["dropped"]["games"]
    parts.collector.load_state_dict([x["collector"] for x in of_ranks], own)
    if (scaler := parts.learner.reward_scaler) is not None:
        scaler.load_moments(state["reward_scaler"])
        if own is not None and mine["collector"]["games"] is not None:
            scaler.load_state_dict(mine["reward_scaler"])
    fresh = ranks.seed(config.seed + state["resumes"] + 1)
    # A generator of another kind of device has another state: then too the actions' randomness starts anew.
    if own is not None and len(mine["generator"]) == len(parts.generator.get_state()):
        parts.generator.set_state(mine["generator"])
    else:
        parts.generator.manual_seed(fresh)
    if own is not None:
        randomness.restore(mine["randomness"], device)
    else:
        randomness.seed(fresh)
    dropped = parts.collector.counts.dropped["games"] - already
    return f"{dropped} games that were under way begin anew" if dropped else "with all its games"
