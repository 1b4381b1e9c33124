"""Where the latent of a result lies: beside it, `x.mp4.latent.safetensors`. Imports no torch."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from kandinsky.printing import shell_command

ENDING = ".latent.safetensors"
WINDOWS = ".windows"
_LARGE = "-large"  # in the names of windows of a second stage
LONGEST_NAME = 255  # bytes
_SHORTENED = ".shortened"


def latent_path(target: Path) -> Path:
    """The file that keeps the latent of ``target`` until it is written.

    If the target's name leaves no room for the ending, it is cut, and a digest stands for the rest.
    """
    if len(os.fsencode(target.name + ENDING)) <= LONGEST_NAME:
        return target.with_name(target.name + ENDING)
    name = os.fsencode(target.name)
    ending = f".{hashlib.sha256(name).hexdigest()[:8]}{_SHORTENED}{ENDING}"
    return target.with_name(name[: LONGEST_NAME - len(ending)].decode(errors="ignore") + ending)


def windows_path(target: Path) -> Path:
    """The folder that keeps the finished windows of ``target``, a clip that is made in windows, until it is written."""
    latent = latent_path(target)
    return latent.with_name(latent.name.removesuffix(ENDING) + WINDOWS)


def window_name(number: int, *, is_large: bool) -> str:
    """The file of a finished window, in the folder of its clip.

    Args:
        number: Of the window, from 0.
        is_large: Whether it is of a second stage, whose windows lie beside those of the first.
    """
    return f"{number:05d}{_LARGE if is_large else ''}{ENDING}"


def windows_hint(folder: Path, seed: int) -> str:
    """What to do with finished windows whose clip could not be written."""
    return f"finished windows are kept in `{folder}`: the same request with seed {seed} goes on from there"


def target_of(latent: Path) -> Path | None:
    """Inverse of ``latent_path``; None for a file of another name, or if the target's name was cut."""
    name = latent.name.removesuffix(ENDING)
    return latent.with_name(name) if name and name != latent.name and not name.endswith(_SHORTENED) else None


def kept_hint(latent: Path) -> str:
    """What to do with a latent whose file could not be written."""
    return f"the latent is kept: `{shell_command(['kandinsky', 'decode', str(latent)])}` goes on from there"
