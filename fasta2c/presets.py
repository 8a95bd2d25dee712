"""Files of settings: the environments' presets, recipes, a user's own YAML and the config.yaml of a run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from fasta2c.config import from_plain
from fasta2c.errors import UserError, did_you_mean, one_line, reason
from fasta2c.fields import kind_of

# What a run's config.yaml holds beside the configuration.
PROVENANCE = frozenset({"versions", "commit"})


class _Loader(yaml.SafeLoader):
    """The safe loader, which takes no tags that run code; a key that stands twice is a mistake."""

    def flatten_mapping(self, node: Any) -> None:
        """As the safe loader does, which calls this before it takes the keys; again for what is merged twice."""
        keys = Counter(key.value for key, _ in node.value if key.tag == "tag:yaml.org,2002:str")
        if not hasattr(node, "flat") and (twice := [key for key, times in keys.items() if times > 1]):
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} stands there twice", node.start_mark)
        node.flat = True
        super().flatten_mapping(node)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, by the safe loader (no tags).

    Raises:
        UserError: the file cannot be read, is no YAML, or holds something other than a mapping.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a safe loader
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}).") from None
    except (
        yaml.YAMLError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        unreadable = "it is not readable text" if isinstance(error, UnicodeError) else one_line(error)
        problem = getattr(error, "problem", None) or unreadable
        raise UserError(f"{path}: not valid YAML{where}: {problem}.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected lines of 'key: value', found {kind_of(values)}.")
    return values


def read_config(path: Path) -> dict[str, Any]:
    """Keyword arguments for `TrainConfig` from a YAML file, such as a run's config.yaml, or a recipe by its name.

    Raises `UserError` as `read_yaml` and `from_plain` do, and names recipes where `path` is like one.
    """
    if path.name == str(path) and path.suffix in ("", ".yaml") and not path.is_file():
        recipes = {file.stem: file for file in sorted((preset_folder() / "recipes").glob("*.yaml"))}
        if str(path) not in recipes:
            hint = did_you_mean(path.stem, recipes) or f" Recipes are {', '.join(recipes)}."
            raise UserError(f"{path}: there is no such file, and no such recipe.{hint}")
        path = recipes[str(path)]
    values = {k: v for k, v in read_yaml(path).items() if k not in PROVENANCE}
    return from_plain(values, str(path))


def load_preset(family: str, name: str) -> dict[str, Any]:
    """Keyword arguments for `TrainConfig` that suit the environment `name` of `family`; empty where there are none.

    A preset file `configs/<family in lower case>.yaml` holds `defaults:` for the family, `envs: {name: ...}` for some
    of its environments and, where it builds on the defaults of another family, `like: <that family>`.
    """
    path = preset_folder() / f"{family.lower()}.yaml"
    if not path.is_file():
        return {}
    values = read_yaml(path)
    preset = load_preset(values["like"], "") if "like" in values else {}
    sections = {"defaults": values.get("defaults")}
    sections |= {f"envs.{key}": own for key, own in (values.get("envs") or {}).items() if key.lower() == name.lower()}
    for section, own in sections.items():
        own = from_plain(own or {}, f"{path}: {section}")
        env_kwargs = {**preset.get("env_kwargs", {}), **own.get("env_kwargs", {})}
        preset |= {**own, "env_kwargs": env_kwargs} if env_kwargs else own
    return preset


def preset_folder() -> Path:
    """Where the presets are: the installed `fasta2c.configs`, or the folder beside the package in a checkout."""
    # Not by importlib.resources: `configs` is a namespace package, whose path there is no path of the file system.
    package = Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"
