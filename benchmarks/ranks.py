"""Ranks beside one process: what it costs to share a run, what messages take, and what a model makes of it beyond.

Each side is `fasta2c train` as anybody would start it, with and without torchrun, in turns and with the same
environments in all. Gradients summed after the backward pass, as is done, are timed beside
DistributedDataParallel's. `--model` measures nothing: it puts figures of `throughput.py --json` into a model of many
ranks.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import PLAIN_A2C, hardware, positive_seconds, spread, turns, with_preset, write_json
from torch.nn.parallel import DistributedDataParallel

from fasta2c.distributed import Ranks
from fasta2c.envs.ids import resolve
from fasta2c.envs.make import look_up_spec
from fasta2c.errors import Fasta2cError, UserError, reason
from fasta2c.learning.optim import sum_gradients
from fasta2c.policy import build_model
from fasta2c.rollout.buffer import RolloutBuffer
from fasta2c.run.provenance import versions


class Link(NamedTuple):
    """What ranks are connected by."""

    name: str
    latency: float
    """Seconds of a small message."""
    bandwidth: float
    """Bytes a second that a rank sends while it receives as many."""


# Round figures of what such links are sold for, and of what collectives reach on them; none was measured here.
LINKS = (
    Link("NVLink, 300 GB/s", 5e-6, 300e9),
    Link("InfiniBand, 40 GB/s", 8e-6, 40e9),
    Link("Ethernet, 10 GB/s", 30e-6, 10e9),
    Link("Ethernet, 1 GB/s", 50e-6, 1e9),
)
# A host's message, by TCP, from one rank to the next.
HOST_LATENCY = 30e-6
# Small sums of an update beside its gradient: of valid rows, and twice for the explained variance.
SMALL_SUMS = 3
SIZES = (1, 2, 8, 64, 256, 1000)


def efficiency(collect: float, update: float, parameters: int, ranks: int, link: Link) -> float:
    """The share of `ranks` times one rank's speed that they reach together, each with as many environments as that one.

    Args:
        collect: seconds that a rank takes for a rollout.
        update: seconds for its update.
        parameters: float32 numbers of a gradient.
        ranks: how many.
        link: between any two of them.
    """
    if ranks == 1:
        return 1.0
    hops = math.ceil(math.log2(ranks))
    small = SMALL_SUMS * 2 * hops * link.latency
    gradient = 2 * hops * link.latency + 2 * (ranks - 1) / ranks * 4 * parameters / link.bandwidth
    # Counts and games go round while the update is under way.
    host = max((ranks - 1) * HOST_LATENCY - update, 0.0)
    return (collect + update) / (collect + update + small + gradient + host)


def model(args: argparse.Namespace) -> None:
    """Print a table of efficiencies."""
    try:
        found = json.loads(args.model.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--model: {args.model} cannot be read ({reason(error)}).") from None
    config = with_preset(**PLAIN_A2C, env=found["config"]["env"])
    samples = found["config"]["num_envs"] * found["config"]["num_steps"]
    total, update = samples / (args.sps or found["train_sps"]), samples / found["update_sps"]
    if args.sps:
        update = total / 10
    parameters = _parameters(config)
    told = f"{samples} samples an update, {1e3 * (total - update):,.1f} ms to collect, {1e3 * update:,.1f} ms to learn"
    print(f"{config.env}: {told}, a gradient of {4e-6 * parameters:,.1f} MB\n")
    print("| ranks | " + " | ".join(link.name for link in LINKS) + " |")
    print("|---|" + "---|" * len(LINKS))
    for ranks in SIZES:
        shares = [efficiency(total - update, update, parameters, ranks, link) for link in LINKS]
        print(f"| {ranks:,} | " + " | ".join(f"{share:.1%}" for share in shares) + " |")


def messages(env: str, repeats: int = 200) -> dict[str, float]:
    """Median seconds of what this rank exchanges with the others at an update."""
    ranks = Ranks.from_environment()
    ranks.connect()
    torch.set_num_threads(1)
    small, gradient = torch.zeros(3), torch.zeros(_parameters(with_preset(env=env)))
    numbers = [0.0] * 7

    def median(work: Callable[[], Any], count: int) -> float:
        return statistics.median(_seconds(work) for _ in range(count))

    return {
        "small_sum": median(lambda: ranks.all_reduce(small), repeats),
        "gradient": median(lambda: ranks.all_reduce(gradient), repeats // 4),
        "exchange": median(lambda: ranks.exchange(numbers, [], width=3)(), repeats),
    }


def overlap(env: str, samples: int = 64, repeats: int = 15) -> dict[str, float]:
    """Median seconds of passes whose gradient is summed after them, as the learner does it, and during them.

    During them by torch's DistributedDataParallel, in turns; one or four passes make a gradient.
    """
    ranks = Ranks.from_environment()
    ranks.connect()
    config = with_preset(env=env)
    spec = look_up_spec(resolve(env), config.env_kwargs)
    device = torch.device("cuda", ranks.local_rank) if torch.cuda.is_available() else torch.device("cpu")
    after = build_model(spec, config, device)
    during = DistributedDataParallel(copy.deepcopy(after))
    observations = RolloutBuffer(1, samples, spec, device).observations(slice(0, 1), slice(0, samples))

    def step(network: torch.nn.Module, parts: int) -> None:
        network.zero_grad(set_to_none=True)
        for n in range(parts):
            hold = during.no_sync() if network is during and n < parts - 1 else contextlib.nullcontext()
            with hold:
                policy, values = network(observations)
                (policy.sum() + values.sum()).backward()
        if network is after:
            sum_gradients(after.parameters(), torch.zeros(3, device=device), ranks)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    found: dict[str, float] = {}
    for parts in (1, 4):
        seconds: dict[str, list[float]] = {"after": [], "during": []}
        for _ in range(repeats):
            seconds["after"].append(_seconds(lambda parts=parts: step(after, parts)))
            seconds["during"].append(_seconds(lambda parts=parts: step(during, parts)))
        found |= {f"{name}_{parts}": statistics.median(values) for name, values in seconds.items()}
    return found


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _parameters(config: Any) -> int:
    spec = look_up_spec(resolve(config.env), config.env_kwargs)
    return sum(p.numel() for p in build_model(spec, config, torch.device("cpu")).parameters())


def _torchrun(ranks: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]


def train(args: argparse.Namespace, ranks: int) -> float:
    """Env steps a second of a run of `args.seconds`, after its warm-up."""
    launch = _torchrun(ranks) if ranks > 1 else [sys.executable]
    flags = ["--env", args.env, "--num-envs", args.num_envs, "--num-steps", args.num_steps, "--total-steps", 2**52]
    flags += [f for k, v in PLAIN_A2C.items() for f in (f"--{k.replace('_', '-')}", v)]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [*launch, "-m", "fasta2c", "train", "--quiet", "--log-interval", 5, *flags, "--run-dir", run]
        environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        with subprocess.Popen([str(x) for x in command], stderr=subprocess.DEVNULL, env=environment) as process:
            while not (run / "metrics.csv").is_file():
                if process.poll() is not None:
                    raise SystemExit(f"{' '.join(map(str, command))} failed")
                time.sleep(0.1)
            time.sleep(args.seconds)
            process.send_signal(signal.SIGINT)
        return float(json.loads((run / "summary.json").read_text())["sps"])


def compare(args: argparse.Namespace) -> None:
    """Train in turns, print the ratio, write JSON."""
    found: dict[int, list[float]] = {1: [], args.ranks: []}
    for n in range(args.repeats):
        for ranks in found if n % 2 == 0 else reversed(found):
            found[ranks].append(train(args, ranks))
        one, several = (values[-1] for values in found.values())
        line = f"one process {one:,.0f}, {args.ranks} ranks {several:,.0f} env steps/s, ratio {several / one:.2f}"
        print(f"{n + 1}/{args.repeats}: {line}", file=sys.stderr)
    command = [*_torchrun(args.ranks), __file__, "--env", args.env, "--messages"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    ratios = [several / one for one, several in zip(*found.values(), strict=True)]
    result = {
        "ratio": spread(ratios),
        "one_sps": spread(found[1]),
        "ranks_sps": spread(found[args.ranks]),
        **json.loads(done.stdout.splitlines()[-1]),
        "settings": {k: v for k, v in vars(args).items() if k not in ("json", "messages", "model", "sps")},
        "hardware": hardware(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "versions": versions(),
    }
    shown = ("ratio", "one_sps", "ranks_sps", "message_seconds", "gradient_seconds")
    print(json.dumps({k: result[k] for k in shown}, indent=2))
    write_json(args.json, result)


def main() -> int:
    """Compare, or whatever else is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Atari/Pong")
    parser.add_argument("--num-envs", type=int, default=256, help="in all (default: %(default)s)")
    parser.add_argument("--num-steps", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--ranks", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=positive_seconds, default=20.0, help="of each run (default: %(default)s)")
    parser.add_argument("--repeats", type=turns, default=5, help="runs of each side (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--model", type=Path, metavar="JSON", help="of throughput.py: print the model's table for it")
    parser.add_argument(
        "--sps", type=float, help="with --model: a rank's speed, a tenth of it updates, if not as measured"
    )
    parser.add_argument("--messages", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    try:
        if args.model is not None:
            model(args)
        elif args.messages:
            told = {"message_seconds": messages(args.env), "gradient_seconds": overlap(args.env)}
            if Ranks.from_environment().leads:
                print(json.dumps(told))
        else:
            compare(args)
    except Fasta2cError as error:
        print(f"ranks.py: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
