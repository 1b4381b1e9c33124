"""`kandinsky soup`: an average of models or LoRAs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kandinsky.cli.complete import model_ids
from kandinsky.cli.streams import emit
from kandinsky.errors import RequestError


def soup(
    sources: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="Weight files or folders, or LoRAs.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write; for LoRAs, a folder gets the official layout.")
    ],
    weights: Annotated[
        str, typer.Option("--weights", help="uniform | size | sqrt, or numbers with commas: 0.5,0.3,0.2.")
    ] = "uniform",
    sizes: Annotated[
        str | None, typer.Option("--sizes", help="Sizes of the data sets, with commas, for size and sqrt.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32 | bfloat16 | float16; the first model's when absent.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", help="Rank of a soup of LoRAs; by default all of it is kept.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Catalogue id of the model the LoRAs are for.", autocompletion=model_ids),
    ] = None,
    base: Annotated[
        Path | None, typer.Option("--base", help="Weights the LoRAs were trained on; DoRA needs them.")
    ] = None,
) -> None:
    """Average models that were trained from the same weights, or LoRAs. The header says what went in."""
    from kandinsky import catalogue
    from kandinsky.engine.build import linear_shapes
    from kandinsky.files import check_writable
    from kandinsky.weights import soup as soups
    from kandinsky.weights.keymaps import IDENTITY, keymap_of

    rule = weights if weights.isalpha() else _numbers(weights, "--weights")
    card = None if model is None else catalogue.find(model)
    check_writable(output)
    written = soups.make(
        sources,
        output,
        weights=rule,  # type: ignore[arg-type]
        sizes=() if sizes is None else _numbers(sizes, "--sizes"),
        dtype=dtype,
        rank=rank,
        layers=None if card is None else linear_shapes(card),
        keymap=IDENTITY if card is None else keymap_of(card.part("dit")),
        base=base,
    )
    emit(written)


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(one) for one in text.split(",")]
    except ValueError:
        raise RequestError(f"`{option} {text}`: give numbers with commas between them") from None
