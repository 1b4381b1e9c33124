"""`kandinsky train`: run a training recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="A recipe; examples lie in `recipes/`.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder for checkpoints, log and weights.")] = None,
    resume: Annotated[
        bool | None,
        typer.Option("--resume/--no-resume", help="Go on from the folder's last checkpoint, or begin anew."),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Length of the run instead of the recipe's.")] = None,
    device: Annotated[str, typer.Option("--device", help="Where to train: cpu, cuda, cuda:0.")] = "cpu",
) -> None:
    """Train by a recipe. A run that was stopped goes on where its last checkpoint was written."""
    from kandinsky.cli.progress import training
    from kandinsky.train.recipe import run_recipe

    with training(recipe.stem) as on_log:
        written = run_recipe(recipe, out=out, resume=resume, steps=steps, device=device, on_log=on_log)
    print(written)
