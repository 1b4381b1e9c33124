"""`kandinsky data …`: fetch and build training data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def nano(
    folder: Annotated[Path | None, typer.Option("--folder", help="Folder for the downloads and the data set.")] = None,
) -> None:
    """Build the clips that nano models are trained on: animated 3D emoji, captioned in English and Russian."""
    from kandinsky.lab.nano.emoji import build

    print(build() if folder is None else build(cache=folder))
