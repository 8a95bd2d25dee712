"""Faults: what happens to a run whose process, disk, directory, environment or numbers fail, tried and counted.

Each fault is brought on in processes of `fasta2c train` as a user would start it. What survives is what lost nothing
but the work since its last checkpoint, and said so in one line.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from common import hardware, write_json
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fasta2c.run import checkpoint

INTERVAL = 20
RUN = ["--env", "Classic/CartPole", "--num-envs", "16", "--num-steps", "16", "--total-steps", str(10**9), "--quiet"]
RUN += ["--checkpoint-interval", str(INTERVAL), "--log-interval", "5", "--device", "cpu"]

# What is imported as the user's environment: a Gymnasium one that fails in its 310th step, and numbers that do.
THEIRS = """
import os, time
import gymnasium, numpy as np
class Frail(gymnasium.Env):
    observation_space, action_space = gymnasium.spaces.Box(-9, 9, (2,), np.float32), gymnasium.spaces.Discrete(2)
    def __init__(self, how): self.how, self.steps = how, 0
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(2, np.float32), {}
    def step(self, action):
        self.steps += 1
        now = self.steps == 310
        if now and self.how == "raises": raise ValueError("broken")
        if now and self.how == "dies": os._exit(1)
        if now and self.how == "hangs": time.sleep(10**6)
        shown = np.full(2, np.nan if now and self.how == "observation" else 1, np.float32)
        return shown, np.inf if now and self.how == "reward" else 1.0, self.steps % 50 == 0, False, {}
gymnasium.register("Frail-v0", entry_point=Frail, disable_env_checker=True)
"""


@dataclass
class Outcome:
    """How often a fault was tried and survived, and what was lost at most."""

    fault: str
    tried: int
    survived: int
    lost: str

    def __str__(self) -> str:
        return f"| {self.fault} | {self.tried} | {self.survived} | {self.lost} |"


# --- a run that can be looked into


def child(arguments: list[str], slow: bool) -> int:
    """`fasta2c` with these arguments, telling on stdout what it does, its filesystem slow if asked."""
    from fasta2c.cli import main
    from fasta2c.trainer import Trainer

    def tell(line: str) -> None:
        print(line, flush=True)

    def patched(owner: Any, name: str, before: Callable[..., None], after: Callable[..., None]) -> None:
        real = getattr(owner, name)

        def instead(*args: Any, **kwargs: Any) -> Any:
            before(*args)
            result = real(*args, **kwargs)
            after(*args)
            return result

        setattr(owner, name, instead)

    def nothing(*_: Any) -> None:
        pass

    patched(Trainer, "_take", nothing, lambda trainer, _: tell(f"update {trainer.update}"))
    patched(Trainer, "_save", lambda _: tell("saving"), lambda _: tell("saved"))
    if slow:
        for name in ("fsync", "replace", "link"):
            patched(os, name, lambda *_: time.sleep(0.1), lambda *_: time.sleep(0.05))
    return main(arguments)


class Running:
    """A process of `child`, and what it has told."""

    def __init__(self, *arguments: str, slow: bool = False) -> None:
        self.update: int | None = None
        self.saves = 0
        self.saving = threading.Event()
        self.saved = threading.Event()
        self.begun = threading.Event()
        command = [sys.executable, __file__, "child", *(["--slow"] if slow else []), "--", *arguments]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            word, _, number = line.strip().partition(" ")
            if word == "update" and number.isdecimal():
                self.update = int(number)
                self.begun.set()
            elif word == "saving":
                self.saving.set()
            elif word == "saved":
                self.saving.clear()
                self.saves += 1
                self.saved.set()

    def end(self, signum: int, *, all_of_them: bool = False) -> int:
        """Send `signum`, to its environments too if `all_of_them`, wait, and read what was told until then."""
        if all_of_them:
            os.killpg(self.process.pid, signum)
        else:
            self.process.send_signal(signum)
        return self.wait()

    def wait(self) -> int:
        """The exit code."""
        code = self.process.wait(timeout=120)
        self._reader.join(timeout=10)
        return code

    def errors(self) -> str:
        """What it wrote to stderr, once it has ended."""
        assert self.process.stderr is not None
        return self.process.stderr.read()


def fasta2c(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """`fasta2c` with these arguments, to its end."""
    command = [sys.executable, "-m", "fasta2c", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


# --- the faults


def kills(folder: Path, count: int, rng: random.Random) -> Outcome:
    """`kill -9` at random moments, a third of them while a checkpoint is written, each followed by a resume."""
    run, worst, survived = folder / "killed", 0, 0
    process = Running("train", *RUN, "--run-dir", str(run))
    if not process.saved.wait(120):
        raise SystemExit(f"the run does not begin: {process.end(signal.SIGKILL)} {process.errors()}")
    kept = 0
    for number in range(count):
        if number % 3 == 0:  # within a write
            if number:
                process.saving.wait(60)
            time.sleep(rng.uniform(0, 0.7))
        elif number % 9 == 1:  # within the start
            time.sleep(rng.uniform(0, 4))
        else:
            process.begun.wait(60)
            time.sleep(rng.uniform(0, 2))
        process.end(signal.SIGKILL)
        seen = process.update if process.update is not None else kept
        problems = []
        try:
            kept = checkpoint.load(run / "checkpoints" / "latest.pt")["update"]
        except Exception as error:
            problems.append(f"latest.pt: {error}")
        worst = max(worst, seen - kept)
        if seen - kept > INTERVAL:
            problems.append(f"{seen - kept} updates lost")
        if len(left := [*run.glob(".*.tmp"), *run.glob("*/.*.tmp")]) > 1:
            problems.append(f"{len(left)} temporary files")
        process = Running("train", "--resume", str(run), "--quiet", slow=(number + 1) % 3 == 0)
        if not process.begun.wait(60):
            process.end(signal.SIGKILL)
            problems.append(f"no resume: {process.errors().strip()[-300:]}")
        if problems:
            print(f"kill {number}: {'; '.join(problems)}", file=sys.stderr)
        survived += not problems
        print(f"\r{number + 1} of {count} kills, {survived} survived", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    process.saved.wait(60)
    if process.end(signal.SIGTERM) != 143 or not continuous(run) or [*run.glob("**/.*.tmp")]:
        print("the log has gaps or overlaps, or temporary files are left", file=sys.stderr)
        survived = 0
    return Outcome(
        f"`kill -9`, a third of them during a checkpoint ({INTERVAL} updates apart)",
        count,
        survived,
        f"{worst} updates",
    )


def continuous(run: Path) -> bool:
    """Whether the rows of metrics.csv and TensorBoard go on without overlap or gap."""
    with (run / "metrics.csv").open() as file:
        updates = [int(row["update"]) for row in csv.DictReader(file)]
    board = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    steps = [event.step for event in board.Scalars("time/sps")]
    every_fifth = updates[:-1] == [5 * (n + 1) for n in range(len(updates) - 1)]  # and the last, at the signal
    return every_fifth and steps == sorted(set(steps)) and len(steps) == len(updates)


def started(folder: Path, name: str, flags: list[str] = RUN) -> tuple[Running, Path]:
    """A run that has saved a checkpoint."""
    run = folder / name
    process = Running("train", *flags, "--run-dir", str(run))
    if not process.saved.wait(120):
        raise SystemExit(f"the run does not begin: {process.end(signal.SIGKILL)} {process.errors()}")
    return process, run


def one_line(text: str, *words: str) -> bool:
    """Whether `text` is one error in a line that has these words, warnings aside."""
    lines = [line for line in text.splitlines() if not line.startswith("fasta2c: warning: ")]
    return len(lines) == 1 and lines[0].startswith("fasta2c: ") and all(word in lines[0] for word in words)


def signals(folder: Path) -> Outcome:
    """SIGINT, SIGTERM, SIGHUP, also to every process of a run: saved, and one line."""
    asynchronous = ["--env-kwargs", '{"vectorization_mode": "async"}', "--num-envs", "3"]
    elsewhere = ["--env", "gymnasium:CartPole-v1", *asynchronous, *RUN[4:]]
    tried = survived = 0
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        for all_of_them in (False, True):
            name = f"{signum.name}-{all_of_them}"
            process, run = started(folder, name, flags=elsewhere if all_of_them else RUN)
            saves = process.saves
            code = process.end(signum, all_of_them=all_of_them)
            at_once = checkpoint.load(run / "checkpoints" / "latest.pt")["update"] == process.update
            told = one_line(process.errors(), "--resume")
            tried += 1
            survived += code == 128 + signum and process.saves > saves and at_once and told
    return Outcome("SIGINT, SIGTERM, SIGHUP, to the run or to all its processes", tried, survived, "nothing")


def small_files(folder: Path) -> Outcome:
    """No file may grow beyond 20 kB: neither checkpoints nor TensorBoard's fit."""
    limit = 20_000
    done = fasta2c(
        "train", *RUN, "--run-dir", str(folder / "small"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    survived = done.returncode == 1 and one_line(done.stderr, "cannot be written") and "Traceback" not in done.stderr
    return Outcome("no room for a checkpoint (RLIMIT_FSIZE)", 1, int(survived), "the work since the last checkpoint")


def full_disk(folder: Path) -> Outcome | None:
    """A small disk, filled up while the run goes on; None where none can be mounted."""
    disk = folder / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)], capture_output=True).returncode:
        return None
    try:
        process, run = started(disk, "run")
        with (disk / "filler").open("wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(4096))
            except OSError:
                pass
        code = process.wait()
        survived = code == 1 and one_line(process.errors(), "No space left on device", "--resume")
        checkpoint.load(run / "checkpoints" / "latest.pt")
        (disk / "filler").unlink()
        resumed = Running("train", "--resume", str(run), "--quiet")
        survived = survived and resumed.saved.wait(60) and resumed.end(signal.SIGTERM) == 143
        return Outcome("the disk fills up, then has room again", 1, int(survived), "the work since the last checkpoint")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def lost_directory(folder: Path) -> Outcome:
    """The run's directory is removed, or a file takes the place of its checkpoints."""
    survived = 0
    for name in ("removed", "file"):
        process, run = started(folder, name)
        shutil.rmtree(run if name == "removed" else run / "checkpoints")
        if name == "file":
            (run / "checkpoints").touch()
        survived += process.wait() == 1 and one_line(process.errors(), "cannot be written")
    process, run = started(folder, "moved")
    run.rename(folder / "elsewhere")
    other, _ = started(folder, "moved", [*RUN, "--seed", "1"])
    told = process.wait() == 1 and one_line(process.errors())  # of no folder, or of another run's
    other.end(signal.SIGTERM)
    survived += told and checkpoint.load(run / "checkpoints" / "latest.pt")["config"]["seed"] == 1
    what = "the directory is removed, becomes a file, or is moved and another run begun there"
    return Outcome(what, 3, survived, "what was removed")


def environments(folder: Path) -> Outcome:
    """A Gymnasium environment raises, dies or hangs: the run ends in words, then with --restart-envs goes on."""
    (folder / "theirs.py").write_text(THEIRS)
    tried = survived = 0
    for mode, how in (
        ("sync", "raises"),
        ("sync", "hangs"),
        ("async", "raises"),
        ("async", "dies"),
        ("async", "hangs"),
    ):
        kwargs = json.dumps({"how": how, "vectorization_mode": mode})
        flags = ["--env", "gymnasium:theirs:Frail-v0", "--env-kwargs", kwargs, "--num-envs", "4", "--num-steps", "8"]
        flags += ["--env-timeout", "2", "--checkpoint-interval", "10", "--quiet"]
        for restart in (False, True):
            run = folder / f"{mode}-{how}-{restart}"
            more = ["--total-steps", "3000", "--run-dir", str(run), *(["--restart-envs"] if restart else [])]
            done = fasta2c("train", *flags, *more, cwd=folder)
            tried += 1
            saved = checkpoint.load(run / "checkpoints" / "latest.pt")
            if restart:
                summary = json.loads((run / "summary.json").read_text())
                survived += done.returncode == 0 and summary["env_restarts"] >= 4
            else:
                told = "has not answered" if how == "hangs" else "broken" if how == "raises" else "was ended"
                survived += done.returncode == 1 and told in done.stderr.splitlines()[-1] and saved["update"] >= 10
    return Outcome("an environment raises, dies or hangs", tried, survived, "its game, with `--restart-envs`")


def numbers(folder: Path) -> Outcome:
    """A reward or an observation is not finite: the run ends in words, then with --on-nan skip goes on."""
    (folder / "theirs.py").write_text(THEIRS)
    tried = survived = 0
    for what in ("reward", "observation"):
        flags = ["--env", "gymnasium:theirs:Frail-v0", "--env-kwargs", json.dumps({"how": what}), "--num-envs", "4"]
        flags += ["--num-steps", "8", "--total-steps", "3000", "--checkpoint-interval", "10", "--quiet"]
        for on_nan in ("stop", "skip"):
            run = folder / f"{what}-{on_nan}"
            done = fasta2c("train", *flags, "--on-nan", on_nan, "--run-dir", str(run), cwd=folder)
            tried += 1
            finite = all(
                torch.isfinite(x).all() for x in checkpoint.load(run / "checkpoints" / "latest.pt")["model"].values()
            )
            told = f"the {what} of environment 0 in row" in done.stderr
            survived += finite and told and done.returncode == (1 if on_nan == "stop" else 0)
    return Outcome("a reward or an observation is not finite", tried, survived, "that update, with `--on-nan skip`")


def strangers(folder: Path) -> Outcome:
    """Runs at once: two into one directory, and ten into none in particular."""
    process, run = started(folder, "mine")
    second = fasta2c("train", *RUN, "--run-dir", str(run))
    third = fasta2c("train", "--resume", str(run), "--quiet")
    survived = sum(done.returncode == 2 and one_line(done.stderr) for done in (second, third))
    process.end(signal.SIGTERM)
    few = ["2000" if flag == str(10**9) else flag for flag in RUN]
    ten = [
        subprocess.Popen(
            [sys.executable, "-m", "fasta2c", "train", *few], cwd=folder, stdout=subprocess.PIPE, text=True
        )
        for _ in range(10)
    ]
    folders = {process.communicate(timeout=300)[0].strip() for process in ten}
    survived += len(folders) == 10 and all((folder / f / "checkpoints" / "latest.pt").exists() for f in folders)
    return Outcome("two runs in one directory (the second refused), ten at once", 3, survived, "nothing")


def pickles(folder: Path) -> Outcome:
    """A checkpoint that would run code when it is unpickled."""

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {folder / 'owned'}",)

    tried = survived = 0
    torch.save({"format_version": 2, "config": {}, "spec": {}, "model": {}, "x": Evil()}, folder / "evil.pt")
    for arguments in (["eval", str(folder / "evil.pt")], ["train", "--init-from", str(folder / "evil.pt"), "--quiet"]):
        done = fasta2c(*arguments, cwd=folder)
        tried += 1
        survived += done.returncode == 2 and one_line(done.stderr) and not (folder / "owned").exists()
    return Outcome("a checkpoint that would run code (refused)", tried, survived, "nothing")


FAULTS = (signals, small_files, full_disk, lost_directory, environments, numbers, strangers, pickles)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def main() -> int:
    if sys.argv[1:2] == ["child"]:
        return child(sys.argv[sys.argv.index("--") + 1 :], slow="--slow" in sys.argv)
    names = [fault.__name__ for fault in FAULTS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="how many runs are killed; 0 leaves that out")
    parser.add_argument("--only", action="append", choices=names, help="these of the other faults")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--json", type=Path, help="where the outcome is written")
    args = parser.parse_args()
    outcomes = []
    with scratch() as folder:
        if args.kills:
            outcomes.append(kills(folder, args.kills, random.Random(args.seed)))
            print(outcomes[-1], flush=True)
        for fault in FAULTS:
            if args.only is None or fault.__name__ in args.only:
                (folder / fault.__name__).mkdir()
                outcome = fault(folder / fault.__name__)
                if outcome is None:
                    print(f"{fault.__name__}: cannot be tried here", file=sys.stderr)
                    continue
                outcomes.append(outcome)
                print(outcome, flush=True)
    write_json(args.json, {"hardware": hardware(torch.device("cpu")), "outcomes": [asdict(o) for o in outcomes]})
    return 0 if all(o.survived == o.tried for o in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
