"""Locating weight files on this machine: the package, an official `weights/` folder, or the Hugging Face cache.

Only looks at folders: no torch, no network access. ``weights/hub.py`` downloads what is missing.

Search order:
1. `repo = "package"`: `kandinsky/assets/`, and nowhere else;
2. `repo = "unpublished"`: places 4 and 5 alone;
3. a `repo` that is a path (`/…`, `~/…`): that folder, and nowhere else (cards turn `./…` into such a path);
4. the ``root`` given by the caller, an official `weights/` folder (`model/`, `vae/`, `text_encoder/`, `text_encoder2/`)
   or a cache folder of huggingface_hub, and then nowhere else;
5. the folder that ``KANDINSKY_WEIGHTS`` names;
6. the Hugging Face cache (``HF_HUB_CACHE``, ``HF_HOME``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kandinsky.errors import WeightsError
from kandinsky.model.card import UNPUBLISHED, Card, Component, FileSet, Source
from kandinsky.printing import escaped, shell_command
from kandinsky.weights.header import shard_files

ASSETS = Path(__file__).parent.parent / "assets"
LONGEST_REPOSITORY = 96
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPOSITORY = re.compile(r"(?:(?![.-])[A-Za-z0-9._-]+(?<![.-]))/(?:(?![.-])[A-Za-z0-9._-]+(?<![.-]))")


@dataclass(frozen=True, slots=True)
class Place:
    """One place where a part may be.

    Attributes:
        target: What a loader gets: the file, or the folder of several files.
        files: The files that have to exist.
    """

    target: Path
    files: tuple[Path, ...]

    def missing(self) -> tuple[Path, ...]:
        """The files that do not exist. An entry for a whole folder is missing if the folder is empty."""
        gone = [path for path in self.files if not _is_there(path)]
        return tuple(dict.fromkeys([*gone, *(path for path in self._shards() if not path.exists())]))

    def _shards(self) -> Iterator[Path]:
        folder = self.target if self.target.is_dir() else self.target.parent
        for index in folder.glob("*.safetensors.index.json"):
            if index not in self.files and folder not in self.files:
                continue
            yield from shard_files(index)


def places(part: FileSet, *, root: Path | None = None) -> tuple[Place, ...]:
    """Every place on this machine where a part may be, in search order."""
    if part.repo == "package":
        return (_in_tree(part, ASSETS),)
    if part.is_folder:
        return (_in_tree(part, Path(part.repo).expanduser()),)
    if root is not None:
        snapshot = _snapshot(part, Path(root))
        return (_official(part, Path(root)), *([_in_tree(part, snapshot)] if snapshot.is_dir() else []))
    found = []
    if tree := os.environ.get("KANDINSKY_WEIGHTS"):
        found.append(_official(part, Path(tree).expanduser()))
    if part.repo != UNPUBLISHED:
        found.append(_in_tree(part, _snapshot(part)))
    return tuple(found)


def locate_part(part: FileSet, *, root: Path | None = None, model: str | None = None) -> Path:
    """Find a part: its file if it has one, else the folder its files lie in.

    Args:
        part: What a card lists.
        root: An official `weights/` folder to look in instead of the Hugging Face cache.
        model: The name that was asked for, which `kandinsky download` accepts as well; for the hint.

    Returns:
        The file or folder.

    Raises:
        WeightsError: Files are missing; the message names them and every place searched.
    """
    looked = []
    for place in places(part, root=root):
        gone = place.missing()
        if not gone:
            return place.target
        looked.append(place)
    if part.repo == UNPUBLISHED:
        raise not_published(part, model, looked)
    # report the place that is closest to complete
    best = min(looked, key=lambda place: len(place.missing()))
    gone = best.missing()
    names = [f"`{escaped(_name(path, best, part))}`" for path in gone]
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    where = " or ".join(f"`{escaped(place.target)}`" for place in looked)
    hint = None
    if model is not None and part.repo != "package" and not part.is_folder:
        hint = f"`{download_command(model, root)}` fetches what is missing"
    verb = "is" if len(names) == 1 else "are"
    state = "empty" if any(path.is_file() for path in gone) else "not on this machine"
    raise WeightsError(f"{listed} of `{part.repo}` {verb} {state}: looked for {where}", hint=hint)


def download_command(model: str, root: Path | None = None) -> str:
    """The command that fetches a model to where it was looked for."""
    return shell_command(["kandinsky", "download", model, *(["--dir", str(root)] if root is not None else [])])


def is_repository(name: str) -> bool:
    """Whether a name can be that of a Hugging Face repository, OWNER/NAME, by the hub's own rules."""
    return len(name) <= LONGEST_REPOSITORY and bool(_REPOSITORY.fullmatch(name)) and not re.search(r"--|\.\.", name)


def not_published(part: FileSet, model: str | None, looked: Iterable[Place] = ()) -> WeightsError:
    """The error for weights that were never released."""
    where = " or ".join(f"`{escaped(place.target)}`" for place in looked)
    return WeightsError(
        f"weights of `{model or part.local}` were never published"
        + (f", and there are none of your own: looked for {where}" if where else ": there is nothing to download"),
        hint=f"weights that you trained are read as `{part.local}` from the folder KANDINSKY_WEIGHTS names",
    )


def locate_parts(component: Component, *, root: Path | None = None, model: str | None = None) -> dict[str, Path]:
    """Find the paths of a component's parts, by the part's name; see ``locate_part``.

    Raises:
        WeightsError: Files are missing; the message names them and every place searched.
    """
    return {part.name: locate_part(part, root=root, model=model) for part in component.parts}


def locate_all(source: Source, *, only: Iterable[str] | None = None) -> None:
    """Refuse a model whose files are not on this machine.

    Args:
        source: The model.
        only: Names of the networks that will be used; by default all.

    Raises:
        WeightsError: A file is missing.
    """
    for name in source.card.components if only is None else sorted(only):
        locate_parts(source.card.component(name), root=source.root, model=source.name)


def missing_parts(card: Card, *, root: Path | None = None) -> tuple[FileSet, ...]:
    """The parts of a model that are not complete on this machine."""
    parts = [part for component in card.components.values() for part in component.parts]
    return tuple(part for part in parts if all(place.missing() for place in places(part, root=root)))


def part_bytes(part: FileSet) -> int:
    """Size of a part's files: what the card says, or what is on this machine if the card does not say."""
    if part.bytes:
        return part.bytes
    files = [path for place in places(part) if not place.missing() for path in place.files]
    return sum(path.stat().st_size for path in files if path.is_file())


def card_bytes(card: Card) -> int:
    """Size of all files of a model."""
    return sum(part_bytes(part) for component in card.components.values() for part in component.parts)


def revision(component: Component, *, root: Path | None = None) -> str:
    """Where weights came from, as recorded in a recipe.

    Returns:
        The hub's commit if known, otherwise the card's revision; `package` for weights that ship with the package,
        `local` for a folder of the user's.
    """
    part = component.parts[0]
    if part.repo == "package":
        return "package"
    if part.is_folder:
        return "local"
    for place in places(part, root=root):
        if not place.missing():
            commits = [name for name in place.target.parts if _COMMIT.fullmatch(name)]
            return commits[-1] if commits else "local"
    return part.revision


def common_folder(files: tuple[str, ...]) -> PurePosixPath:
    """The deepest folder that holds all entries of a card's file list."""
    folders = [PurePosixPath(f) if f.endswith("/") else PurePosixPath(f).parent for f in files]
    shared = folders[0]
    while not all(folder.is_relative_to(shared) for folder in folders):
        shared = shared.parent
    return shared


def _in_tree(part: FileSet, tree: Path) -> Place:
    """The place of a part whose files are under ``tree``, with the paths of their repository."""
    files = tuple(tree / name for name in part.files)
    if len(part.files) == 1:
        return Place(files[0], files)
    return Place(tree / common_folder(part.files), files)


def _official(part: FileSet, root: Path) -> Place:
    if not part.local:
        return _in_tree(part, root)
    if not part.local.endswith("/"):
        return Place(root / part.local, (root / part.local,))
    shared = common_folder(part.files)
    folder = root / part.local
    names = [PurePosixPath(name).relative_to(shared) for name in part.files]
    return Place(folder, tuple(folder / name for name in names))


def _snapshot(part: FileSet, cache: Path | None = None) -> Path:
    """Folder of the cached snapshot; for a revision that was never fetched, the folder it would get."""
    repo = (cache or hub_cache()) / ("models--" + part.repo.replace("/", "--"))
    if _COMMIT.fullmatch(part.revision):
        return repo / "snapshots" / part.revision
    try:
        commit = (repo / "refs" / part.revision).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        commit = ""
    return repo / "snapshots" / (commit if _COMMIT.fullmatch(commit) else part.revision)


def hub_cache() -> Path:
    """The cache folder, by the variables and defaults of huggingface_hub, without importing it."""
    if cache := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(os.path.expandvars(cache)).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(os.path.expandvars(home)).expanduser() / "hub"
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "huggingface" / "hub"


def _is_there(path: Path) -> bool:
    # An empty weight file is what a failed copy leaves behind; nothing a card lists is empty.
    if path.is_dir():
        return any(path.iterdir())
    if path.suffix == ".pt" and path.with_suffix(".safetensors").is_file():  # converted, and read instead
        return True
    return path.is_file() and path.stat().st_size > 0


def _name(path: Path, place: Place, part: FileSet) -> str:
    if path == place.target:
        return part.files[0]
    return str(path.relative_to(place.target)) if path.is_relative_to(place.target) else path.name
