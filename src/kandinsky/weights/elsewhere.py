"""Weights that lie in other programs' folders: which of them are a card's, found by the names files have everywhere.

The library itself looks in its own places (``weights/locate.py``). A program that keeps models in folders of its own
says which; a part that is missing from the library's places is taken from there if all of its files are. No torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

from kandinsky.errors import WeightsError
from kandinsky.model.card import WHOLE, Component, FileSet, Source
from kandinsky.weights.locate import common_folder, locate_part, places

# Names that say nothing about the model: a file of such a name is only recognised below a folder that does.
_GENERIC = ("adapter_", "config", "diffusion_pytorch_model", "model", "pytorch_model")


def completed(source: Source, folders: Callable[[str], Iterable[Path]]) -> Source:
    """The model with parts that are missing taken from other folders, where these hold them whole.

    Args:
        source: The model.
        folders: Folders to look in, by the name of a network, such as `dit`; in the order of the search.

    Returns:
        The model; parts that are nowhere stay as they were.
    """

    def component(name: str, one: Component) -> Component:
        return dataclasses.replace(
            one, parts=tuple(_found(part, source.root, lambda: folders(name)) for part in one.parts)
        )

    return dataclasses.replace(source, card=source.card.with_components(component))


def with_transformer(source: Source, file: Path) -> Source:
    """The model with another file of its transformer's weights, of any name; its header is checked as usual.

    Raises:
        WeightsError: There is no such file.
    """
    if not file.is_file():
        raise WeightsError(f"transformer `{file}` is not there: choose a file that is")
    (part, *_) = source.card.dit.parts
    own = dataclasses.replace(part, repo=str(file.parent.absolute()), files=(file.name,), local="")
    dit = dataclasses.replace(source.card.dit, parts=(own,))
    return dataclasses.replace(source, card=dataclasses.replace(source.card, dit=dit))


def _found(part: FileSet, root: Path | None, folders: Callable[[], Iterable[Path]]) -> FileSet:
    """The part where it is, which is another folder if the library's places lack it."""
    if part.repo == "package" or part.is_folder:
        return part
    try:
        locate_part(part, root=root)
    except WeightsError:
        tried = (one for folder in folders() for one in _candidates(part, folder))
        return next((one for one in tried if not places(one)[0].missing()), part)
    return part


def _candidates(part: FileSet, folder: Path) -> Iterator[FileSet]:
    """How a part may lie below a folder: as officially, as in its repository, or under its repository's name."""
    name = part.repo.rpartition("/")[2]
    shared = common_folder(part.files)
    inner = tuple(str(PurePosixPath(file).relative_to(shared)) for file in part.files)
    inner = tuple(WHOLE if file == "." else file for file in inner)  # a whole folder
    here = folder.absolute()

    def at(place: Path, files: tuple[str, ...]) -> FileSet:
        return dataclasses.replace(part, repo=str(place), files=files, local="")

    if part.local.endswith("/"):
        yield at(here / part.local, inner)
    elif part.local:
        yield at((here / part.local).parent, (PurePosixPath(part.local).name,))
    yield at(here, part.files)
    yield at(here / name, part.files)
    if len(part.files) > 1 or part.files[0].endswith("/"):
        yield at(here / name, inner)
        return
    file = PurePosixPath(part.files[0]).name
    if not file.startswith(_GENERIC) and here.is_dir():
        for path in sorted(here.rglob(file)):  # sorted in folders of the user's
            yield at(path.parent, (file,))
