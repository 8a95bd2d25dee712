"""Films of trained agents show their games: frames that change, a picture for each step, whole games."""

import math
import subprocess
import sys
import types
from ctypes.util import find_library
from pathlib import Path

import gymnasium
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from fasta2c import TrainConfig, evaluate, train
from fasta2c.cli import main
from fasta2c.envs.ids import resolve
from fasta2c.envs.pictures import make_drawn_envs
from fasta2c.errors import UserError
from fasta2c.tools import play as play_module
from fasta2c.tools.play import record

SMALL = {"num_envs": 4, "num_steps": 4, "total_steps": 64, "quiet": True}


def frames(path):
    reader = imageio_ffmpeg.read_frames(path)
    width, height = next(reader)["size"]
    return [np.frombuffer(data, np.uint8).reshape(height, width, 3) for data in reader]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(TrainConfig(run_dir=tmp_path_factory.mktemp("play") / "run", **SMALL)).run_dir


def test_a_film_shows_each_step_of_the_games_that_eval_plays(run, tmp_path):
    film = record(run, tmp_path / "a.gif", episodes=2, seed=5)
    shown = frames(tmp_path / "a.gif")
    played = evaluate(run, episodes=2, seed=5, num_envs=1)
    assert film.result == played
    # The start and each step of two games, and the row in which the second one opens.
    assert len(shown) == film.pictures == 2 * played.mean_length + 2
    assert shown[0].shape == (420, 600, 3)
    still = sum(np.array_equal(a, b) for a, b in zip(shown, shown[1:], strict=False))
    assert not still, "the step in the caption changes at least"
    assert all(picture[:400].std() > 5 for picture in shown)


def test_environments_stand_still_when_they_have_played(run, tmp_path):
    film = record(run, tmp_path / "a.mp4", episodes=3, num_envs=3, captions=False)
    shown = frames(tmp_path / "a.mp4")
    assert len(shown) == film.pictures and film.result.episodes == 3
    height, width, _ = shown[0].shape
    assert (height, width) == (804, 1204)
    assert shown[-1][410:, 610:].max() < 40, "the place of a fourth is empty"


@pytest.mark.parametrize(
    ("env", "size", "fps"),
    [
        ("Atari/Breakout", (210, 160), 15),
        ("Classic/Pendulum", (500, 500), 50),
        ("Box2D/LunarLander", (400, 600), 50),
        ("MiniGrid/Empty-5x5", (160, 160), 8),
        ("Jumanji/Snake", (256, 256), 5),
        ("gymnasium:CartPole-v1", (400, 600), 50),
    ],
)
def test_environments_show_the_real_game(env, size, fps):
    if env.startswith("gymnasium:"):
        pytest.importorskip("pygame")
    envs = make_drawn_envs(resolve(env), 2, seeds=[1, 2], options={})
    try:
        envs.reset()
        first, moved = envs.render(), False
        for _ in range(30):
            envs.step(np.stack([envs.action_space.sample() for _ in range(2)]))
            moved |= not np.array_equal(first, envs.render())
        assert envs.fps == fps
    finally:
        envs.close()
    assert first.dtype == np.uint8 and first.shape[3] == 3 and first.shape[0] == 2
    assert first.shape[1:3] == size
    assert first.std() > 3 and moved


def has_egl():
    """Whether there is libEGL, and somebody's driver for it."""
    return find_library("EGL") is not None and any(Path("/usr/share/glvnd/egl_vendor.d").glob("*.json"))


@pytest.mark.skipif(not has_egl(), reason="MuJoCo draws by OpenGL, which is not here")
@pytest.mark.parametrize("env", ["MuJoCo/Hopper", "DMC/CheetahRun"])
def test_mujoco_is_drawn_without_a_screen(tmp_path, env):
    run = train(TrainConfig(env=env, run_dir=tmp_path / "run", env_kwargs={"max_episode_steps": 20}, **SMALL)).run_dir
    film = record(run, tmp_path / "a.mp4")
    shown = frames(tmp_path / "a.mp4")
    assert len(shown) == film.pictures and shown[0].shape == (500, 480, 3)
    assert shown[0][:480].std() > 10 and np.abs(shown[0][:480].astype(int) - shown[-1][:480]).mean() > 0.5


def test_where_mujoco_finds_no_opengl_it_is_told_not_the_process_ended(monkeypatch):
    """A process without OpenGL's loader is what a machine without it is like."""
    monkeypatch.setattr("fasta2c.envs.pictures._TRY", "raise SystemExit(1)")
    with pytest.raises(UserError, match="Reacher.*finds no OpenGL.*libEGL"):
        make_drawn_envs(resolve("DMC/ReacherEasy"), 1, seeds=[1], options={})


IMPORTS_FIRST = """
import envpool
from fasta2c.envs.ids import resolve
from fasta2c.envs.pictures import make_drawn_envs
from fasta2c.errors import UserError
try:
    make_drawn_envs(resolve("DMC/ReacherEasy"), 1, seeds=[1], options={})
except UserError as error:
    print(error)
"""


def test_an_envpool_that_came_first_is_told_not_the_process_ended():
    done = subprocess.run([sys.executable, "-c", IMPORTS_FIRST], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "is not imported before fasta2c" in done.stdout


def test_gymnasium_stands_in_where_envpool_draws_nothing():
    """EnvPool's FrozenLake has no pictures; Gymnasium's has, by pygame."""
    pytest.importorskip("pygame")
    envs = make_drawn_envs(resolve("ToyText/FrozenLake"), 2, seeds=[1, 2], options={})
    envs.reset()
    assert type(envs).__name__ == "GymnasiumEnvs" and envs.render().shape == (2, 256, 256, 3)
    envs.close()


@pytest.mark.parametrize("env", ["ToyText/Catch", "GFootball/academy_empty_goal_close"])
def test_what_nobody_draws_is_refused_in_words(env):
    with pytest.raises(UserError, match="EnvPool cannot draw it: render not implemented.* Gymnasium has no env"):
        make_drawn_envs(resolve(env), 1, seeds=[1], options={})


class Undrawn(gymnasium.Env):
    observation_space, action_space = Box(0, 1, (2,), np.float32), Discrete(2)

    def __init__(self, render_mode=None):
        pass

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 1.0, True, False, {}


def test_environments_of_ones_own_without_pictures_are_refused(monkeypatch):
    gymnasium.register("Undrawn-v0", entry_point=Undrawn, disable_env_checker=True)
    envs = make_drawn_envs(resolve("gymnasium:Undrawn-v0"), 1, seeds=[1], options={})
    envs.reset()
    with pytest.raises(UserError, match="gymnasium:Undrawn-v0: it cannot be drawn"):
        envs.render()
    gymnasium.registry.pop("Undrawn-v0")


class Growing(Undrawn):
    """Its pictures grow from step to step; it tells no pace that a film can have."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": "fast"}  # noqa: RUF012

    def __init__(self, render_mode=None, channels=3):
        self.at, self.channels = 0, channels

    def step(self, action):
        self.at += 1
        return np.zeros(2, np.float32), 1.0, False, self.at == 5, {}

    def render(self):
        return np.zeros((40 + self.at, 40, self.channels), np.uint8)


def test_pictures_that_change_their_size_are_told_of(tmp_path, capsys):
    gymnasium.register("Growing-v0", entry_point=Growing, disable_env_checker=True)
    try:
        kwargs = {"render_mode": "rgb_array"}
        settings = {**SMALL, "env": "gymnasium:Growing-v0", "env_kwargs": kwargs, "video_interval": 5}
        run = train(TrainConfig(run_dir=tmp_path / "run", **settings)).run_dir
        assert (
            "no film could be made (the environment's pictures change from 40 x 40 to 40 x 41"
            in capsys.readouterr().err
        )
        with pytest.raises(UserError, match="pictures change from 40 x 40 to 40 x 41"):
            record(run, tmp_path / "a.gif")
        with pytest.raises(
            UserError, match=r"are to be \[height, width, 3\], all of one size, and one is \[40, 40, 4\]"
        ):
            record(run, tmp_path / "a.gif", env_kwargs={"channels": 4})
        assert not list(tmp_path.glob("*.gif")) and not list(tmp_path.glob(".*.tmp"))
    finally:
        gymnasium.registry.pop("Growing-v0")


class Walk:
    observation_space, action_space = Box(0, 1, (2,), np.float32), Discrete(2)

    def __init__(self, num_envs, *, device, seed):
        self.at, self.device = torch.zeros(num_envs, dtype=torch.int64, device=device), device

    def reset(self):
        return torch.zeros(len(self.at), 2, device=self.device)

    def step(self, actions):
        over = self.at == 5
        self.at = torch.where(over, 0, self.at + 1)
        none = torch.zeros_like(over)
        return torch.zeros(len(over), 2), torch.ones(len(over)), self.at == 5, none


class Drawn(Walk):
    fps = 12

    def render(self):
        return torch.arange(8)[None, None, :, None].expand(len(self.at), 6, 8, 3) * self.at[:, None, None, None] * 7


class Misdrawn(Walk):
    def render(self):
        return torch.zeros(len(self.at), 6, 8)


@pytest.mark.parametrize(("cls", "told"), [(Walk, "has no render"), (Misdrawn, "must give pictures"), (Drawn, None)])
def test_torch_environments_may_draw(tmp_path, monkeypatch, cls, told):
    monkeypatch.setitem(sys.modules, "walks", types.SimpleNamespace(Walk=cls))
    run = train(TrainConfig(env="torch:walks:Walk", run_dir=tmp_path / "run", **SMALL)).run_dir
    if told:
        with pytest.raises(UserError, match=told):
            record(run, tmp_path / "a.gif")
        assert not list(tmp_path.glob("*.gif")) and not list(tmp_path.glob(".*.tmp"))
    else:
        assert record(run, tmp_path / "a.gif").fps == 12


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("nowhere", "nowhere does not exist"),
        ("RUN --out a.avi", "a.avi must end in .mp4 or .gif"),
        ("RUN --out none/a.mp4", "none is no folder"),
        ("RUN --episodes 0", "--episodes: 0 is out of range"),
        ("RUN --num-envs 65", "--num-envs: 65 is out of range"),
        ("RUN --num-envs 3 --episodes 2", "--episodes: 2 for 3 environments"),
        ("RUN --fps 0", "--fps: 0.0 is out of range"),
        ("RUN --checkpoint none", "has no checkpoint 'none'"),
        ("RUN --otu a.mp4", "unknown flag --otu. Did you mean --out or"),
    ],
)
def test_mistakes(run, tmp_path, monkeypatch, capsys, flags, told):
    monkeypatch.chdir(tmp_path)
    assert main(["play", *(str(run) if word == "RUN" else word for word in flags.split())]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and told in lines[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrong", [{"fps": 0}, {"fps": "fast"}, {"fps": float("nan")}, {"num_envs": 0}, {"episodes": "3"}, {"seed": -1}]
)
def test_mistakes_in_python(run, tmp_path, wrong):
    with pytest.raises(UserError, match=rf"^{next(iter(wrong))}: "):
        record(run, tmp_path / "a.mp4", **wrong)
    assert not list(tmp_path.iterdir())


def test_the_command_line_says_what_it_made(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["play", str(run)]) == 0
    out = capsys.readouterr().out
    assert "mean return" in out and "play.mp4" in out
    assert len(frames("play.mp4")) > 5
    assert main(["play", str(run), "--quiet", "--out", "b.gif"]) == 0
    assert capsys.readouterr().out == "b.gif\n"


def test_other_options_show_other_games(run, tmp_path, capsys):
    film = record(run, tmp_path / "a.gif", env_kwargs={"max_episode_steps": 5}, captions=False)
    assert film.pictures == 6 and film.result.mean_length == 5
    arguments = ["play", str(run), "--out", str(tmp_path / "b.gif"), "--env-kwargs", '{"max_episode_steps": 3}']
    assert main([*arguments, "--quiet"]) == 0 and len(frames(tmp_path / "b.gif")) == 4
    assert main([*arguments[:-1], '{"nonsense": 3}']) == 2
    assert "nonsense" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("score", "told"), [(1234.0, "1,234"), (-0.5, "-0.50"), (math.nan, "nan"), (math.inf, "inf"), (np.float64(3), "3")]
)
def test_any_score_can_be_a_caption(score, told):
    assert play_module._plain(score) == told
