"""Every recipe trains as it stands, its budget cut short."""

import pytest

from fasta2c.cli import main
from fasta2c.config import preset_folder, read_config

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
