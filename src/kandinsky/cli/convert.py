"""`kandinsky convert`: transformer weights between the official file and the Diffusers folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[Path, typer.Argument(help="Official `.safetensors` or `.pt` file, or a Diffusers folder.")],
    target: Annotated[Path, typer.Argument(help="File to write (official), or folder (Diffusers).")],
    to: Annotated[str, typer.Option("--to", help="official | diffusers")] = "official",
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Catalogue id whose parameters the weights have.")
    ] = None,
    trust_pickle: Annotated[
        bool,
        typer.Option(
            "--trust-pickle", help="Open a pickled file of any model, which RUNS what it says, and keep its tensors."
        ),
    ] = False,
) -> None:
    """Convert Kandinsky 5 transformer weights; every tensor is checked, and none is changed."""
    if trust_pickle:
        from kandinsky.cli.main import say
        from kandinsky.weights.pickled import convert_trusted

        written, left = convert_trusted(source, target)
        if left:
            say(f"left behind, since it is no tensor: {', '.join(left[:5])}{' …' if len(left) > 5 else ''}")
        print(written)
        return
    from kandinsky import cards
    from kandinsky.errors import RequestError

    card = None
    if model is not None:
        card = cards.find(model)
        if card.dit.kind != "kandinsky5.dit":
            raise RequestError(f"model `{model}` has no Kandinsky 5 transformer: only those are converted")

    from kandinsky.nets.kandinsky5.dit import DiTParams
    from kandinsky.ops.attention import AttentionSpec
    from kandinsky.weights.convert import convert_transformer

    params = None if card is None else DiTParams.from_dict(card.dit.params)
    spec = None if card is None else AttentionSpec.from_dict(card.sampling.attention)
    print(convert_transformer(source, target, to=to, params=params, attention=spec))
