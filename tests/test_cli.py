"""Tests of the command line: what reaches the trainer, and that every mistake is one line and exit code 2."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from helpers import examples
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import fasta2c
import fasta2c.run
from fasta2c import cli
from fasta2c.config import TrainConfig, to_plain
from fasta2c.errors import RunError, Stopped, UserError
from fasta2c.presets import load_preset
from fasta2c.run import checkpoint
from fasta2c.run.directory import RunDirectory
from fasta2c.run.report import TimeReport
from fasta2c.verbs import settings as verb_settings

ROOT = Path(__file__).resolve().parent.parent
RESULT = types.SimpleNamespace(
    episodes=321,
    mean_return=487.256,
    best_return=495.0,
    run_dir="runs/my run",
    env_steps=2048,
    sps=1234.5,
    warm_up_seconds=0.1,
    time_report=None,
)


class Recorder:
    """Stands in for `fasta2c.launch`: notes its calls, returns or raises what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[TrainConfig, dict[str, Any]]] = []
        self.outcome: Any = RESULT

    def train(self, config: TrainConfig, **options: Any) -> Any:
        self.calls.append((config, options))
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome

    @property
    def config(self) -> TrainConfig:
        return self.calls[-1][0]


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    module = types.ModuleType("fasta2c.launch")
    module.train = recorder.train  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fasta2c.launch", module)
    return recorder


@dataclasses.dataclass(frozen=True)
class Scores:
    mean_return: float = 9.5
    std_return: float = 0.5
    min_return: float = 9.0
    max_return: float = 10.0
    mean_length: float = 9.5
    episodes: int = 2
    low_return: float | None = 9.1
    high_return: float | None = 9.9


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    calls: list[tuple[Any, dict[str, Any]]] = []
    module = types.ModuleType("fasta2c.evaluation")
    module.evaluate = lambda run_dir, **options: (calls.append((run_dir, options)), Scores())[1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fasta2c.evaluation", module)
    monkeypatch.setattr("fasta2c.run.checkpoint.resolve", lambda path, which="latest": path)
    return calls


def one_line(capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """What was told after `fasta2c: error: `, checked to be a single line and all there is."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fasta2c: error: ") and err.endswith("\n") and err.count("\n") == 1
    return err.removeprefix("fasta2c: error: ").rstrip("\n")


# --- what reaches the trainer


def test_train_alone_takes_defaults_and_the_preset(trainer: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train"]) == 0
    config, options = trainer.calls[0]
    assert config == TrainConfig().with_preset(load_preset("Classic", "CartPole"))
    assert options == {}
    out, err = capsys.readouterr()
    assert "487.26" in out and "495.00" in out and "1,234" in out
    assert "fasta2c eval 'runs/my run'" in out  # quoted, so that it can be pasted
    assert err == ""


def test_flags_win_over_file_over_preset_over_defaults(
    trainer: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = {"gamma": 0.1, "lr": 0.1, "num_envs": 11, "env_kwargs": {"preset": 1, "file": 1, "flag": 1}}
    monkeypatch.setattr(
        verb_settings, "load_preset", lambda family, name: preset if (family, name) == ("Atari", "Pong") else {}
    )
    file = tmp_path / "my.yaml"
    file.write_text("env: Pong-v5\ngamma: 0.2\nlr: 0.2\nenv_kwargs: {file: 2, flag: 2}\n")
    arguments = ["--config", str(file), "--gamma", "0.3", "--env-kwargs", '{"flag": 3}', "--hidden-sizes", "8", "9"]
    assert cli.main(["train", *arguments]) == 0
    config = trainer.config
    assert (config.env, config.gamma, config.lr, config.num_envs) == ("Pong-v5", 0.3, 0.2, 11)
    assert config.num_steps == TrainConfig.num_steps
    assert config.env_kwargs == {"preset": 1, "file": 2, "flag": 3}
    assert config.hidden_sizes == (8, 9)


def test_env_flag_wins_over_the_file_and_chooses_the_preset(
    trainer: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb_settings, "load_preset", lambda family, name: {"num_envs": len(family + name)})
    file = tmp_path / "my.yaml"
    file.write_text("env: Pong-v5\n")
    assert cli.main(["train", f"--config={file}", "--env=gymnasium:My-v1"]) == 0
    assert trainer.config.num_envs == len("Gymnasium" + "My")


def test_spellings_of_flags(trainer: Recorder) -> None:
    arguments = ["--num_envs=4", "--no-shared", "--compile", "--seed", "007", "--critic-lr", "None", "--run-dir", "a b"]
    assert cli.main(["train", *arguments]) == 0
    config = trainer.config
    assert (config.num_envs, config.shared, config.compile, config.seed, config.critic_lr) == (4, False, True, 7, None)
    assert config.run_dir == Path("a b")


def test_quiet_prints_the_run_directory_only(trainer: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--quiet"]) == 0
    assert capsys.readouterr().out == "runs/my run\n"


def test_a_run_without_an_episode(trainer: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    trainer.outcome = types.SimpleNamespace(**{**vars(RESULT), "mean_return": None, "best_return": None})
    assert cli.main(["train"]) == 0
    told = capsys.readouterr().out
    assert "no episode has ended" in told and "advice" not in told and "warm-up" not in told


@pytest.mark.parametrize(("episodes", "told"), [(321, "100 games"), (7, "7 games"), (1, "game")])
def test_it_is_told_how_many_games_a_mean_is_over(
    trainer: Recorder, capsys: pytest.CaptureFixture[str], episodes: int, told: str
) -> None:
    trainer.outcome = types.SimpleNamespace(**{**vars(RESULT), "episodes": episodes, "sps": 0.0})
    assert cli.main(["train"]) == 0
    out = capsys.readouterr().out
    assert f"487.26 over the last {told} (best 495.00)" in out and "speed          2,048 env steps in all" in out


@pytest.mark.parametrize(
    ("flags", "further"),
    [
        ("--total-steps 2048", " --total-steps 4096"),
        ("--total-steps 4096 --stop-at-return 480", " --stop-at-return None"),
        ("--total-steps 500", " --total-steps 4000"),  # a rollout is longer
        ("--total-steps 2048 --stop-at-return 480", " --total-steps 4096 --stop-at-return None"),
        ("--total-steps 4096", ""),  # a callback ended it
        ("--total-steps 4096 --stop-at-return 490", ""),
    ],
)
def test_a_run_that_ended_says_how_it_goes_on(
    trainer: Recorder, capsys: pytest.CaptureFixture[str], flags: str, further: str
) -> None:
    assert cli.main(["train", *flags.split()]) == 0
    assert f"fasta2c train --resume 'runs/my run'{further}\n" in capsys.readouterr().out


def test_a_run_says_where_its_time_went(trainer: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    seconds = {"env": 5.0, "act": 3.0, "update": 1.0, "copy": 0.0, "log": 1.0}
    report = TimeReport(seconds, env_steps=1000, rows=10, on_gpu=False, in_turn=False, overlapped=False)
    trainer.outcome = types.SimpleNamespace(**{**vars(RESULT), "time_report": report, "warm_up_seconds": 31.25})
    assert cli.main(["train"]) == 0
    told = capsys.readouterr().out
    assert "warm-up        31.2 s" in told and "time           environments 50%" in told
    assert "limit          200 env steps per second" in told and "advice         the environments are" in told


@pytest.fixture
def saved_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    """The configuration in the checkpoint of a run directory, `RUN`."""
    config = TrainConfig(env="Atari/Pong", gamma=0.5, total_steps=100, env_kwargs={"a": 1})
    monkeypatch.chdir(tmp_path)
    run = RunDirectory.create(Path("RUN"), env=config.env, seed=0)
    checkpoint.save(run, {"config": to_plain(config), "spec": {}, "model": {}}, env_steps=1)
    run.close()
    return config


def test_resume_lays_flags_over_the_saved_configuration(trainer: Recorder, saved_run: TrainConfig) -> None:
    assert cli.main(["train", "--resume", "RUN", "--total-steps", "200"]) == 0
    assert trainer.calls == [(dataclasses.replace(saved_run, total_steps=200), {"resume": Path("RUN")})]


@pytest.mark.parametrize("flag", ["--config", "--run-dir", "--init-from"])
def test_resume_refuses_what_it_would_ignore(
    trainer: Recorder, saved_run: TrainConfig, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    assert cli.main(["train", "--resume", "RUN", flag, "x"]) == 2
    assert one_line(capsys).startswith(f"{flag} cannot be used with --resume")


# --- mistakes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--num-evns 8", "unknown flag --num-evns. Did you mean --num-envs"),
        ("--num-env 8", "unknown flag --num-env. Did you mean --num-envs"),  # no abbreviations
        ("--num-evns=8", "unknown flag --num-evns. Did you mean --num-envs"),
        ("--num-envs 8 --num-envs 9", "--num-envs is given more than once."),
        ("--num-envs 8 --num_envs=8", "--num-envs is given more than once."),
        ("--compile --no-compile", "--no-compile is given more than once."),
        ("--num-envs", "--num-envs: its value is missing."),
        ("--num-envs --quiet", "--num-envs: its value is missing."),
        ("--num-envs=", "--num-envs: its value is empty."),
        ("--config", "--config: its value is missing."),
        ("--env", "--env: its value is missing."),
        ("--hidden-sizes", "--hidden-sizes: its value is missing."),
        ("--num-envs abc", "--num-envs: 'abc' is neither a whole number nor auto."),
        ("--num-envs 8.0", "--num-envs: '8.0' is neither a whole number nor auto."),
        ("--total-steps 2e6", "--total-steps: '2e6' is not a whole number."),
        ("--lr 日本", "--lr: '日本' is not a number."),
        ("--critic-lr x", "--critic-lr: 'x' is neither a number nor None."),
        ("--stop-at-return none", "--stop-at-return: 'none' is neither a number nor None."),
        ("--hidden-sizes 64 x", "--hidden-sizes: '64 x' is not whole numbers separated by spaces."),
        ("--gamma 1.5", "--gamma: 1.5 is out of range; it must be from 0 to 1."),
        ("--lr nan", "--lr: nan is out of range"),
        ("--lr -inf", "--lr: -inf is out of range"),
        ("--lr 1e999", "--lr: inf is out of range"),
        ("--num-envs 0", "--num-envs: 0 is out of range"),
        ("--num-steps -1", "--num-steps: -1 is out of range"),
        ("--num-envs 99999999999999999999", "--num-envs: 99999999999999999999 is out of range"),
        ("--seed 99999999999999999999", "--seed: 99999999999999999999 is out of range"),
        ("--gae foo", "--gae: 'foo' is not one of auto, scan"),
        ("--gae scann", "Did you mean scan?"),
        ("--device gpu", "--device: 'gpu' is not one of auto, cpu, cuda, cuda:N."),
        ("--compile true", "unexpected argument 'true' after --compile"),
        ("--compile=true", "--compile takes no value; write --compile or --no-compile."),
        ("stray", "unexpected argument 'stray'"),
        ("-- stray", "unexpected argument 'stray'"),
        ("-x", "unknown flag -x."),
        ("--settings 3", "unknown flag --settings."),
        ("--tyro-print-completion bash", "unknown flag --tyro-print-completion."),
        ("--env Atari/Pomg", "--env: Atari has no environment 'Pomg'. Did you mean Atari/Pong"),
        ("--env-kwargs [1]", "--env-kwargs: '[1]' is not a JSON object; write"),
        ("--env-kwargs {frame_skip:2}", "--env-kwargs: '{frame_skip:2}' is not JSON (Expecting"),
        ("--config /nonexistent.yaml", "/nonexistent.yaml: cannot be read (No such file or directory)."),
        ("--resume /nonexistent", "/nonexistent does not exist"),
    ],
)
def test_mistakes(trainer: Recorder, capsys: pytest.CaptureFixture[str], arguments: str, said: str) -> None:
    assert cli.main(["train", *arguments.split()]) == 2
    assert said in one_line(capsys)
    assert not trainer.calls


@pytest.mark.parametrize("name", ["env", "device", "run_dir", "config", "resume", "env_kwargs", "seed", "lr", "gae"])
def test_empty_values(trainer: Recorder, capsys: pytest.CaptureFixture[str], name: str) -> None:
    flag = f"--{name.replace('_', '-')}"
    assert cli.main(["train", flag, ""]) == 2
    assert one_line(capsys) == f"{flag}: its value is empty."


@pytest.mark.parametrize(
    "value",
    ["9" * 5000, "[" * 100_000, "a\nb", "a\r\n\x1b[31m", "\udcff", "\0", " ", "٣" * 3, "Atari/", "/", "gymnasium:"],
)
@pytest.mark.parametrize("flag", ["--env", "--num-envs", "--env-kwargs", "--device", "--config", "--resume"])
def test_odd_values(trainer: Recorder, capsys: pytest.CaptureFixture[str], flag: str, value: str) -> None:
    code = cli.main(["train", flag, value])
    if (flag, value) == ("--num-envs", "٣" * 3):  # Python reads the digits of any script
        assert code == 0 and trainer.config.num_envs == 333
        return
    assert code == 2
    line = one_line(capsys)
    assert line.isprintable() and len(line) < 1100


def test_a_mistake_in_a_file_names_the_file(
    trainer: Recorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "my.yaml"
    for text, said in {
        "gamma: 1.5": "gamma: 1.5 is out of range; it must be from 0 to 1.",
        "device: gpu": "device: 'gpu' is not one of auto, cpu, cuda, cuda:N.",
        "env: Atari/Pomg": "env: Atari has no environment 'Pomg'.",
        "lr: 7e-4": "lr: '7e-4' is text to YAML",
        "num_evns: 3": "unknown key 'num_evns'. Did you mean num_envs",
        "lr: 1.0\ngamma: 0.9\nlr: 0.5": "not valid YAML at line 1, column 1: 'lr' stands there twice.",
        **dict.fromkeys(["lr: !!bool abc", "lr: !!timestamp abc", "lr: !!int ''", "lr: !!float ''"], "not valid YAML"),
    }.items():
        file.write_text(text)
        assert cli.main(["train", "--config", str(file)]) == 2
        assert one_line(capsys).startswith(f"{file}: {said}")
    # The same field in both: the flag's value is the one that counts.
    file.write_text("gamma: 0.5")
    assert cli.main(["train", "--config", str(file), "--gamma", "2"]) == 2
    assert one_line(capsys).startswith("--gamma: 2.0")


def test_a_mistake_found_later_names_the_flag_only_if_it_was_given(
    trainer: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer.outcome = UserError("device: 'cuda' is not there.")
    assert cli.main(["train", "--device", "cuda"]) == 2
    assert one_line(capsys) == "--device: 'cuda' is not there."
    assert cli.main(["train"]) == 2
    assert one_line(capsys) == "device: 'cuda' is not there."


@pytest.mark.parametrize(
    ("outcome", "code", "told"),
    [
        (UserError("no"), 2, "fasta2c: error: no\n"),
        (RunError("the loss is NaN"), 1, "fasta2c: error: the loss is NaN\n"),
        (Stopped(signal.SIGTERM), 143, "fasta2c: stopped by SIGTERM\n"),
        (KeyboardInterrupt(), 130, "fasta2c: interrupted\n"),
        (OSError(28, "No space left on device"), 1, "fasta2c: error: [Errno 28] No space left on device\n"),
        (MemoryError(), 1, "fasta2c: error: out of memory"),
        (RuntimeError("CUDA out of memory. Tried to\nallocate"), 1, "fasta2c: error: out of memory"),
        (RunError("two\nlines"), 1, "fasta2c: error: two lines\n"),
    ],
)
def test_exit_codes(
    trainer: Recorder, capsys: pytest.CaptureFixture[str], outcome: BaseException, code: int, told: str
) -> None:
    trainer.outcome = outcome
    assert cli.main(["train"]) == code
    out, err = capsys.readouterr()
    assert err.startswith(told) and err.count("\n") == 1 and out == ""


@pytest.mark.parametrize("bug", [KeyError("x"), RuntimeError("shapes do not match"), ValueError("x")])
def test_a_bug_shows_its_traceback(trainer: Recorder, bug: Exception) -> None:
    trainer.outcome = bug
    with pytest.raises(type(bug)):
        cli.main(["train"])


# --- eval


def test_eval_passes_its_flags_on(evaluations: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", "RUN"]) == 0
    defaults = {"episodes": 100, "checkpoint": "latest", "greedy": False, "device": "auto", "seed": None}
    assert evaluations == [(Path("RUN"), {**defaults, "num_envs": None, "env_kwargs": {}, "progress": True})]
    out = capsys.readouterr().out
    assert "9.50 ± 0.50" in out and "9.10 to 9.90 with 95 % confidence" in out
    flags = "--episodes 2 --greedy RUN --seed 3 --checkpoint best --num-envs 4 --quiet --env-kwargs"
    assert cli.main(["eval", *flags.split(), '{"frame_skip": 2}']) == 0
    given = {"episodes": 2, "checkpoint": "best", "greedy": True, "device": "auto", "seed": 3, "num_envs": 4}
    assert evaluations[1] == (Path("RUN"), {**given, "env_kwargs": {"frame_skip": 2}, "progress": False})


def test_eval_of_several_runs_is_a_table_or_a_list(evaluations: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", "RUN", "OTHER/RUN", "--quiet"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["run", "mean", "return"] and [line.split()[0] for line in lines] == ["RUN", "OTHER/RUN"]
    assert lines[0].split()[1:5] == ["9.50", "9.10", "to", "9.90"] and len({len(line) for line in lines}) == 1
    assert cli.main(["eval", "RUN", "OTHER/RUN", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == [{"run_dir": name, **dataclasses.asdict(Scores())} for name in ("RUN", "OTHER/RUN")]
    assert [call[0] for call in evaluations] == 2 * [Path("RUN"), Path("OTHER/RUN")]


def test_a_mistake_in_the_last_run_shows_before_the_first_has_played(
    evaluations: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_run(path: Path, which: str) -> Path:
        if path != Path("RUN"):
            raise UserError(f"{path} does not exist.")
        return path

    monkeypatch.setattr("fasta2c.run.checkpoint.resolve", only_run)
    assert cli.main(["eval", "RUN", "NONE"]) == 2
    assert one_line(capsys) == "NONE does not exist." and not evaluations


def test_eval_json_is_one_object(evaluations: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", "RUN", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == dataclasses.asdict(Scores()) and err == ""
    assert evaluations[0][1]["progress"] is False


def test_eval_json_has_null_for_what_is_not_finite(
    evaluations: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = dataclasses.replace(Scores(), mean_return=math.nan, max_return=math.inf)
    monkeypatch.setattr(sys.modules["fasta2c.evaluation"], "evaluate", lambda *_, **__: lost)
    assert cli.main(["eval", "RUN", "--json"]) == 0
    told = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert told["mean_return"] is told["max_return"] is None and told["min_return"] == Scores().min_return


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "RUN_DIR is missing"),
        ("--episodes 5", "RUN_DIR is missing"),
        ("A --env-kwargs 3", "--env-kwargs: '3' is not a JSON object"),
        ("A --episodes 0", "--episodes: 0 is out of range"),
        ("A --num-envs -3", "--num-envs: -3 is out of range"),
        ("A --seed -1", "--seed: -1 is out of range"),
        ("A --seed x", "--seed: 'x' is neither a whole number nor None."),
        ("A --episodes 1e3", "--episodes: '1e3' is not a whole number."),
        ("A --episodse 3", "unknown flag --episodse. Did you mean --episodes"),
        ("A --run-dir B", "unknown flag --run-dir."),
    ],
)
def test_mistakes_of_eval(
    evaluations: list[Any], capsys: pytest.CaptureFixture[str], arguments: str, said: str
) -> None:
    assert cli.main(["eval", *arguments.split()]) == 2
    assert said in one_line(capsys)
    assert not evaluations


# --- overview and help


def test_overview_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        assert cli.main(arguments) == 0
        out = capsys.readouterr().out
        assert all(f"  {verb} " in out for verb in cli.VERBS)
        assert "fasta2c train --env Atari/Pong --num-envs 256" in out
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"fasta2c {fasta2c.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "unknown verb 'trian'. Did you mean train?"),
        (["日本"], "unknown verb '日本'. Use train or eval or play or plot or sweep or export or envs."),
        ([""], "unknown verb ''"),
        (["--num-envs", "8"], "--num-envs comes before the verb"),
    ],
)
def test_unknown_verbs(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert cli.main(arguments) == 2
    assert said in one_line(capsys)


def test_help_shows_each_field_with_the_default_of_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(verb_settings, "load_preset", lambda family, name: {"num_envs": 123 if name == "Pong" else 16})
    assert cli.main(["train", "--env", "Atari/Pong", "--help"]) == 0
    out = capsys.readouterr().out
    for field in dataclasses.fields(TrainConfig):
        assert f"--{field.name.replace('_', '-')}" in out
    assert "Discount for one env step" in out and "(default: 123)" in out


# --- any argv


words = st.one_of(
    st.sampled_from([f"--{f.name.replace('_', '-')}" for f in dataclasses.fields(TrainConfig)]),
    st.sampled_from(["--config", "--resume", "--no-compile", "--help", "-h", "--", "-", "-1", "--num-env", "--x=y"]),
    st.sampled_from(["0", "1", "1.5", "nan", "-inf", "1e400", "scan", "cpu", "{}", '{"a": 1}', "None", "Atari/Pong"]),
    st.builds("--{}={}".format, st.sampled_from([f.name for f in dataclasses.fields(TrainConfig)]), st.text()),
    st.integers().map(str),
    st.floats().map(str),
    st.text(),
)


@given(verb=st.sampled_from(["train", "eval"]) | st.text(), arguments=st.lists(words, max_size=6))
@example(verb="train", arguments=["--env-kwargs", '{"a": NaN}'])
@example(verb="train", arguments=["--lr=-nan"])
@settings(max_examples=examples(300), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_argv_makes_anything_but_help_a_run_or_one_line(
    trainer: Recorder, evaluations: list[Any], verb: str, arguments: list[str]
) -> None:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main([verb, *arguments])
    if code == 0:
        assert out.getvalue() and not err.getvalue()
        return
    assert code == 2 and not out.getvalue()
    assert err.getvalue().startswith("fasta2c: error: ")
    assert err.getvalue().count("\n") == 1 and err.getvalue()[:-1].isprintable()


# --- as a process


def run(*arguments: str, code: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m fasta2c` (or `python -c code`) on this checkout's package."""
    start = ["-m", "fasta2c"] if code is None else ["-c", code]
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    return subprocess.run(
        [sys.executable, *start, *arguments],
        env={**environment, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_process_tells_a_mistake_in_one_line() -> None:
    done = run("train", "--num-evns", "8")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "fasta2c: error: unknown flag --num-evns. Did you mean --num-envs or --num-epochs?\n"
    assert run("--version").stdout == f"fasta2c {fasta2c.__version__}\n"


def test_a_reader_that_leaves_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "fasta2c", "train", "--help"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 1


def test_a_terminal_that_knows_no_such_letters_gets_others(tmp_path: Path) -> None:
    code = "import sys; from fasta2c.cli import main; sys.exit(main(['eval', 'né']))"
    done = run(code=code, PYTHONIOENCODING="ascii")
    assert done.returncode == 2 and done.stderr.startswith("fasta2c: error: n\\xe9 does not exist")


def test_closed_streams_are_no_error() -> None:
    command = [sys.executable, "-m", "fasta2c", "--version"]
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        done = subprocess.run(
            ["sh", "-c", f'"$@" {closed}', "sh", *command], env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        assert done.returncode == 0


def test_a_mistake_is_not_told_where_results_are_read(tmp_path: Path) -> None:
    command = f"{sys.executable} -m fasta2c eval {tmp_path}/none --json 2>&-"
    done = subprocess.run(command, shell=True, stdout=subprocess.PIPE, check=False)
    assert (done.returncode, done.stdout) == (2, b"")


def test_a_working_directory_that_is_gone_is_no_traceback(tmp_path: Path) -> None:
    gone = f"import os, sys; from fasta2c.cli import main; os.chdir({str(tmp_path)!r}); os.rmdir(os.getcwd()); "
    assert run(code=gone + "sys.exit(main(['--version']))").returncode == 0
    tmp_path.mkdir()
    done = run(code=gone + "sys.exit(main(['train', '--nothing']))")
    assert done.returncode == 2 and done.stderr.startswith("fasta2c: error: unknown flag --nothing")


@pytest.mark.parametrize("columns", ["1", "4", "0"])
def test_help_ends_however_narrow_the_terminal_is(columns: str) -> None:
    done = run("plot", "--help", COLUMNS=columns)
    assert done.returncode == 0 and "--out" in done.stdout


def test_an_environment_that_exits_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "leaving.py").write_text("import sys\nclass Env:\n    def __init__(self, *_, **__): sys.exit(0)\n")
    command = "from fasta2c.cli import main; sys.exit(main(['train', '--env', 'torch:leaving:Env']))"
    done = run(code=f"import os, sys; os.chdir({str(tmp_path)!r}); {command}")
    assert done.returncode == 2 and "torch:leaving:Env: cannot be made: SystemExit: 0" in done.stderr


def test_help_and_mistakes_import_nothing_heavy() -> None:
    code = """
import sys
from fasta2c.cli import main
assert "tyro" not in sys.modules
main(["train", "--num-evns", "8"]); main(["train", "--help"]); main(["eval", "--help"])
print(sorted({"torch", "envpool", "gymnasium", "numpy"} & set(sys.modules)), file=sys.stderr)
"""
    assert run(code=code).stderr.splitlines()[-1] == "[]"


def test_openmp_waits_passively_unless_told_otherwise() -> None:
    code = "import os, fasta2c; print(os.environ['OMP_WAIT_POLICY'])"
    assert run(code=code).stdout == "PASSIVE\n"
    assert run(code=code, OMP_WAIT_POLICY="ACTIVE").stdout == "ACTIVE\n"


# --- the Python API's front


def test_the_package_exports_what_it_says() -> None:
    assert fasta2c.TrainConfig is TrainConfig
    assert set(fasta2c.__all__) <= set(dir(fasta2c))
    assert set(fasta2c.__all__) == set(fasta2c._HOME)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = fasta2c.trian  # type: ignore[attr-defined]
    with pytest.raises(ImportError):
        exec("from fasta2c import trian")


# --- envs


def test_envs_lists_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["envs", "classic/cart"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[1] for line in lines} == {"CartPole-v0", "CartPole-v1"}
    assert all(line.endswith("float32[4] -> 2 choices") for line in lines)


def test_envs_json_is_one_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["envs", "--json", "PGX/Play2048"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["family"] == "PGX" and entry["trains"] is True and entry["reason"] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [("zzz", "no environment matches 'zzz'"), ("a b", "takes one pattern"), ("--jsn", "Did you mean --json")],
)
def test_mistakes_of_envs(capsys: pytest.CaptureFixture[str], arguments: str, said: str) -> None:
    assert cli.main(["envs", *arguments.split()]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["tr"], ["train"]),
        (["train", "--num-ep"], ["--num-epochs"]),
        (["train", "--optimizer", "rms"], ["rmsprop", "rmsprop-tf"]),
        (["export", "--fo"], ["--format"]),
    ],
)
def test_a_shell_completes_verbs_flags_and_choices(tmp_path: Path, words: list[str], completed: list[str]) -> None:
    file = tmp_path / "fasta2c.bash"
    assert cli.main(["--tyro-write-completion", "bash", str(file)]) == 0
    script = f"""
    source {file}
    COMP_WORDS=(fasta2c {" ".join(words)}); COMP_CWORD={len(words)}
    $(complete -p fasta2c | sed 's/.*-F \\([^ ]*\\).*/\\1/') fasta2c {words[-1]} {(["fasta2c", *words])[-2]}
    echo "${{COMPREPLY[@]}}"
    """
    shell = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert shell.stdout.split() == completed


@pytest.mark.parametrize(
    "arguments",
    [
        ["--tyro-write-completion", "fish", "f"],
        ["--tyro-print-completion"],
        ["--tyro-write-completion", "bash", "no/f"],
    ],
)
def test_completions_that_cannot_be_written(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert cli.main(arguments) == 2
    one_line(capsys)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_nothing_is_coloured_where_no_terminal_is(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert "--" in out and "\x1b" not in out


@pytest.mark.parametrize("verb", ["eval", "play", "plot", "sweep", "export", "envs"])
def test_what_is_no_training_is_refused_to_several_ranks(monkeypatch, capsys, verb):
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(UserError, match=f"{verb} is the work of one process, not of 2"):
        cli._dispatch([verb, "--help"])
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(SystemExit):
        cli._dispatch([verb, "--help"])
