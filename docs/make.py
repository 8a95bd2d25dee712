"""Writes settings.md and api.md from the code's own docstrings; tests/test_docs.py sees that they are up to date."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fasta2c import config

HERE = Path(__file__).parent
# What the API page has, by module.
API = {
    "fasta2c": ["TrainConfig", "train", "TrainResult", "evaluate", "load_policy", "make_envs", "Callback"],
    "fasta2c.policy": ["Policy"],
    "fasta2c.envs.make": ["VectorEnvs"],
    "fasta2c.evaluation": ["EvalResult"],
    "fasta2c.tools.play": ["record"],
    "fasta2c.tools.plot": ["plot"],
    "fasta2c.tools.sweep": ["sweep"],
    "fasta2c.tools.export": ["export"],
    "fasta2c.learning.advantages": ["gae", "vtrace"],
    "fasta2c.errors": ["UserError", "RunError", "Stopped"],
}


def settings() -> str:
    """The page of all settings."""
    lines = [
        "# Settings",
        "",
        "A field of `TrainConfig`, a key of a YAML file, and a flag of `fasta2c train` (`num_envs` is `--num-envs`)",
        "are one thing. The defaults are those without a preset; `fasta2c train --env … --help` shows",
        "an environment's own.",
        "Made by `docs/make.py`.",
    ]
    for group in groups():
        lines += ["", "| setting | default | |", "|---|---|---|"]
        for name, default, text in group:
            lines.append(f"| `{name}` | `{default}` | {text.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def groups() -> Iterator[list[tuple[str, str, str]]]:
    """Name, default and docstring of the settings, as blank lines divide them in the source."""
    source = Path(config.__file__).read_text(encoding="utf-8")
    body = next(x for x in ast.parse(source).body if isinstance(x, ast.ClassDef) and x.name == "TrainConfig").body
    found: list[tuple[str, str, str]] = []
    end = 0
    for field, text in zip(body, body[1:], strict=False):
        if not (
            isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        ):
            continue
        if found and field.lineno > end + 1:
            yield found
            found = []
        default = ast.unparse(field.value) if field.value else ""
        default = "{}" if "default_factory" in default else default
        found.append((ast.unparse(field.target), default, " ".join(str(text.value.value).split())))
        end = text.end_lineno or 0
    yield found


def api() -> str:
    """The page of everything that is meant to be called."""
    lines = ["# API", "", "Made by `docs/make.py` from the docstrings."]
    for module_name, names in API.items():
        lines += ["", f"## `{module_name}`"]
        for name in names:
            thing = getattr(importlib.import_module(module_name), name)
            lines += ["", *entry(f"### {name}", name, thing)]
            if inspect.isclass(thing) and name != "TrainConfig":
                for member, value in vars(thing).items():
                    if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                        lines += ["", *entry(f"#### {name}.{member}", member, value)]
    return "\n".join(lines) + "\n"


def entry(title: str, name: str, thing: Any) -> list[str]:
    """Its title, signature and docstring."""
    if name == "TrainConfig":
        return [title, "", "What a run is made of; its fields are the [settings](settings.md)."]
    lines = [title, ""]
    if isinstance(thing, property):
        lines += ["```python", f"{name}: {Plain(inspect.signature(thing.fget).return_annotation)}", "```", ""]
    elif not inspect.isclass(thing) or thing.__init__ is not object.__init__ and not issubclass(thing, Exception):
        lines += ["```python", f"{name}{signature(thing)}", "```", ""]
    return lines + list(prose(inspect.getdoc(thing) or ""))


class Plain(str):
    """An annotation as it stands in the source."""

    def __repr__(self) -> str:
        return str(self)


def signature(thing: Any) -> str:
    """As the source has it, a parameter a line if it is long."""
    found = inspect.signature(thing)
    parameters = [p.replace(annotation=Plain(p.annotation)) for p in found.parameters.values() if p.name != "self"]
    found = found.replace(parameters=parameters, return_annotation=Plain(found.return_annotation))
    if len(str(found)) <= 100:
        return str(found)
    lines = [f"    {p},\n" for p in parameters]
    kinds = [p.kind for p in parameters]
    if inspect.Parameter.KEYWORD_ONLY in kinds:
        lines.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "    *,\n")
    return "(\n" + "".join(lines) + f") -> {found.return_annotation}"


def prose(text: str) -> Iterator[str]:
    """A docstring as Markdown: its sections in bold, what they explain as a list."""
    section = False
    for line in text.splitlines():
        if re.fullmatch(r"(Args|Returns|Raises|Yields):", line):
            section = True
            yield from (f"**{line[:-1]}**", "")
        elif section and line.startswith("    ") and not line.startswith("     "):
            name, colon, rest = textwrap.dedent(line).partition(": ")
            yield f"- `{name}`: {rest}" if colon and re.fullmatch(r"[\w, ]+", name) else f"- {textwrap.dedent(line)}"
        elif section and line.startswith("     "):
            yield f"  {line.strip()}"
        else:
            section = section and not line.strip()
            yield line


PAGES = {"settings.md": settings, "api.md": api}

if __name__ == "__main__":
    for name, make in PAGES.items():
        (HERE / name).write_text(make(), encoding="utf-8")
