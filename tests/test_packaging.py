"""Tests of what a plain install brings: packages, presets, pinned versions, and the README's test line."""

from __future__ import annotations

import configparser
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# The README has it once, and .ci/run takes it from there.
TEST_LINE = (
    "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt '.[test]' && .venv/bin/ruff check . "
    "&& .venv/bin/mypy && .venv/bin/lint-imports && .venv/bin/python -m pytest -n 2 --dist loadfile"
)


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    assert parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def requirements(text: str) -> list[str]:
    """Names of the distributions in a requirements list, in the spelling that compares equal."""
    names = [re.split(r"[<>=;\s]", line.strip())[0] for line in text.splitlines() if line.strip()]
    return [re.sub(r"[-_.]+", "-", name).lower() for name in names if not name.startswith("#")]


def test_setup_lists_each_package_in_the_tree(setup_cfg: configparser.ConfigParser) -> None:
    listed = setup_cfg["options"]["packages"].split()
    folders = [file.parent.relative_to(ROOT) for file in (ROOT / "fasta2c").rglob("__init__.py")]
    assert sorted(listed) == sorted([".".join(folder.parts) for folder in folders] + ["fasta2c.configs"])


def test_constraints_pin_what_is_asked_for(setup_cfg: configparser.ConfigParser) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = requirements("\n".join(lines))
    assert all("==" in line and "+" not in line for line in lines if not line.startswith("#"))
    assert len(set(pinned)) == len(pinned)
    asked = requirements(setup_cfg["options"]["install_requires"])
    for extra in setup_cfg["options.extras_require"].values():
        asked += requirements(extra)
    assert set(asked) - set(pinned) == {"triton"}  # left open: torch's CUDA builds ask for one of their own


def test_tyro_is_the_version_whose_private_hook_is_used(setup_cfg: configparser.ConfigParser) -> None:
    assert f"tyro=={importlib.metadata.version('tyro')}" in setup_cfg["options"]["install_requires"].split()


def test_the_readme_has_the_test_line() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert [line.strip().removeprefix("$ ") for line in lines if "'.[test]'" in line] == [TEST_LINE]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_an_installed_package_finds_its_presets(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    code = (
        "from fasta2c import presets as p\n"
        "print(p.__file__, p.preset_folder(), *p.load_preset('Classic', 'CartPole'), sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    if "ModuleNotFoundError: No module named 'fasta2c'" in done.stderr:
        pytest.skip("fasta2c is not installed")
    assert done.returncode == 0, done.stderr
    module, folder, *fields = done.stdout.splitlines()
    assert fields
    installed = sorted(str(file.relative_to(folder)) for file in Path(folder).rglob("*.yaml"))
    in_tree = sorted(str(file.relative_to(ROOT / "configs")) for file in (ROOT / "configs").rglob("*.yaml"))
    assert installed == in_tree
    if "site-packages" in module:
        assert Path(folder) == Path(module).parent / "configs"
