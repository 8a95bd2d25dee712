"""`torchrun … -m fasta2c train`: what somebody meets who starts ranks, loses one, mistypes or presses Ctrl-C."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fasta2c.run import checkpoint

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
FAILING = '''
import os
import torch
from gymnasium.spaces import Box, Discrete


class Failing:
    """Raises at its hundredth step on rank 1."""

    observation_space = Box(-1, 1, (2,))
    action_space = Discrete(2)

    def __init__(self, num_envs, *, device, seed):
        self.num_envs, self.steps = num_envs, 0

    def reset(self):
        return torch.zeros(self.num_envs, 2)

    def step(self, actions):
        self.steps += 1
        if self.steps == 100 and os.environ["RANK"] == "1":
            raise ValueError("the rope broke")
        flags = torch.zeros(self.num_envs, dtype=torch.bool)
        return self.reset(), torch.ones(self.num_envs), flags, flags


class Encoder(torch.nn.Linear):
    """Has a mistake that nobody foresaw, on rank 1."""

    def __init__(self, space):
        super().__init__(4, 8)
        self.features, self.calls = 8, 0

    def forward(self, x):
        self.calls += 1
        return {}["the rope broke"] if self.calls == 100 and os.environ["RANK"] == "1" else super().forward(x)
'''


def start(folder, *flags, launch=(), script=None):
    """Two ranks that train in `folder`, or run a script there."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *launch]
    command += ["-m", "fasta2c", "train"] if script is None else [script]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen([*command, *flags], cwd=folder, env=environment, text=True, **output)


def rank_pid(launcher, rank):
    """The process of a rank, once there is one."""
    for _ in range(600):
        for entry in Path("/proc").iterdir():
            try:
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                if parent == str(launcher.pid) and f"\0RANK={rank}\0" in (entry / "environ").read_text():
                    return int(entry.name)
            except (OSError, ValueError):
                continue
        time.sleep(0.1)
    raise AssertionError(f"no rank {rank}")


def wait_for_updates(run, count):
    """Until so many rows are in its log."""
    for _ in range(1200):
        if (run / "metrics.csv").is_file() and len((run / "metrics.csv").read_text().splitlines()) > count:
            return
        time.sleep(0.1)
    raise AssertionError("the run does not get on")


def finish(launcher):
    """What it printed, torchrun's own lines included; it must end within two minutes."""
    try:
        return launcher.communicate(timeout=120)[0]
    finally:
        launcher.kill()


def test_a_rank_that_is_killed_is_started_again_and_the_run_goes_on(tmp_path):
    run = tmp_path / "run"
    small = ("--num-steps", "8", "--log-interval", "5", "--checkpoint-interval", "10")
    launcher = start(tmp_path, "--run-dir", "run", "--total-steps", "100000000", *small, launch=("--max-restarts", "1"))
    wait_for_updates(run, 6)
    os.kill(rank_pid(launcher, 1), signal.SIGKILL)
    before = len((run / "metrics.csv").read_text().splitlines())
    wait_for_updates(run, before + 4)
    launcher.send_signal(signal.SIGINT)
    output = finish(launcher)
    assert output.count("goes on at") == 1, output
    state = checkpoint.load(run / "checkpoints" / "latest.pt")
    assert state["resumes"] == 1
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "stopped" and state["collector"]["env_steps"] == summary["env_steps"]
    with open(run / "metrics.csv", newline="") as file:
        steps = [int(row["env_steps"]) for row in csv.DictReader(file)]
    assert steps == sorted(set(steps)), "neither gap nor overlap"


@pytest.mark.nightly  # tests/test_trainer.py has it of one process
def test_a_job_of_the_same_name_goes_on_with_its_run(tmp_path):
    """As one that a cluster has put back into its queue; in the folder that it began in, though none was named."""
    launch = ("--rdzv-id", "mine", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0")
    seen = []
    for total in ("2000", "4000"):
        launcher = start(tmp_path, "--total-steps", total, "--num-steps", "8", launch=launch)
        output = finish(launcher)
        assert launcher.returncode == 0, output
        (run,) = (tmp_path / "runs" / "Classic" / "CartPole").iterdir()
        seen.append(json.loads((run / "summary.json").read_text())["env_steps"])
    assert 2000 <= seen[0] < seen[1] and checkpoint.load(run / "checkpoints" / "latest.pt")["resumes"] == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--env", "torch:failing:Failing"), ["fasta2c: error: ", "ValueError: the rope broke (failing.py"]),
        (("--encoder", "failing:Encoder"), ["KeyError: 'the rope broke'"]),  # after a traceback
    ],
)
def test_a_rank_that_fails_ends_the_others_and_is_heard_once(tmp_path, flags, said):
    (tmp_path / "failing.py").write_text(FAILING)
    launcher = start(tmp_path, *flags, "--run-dir", "run", "--total-steps", "100000000")
    output = finish(launcher)
    assert launcher.returncode != 0
    told = [line for line in output.splitlines() if "fasta2c: " in line or line.startswith("KeyError")]
    assert len(told) == 1 and all(words in told[0] for words in said), output
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"


def test_ctrl_c_saves_one_run(tmp_path):
    launcher = start(tmp_path, "--total-steps", "100000000", "--run-dir", "run", "--num-steps", "8")
    wait_for_updates(tmp_path / "run", 1)
    launcher.send_signal(signal.SIGINT)
    output = finish(launcher)
    told = [line for line in output.splitlines() if "fasta2c: " in line]
    assert told == ["fasta2c: stopped by SIGINT; go on with: torchrun … -m fasta2c train --resume run"], output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "stopped"
    state = checkpoint.load(tmp_path / "run" / "checkpoints" / "latest.pt")
    assert state["collector"]["env_steps"] == summary["env_steps"] > 0


SLOW = """
import time
import fasta2c
from fasta2c import trainer

trainer.HEARING_SECONDS = 1.0


class Slow(fasta2c.Callback):
    def on_update(self, trainer):
        if trainer.update == 20:
            print("slow", flush=True)
            time.sleep(8)


config = fasta2c.TrainConfig(num_steps=8, total_steps=10**8, run_dir="run", quiet=True)
fasta2c.train(config, callbacks=[Slow()])
"""


def test_a_signal_saves_though_rank_0_is_long_about_something(tmp_path):
    """The others wait for it, and hear of the signal all the same."""
    (tmp_path / "slow.py").write_text(SLOW)
    launcher = start(tmp_path, script="slow.py")
    assert launcher.stdout.readline() == "slow\n"
    launcher.send_signal(signal.SIGTERM)
    output = finish(launcher)
    assert "Stopped: stopped by SIGTERM" in output
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "stopped"
    assert checkpoint.load(tmp_path / "run" / "checkpoints" / "latest.pt")["update"] >= 20


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--env", "Atari/Pnog"), "--env: Atari has no environment 'Pnog'. Did you mean Atari/Pong"),
        (
            ("--num-envs", "5", "--num-minibatches", "3"),
            "--num-minibatches: 3 are more than the 2 environments of a rank",
        ),
    ],
)
def test_a_mistake_is_told_once(tmp_path, flags, told):
    launcher = start(tmp_path, "--total-steps", "1000", *flags)
    output = finish(launcher)
    lines = [line for line in output.splitlines() if "fasta2c: " in line]
    assert launcher.returncode != 0 and len(lines) == 1 and lines[0].startswith(f"fasta2c: error: {told}"), output
    assert not (tmp_path / "runs").exists()
