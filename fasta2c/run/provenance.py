"""What a result depends on beside its configuration: versions, and the commit of a checkout."""

from __future__ import annotations

import importlib.metadata
import subprocess
from pathlib import Path


def versions() -> dict[str, str | None]:
    """Versions of what a result depends on; None for what is not installed."""

    def version(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    return {p: version(p) for p in ("fasta2c", "torch", "envpool", "gymnasium", "numpy")}


def commit() -> str | None:
    """The commit of the checkout this package runs from, or None for an installed one."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return None
    try:
        return subprocess.check_output(
            ["git", "-C", str(checkout), "rev-parse", "HEAD"], text=True, stderr=subprocess.DEVNULL
        ).strip()
    except (OSError, subprocess.CalledProcessError):
        return None
