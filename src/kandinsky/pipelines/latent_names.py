"""Where the latent of a result lies: beside it, `x.mp4.latent.safetensors`. Imports no torch."""

from __future__ import annotations

from pathlib import Path

ENDING = ".latent.safetensors"


def latent_path(target: Path) -> Path:
    """The file that keeps the latent of ``target`` until it is written."""
    return target.with_name(target.name + ENDING)


def target_of(latent: Path) -> Path | None:
    """Inverse of ``latent_path``; None for a file of another name."""
    name = latent.name.removesuffix(ENDING)
    return latent.with_name(name) if name and name != latent.name else None
