"""`fasta2c export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fasta2c.flags import flags_of


@dataclass(frozen=True, kw_only=True)
class ExportFlags:
    """Write a run's policy to one file for another runtime, normalisation included, once it plays there as here."""

    run_dir: Path
    """Run directory, or a checkpoint file."""
    format: Literal["auto", "onnx", "torchscript", "pt2"] = "auto"
    """What for: ONNX Runtime, torch.jit.load (C++ too) or torch.export.load; auto goes by --out, else onnx."""
    out: Path | None = None
    """The file; policy.onnx, policy.ts or policy.pt2 unless given."""
    checkpoint: str = "latest"
    """latest, best, or a file."""
    quiet: bool = False
    """Show no progress."""


def run(argv: list[str]) -> None:
    """Write a trained agent to a file for another runtime."""
    with flags_of(ExportFlags, "export", argv) as flags:
        from fasta2c.tools.export import export

        made = export(
            flags.run_dir,
            flags.out,
            format=flags.format,
            checkpoint=flags.checkpoint,
            progress=not flags.quiet,
        )
    if flags.quiet:
        print(made.path)
        return
    for title, tensors in (("takes", made.inputs), ("gives", made.outputs)):
        for name, tensor in tensors.items():
            shape = ", ".join(map(str, tensor["shape"]))
            print(f"{title:<8} {name} {tensor['dtype']} [{shape}]: {tensor['meaning']}")
    print(f"agrees   to {made.difference:.1g} with the policy on {made.observations:,} observations")
    print(f"file     {made.path}")
