"""Throughput of training against its limit: environments alone, acting alone, updating alone, and all together.

Measured in turns (raw, net, plain, train, raw, …) in one process. `raw` is EnvPool with random actions; `act` and
`update` are the trainer's own `collect` and `update` over recorded rows, timed apart, `net` both, and `plain` the same
network over the same rows in plain PyTorch; `train` is acting and updating with the environments.
On a CPU all share the cores, so the limit is 1 / (1/raw + 1/act + 1/update); beside a GPU it is `raw`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from common import (
    PLAIN_A2C,
    Replay,
    hardware,
    positive_seconds,
    random_actions,
    rate,
    spread,
    synchronize,
    turns,
    with_preset,
    write_json,
)
from plain import Plain

from fasta2c import accel
from fasta2c.config import to_plain
from fasta2c.errors import Fasta2cError
from fasta2c.parts import assemble, make_envs
from fasta2c.run.provenance import versions
from fasta2c.tune import choose, sweep


def measure(seconds: float, repeats: int, **flags: Any) -> dict[str, Any]:
    """The figures for `flags` (fields of TrainConfig), in env steps a second.

    Args:
        seconds: of the environments alone in each turn; the others get twice as many.
        repeats: turns.
    """
    config = with_preset(**PLAIN_A2C, **flags)
    device = accel.resolve_device(config.device)
    began = time.perf_counter()
    envs = make_envs(config, device)
    training, replayed = assemble(config, envs, device), assemble(config, [Replay(e, rows=8) for e in envs], device)
    row_count = config.num_steps * config.num_envs
    apart = {"act": 0.0, "update": 0.0}
    actions = [[random_actions(group, n) for group in envs] for n in range(config.num_steps)]
    plain = Plain(config, replayed.collector.collect(), replayed.model)

    def raw() -> int:
        valid = 0
        for row in actions:
            for group, own in zip(envs, row, strict=True):
                group.send(own)
            valid += sum(int(group.receive().valid.sum()) for group in envs)
        return valid

    def net() -> int:
        start = time.perf_counter()
        rollout = replayed.collector.collect()
        synchronize(device)
        between = time.perf_counter()
        replayed.learner.update(rollout, 0.0)
        synchronize(device)
        apart["act"] += between - start
        apart["update"] += time.perf_counter() - between
        return row_count

    def train() -> int:
        before = training.collector.counts.env_steps
        training.learner.update(training.collector.collect(), 0.0)
        return training.collector.counts.env_steps - before

    for work in (raw, net, plain, train):  # warm-up, compilation and recording included
        for _ in range(3):
            work()
    synchronize(device)
    warm_up = time.perf_counter() - began
    found: dict[str, list[float]] = {"raw_env": [], "act": [], "update": [], "plain": [], "train": []}
    for n in range(repeats):
        found["raw_env"].append(rate(raw, seconds, device))
        apart.update(act=0.0, update=0.0)
        start = time.perf_counter()
        both = rate(net, 2 * seconds, device)
        rows = both * (time.perf_counter() - start)
        found["act"].append(rows / apart["act"])
        found["update"].append(rows / apart["update"])
        found["plain"].append(rate(plain, 2 * seconds, device))
        found["train"].append(rate(train, 2 * seconds, device))
        line = ", ".join(f"{name} {values[-1]:,.0f}" for name, values in found.items())
        print(f"{n + 1}/{repeats}: {line} env steps/s", file=sys.stderr)
    for group in envs:
        group.close()
    sps = {f"{name}_sps": spread(values) for name, values in found.items()}
    medians = {name: value["median"] for name, value in sps.items()}
    on_gpu = device.type == "cuda"
    limit = medians["raw_env_sps"]
    if not on_gpu:
        limit = 1 / sum(1 / medians[name] for name in ("raw_env_sps", "act_sps", "update_sps"))
    return {
        **medians,
        "net_sps": 1 / sum(1 / medians[name] for name in ("act_sps", "update_sps")),
        "limit_sps": limit,
        "fraction_of_limit": medians["train_sps"] / limit,
        "fraction_of_raw": medians["train_sps"] / medians["raw_env_sps"],
        "spread": sps,
        "warm_up_seconds": warm_up,
        "reuses_forward": training.keeps_graph,
        "hardware": hardware(device),
        "versions": versions(),
        "config": to_plain(config),
    }


def sweep_table(**flags: Any) -> dict[str, Any]:
    """What `fasta2c train --num-envs auto` tries in a run long enough, printed as it comes, and what it would take."""
    config = with_preset(**flags)
    trials = []
    for trial in sweep(config, accel.resolve_device(config.device), seconds=50.0):
        trials.append(trial)
        print(trial)
    print(f"taken: {choose(trials)}")
    rows = [{**trial.settings, "train_sps": trial.sps, "seconds": trial.seconds} for trial in trials]
    return {"trials": rows, "taken": choose(trials).settings}


def main() -> int:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Atari/Pong")
    parser.add_argument("--num-envs", type=int, default=256)
    parser.add_argument("--num-steps", type=int, default=8)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--reuse-forward", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("--micro-batch", type=int, default=0)
    parser.add_argument("--env-groups", type=lambda text: text if text == "auto" else int(text), default="auto")
    parser.add_argument("--env-threads", type=int, default=0)
    parser.add_argument(
        "--seconds", type=positive_seconds, default=5.0, help="of raw, twice of the others (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=turns, default=5, help="turns (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--sweep", action="store_true", help="try numbers of environments, groups and threads instead")
    flags = vars(parser.parse_args())
    path, seconds, repeats = flags.pop("json"), flags.pop("seconds"), flags.pop("repeats")
    try:
        if flags.pop("sweep"):
            write_json(path, sweep_table(**{**flags, "num_envs": "auto", "total_steps": 10**12}))
            return 0
        result = measure(seconds, repeats, **flags)
    except Fasta2cError as error:
        print(f"throughput.py: error: {error}", file=sys.stderr)
        return error.exit_code
    for name in ("raw_env_sps", "act_sps", "update_sps", "net_sps", "plain_sps", "train_sps", "limit_sps"):
        print(f"{name:<18} {result[name]:>12,.0f}")
    print(f"{'fraction_of_limit':<18} {result['fraction_of_limit']:>12.3f}")
    print(f"{'fraction_of_raw':<18} {result['fraction_of_raw']:>12.3f}")
    write_json(path, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
