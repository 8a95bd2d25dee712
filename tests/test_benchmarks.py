"""The benchmark scripts run, at sizes too small to mean anything, and write what they promise."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from fasta2c.config import TrainConfig, to_plain
from fasta2c.presets import load_preset

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"


def run(*command, **environment):
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environ = {**os.environ, "PYTHONPATH": path, **environment}
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, env=environ, timeout=300)


def script(name, *flags):
    return run(sys.executable, BENCHMARKS / name, *flags)


def test_throughput_writes_the_promised_figures(tmp_path):
    file = tmp_path / "deep" / "out.json"
    size = ("--num-envs", 4, "--num-steps", 2, "--seconds", 0.1, "--repeats", 2, "--device", "cpu")
    done = script("throughput.py", "--env", "Classic/CartPole", *size, "--json", file)
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    rates = [result[f"{name}_sps"] for name in ("raw_env", "act", "update", "train", "limit", "net", "plain")]
    assert all(rate > 0 for rate in rates)
    assert result["limit_sps"] == pytest.approx(1 / sum(1 / rate for rate in rates[:3]))
    assert result["net_sps"] == pytest.approx(1 / sum(1 / rate for rate in rates[1:3]))
    assert result["fraction_of_limit"] == pytest.approx(result["train_sps"] / result["limit_sps"])
    assert result["fraction_of_raw"] == pytest.approx(result["train_sps"] / result["raw_env_sps"])
    assert result["config"]["num_envs"] == 4 and result["hardware"]["cores"] >= 1 and "torch" in result["versions"]


def test_gae_checks_and_times_each_form(tmp_path):
    file = tmp_path / "gae.json"
    done = script("gae.py", "--sizes", "3x5", "--seconds", 0.01, "--repeats", 1, "--device", "cpu", "--json", file)
    assert done.returncode == 0, done.stderr
    (size,) = json.loads(file.read_text())["sizes"]
    assert {"scan", "compiled"} <= set(size["microseconds"])
    assert all(error < 1e-4 for error in size["largest_error"].values())


@pytest.mark.parametrize(
    ("name", "flags", "problem"),
    [
        ("throughput.py", ("--env", "Atari/Pogn"), "Pogn"),
        ("throughput.py", ("--num-envs", "0"), "num_envs"),
        ("gae.py", ("--sizes", "8x"), "8x"),
        ("compare_sb3.py", ("--env", "Atari/Pogn", "--side", "fasta2c"), "Pogn"),
    ],
)
def test_bad_input_is_one_line(name, flags, problem):
    done = script(name, *flags)
    assert done.returncode == 2 and problem in done.stderr and len(done.stderr.splitlines()) == 1


def test_compare_sb3_times_our_side():
    flags = ("--side", "fasta2c", "--env", "Classic/CartPole", "--num-envs", 4, "--num-steps", 2, "--seconds", 0.1)
    done = script("compare_sb3.py", *flags)
    assert done.returncode == 0 and float(done.stdout.split()[-1]) > 0, done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_suite_records_nothing(tmp_path):
    done = run("bash", BENCHMARKS / "gpu_suite.sh", "--out", tmp_path / "out", PYTHON=sys.executable)
    assert done.returncode == 0 and "no CUDA device" in done.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", [(), ("--out", "x", "nonsense"), ("tests", "--out", "x")])
def test_the_suite_wants_a_folder_and_stages_that_there_are(flags):
    done = run("bash", BENCHMARKS / "gpu_suite.sh", *flags)
    assert done.returncode == 2 and "usage" in done.stderr


def test_coverage_tries_one_id_of_each_family(tmp_path):
    """None may fail; those that lack something here are refused with a reason."""
    done = script(
        "coverage.py", "--one", "--seconds", 60, "--json", tmp_path / "out.json", "--markdown", tmp_path / "out.md"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = {outcome["family"]: outcome for outcome in json.loads((tmp_path / "out.json").read_text())["outcomes"]}
    assert len(outcomes) == 17
    assert {family for family, outcome in outcomes.items() if outcome["status"] != "trained"} <= {"Procgen", "PGX"}
    assert "| all | 17 |" in (tmp_path / "out.md").read_text()


def test_coverage_blames_a_crash_on_the_id_it_happened_in(tmp_path, monkeypatch):
    """A worker that dies or hangs costs one id, if it does so twice; the next begins after it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import coverage

    monkeypatch.chdir(tmp_path)
    script = tmp_path / "worker.py"
    script.write_text(
        "import os, sys, json\n"
        "for env in sys.stdin.read().split():\n"
        "    if env == 'bad': os.abort()\n"
        "    if env == 'slow': import time; time.sleep(60)\n"
        "    if env == 'shy' and not os.path.exists('been'): open('been', 'w'); os.abort()\n"
        "    print(json.dumps({'env': env, 'status': 'trained', 'detail': '', 'seconds': 0.0}), flush=True)\n"
    )
    monkeypatch.setattr(coverage, "__file__", str(script))
    outcomes = list(coverage.try_all([("F", env) for env in ("a", "bad", "slow", "shy", "c")], 2))
    failed = {"bad": "the process ended with -6: ", "slow": "it took more than 2 s: "}
    assert [(o.env, o.status) for o in outcomes] == [
        (env, "failed" if env in failed else "trained") for env in ("a", "bad", "slow", "shy", "c")
    ]
    assert {o.env: o.detail for o in outcomes if o.status == "failed"} == failed


def test_coverage_with_a_pattern_that_matches_nothing():
    done = script("coverage.py", "nothing*")
    assert done.returncode == 2 and "no environment matches" in done.stderr


MARKS = ("<!-- scores.py writes from here -->", "<!-- to here -->")


def scores(tmp_path, *flags):
    places = ("--runs", tmp_path / "runs", "--results", tmp_path / "results", "--table", tmp_path / "table.md")
    return script("scores.py", "--suite", "classic", "--games", "CartPole,Acrobot", *places, *flags)


def test_scores_are_told_run_by_run_and_in_a_table(tmp_path):
    (tmp_path / "table.md").write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    seed_1 = ("--first-seed", 1, "--seeds", 1)
    done = scores(tmp_path, *seed_1, "--jobs", 2, "--flags", "--total-steps 2000", "--episodes", 3)
    assert done.returncode == 0, done.stdout + done.stderr
    told = [json.loads(line) for line in (tmp_path / "results" / "scores.jsonl").read_text().splitlines()]
    assert {(r["env"], r["seed"]) for r in told} == {("Classic/CartPole", 1), ("Classic/Acrobot", 1)}
    cart = next(r for r in told if r["env"] == "Classic/CartPole")
    assert cart["command"] == "fasta2c train --env Classic/CartPole --seed 1 --total-steps 2000"
    assert cart["sampled"]["episodes"] == cart["greedy"]["episodes"] == 3 and cart["env_steps"] >= 2000
    curve = (tmp_path / "results" / cart["curve"]).read_text().splitlines()
    assert curve[0].startswith("env_steps,") and int(curve[-1].split(",")[0]) == cart["env_steps"]
    text = (tmp_path / "table.md").read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert text.count("| Classic/CartPole `--total-steps 2000` | RL-Zoo 500 (0.5) |") == 1
    again = scores(tmp_path, *seed_1, "--flags", "--total-steps 2000")
    assert again.stdout.count("scored already") == 2 and (tmp_path / "table.md").read_text() == text


@pytest.mark.nightly
def test_scores_that_the_budget_cuts_short_go_on(tmp_path):
    (tmp_path / "table.md").write_text("".join(MARKS))
    summary = tmp_path / "runs" / "Classic-CartPole-s0" / "summary.json"
    for _ in range(10):  # on a slow machine a run may not have begun within its budget
        done = scores(tmp_path, "--seeds", 1, "--budget", 0.15)
        assert done.returncode == 0 and not (tmp_path / "results").exists(), done.stdout + done.stderr
        if summary.exists():
            break
    told = json.loads(summary.read_text())
    assert told["status"] == "stopped" and 0 < told["env_steps"] < 500_000
    assert "goes on" in scores(tmp_path, "--seeds", 1, "--budget", 0.15).stdout


def test_a_curve_is_thinned_but_keeps_its_ends(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import scores

    written = {"wall_seconds": "", "episodes": "", "episode_return_mean": "", "entropy": "", "explained_variance": ""}
    rows = [{"env_steps": str(n), **written} for n in range(12_345)]
    scores.write_curve(tmp_path / "curve.csv", rows)
    lines = (tmp_path / "curve.csv").read_text().splitlines()
    assert len(lines) == 501 and lines[1].startswith("0,") and lines[-1].startswith("12344,")


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--games", "Pogn"), "no Pogn among"),
        (("--jobs", 10_000), "--jobs"),
        (("--flags", "--lr '"), "--flags"),
        (("--table", "nowhere.md"), "nowhere.md"),
    ],
)
def test_scores_name_what_is_wrong_before_training(flags, problem, tmp_path):
    done = script("scores.py", "--runs", tmp_path, *flags)
    assert done.returncode == 2 and problem in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_scores_of_another_preset_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import scores

    flags = ["--env", "Classic/CartPole", "--seed", "0", "--num-steps", "5"]
    config = to_plain(TrainConfig(num_steps=5).with_preset(load_preset("Classic", "CartPole")))
    assert scores.is_current(flags, config)
    assert scores.is_current(flags, {**config, "num_steps": 7})  # given, so not the preset's
    assert scores.is_current(flags, {**config, "log_interval": 7})
    assert not scores.is_current(flags, {**config, "lr": 0.5})
    assert not scores.is_current(flags, {**config, "total_steps": 7})
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert scores.unused_or_current(folder, flags) == tmp_path / "run--2"  # it died before its first checkpoint
    (folder / "checkpoints" / "latest.pt").touch()
    assert scores.unused_or_current(folder, flags) == folder
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "lr": 0.5}))
    assert scores.unused_or_current(folder, flags) == tmp_path / "run--2"


def test_a_score_counts_by_what_its_run_was_given(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import scores

    flags = ["--env", "MuJoCo/Hopper", "--seed", "0"]
    preset = load_preset("MuJoCo", "Hopper")
    assert preset["normalize_rewards"]
    config = to_plain(TrainConfig(**{**preset, "normalize_rewards": False, "lr": 0.5}))
    (tmp_path / "own.yaml").write_text("lr: 0.5\n")
    own = ["--config", str(tmp_path / "own.yaml")]
    assert scores.is_current([*flags, "--no-normalize-rewards", *own], config)
    assert scores.is_current([*flags, "--no-normalize-rewards", "=".join(own)], config)
    assert not scores.is_current([*flags, *own], config)
    assert not scores.is_current([*flags, "--no-normalize-rewards"], config)
    assert not scores.is_current([*flags, "--no-normalize-rewards", "--config", "gone.yaml"], config)


def test_a_run_that_fails_is_told_and_the_others_go_on(tmp_path):
    (tmp_path / "table.md").write_text("".join(MARKS))
    done = scores(tmp_path, "--seeds", 1, "--flags", "--lr nonsense")
    assert done.returncode == 1 and done.stdout.count("returned non-zero exit status 2") == 2


def test_runs_survive_kills_and_tell_of_it(tmp_path):
    """A small share of the fifty kills, one of them during a write, and of the other faults."""
    file = tmp_path / "faults.json"
    done = script("faults.py", "--kills", 2, "--seed", 1, "--only", "pickles", "--json", file)
    assert done.returncode == 0, done.stderr
    kills, pickles = json.loads(file.read_text())["outcomes"]
    assert kills["tried"] == kills["survived"] == 2 and pickles["tried"] == pickles["survived"] == 2
    assert len([line for line in done.stdout.splitlines() if line.startswith("| ")]) == 2
