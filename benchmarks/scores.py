"""Scores: trains the shipped presets seed by seed, plays 100 whole games with each, and sets them beside published A2C.

Each run is `fasta2c train --env ENV --seed N`, and nothing else unless asked for, in a process of its own; its command
is kept with what came of it. A run that the budget cuts short is saved, and goes on when the script is called again.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime
import itertools
import json
import math
import os
import queue
import re
import shlex
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from common import hardware

from fasta2c.config import RESUMABLE, TrainConfig, to_plain
from fasta2c.envs.ids import resolve
from fasta2c.errors import Fasta2cError, UserError, reason
from fasta2c.presets import PROVENANCE, load_preset, read_config

FOLDER = Path(__file__).parent
CURVE_ROWS = 500
BEGIN, END = "<!-- scores.py writes from here -->", "<!-- to here -->"


class Published(NamedTuple):
    """A score of somebody's A2C."""

    source: str
    steps: float
    """Env steps, in millions."""
    score: float


def _atari(zoo: float, gae: float, nstep: float) -> list[Published]:
    return [Published("RL-Zoo", 10, zoo), Published("SLM-Lab, GAE", 10, gae), Published("SLM-Lab, n-step", 10, nstep)]


def _mujoco(at_1m: float, at_3m: float) -> list[Published]:
    return [Published("Tianshou", 1, at_1m), Published("Tianshou", 3, at_3m)]


# RL-Zoo: rl-baselines3-zoo's benchmark.md, likeliest actions but on Atari. SLM-Lab: its 2019 benchmark. Tianshou: its
# MuJoCo benchmark of A2C. What is to be reached is the best of a row, of Tianshou's the one after a million steps.
SUITES: dict[str, dict[str, list[Published]]] = {
    "classic": {
        "Classic/CartPole": [Published("RL-Zoo", 0.5, 500)],
        "Classic/Acrobot": [Published("RL-Zoo", 0.5, -83.4)],
        "Classic/Pendulum": [Published("RL-Zoo", 1, -163.0)],
        "Classic/MountainCarContinuous": [Published("RL-Zoo", 0.1, 91.2)],
        "Box2D/LunarLander": [Published("RL-Zoo", 0.2, 155.8)],
        "Box2D/BipedalWalker": [Published("RL-Zoo", 5, 299.8)],
    },
    "mujoco": {
        "MuJoCo/InvertedPendulum": [],
        "MuJoCo/InvertedDoublePendulum": _mujoco(9258, 9351),
        "MuJoCo/Hopper": _mujoco(1253, 1609),
        "MuJoCo/HalfCheetah": _mujoco(1830, 2377),
        "MuJoCo/Walker2d": _mujoco(1092, 1805),
        "MuJoCo/Ant": _mujoco(3485, 5237),
        "MuJoCo/Humanoid": _mujoco(1726, 5317),
    },
    "atari": {
        "Atari/Pong": _atari(17.3, 19.3, 19.6),
        "Atari/Breakout": _atari(280, 377, 398),
        "Atari/BeamRider": _atari(2890, 2659, 4139),
        "Atari/Qbert": _atari(3882, 12405, 13590),
        "Atari/Seaquest": _atari(1721, 1070, 1684),
        "Atari/SpaceInvaders": _atari(627, 733, 750),
        "Atari/MsPacman": _atari(1672, 1965, 2158),
        "Atari/Enduro": _atari(0, 787, 0),
    },
}


class Job(NamedTuple):
    """One run."""

    suite: str
    env: str
    seed: int
    flags: list[str]
    """Of `fasta2c train`."""
    folder: Path

    @property
    def command(self) -> str:
        """What trains it, but for where it is kept."""
        return f"fasta2c train {shlex.join(self.flags)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", choices=SUITES, action="append", help="all of them unless given")
    parser.add_argument("--games", type=lambda text: text.split(","), help="only these, such as Pong,Breakout")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to N - 1")
    parser.add_argument("--first-seed", type=int, default=0, help="another seed to begin with")
    parser.add_argument("--budget", type=float, help="minutes; what has not ended then is saved, and goes on next time")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each on its share of the cores")
    parser.add_argument("--flags", default="", help="of fasta2c train, such as '--num-envs 256 --stop-at-return 18'")
    parser.add_argument("--episodes", type=int, default=100, help="games an agent is judged by")
    parser.add_argument("--runs", type=Path, default=Path("runs/scores"), help="where the runs are kept")
    parser.add_argument("--results", type=Path, default=FOLDER / "results", help="where scores and curves are kept")
    parser.add_argument("--table", type=Path, default=FOLDER / "RESULTS.md", help="whose table is written anew")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return 1 if run(args) else 0
    except Fasta2cError as error:
        print(f"{Path(__file__).name}: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{Path(__file__).name}: interrupted; called again, it goes on", file=sys.stderr)
        return 130


def run(args: argparse.Namespace) -> int:
    """Train, play and tell what is asked for; returns how many runs failed."""
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= args.jobs <= len(cores):
        raise UserError(f"--jobs: {args.jobs} is out of range; there are {len(cores)} cores.")
    if args.seeds < 0 or args.first_seed < 0 or args.episodes < 1:
        raise UserError("--seeds and --first-seed must be at least 0, --episodes at least 1.")
    jobs = list(wanted(args))
    split_at_marks(args.table)  # before hours of training, not after
    deadline = time.monotonic() + 60 * args.budget if args.budget is not None else math.inf
    try:
        return work_off(jobs, [cores[n :: args.jobs] for n in range(args.jobs)], args, deadline)
    finally:
        write_table(args.table, read_results(args.results))


def wanted(args: argparse.Namespace) -> Iterator[Job]:
    """The runs asked for, seed by seed, so that a budget that ends early has gone round all environments."""
    suites = {name: SUITES[name] for name in args.suite or SUITES}
    known = {env.split("/")[1].lower() for envs in suites.values() for env in envs}
    if missing := [game for game in args.games or [] if game.lower() not in known]:
        raise UserError(f"--games: no {', '.join(missing)} among {', '.join(sorted(known))}.")
    games = {game.lower() for game in args.games} if args.games else known
    try:
        more = shlex.split(args.flags)
    except ValueError as error:
        raise UserError(f"--flags: {args.flags!r} cannot be read ({error}).") from None
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for suite, envs in suites.items():
            for env in envs:
                if env.split("/")[1].lower() in games:
                    flags = ["--env", env, "--seed", str(seed), *more]
                    name = re.sub(r"[^\w.]+", "-", " ".join(flags[1:])).replace("-seed-", "-s")
                    yield Job(suite, env, seed, flags, unused_or_current(args.runs / name, flags))


def unused_or_current(folder: Path, flags: list[str]) -> Path:
    """`folder`, with a number after its name where runs of another preset, or without a checkpoint, are in the way."""

    def goes_on(run: Path) -> bool:
        config = run / "config.yaml"
        whole = (run / "checkpoints" / "latest.pt").exists() and config.exists()
        return whole and is_current(flags, yaml.safe_load(config.read_text()))

    others = (folder.with_name(f"{folder.name}--{number}") for number in itertools.count(2))
    return next(run for run in itertools.chain([folder], others) if not run.exists() or goes_on(run))


def is_current(flags: list[str], config: dict[str, Any]) -> bool:
    """Whether a run of these flags has been trained by what the preset says today."""
    env_id = resolve(flags[flags.index("--env") + 1])
    preset = load_preset(env_id.family, env_id.name)
    today = to_plain(TrainConfig(**preset))
    words = [word for flag in flags for word in (flag.split("=", 1) if flag.startswith("--") else [flag])]
    names = (word[2:].replace("-", "_") for word in words if word.startswith("--"))
    given = {name if name in preset else name.removeprefix("no_") for name in names}
    for name, value in itertools.pairwise(words):
        if name == "--config":
            with contextlib.suppress(UserError):  # gone since
                given |= read_config(Path(value)).keys()
    learnt = preset.keys() - given - (RESUMABLE - {"total_steps"})  # what else changes nothing of what is learnt
    return all(today[name] in (config.get(name), "auto") for name in learnt)


def work_off(jobs: list[Job], shares: list[list[int]], args: argparse.Namespace, deadline: float) -> int:
    """Run all jobs until the deadline, as many at once as there are shares of the cores; keep results as they come.

    Returns:
        how many failed.
    """
    free: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    for share in shares:
        free.put(share)
    stopping = threading.Event()

    def work(job: Job) -> dict[str, Any] | None:
        share = free.get()
        try:
            if not train(job, share, deadline, stopping) or time.monotonic() > deadline or stopping.is_set():
                return None
            return score(job, share, args)
        finally:
            free.put(share)

    failed = 0
    with ThreadPoolExecutor(len(shares)) as pool:
        begun = {pool.submit(work, job): job for job in jobs}
        try:
            for done in as_completed(begun):
                try:
                    result = done.result()
                except subprocess.CalledProcessError as error:
                    say(begun[done], str(error))
                    failed += 1
                    continue
                if result is not None:
                    keep(result, args.results)
                    (begun[done].folder / "scored").touch()
        except BaseException:
            stopping.set()
            pool.shutdown(cancel_futures=True)
            raise
    return failed


def train(job: Job, share: list[int], deadline: float, stopping: threading.Event) -> bool:
    """Train, or go on training, on these cores; whether the run has ended and is to be scored.

    Raises:
        CalledProcessError: the run failed.
    """
    if (job.folder / "scored").exists():
        say(job, "scored already")
        return False
    if stopping.is_set() or time.monotonic() > deadline:
        return False
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    flags = ["--resume", str(job.folder)] if job.folder.exists() else [*job.flags, "--run-dir", str(job.folder)]
    say(job, "goes on" if flags[0] == "--resume" else "begins")
    command = pinned(share, "train", *flags, "--quiet")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if stopping.is_set() or time.monotonic() > deadline:
                process.terminate()  # it saves
                process.wait()
                say(job, "goes on next time")
                return False
            time.sleep(0.1)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return True


def say(job: Job, what: str) -> None:
    """A line of progress."""
    print(f"{shlex.join(job.flags[1:])}: {what}", flush=True)


def pinned(cores: list[int], *arguments: str) -> list[str]:
    """The command that runs fasta2c on these cores alone."""
    return ["taskset", "-c", ",".join(map(str, cores)), sys.executable, "-m", "fasta2c", *arguments]


def score(job: Job, share: list[int], args: argparse.Namespace) -> dict[str, Any]:
    """Play with a trained agent; what came of the run, its curve written."""
    summary = json.loads((job.folder / "summary.json").read_text())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    played = {}
    for name, flags in {"sampled": [], "greedy": ["--greedy"]}.items():
        command = pinned(share, "eval", str(job.folder), "--episodes", str(args.episodes), "--json", *flags)
        played[name] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    with (job.folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    date = datetime.date.today().isoformat()
    curve = args.results / "curves" / f"{job.folder.name.lower()}_{device.type}_{date}.csv"
    write_curve(curve, rows)
    config = yaml.safe_load((job.folder / "config.yaml").read_text())
    target = max((p.score for p in SUITES[job.suite][job.env] if p.steps != 3), default=None)
    say(job, " and ".join(f"{played[name]['mean_return']:.1f} {name}" for name in played))
    return {
        "suite": job.suite,
        "env": job.env,
        "seed": job.seed,
        "command": job.command,
        "env_steps": summary["env_steps"],
        "sampled": played["sampled"],
        "greedy": played["greedy"],
        "mean_of_last_100": summary["mean_return"],
        "best_of_last_100": summary["best_return"],
        "steps_to": {str(level): first_at(rows, level) for level in levels(job.env, target)},
        "wall_seconds": summary["wall_seconds"],
        "config": {name: value for name, value in config.items() if name not in PROVENANCE},
        "hardware": {**hardware(device), "cores": len(share)},
        "versions": summary["versions"],
        "curve": str(curve.relative_to(args.results)),
        "date": date,
    }


def keep(result: dict[str, Any], folder: Path) -> None:
    """Append to the results."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "scores.jsonl").open("a") as file:
        file.write(json.dumps(result) + "\n")


def levels(env: str, target: float | None) -> list[float]:
    """Returns whose first time is told."""
    return [18.0] if env == "Atari/Pong" else [] if target is None else [target]


def first_at(rows: list[dict[str, str]], level: float) -> int | None:
    """Env steps until the last 100 training episodes averaged `level`; None if they never did."""
    for row in rows:
        if int(row["episodes"]) >= 100 and float(row["episode_return_mean"]) >= level:
            return int(row["env_steps"])
    return None


def write_curve(path: Path, rows: list[dict[str, str]]) -> None:
    """The course of a run in at most `CURVE_ROWS` rows, the first and the last among them."""
    if len(rows) > CURVE_ROWS:
        rows = [rows[round(n * (len(rows) - 1) / (CURVE_ROWS - 1))] for n in range(CURVE_ROWS)]
    columns = ("env_steps", "wall_seconds", "episodes", "episode_return_mean", "entropy", "explained_variance")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_results(folder: Path) -> list[dict[str, Any]]:
    """What has been scored so far, by presets as they are today; of runs of one command, the last."""
    file = folder / "scores.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    latest = {(r["command"], r["hardware"]["gpu"]): r for r in map(json.loads, lines)}
    return [r for r in latest.values() if is_current(shlex.split(r["command"]), r["config"])]


def split_at_marks(path: Path) -> tuple[str, str]:
    """What is before and after the table in `path`."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"--table: {path} cannot be read ({reason(error)}).") from None
    if BEGIN not in text or END not in text:
        raise UserError(f"--table: {path} has no lines {BEGIN!r} and {END!r} to write the table between.")
    return text.partition(BEGIN)[0], text.partition(END)[2]


def write_table(path: Path, results: list[dict[str, Any]]) -> None:
    """Replace what is between the marks in `path`."""
    before, after = split_at_marks(path)
    path.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{after}", encoding="utf-8")


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: an environment, and what flags a run was given, a line, all its seeds told."""
    lines = [
        "| environment | published (M steps) | ours, sampled, by seed | likeliest actions | M steps | minutes | on |",
        "|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for result in sorted(results, key=lambda result: result["seed"]):
        machine = result["hardware"]
        place = machine["gpu"] or f"{machine['cores']} core{'s' if machine['cores'] > 1 else ''}"
        groups[(result["env"], flags_of(result), place)].append(result)
    published = {env: scores for envs in SUITES.values() for env, scores in envs.items()}
    order = list(published)
    for (env, flags, place), runs in sorted(groups.items(), key=lambda item: (order.index(item[0][0]), item[0])):
        told = ", ".join(f"{p.source} {p.score:g} ({p.steps:g})" for p in published[env]) or "none"
        what = f"{env} `{flags}`" if flags else env
        lines.append(
            f"| {what} | {told} | {_scores(runs, 'sampled')} | {_scores(runs, 'greedy')} "
            f"| {statistics.median(run['env_steps'] for run in runs) / 1e6:.2f} "
            f"| {statistics.median(run['wall_seconds'] for run in runs) / 60:.1f} | {place} |"
        )
    for (env, flags, place), runs in groups.items():
        if env == "Atari/Pong":
            told = ", ".join(f"{s / 1e6:.2f} M" if (s := run["steps_to"]["18.0"]) else "never" for run in runs)
            seeds = ", ".join(str(run["seed"]) for run in runs)
            what = f"Pong{f' `{flags}`' if flags else ''} on {place}"
            lines += ["", f"{what}, env steps until the last 100 training games averaged 18 (seeds {seeds}): {told}."]
    return "\n".join(lines)


def flags_of(result: dict[str, Any]) -> str:
    """What a run was given beside its environment and seed."""
    return shlex.join(shlex.split(result["command"])[6:])


def _scores(runs: list[dict[str, Any]], kind: str) -> str:
    means = [run[kind]["mean_return"] for run in runs]
    each = ", ".join(f"{mean:.4g}" if abs(mean) < 1000 else f"{mean:,.0f}" for mean in means)
    return each if len(runs) == 1 else f"{each} (median {statistics.median(means):,.1f})"


if __name__ == "__main__":
    sys.exit(main())
