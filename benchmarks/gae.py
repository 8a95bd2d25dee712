"""Advantage estimation: the forms that --gae names, TorchRL's where it is installed, and the floor that memory sets.

Every form is checked against a float64 scan on the CPU before it is timed. The floor is 18 bytes an element (reward,
value and two flags read; advantage and return written) over the bandwidth of a large copy, measured here.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import hardware, positive_seconds, spread, synchronize, turns, write_json
from torch import Tensor

from fasta2c import accel
from fasta2c.errors import Fasta2cError, UserError
from fasta2c.learning.advantages import build_estimators, gae
from fasta2c.run.provenance import versions

GAMMA, GAE_LAMBDA = 0.99, 0.95
BYTES = 18
# The compiled scan is unrolled row by row: 25 s for 128 of them, minutes for 512.
LONGEST_COMPILED = 128
Form = Callable[[], tuple[Tensor, Tensor]]


def inputs(num_steps: int, num_envs: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rewards [T, E], values [T + 1, E], terminated and truncated [T, E]: one row in a hundred ends."""
    generator = torch.Generator().manual_seed(0)
    grid = (num_steps, num_envs)
    rewards, values = torch.randn(grid, generator=generator), torch.randn(num_steps + 1, num_envs, generator=generator)
    done = torch.rand(grid, generator=generator)
    return rewards.to(device), values.to(device), (done < 0.008).to(device), (done > 0.998).to(device)


def forms(rewards: Tensor, values: Tensor, terminated: Tensor, truncated: Tensor) -> dict[str, Form]:
    """What is compared, by name."""
    arguments = (rewards, values, terminated, truncated)

    def ours(name: str) -> Form:
        function = build_estimators(name, rewards.device).gae
        return lambda: function(*arguments, gamma=GAMMA, gae_lambda=GAE_LAMBDA)

    names = ["scan"]
    if len(rewards) <= LONGEST_COMPILED:
        names.append("compiled")
    if rewards.device.type == "cuda":
        names.append("triton")
    found = {name: ours(name) for name in names}
    if importlib.util.find_spec("torchrl") is not None:
        from torchrl.objectives.value.functional import vec_generalized_advantage_estimate

        # TorchRL wants [E, T, 1] and contiguous; that layout is handed to it, not counted against it.
        columns = [x.T.unsqueeze(-1).contiguous() for x in (values[:-1], values[1:], rewards)]
        done, ended = ((x.T.unsqueeze(-1).contiguous()) for x in (terminated | truncated, terminated))
        found["torchrl"] = lambda: vec_generalized_advantage_estimate(GAMMA, GAE_LAMBDA, *columns, done, ended)
    return found


def error(form: Form, reference: tuple[Tensor, Tensor]) -> float:
    """The largest difference of advantages and returns from the float64 `reference` [T, E]."""
    largest = 0.0
    for found, wanted in zip(form(), reference, strict=True):
        plain = found.squeeze(-1).T if found.dim() == 3 else found
        largest = max(largest, float((plain.double().cpu() - wanted).abs().max()))
    return largest


def seconds_a_call(form: Callable[[], object], seconds: float, device: torch.device) -> float:
    """Mean seconds of a call over about `seconds`, waiting for the device only at the end of each ten."""
    synchronize(device)
    calls, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for _ in range(10):
            form()
        synchronize(device)
        calls += 10
    return (time.perf_counter() - start) / calls


def measure(num_steps: int, num_envs: int, device: torch.device, seconds: float, repeats: int) -> dict[str, Any]:
    """Microseconds of each form at T x E, in turns, and the floor's."""
    arguments = inputs(num_steps, num_envs, device)
    rewards, values, terminated, truncated = (x.cpu() for x in arguments)
    reference = gae(rewards.double(), values.double(), terminated, truncated, gamma=GAMMA, gae_lambda=GAE_LAMBDA)
    compared = forms(*arguments)
    errors = {name: error(form, reference) for name, form in compared.items()}  # compiles, too
    wrong = {name: e for name, e in errors.items() if not e < 1e-3}
    if wrong:
        raise AssertionError(f"wrong by more than 0.001: {wrong}")
    source = torch.empty(max(num_steps * num_envs * BYTES // 2, 2**26), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    micros: dict[str, list[float]] = {name: [] for name in (*compared, "copy")}
    for _ in range(repeats):
        for name, form in compared.items():
            micros[name].append(1e6 * seconds_a_call(form, seconds, device))
        micros["copy"].append(1e6 * seconds_a_call(lambda: target.copy_(source), seconds, device))
    copied = spread(micros.pop("copy"))["median"]
    bytes_a_second = 2e6 * source.numel() / copied
    floor = 1e6 * BYTES * num_steps * num_envs / bytes_a_second
    medians = {name: spread(values) for name, values in micros.items()}
    return {
        "num_steps": num_steps,
        "num_envs": num_envs,
        "microseconds": medians,
        "floor_microseconds": floor,
        "copy_gigabytes_per_second": bytes_a_second / 1e9,
        "fraction_of_floor": {name: floor / value["median"] for name, value in medians.items()},
        "largest_error": errors,
    }


def main() -> int:
    """Measure each size, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", nargs="+", default=["8x256", "128x4096"], metavar="TxE", help="(default: %(default)s)"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--seconds", type=positive_seconds, default=0.5, help="of each form in each turn (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=turns, default=5, help="turns (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file to write")
    args = parser.parse_args()
    try:
        device = accel.resolve_device(args.device)
        sizes = [_size(text) for text in args.sizes]
    except Fasta2cError as problem:
        print(f"gae.py: error: {problem}", file=sys.stderr)
        return problem.exit_code
    results = []
    for num_steps, num_envs in sizes:
        found = measure(num_steps, num_envs, device, args.seconds, args.repeats)
        results.append(found)
        times = ", ".join(f"{name} {value['median']:,.1f}" for name, value in found["microseconds"].items())
        print(f"{num_steps} x {num_envs}: {times}, floor {found['floor_microseconds']:,.1f} microseconds")
        write_json(args.json, {"sizes": results, "hardware": hardware(device), "versions": versions()})
    return 0


def _size(text: str) -> tuple[int, int]:
    num_steps, _, num_envs = text.partition("x")
    if not (num_steps.isdecimal() and num_envs.isdecimal() and int(num_steps) and int(num_envs)):
        raise UserError(f"--sizes: {text!r} is not a size such as 128x4096.")
    return int(num_steps), int(num_envs)


if __name__ == "__main__":
    sys.exit(main())
