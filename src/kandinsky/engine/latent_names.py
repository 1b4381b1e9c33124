"""Where the latent of a result lies: beside it, `x.mp4.latent.safetensors`. Imports no torch."""

from __future__ import annotations

import shlex
from pathlib import Path

ENDING = ".latent.safetensors"


def latent_path(target: Path) -> Path:
    """The file that keeps the latent of ``target`` until it is written."""
    return target.with_name(target.name + ENDING)


def target_of(latent: Path) -> Path | None:
    """Inverse of ``latent_path``; None for a file of another name."""
    name = latent.name.removesuffix(ENDING)
    return latent.with_name(name) if name and name != latent.name else None


def kept_hint(latent: Path) -> str:
    """What to do with a latent whose file could not be made."""
    return f"the latent is kept: `kandinsky decode {shlex.quote(str(latent))}` goes on from there"
