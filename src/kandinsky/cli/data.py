"""`kandinsky data …`: fetch and build training data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Fetch and build training data.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _root() -> None:
    pass


@app.command("nano")
def nano(
    cache: Annotated[Path | None, typer.Option("--folder", help="Folder for what is fetched and built.")] = None,
) -> None:
    """Build the clips that nano models are trained on: animated 3D emoji, captioned in English and Russian."""
    from kandinsky.lab.nano.emoji import build

    print(build() if cache is None else build(cache=cache))
