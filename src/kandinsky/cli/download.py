"""`kandinsky download`: fetch a model's files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kandinsky import catalogue
from kandinsky.cli.complete import model_ids
from kandinsky.cli.streams import emit, emit_json, say
from kandinsky.errors import RequestError
from kandinsky.model.card import Source
from kandinsky.printing import counted

if TYPE_CHECKING:
    from kandinsky.weights.hub import Fetched


def download(
    ids: Annotated[
        list[str],
        typer.Argument(
            metavar="ID...",
            help="Catalogue ids, see `kandinsky models`; OWNER/NAME of a model's repository, or of a LoRA.",
            autocompletion=model_ids,
        ),
    ],
    folder: Annotated[
        Path | None,
        typer.Option("--dir", help="Folder to download into, as model/, vae/, text_encoder/, text_encoder2/."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object per file.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
) -> None:
    """Download the files of models, verified by hash; interrupted transfers are resumed."""
    from kandinsky.files import local_path
    from kandinsky.runtime.budget import gigabytes
    from kandinsky.weights.locate import card_bytes

    if folder is not None:
        folder = local_path(folder, "--dir")
    found = {name: _source(name) for name in dict.fromkeys(ids)}
    wanted = [source for source in found.values() if source is not None]
    loras = [name for name, source in found.items() if source is None]
    if not loras and not any(map(_is_fetched, wanted)):
        say("nothing to fetch: " + ", ".join(map(_lies, wanted)))
        return
    from kandinsky.weights.hub import download as fetch
    from kandinsky.weights.hub import download_lora

    if quiet:
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()

    def report(entry: Fetched) -> None:
        if as_json:
            values = {name: getattr(entry, name) for name in FIELDS}
            emit_json({**values, "path": str(entry.path)})
        else:
            emit(entry.path)

    # A card has many files and shares some with others: each is named once.
    for source in wanted:
        card = source.card
        if not quiet and card.is_published:
            say(f"{card.id}: {gigabytes(card_bytes(card))} in all")
        done = fetch(card, root=folder or source.root, on_file=report)
        if not quiet:
            came = sum(entry.transferred for entry in done)
            say(f"{card.id}: {counted(len(done), 'file')} verified, {gigabytes(came)} fetched")
    for repo in loras:
        done = download_lora(repo, root=folder, on_file=report)
        if not quiet:
            say(f"{repo}: {counted(len(done), 'file')} verified; to use it: kandinsky generate --lora {repo}")
    if folder and not quiet:
        say(f"to use this folder: export KANDINSKY_WEIGHTS={folder.absolute()}")


FIELDS = ("repo", "file", "path", "bytes", "revision", "transferred")


def _source(name: str) -> Source | None:
    """The model of a name, as all commands accept it; None for the repository of a LoRA.

    Raises:
        RequestError: The name is not a model that can be downloaded.
        WeightsError: The name is a folder without a model.
    """
    from kandinsky.files import local_path
    from kandinsky.weights.locate import is_repository

    place = local_path(name, "model")
    if "/" not in name or place.exists():
        return catalogue.source_of(name)
    if not is_repository(name):
        raise RequestError(
            f"`{name}` cannot be fetched: give a catalogue id, or OWNER/NAME of a Hugging Face repository"
        )
    card = catalogue.from_repository(name)
    return None if card is None else Source(card, None, name)


def _is_fetched(source: Source) -> bool:
    """Whether a model has files that come from a hub."""
    parts = (part for component in source.card.components.values() for part in component.parts)
    return any(part.repo != "package" and not part.is_folder for part in parts)


def _lies(source: Source) -> str:
    """Where all the files of a model are, in words.

    Raises:
        WeightsError: One is missing.
    """
    from kandinsky.weights.locate import locate_all

    locate_all(source)
    is_shipped = all(part.repo == "package" for c in source.card.components.values() for part in c.parts)
    return f"`{source.card.id}` " + ("ships with the package" if is_shipped else "is complete on this machine")
