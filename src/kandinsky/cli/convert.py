"""`kandinsky convert`: weights between the official files and the Diffusers folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kandinsky.cli.complete import model_ids
from kandinsky.cli.streams import say


def convert(
    source: Annotated[Path, typer.Argument(help="Official `.safetensors` or `.pt` file, or a Diffusers folder.")],
    target: Annotated[Path, typer.Argument(help="File to write (official), or folder (Diffusers).")],
    to: Annotated[str, typer.Option("--to", help="official | diffusers")] = "official",
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Catalogue id of the model the weights are for.", autocompletion=model_ids),
    ] = None,
    trust_pickle: Annotated[
        bool,
        typer.Option(
            "--trust-pickle", help="Read a pickle file of any model, which RUNS the code in it, and keep its tensors."
        ),
    ] = False,
) -> None:
    """Convert a Kandinsky 5 transformer, or all of Kandinsky 3; every tensor is checked, and none is changed.

    Kandinsky 3 goes from a Diffusers folder to an official `weights/` folder and, with --model, back.
    """
    if trust_pickle:
        from kandinsky.weights.pickled import convert_trusted

        written, left = convert_trusted(source, target)
        if left:
            say(f"left behind, since it is not a tensor: {', '.join(left[:5])}{' …' if len(left) > 5 else ''}")
        print(written)
        return
    from kandinsky import catalogue
    from kandinsky.errors import RequestError

    card = None if model is None else catalogue.find(model)
    if card is None and (source / "model_index.json").is_file():
        card = catalogue.source_of(source.absolute()).card
    family = catalogue.family("kandinsky5") if card is None else card.family
    if family.convert is None:
        able = ", ".join(one.name for one in catalogue.families() if one.convert is not None)
        raise RequestError(f"model `{model or source}` is not converted: only those of {able} are")
    print(family.convert()(source, target, to, card))
