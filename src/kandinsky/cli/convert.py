"""`kandinsky convert`: weights between the official files and the Diffusers folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from kandinsky.model.card import Card


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
    """Convert a Kandinsky 5 transformer, or all of Kandinsky 3; every tensor is checked, and none is changed.

    Kandinsky 3 goes from a Diffusers folder to an official `weights/` folder and, with --model, back.
    """
    if trust_pickle:
        from kandinsky.cli.main import say
        from kandinsky.weights.pickled import convert_trusted

        written, left = convert_trusted(source, target)
        if left:
            say(f"left behind, since it is no tensor: {', '.join(left[:5])}{' …' if len(left) > 5 else ''}")
        print(written)
        return
    from kandinsky.engine import sources
    from kandinsky.errors import RequestError
    from kandinsky.model import card as cards

    card = None if model is None else cards.find(model)
    if card is None and (source / "model_index.json").is_file():
        card = sources.find(source.absolute()).card
    kind = DEFAULT if card is None else card.dit.kind
    if kind not in CONVERTERS:
        raise RequestError(f"model `{model or source}` is not converted: only those of {', '.join(CONVERTERS)} are")
    print(CONVERTERS[kind](source, target, to, card))


def _kandinsky5(source: Path, target: Path, to: str, card: Card | None) -> Path:
    from kandinsky.families.kandinsky5.dit import DiTParams
    from kandinsky.ops.attention import AttentionSpec
    from kandinsky.weights.convert import convert_transformer

    params = None if card is None else DiTParams.from_dict(card.dit.params)
    spec = None if card is None else AttentionSpec.from_dict(card.sampling.attention)
    return convert_transformer(source, target, to=to, params=params, attention=spec)


def _kandinsky3(source: Path, target: Path, to: str, card: Card | None) -> Path:
    from kandinsky.errors import RequestError
    from kandinsky.families.kandinsky3 import convert as convert_kandinsky3
    from kandinsky.weights.locate import locate_parts

    assert card is not None
    writers = {"official": convert_kandinsky3.write_official, "diffusers": convert_kandinsky3.write_diffusers}
    if to not in writers:
        raise RequestError(f"unknown layout `{to}`: use `official` or `diffusers`")
    (unet,), (movq,) = (locate_parts(part, root=source).values() for part in (card.dit, card.vae))
    text = locate_parts(card.text, root=source)
    files = convert_kandinsky3.Files(unet, movq, text["projection"], text["t5"], text["tokenizer"])
    return writers[to](files, target, unet=card.dit.params, movq=card.vae.params)


DEFAULT = "kandinsky5.dit"
# By the card's kind of denoiser.
CONVERTERS: dict[str, Callable[[Path, Path, str, Card | None], Path]] = {
    "kandinsky5.dit": _kandinsky5,
    "kandinsky3.unet": _kandinsky3,
}
