"""What the flags of a verb that trains are laid over: a file, a preset, or the settings of a run that goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fasta2c.config import TrainConfig, from_plain
from fasta2c.errors import UserError
from fasta2c.flags import Given
from fasta2c.presets import load_preset, read_config


def base_config(given: Mapping[str, Given], origins: dict[str, str]) -> TrainConfig:
    """What the flags are laid over: a resumed run's settings, or defaults < preset < --config.

    Fields that come from a file are added to `origins`.
    """
    path = {name: Path(given[name].value or "") for name in ("config", "resume") if name in given}
    if "resume" in path:
        for name in ("config", "run_dir", "init_from"):
            if name in given:
                raise UserError(f"{given[name].flag} cannot be used with --resume, which goes on with the run's own.")
        from fasta2c.policy import load_state
        from fasta2c.run import checkpoint

        file = checkpoint.resolve(path["resume"])
        return TrainConfig(**from_plain(load_state(file)["config"], str(file)))
    values = read_config(path["config"]) if "config" in path else {}
    origins.update({name: f"{path['config']}: {name}" for name in values if name not in given})
    if "env" in given and given["env"].value:
        values["env"] = given["env"].value
    config = TrainConfig(**values)
    return config.with_preset(_preset(config.env))


def _preset(env: str) -> dict[str, Any]:
    """The preset of the environment called `env`."""
    if env == TrainConfig.env:  # spelt as presets are; looking it up would import EnvPool only to show --help
        family, name = env.split("/")
        return load_preset(family, name)
    from fasta2c.envs.ids import resolve

    env_id = resolve(env)
    return load_preset(env_id.family, env_id.name)
