"""Tests marked `gpu` are skipped where there is no CUDA device; Triton's kernels are interpreted there."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fasta2c.envs.ids import load_opengl

load_opengl()  # before a test imports EnvPool itself

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported, which torch does late


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The documented environment on the device, as the module `reach`."""
    page = (Path(__file__).parents[1] / "docs" / "environments.md").read_text(encoding="utf-8")
    code = next(block for block in page.split("```python\n") if "class Reach" in block)
    (tmp_path / "reach.py").write_text(code.partition("```")[0], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("reach", None)
