"""Every recipe trains as it stands, its budget cut short."""

import pytest

from fasta2c.cli import main
from fasta2c.config import RESUMABLE, TrainConfig, to_dict
from fasta2c.presets import load_preset, preset_folder, read_config

RECIPES = sorted(file.stem for file in (preset_folder() / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    settings = read_config(preset_folder() / "recipes" / f"{recipe}.yaml")
    assert {"env", "total_steps"} <= settings.keys()
    arguments = [
        "--config",
        recipe,
        "--num-envs",
        "2",
        "--num-steps",
        "4",
        "--total-steps",
        "24",
        "--log-interval",
        "1",
    ]
    assert main(["train", *arguments, "--run-dir", str(run), "--quiet"]) == 0
    assert capsys.readouterr().out == f"{run}\n"
    assert len((run / "metrics.csv").read_text().splitlines()) > 3


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_the_same_whatever_preset_lies_below_it(recipe):
    settings = read_config(preset_folder() / "recipes" / f"{recipe}.yaml")
    found = []
    for family, name in (("Classic", "CartPole"), ("Classic", "Pendulum"), ("MuJoCo", "Ant"), ("Atari", "Pong")):
        config = TrainConfig(**settings).with_preset(load_preset(family, name))
        found.append({k: v for k, v in to_dict(config).items() if k not in RESUMABLE | {"env_kwargs"}})
    for other in found[1:]:
        changed = {k for k in other if other[k] != found[0][k]}
        # Of minibatches that are 1, and of noise that is not made, it does not matter how large they are.
        assert not changed - {"minibatch_size"} or settings["num_minibatches"] == "auto" and not changed


@pytest.mark.parametrize(
    ("recipe", "family", "name"),
    [("lunarlander", "Box2D", "LunarLander"), ("pong", "Atari", "Pong"), ("breakout", "Atari", "Breakout")],
)
def test_recipes_that_write_out_a_preset_are_it(recipe, family, name):
    settings = read_config(preset_folder() / "recipes" / f"{recipe}.yaml")
    preset = TrainConfig(env=settings["env"]).with_preset(load_preset(family, name))
    written = TrainConfig(**settings).with_preset(load_preset(family, name))
    ours, theirs = to_dict(written), to_dict(preset)
    assert {k for k in ours if ours[k] != theirs[k]} <= {"stop_at_return"}
