"""`fasta2c envs`."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from fasta2c.errors import UserError
from fasta2c.flags import parse, scan


@dataclass(frozen=True, kw_only=True)
class EnvsFlags:
    """List environments with what they observe and take, and whether they train here.

    PATTERN is a part of an id, or has *: Jumanji, 'Atari/P*', 'gymnasium:Cart*'; or the name of one of yours:
    gymnasium:module:ID, torch:module:Class. All of EnvPool's are listed without.
    """

    json: bool = False
    """Print a JSON list."""


def run(argv: list[str]) -> None:
    """List environments, their spaces, and whether they train here."""
    patterns = [token for token in argv if not token.startswith("-")]
    if len(patterns) > 1:
        raise UserError(f"envs takes one pattern, not {len(patterns)}; quote it where the shell would expand it.")
    flagged = [token for token in argv if token.startswith("-")]
    flags = parse(EnvsFlags, "envs [PATTERN]", flagged, scan(flagged, EnvsFlags))
    from fasta2c.envs.catalog import catalog

    found = []
    for entry in catalog(*patterns):
        found.append(entry)
        if not flags.json:
            spaces = f"{entry.observations} -> {entry.actions}" if entry.trains else f"does not train: {entry.reason}"
            print(f"{entry.name:<40} {entry.id:<40} {spaces}", flush=True)
    if not found:
        raise UserError(f"no environment matches {patterns[0]!r}; fasta2c envs lists all.")
    if flags.json:
        print(json.dumps([dataclasses.asdict(entry) for entry in found], indent=1))
