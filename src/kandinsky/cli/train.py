"""`kandinsky train`: run a training recipe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer

import kandinsky
from kandinsky.cli.streams import emit
from kandinsky.cli.together import together
from kandinsky.errors import KandinskyError, RequestError, WeightsError
from kandinsky.runtime.parallel.launch import World

RECIPES = "recipes"


@together
def train(
    recipe: Annotated[
        Path,
        typer.Argument(metavar="RECIPE.yaml", help="A recipe; see `recipes/`. With --page, a run's folder."),
    ],
    out: Annotated[Path | None, typer.Option("--out", help="Folder for checkpoints, log and weights.")] = None,
    resume: Annotated[
        bool | None,
        typer.Option("--resume/--no-resume", help="Resume from the folder's last checkpoint, or start anew."),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Length of the run instead of the recipe's.")] = None,
    device: Annotated[str, typer.Option("--device", help="Where to train: cpu, cuda, cuda:0.")] = "cpu",
    check: Annotated[
        bool, typer.Option("--check", help="Only check the recipe, and say what it would take; nothing is read.")
    ] = False,
    memory: Annotated[
        str | None, typer.Option("--memory", help="With --check: plan for a GPU with that much memory, such as 24GB.")
    ] = None,
    processes: Annotated[
        int, typer.Option("--processes", min=1, max=65536, help="With --check: processes that train together.")
    ] = 1,
    page: Annotated[
        bool,
        typer.Option("--page", help="Only write `run.html` in a run's folder: curves, samples, recipe."),
    ] = False,
) -> None:
    """Train by a recipe. A run that was stopped resumes from its last checkpoint."""
    if page:
        if check or out is not None or resume is not None or steps is not None:
            raise RequestError("`--page` shows a run as it is: leave the other options out")
        from kandinsky.train.page import write

        emit(write(recipe))
        return
    if not check and (memory is not None or processes != 1):
        raise RequestError("`--memory` and `--processes` belong to `--check`: add it, or leave them out")
    if check:
        from kandinsky.train.recipe import check_recipe

        with _from_its_folder(recipe):
            for line in check_recipe(recipe, steps=steps, device=device, memory=memory, processes=processes):
                emit(line)
        return
    from kandinsky.cli.progress import training
    from kandinsky.train.recipe import run_recipe

    is_first = World.started().is_first
    with _from_its_folder(recipe), training(recipe.stem) if is_first else nullcontext() as on_log:
        written = run_recipe(recipe, out=out, resume=resume, steps=steps, device=device, on_log=on_log)
    if is_first:
        emit(written)


@contextmanager
def _from_its_folder(recipe: Path) -> Iterator[None]:
    """Explain where recipes are, or where one must be run from: their paths are relative to the repository's root."""
    try:
        yield
    except (RequestError, WeightsError, FileNotFoundError) as error:
        told = error if isinstance(error, KandinskyError) else RequestError(f"`{error.filename}` does not exist")
        root = recipe.resolve().parent.parent
        if not recipe.is_file():
            told.hint = _where_recipes_are(recipe.name)
        elif recipe.resolve().parent.name == RECIPES and root != Path.cwd():
            hint = f"paths in a recipe start at the current folder: run it in `{root}`"
            told.hint = f"{told.hint}; {hint}" if told.hint else hint
        raise told from error


def _where_recipes_are(name: str) -> str:
    folder = Path(kandinsky.__file__).parents[2] / RECIPES
    if not folder.is_dir():
        return "recipes are not installed with the package: they lie in the folder `recipes/` of the repository"
    if (folder / name).is_file():
        return f"run `kandinsky train {RECIPES}/{name}` in the folder of the repository"
    return "the recipes of the repository lie in its folder `recipes/`"
