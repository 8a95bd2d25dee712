"""Every registered environment, two updates each: which train, which are refused and why, which fail.

Ids go in batches to worker processes, so that an environment that takes its process with it costs that id alone.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import math
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from common import hardware, positive_seconds, with_preset, write_json

from fasta2c import accel
from fasta2c.envs.ids import registered
from fasta2c.errors import UserError
from fasta2c.learning.learner import METRICS
from fasta2c.parts import assemble, make_envs
from fasta2c.run.provenance import versions

BATCH = 40


class Outcome(NamedTuple):
    """What became of one id."""

    env: str
    family: str
    status: str
    """"trained", "refused" or "failed"."""
    detail: str
    """The reason; empty if trained."""
    seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "patterns", nargs="*", default=["*"], help="Family/Id patterns such as 'Jumanji/*'; all unless given"
    )
    parser.add_argument("--one", action="store_true", help="only the first id of each family")
    parser.add_argument("--distinct", action="store_true", help="only the first id of each pair of spaces")
    parser.add_argument("--seconds", type=positive_seconds, default=120.0, help="that one id may take")
    parser.add_argument("--json", type=Path, help="write the outcomes here")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(sys.stdin.read().split())
    wanted = [
        (family, env)
        for family, ids in sorted(registered().items())
        for env in ids
        if any(fnmatch.fnmatch(f"{family}/{env}", pattern) or env == pattern for pattern in args.patterns)
    ]
    if not wanted:
        print(f"no environment matches {' '.join(args.patterns)}", file=sys.stderr)
        return 2
    if args.one:
        wanted = list({family: (family, env) for family, env in reversed(wanted)}.values())[::-1]
    if args.distinct:
        wanted = list({spaces_of(env): (family, env) for family, env in reversed(wanted)}.values())[::-1]
    outcomes = []
    for number, outcome in enumerate(try_all(wanted, args.seconds), start=1):
        outcomes.append(outcome)
        if outcome.status != "trained":
            print(f"{number}/{len(wanted)} {outcome.env}: {outcome.status}: {outcome.detail}", flush=True)
        elif number % 50 == 0:
            print(f"{number}/{len(wanted)}", flush=True)
    lines = table(outcomes)
    print("\n".join(lines))
    if args.markdown:
        what = f"Two updates with E = 4 of each id that EnvPool {versions()['envpool']} registers (`coverage.py`)."
        title = f"# Coverage\n\n{what}\n"
        args.markdown.write_text("\n".join([title, *lines]) + "\n", encoding="utf-8")
    if args.json:
        counts = dict(Counter(outcome.status for outcome in outcomes))
        rows = [outcome._asdict() for outcome in outcomes]
        write_json(
            args.json,
            {"counts": counts, "outcomes": rows, "hardware": hardware(torch.device("cpu")), "versions": versions()},
        )
    return 1 if any(outcome.status == "failed" for outcome in outcomes) else 0


def spaces_of(env: str) -> str:
    """The spaces of an EnvPool id as text; the id itself where they cannot be had."""
    import envpool

    try:
        spec = envpool.make_spec(env)
        return f"{spec.observation_space} {spec.action_space} {spec.config.max_num_players > 1}"
    except Exception:
        return env


def try_all(wanted: list[tuple[str, str]], seconds: float) -> Iterator[Outcome]:
    """The outcome of each (family, id), in order; an id that a worker has died of or hung in has a second chance."""
    for start in range(0, len(wanted), BATCH):
        left, again = wanted[start : start + BATCH], ""
        while left:
            for outcome in try_batch(left, seconds):
                if math.isnan(outcome.seconds) and outcome.env != again:
                    again = outcome.env
                    break
                yield outcome
                left = left[1:]


def try_batch(batch: list[tuple[str, str]], seconds: float) -> Iterator[Outcome]:
    """Outcomes of a worker process for as long as it lives, at least one; the id it died of is the last of them."""
    command = [sys.executable, __file__, "--worker"]
    left = list(batch)
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True) as worker,
    ):
        assert worker.stdin is not None and worker.stdout is not None
        with contextlib.suppress(BrokenPipeError), worker.stdin as ids:
            ids.write("\n".join(env for _, env in batch))
        late = threading.Event()

        def end() -> None:
            late.set()
            worker.kill()

        while left:
            alarm = threading.Timer(seconds, end)
            alarm.start()
            line = next((line for line in worker.stdout if line.startswith("{")), None)
            alarm.cancel()
            family, env = left.pop(0)
            if line is None:
                worker.wait()
                errors.seek(0)
                how = (
                    f"it took more than {seconds:g} s"
                    if late.is_set()
                    else f"the process ended with {worker.returncode}"
                )
                yield Outcome(env, family, "failed", f"{how}: {' '.join(errors.read().split())[-200:]}", math.nan)
                return
            yield Outcome(family=family, **json.loads(line))


def work(ids: list[str]) -> int:
    """Try `ids` in this process, a line of JSON each."""
    for env in ids:
        began = time.perf_counter()
        try:
            status, detail = "trained", ""
            train(env)
        except UserError as error:
            status, detail = "refused", str(error)
        except Exception as error:
            status, detail = "failed", f"{type(error).__name__}: {error}"
        seconds = time.perf_counter() - began
        print(json.dumps({"env": env, "status": status, "detail": detail, "seconds": round(seconds, 2)}), flush=True)
    return 0


def train(env: str) -> None:
    """Two updates of a run of `env` with its preset but E = 4 and T = 5.

    Raises:
        UserError: fasta2c does not take it.
        ArithmeticError: a loss, a gradient or a parameter is not finite.
    """
    config = with_preset(env=env, num_envs=4, num_steps=5, device="cpu", env_threads=2)
    device = accel.resolve_device(config.device)
    groups = make_envs(config, device)
    try:
        parts = assemble(config, groups, device)
        for _ in range(2):
            metrics = dict(zip(METRICS, parts.learner.update(parts.collector.collect(), 0.0).tolist(), strict=True))
            wrong = [
                name for name, value in metrics.items() if not math.isfinite(value) and name != "explained_variance"
            ]
            if wrong:
                raise ArithmeticError(f"not finite: {', '.join(wrong)}")
        if not all(torch.isfinite(p).all() for p in parts.model.parameters()):
            raise ArithmeticError("a parameter is not finite")
    finally:
        for group in groups:
            group.close()


def table(outcomes: list[Outcome]) -> list[str]:
    """Markdown: a row a family, the reasons below."""
    by_family: dict[str, Counter[str]] = defaultdict(Counter)
    reasons: dict[str, list[str]] = defaultdict(list)
    for outcome in outcomes:
        by_family[outcome.family][outcome.status] += 1
        if outcome.status != "trained":
            reasons[f"{outcome.family}, {outcome.status}: {reason(outcome)}"].append(outcome.env)
    rows = [["family", "ids", "trained", "refused", "failed"]]
    rows += [[f, c.total(), c["trained"], c["refused"], c["failed"]] for f, c in sorted(by_family.items())]
    total: Counter[str] = sum(by_family.values(), Counter())
    rows.append(["all", total.total(), total["trained"], total["refused"], total["failed"]])
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    return [
        *lines,
        "",
        *(f"- {why} ({len(ids)}: {', '.join(ids[:3])}{', …' if ids[3:] else ''})" for why, ids in reasons.items()),
    ]


def reason(outcome: Outcome) -> str:
    """The detail without the id it starts with, so that equal reasons are told once."""
    return outcome.detail.removeprefix(f"{outcome.env}: ")


if __name__ == "__main__":
    sys.exit(main())
