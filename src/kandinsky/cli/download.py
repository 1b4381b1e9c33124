"""`kandinsky download`: fetch a model's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kandinsky import catalogue

if TYPE_CHECKING:
    from kandinsky.weights.hub import Fetched


def download(
    ids: Annotated[
        list[str],
        typer.Argument(
            metavar="ID...",
            help="Catalogue ids, see `kandinsky models`; OWNER/NAME of a model's repository, or of a LoRA.",
        ),
    ],
    folder: Annotated[
        Path | None,
        typer.Option("--dir", help="Lay files out here as model/, vae/, text_encoder/, text_encoder2/."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a file.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
) -> None:
    """Fetch what models need: only the files their cards list, resumed where a transfer broke, verified by hash."""
    from kandinsky.cli.main import say
    from kandinsky.runtime.budget import gigabytes
    from kandinsky.weights.locate import card_bytes

    # A catalogue id has no slash; what has one and is no model's repository is that of a LoRA.
    models = {name: catalogue.from_repository(name) if "/" in name else catalogue.find(name) for name in ids}
    wanted = [card for card in models.values() if card is not None]
    loras = [name for name, card in models.items() if card is None]
    # A card has many files and shares some with others: each is named once.
    if not loras and all(
        part.repo == "package" for card in wanted for component in card.components.values() for part in component.parts
    ):
        say("nothing to fetch: this model ships with the package")
        return
    from kandinsky.weights.hub import download as fetch
    from kandinsky.weights.hub import download_lora

    if quiet:
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()

    def report(entry: Fetched) -> None:
        if as_json:
            print(
                json.dumps(
                    {name: str(getattr(entry, name)) if name == "path" else getattr(entry, name) for name in FIELDS}
                )
            )
        else:
            print(entry.path, flush=True)

    for card in wanted:
        if not quiet:
            say(f"{card.id}: {gigabytes(card_bytes(card))} in all")
        done = fetch(card, root=folder, on_file=report)
        if not quiet:
            came = sum(entry.transferred for entry in done)
            say(f"{card.id}: {len(done)} files verified, {gigabytes(came)} fetched")
    for repo in loras:
        done = download_lora(repo, root=folder, on_file=report)
        if not quiet:
            say(f"{repo}: {len(done)} files verified; to use it: kandinsky generate --lora {repo}")
    if folder and not quiet:
        say(f"to use this folder: export KANDINSKY_WEIGHTS={folder.absolute()}")


FIELDS = ("repo", "file", "path", "bytes", "revision", "transferred")
