"""Plots are of the runs they were asked for: means, bands and names right, and no blank page."""

import math
import re

import numpy as np
import pytest
import yaml
from PIL import Image

from fasta2c import TrainConfig, train
from fasta2c.cli import main
from fasta2c.config import to_plain
from fasta2c.errors import UserError
from fasta2c.stats import interquartile_mean
from fasta2c.tools import plot as plot_module
from fasta2c.tools.curves import band, find_runs, group_runs, names_of, scaled_to_budget
from fasta2c.tools.plot import plot


def fake(folder, *, returns, steps=None, **changed):
    """A run's folder as training leaves it, with these returns logged."""
    folder.mkdir(parents=True)
    values = {k: v for k, v in to_plain(TrainConfig(**{"quiet": True, **changed})).items() if k != "run_dir"}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    lines = ["env_steps,update,wall_seconds,episode_return_mean,episode_length_mean,loss"]
    for number, score in enumerate(returns):
        at = (number + 1) * 1000 if steps is None else steps[number]
        shown = "" if score is None else f"{score},{score / 2}"
        lines.append(f"{at},{number},{at / 500},{shown or ','},0.5")
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def three(tmp_path):
    """Two seeds of one setting, one of another."""
    return [
        fake(tmp_path / "a", returns=[0.0, 10.0, 20.0, 30.0], seed=0),
        fake(tmp_path / "b", returns=[0.0, 20.0, 40.0, 60.0], seed=1),
        fake(tmp_path / "c", returns=[None, 5.0, 5.0, 5.0], lr=0.1),
    ]


def test_runs_that_differ_only_in_their_seed_are_one_group(three):
    groups = group_runs(find_runs(three))
    assert [len(group.runs) for group in groups] == [2, 1]
    assert names_of(groups) == ["lr 0.0007", "lr 0.1"]
    assert names_of(groups[:1]) == [""]


@pytest.mark.parametrize(
    "same", [{"total_steps": 1_000_000, "log_interval": 3}, {"quiet": False}, {"device": "cpu"}, {"env_threads": 2}]
)
def test_what_changes_nothing_of_what_is_learnt_is_no_setting(tmp_path, same):
    runs = [fake(tmp_path / "a", returns=[1.0, 2.0]), fake(tmp_path / "b", returns=[1.0, 2.0], seed=1, **same)]
    assert len(group_runs(find_runs(runs))) == 1


def test_settings_that_look_alike_are_not_one(tmp_path):
    runs = [fake(tmp_path / str(gamma), returns=[1.0], gamma=gamma) for gamma in (1.0, 0.9999999)]
    assert len(group_runs(find_runs(runs))) == 2


def test_presets_of_different_environments_are_not_told(tmp_path):
    runs = [
        fake(tmp_path / "a", returns=[1.0, 2.0], env="A", gamma=0.9),
        fake(tmp_path / "b", returns=[1.0, 2.0], env="A", gamma=0.9, optimizer="adam"),
        fake(tmp_path / "c", returns=[1.0, 2.0], env="B", gamma=0.5),
        fake(tmp_path / "d", returns=[1.0, 2.0], env="B", gamma=0.5, optimizer="adam"),
    ]
    names = names_of(group_runs(find_runs(runs)))
    assert names == ["optimizer rmsprop-tf", "optimizer adam"] * 2


def test_a_mean_is_over_what_all_runs_have_reached(three):
    runs = [run.curve("env-steps", "return") for run in find_runs(three[:2])]
    runs[1] = tuple(column[:3] for column in runs[1])  # to 3,000 env steps only
    mean = band(runs, smoothing=0.0)
    assert (mean.x[0], mean.x[-1]) == (1000, 3000)
    np.testing.assert_allclose(mean.middle, 15 * (mean.x / 1000 - 1), atol=1e-9)
    assert (mean.low <= mean.middle + 1e-9).all() and (mean.high >= mean.middle - 1e-9).all()
    assert mean.low[-1] == pytest.approx(20) and mean.high[-1] == pytest.approx(40)  # of two, the bounds are they


def test_a_single_run_has_no_band(three):
    (run,) = find_runs(three[2:])
    x, y = run.curve("wall-time", "episode length")
    assert x.tolist() == [4.0, 6.0, 8.0] and y.tolist() == [2.5] * 3, "from where there is a number on"
    assert np.isnan(band([(x, y)], smoothing=0.1).low).all()


def test_smoothing_keeps_straight_lines_and_evens_out_the_rest():
    x = np.linspace(0, 1, 400)
    line = band([(x, 3 * x + 1)], smoothing=0.1)
    np.testing.assert_allclose(line.middle, 3 * x + 1, atol=1e-9)
    noise = np.random.default_rng(0).normal(size=400)
    assert band([(x, noise)], smoothing=0.1).middle[40:-40].std() < 0.3
    np.testing.assert_allclose(band([(x, noise)], smoothing=0.0).middle, noise)


def test_curves_of_several_environments_are_scaled_and_meet_in_an_interquartile_mean(tmp_path):
    runs = [
        fake(tmp_path / f"{env}{seed}", returns=[factor * (n + seed) for n in range(5)], env=env, seed=seed)
        for env, factor in (("A", 1.0), ("B", -100.0))
        for seed in (0, 1)
    ]
    (name, (curves, tasks)), *others = scaled_to_budget(group_runs(find_runs(runs))).items()
    assert (name, others, tasks) == ("", [], ["A", "A", "B", "B"]) and len(curves) == 4
    for (x, y), first in zip(curves, (0.0, 0.2, 1.0, 0.8), strict=True):
        np.testing.assert_allclose(x, [0.2, 0.4, 0.6, 0.8, 1.0])
        assert y[0] == pytest.approx(first)
    together = band(curves, smoothing=0.0, tasks=tasks)
    assert together.middle[0] == pytest.approx(interquartile_mean(np.array([0.0, 0.2, 1.0, 0.8])))


def test_a_setting_of_one_environment_alone_is_not_compared_across(tmp_path):
    runs = [
        fake(tmp_path / "a", returns=[0.0, 1.0], env="A"),
        fake(tmp_path / "b", returns=[0.0, 1.0], env="B"),
        fake(tmp_path / "c", returns=[0.0, 1.0], env="B", lr=0.5),
    ]
    assert list(scaled_to_budget(group_runs(find_runs(runs)))) == ["lr 0.0007"]


@pytest.mark.parametrize("x", ["env-steps", "wall-time"])
def test_a_picture_of_all_of_it(three, tmp_path, x):
    for file in plot(three, tmp_path / "plot", x=x):
        if file.suffix == ".png":
            with Image.open(file) as picture:
                shown = np.asarray(picture.convert("L")).astype(int)
            assert shown.shape >= (900, 900) and 0.02 < (shown < 200).mean() < 0.5, "neither blank nor black"
        else:
            text = file.read_text()
            words = set(re.findall(r"<!-- (.+?) -->", text))
            assert {"Classic/CartPole", "lr 0.0007 (2 seeds)", "lr 0.1 (seed 0)"} <= words
            assert {"return, mean of 100 episodes", "episode length in env steps"} <= words
            assert ("env steps" if x == "env-steps" else "wall time in hours") in words


def test_lines_differ_without_colours(three, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plot_module, "_draw_band", lambda panel, mean, look, label: drawn.append((label, look)))
    monkeypatch.setattr("matplotlib.axes.Axes.legend", lambda *_, **__: None)
    plot(three, tmp_path / "a.png")
    assert {label: look["linestyle"] for label, look in drawn} == {"lr 0.0007 (2 seeds)": "-", "lr 0.1 (seed 0)": "--"}


def test_settings_beyond_the_colours_look_different_still(tmp_path):
    seen = {(c, str(s)) for c, s in plot_module.looks(plot_module.MOST_GROUPS)}
    assert len(seen) == plot_module.MOST_GROUPS
    runs = [fake(tmp_path / str(n), returns=[1.0, 2.0], lr=0.1 + n) for n in range(plot_module.MOST_GROUPS + 1)]
    with pytest.raises(UserError, match="50 settings are more than the 49"):
        plot(runs, tmp_path / "a.png")


def test_one_setting_on_many_environments_is_one(tmp_path):
    runs = [fake(tmp_path / str(n), returns=[1.0, 2.0], env=f"Game{n}") for n in range(plot_module.MOST_GROUPS + 1)]
    assert plot(runs, tmp_path / "a.png")


def test_a_young_run_among_others_is_left_out_with_a_word(tmp_path, capsys):
    fake(tmp_path / "runs" / "a", returns=[1.0, 2.0])
    fake(tmp_path / "runs" / "young", returns=[None])
    assert [run.path.name for run in find_runs([tmp_path / "runs"])] == ["a"]
    assert "left out: " in (told := capsys.readouterr().err) and "young has nothing to show yet" in told
    fake(tmp_path / "others" / "young", returns=[None])
    with pytest.raises(UserError, match="nothing to show yet"):
        find_runs([tmp_path / "others"])


def test_runs_are_found_through_links_that_may_lead_in_a_circle(tmp_path):
    run = fake(tmp_path / "elsewhere" / "a", returns=[1.0, 2.0])
    folder = tmp_path / "chosen"
    folder.mkdir()
    (folder / "s0").symlink_to(run)
    (folder / "again").symlink_to(folder)
    assert [found.path for found in find_runs([folder])] == [folder / "s0"]
    for name in ("alatest", "zlatest"):
        (tmp_path / "elsewhere" / name).symlink_to(run)
    assert [found.path for found in find_runs([tmp_path / "elsewhere"])] == [run]


def test_a_mark_that_a_spreadsheet_puts_first_is_no_columns_name(tmp_path):
    file = fake(tmp_path / "a", returns=[1.0, 2.0]) / "metrics.csv"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert find_runs([tmp_path / "a"])[0].columns["env_steps"].tolist() == [1000, 2000]


def test_runs_of_one_seed_are_not_called_seeds(tmp_path):
    runs = [fake(tmp_path / name, returns=[1.0, 2.0]) for name in "ab"]
    plot(runs, tmp_path / "a.svg")
    assert "<!-- 2 runs -->" in (tmp_path / "a.svg").read_text()


def test_a_real_run_and_the_folder_it_is_in(tmp_path, capsys):
    run = train(
        TrainConfig(
            num_envs=8, num_steps=8, total_steps=2000, log_interval=5, quiet=True, run_dir=tmp_path / "runs" / "x"
        )
    )
    assert main(["plot", str(tmp_path / "runs"), str(run.run_dir), "--out", str(tmp_path / "a.svg")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'a.svg'}\n" and "seed 0" in (tmp_path / "a.svg").read_text()
    assert len(find_runs([tmp_path / "runs", run.run_dir])) == 1, "each once"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("", "RUN_DIR is missing"),
        ("none", "none does not exist"),
        ("a --out a.jpg", "a.jpg must end in .png or .svg or .pdf"),
        ("a --out none/a.png", "none is no folder"),
        ("a --out folder.png", "folder.png is a folder"),
        ("folder.png", "folder.png is not a run"),
        ("a --x steps", "--x: 'steps' is not one of env-steps, wall-time"),
        ("a --smoothing 2", "--smoothing: 2.0 is out of range"),
        ("a silent", "silent has nothing to show yet"),
        ("broken", "broken/config.yaml"),
        ("headless", "headless/config.yaml lacks env and seed"),
        ("foreign", "foreign/config.yaml lacks seed"),
        ("torn", "torn has nothing to show yet"),
        ("a --out .", ". is a folder; name a file in it"),
        ("a --out /", "/ is a folder; name a file in it"),
        ("loop", "loop does not exist"),
        ("a --out loop", "loop.png cannot be written"),
        ("numbered", "numbered/config.yaml: 1 is no setting's name"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(tmp_path)
    fake(tmp_path / "a", returns=[1.0, 2.0])
    fake(tmp_path / "silent", returns=[None, None])
    fake(tmp_path / "broken", returns=[1.0])
    fake(tmp_path / "headless", returns=[1.0])
    fake(tmp_path / "foreign", returns=[1.0])
    (tmp_path / "foreign" / "config.yaml").write_text("{env: Classic/CartPole, seed: [1, 2]}")
    fake(tmp_path / "torn", returns=[])
    with (tmp_path / "torn" / "metrics.csv").open("a") as file:
        file.write("2000,1,3.0,9.0")
    (tmp_path / "broken" / "config.yaml").write_text("a: [")
    (tmp_path / "headless" / "config.yaml").write_text("gamma: 0.9")
    (tmp_path / "folder.png").mkdir()
    for loop in ("loop", "loop.png"):
        (tmp_path / loop).symlink_to(loop)
    fake(tmp_path / "numbered", returns=[1.0])
    (tmp_path / "numbered" / "config.yaml").write_text("{env: Classic/CartPole, seed: 1, 1: 2}")
    before = sorted(tmp_path.rglob("*"))
    assert main(["plot", *arguments.split()]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and told in lines[0] and sorted(tmp_path.rglob("*")) == before


def test_numbers_and_names_that_matplotlib_would_refuse(tmp_path, recwarn):
    runs = [
        fake(tmp_path / "huge", returns=[1.0, 1e308, -1e308], env="gymnasium:E$\\foo$"),
        fake(tmp_path / "begun", returns=[1.0], steps=[0], lr=0.1),
        fake(tmp_path / "begun too", returns=[1.0], steps=[0]),
        fake(tmp_path / "quoted", returns=[1.0, 7.0, 3.0], env="gymnasium:E$\\foo$", lr=0.1),
    ]
    quoted = runs[3] / "metrics.csv"
    quoted.write_text(quoted.read_text().replace(",7.0,", ',"7.0,'))
    assert find_runs(runs)[3].curve("env-steps", "return")[1].tolist() == [1.0, 3.0]
    (picture,) = plot(runs, tmp_path / "a.svg")
    assert "E$\\foo$" in picture.read_text() and not recwarn.list


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (([],), "no run is named"),
        ((["a"], "o", "foo"), "x: 'foo' is not one of"),
        ((["a"], "o", "env-steps", -1), "smoothing"),
    ],
)
def test_mistakes_in_python(tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    fake(tmp_path / "a", returns=[1.0])
    runs, out, x, smoothing = (*arguments, *("o", "env-steps", 0.05)[len(arguments) - 1 :])
    with pytest.raises(UserError, match=told):
        plot(runs, out, x=x, smoothing=smoothing)
    assert len(plot("a", "b.png")) == 1


def test_a_single_row_and_odd_cells_are_no_trouble(tmp_path):
    run = fake(tmp_path / "a", returns=[1.0])
    plot([run], tmp_path / "a.png")
    with (run / "metrics.csv").open("a") as file:
        file.write("2000,1,x,nan,inf,3\n3000,2,5\n" + "\0" * 200_000)
    x, y = find_runs([run])[0].curve("env-steps", "return")
    assert x.tolist() == [1000.0] and y.tolist() == [1.0] and math.isfinite(y[0])
    plot([run], tmp_path / "b.png")
