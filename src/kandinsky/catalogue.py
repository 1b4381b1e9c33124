"""Finds what a model's name stands for: its family, its card and the folder with its files; and loads it.

A name is a catalogue id, a folder or an official YAML file on this machine, or a Hugging Face repository. A folder may
hold `card.toml`, as this library writes it; `model_index.json`, the Diffusers layout; a layout that a family knows
(``Family.formats``); or the official `model/`, `vae/`, `text_encoder/`, `text_encoder2/` of a catalogue model.

This is the only module that imports families, and it imports one only when it is asked for. Users add cards in the
folder that ``KANDINSKY_CARDS`` names, and families of their own in the one that ``KANDINSKY_FAMILIES`` names: every
folder in it with a `family.py` whose ``FAMILY`` is a ``model.family.Family``. No torch until a model is loaded.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache, lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Protocol, cast, overload

from kandinsky.engine.options import PlanOptions, RunOptions, spelled_out
from kandinsky.errors import BackendError, RequestError, WeightsError
from kandinsky.files import listed, local_path
from kandinsky.model import card as card_files
from kandinsky.model.card import DEFAULT_MODEL, DEFAULT_SOUND, FULL_SIZE_SOUND, HERE, Card, Source, to_dict
from kandinsky.model.checks import checked, shown, unknown
from kandinsky.model.family import Family, Part
from kandinsky.printing import escaped
from kandinsky.weights.folders import diffusers_repository, in_diffusers_layout
from kandinsky.weights.untrusted import read_table, reading

if TYPE_CHECKING:
    from kandinsky.engine.pipeline import GenerationPipeline, VideoToAudioPipeline
    from kandinsky.engine.plan import Plan

__all__ = [
    "CARDS", "DEFAULT_MODEL", "DEFAULT_SOUND", "FULL_SIZE_SOUND", "HERE", "Card", "Source", "all_cards", "cards",
    "families", "family", "find", "load", "open_model", "parse", "part", "plan", "read", "source_of", "to_dict",
]  # fmt: skip
P = ParamSpec("P")
_ID = re.compile(r"[a-z0-9][a-z0-9._-]*")
SHIPPED = ("nano", "kandinsky5", "kandinsky4", "kandinsky4_v2a", "kandinsky3", "kandinsky_video1")


# -- families ----------------------------------------------------------------------------------------------------------


def family(name: str) -> Family:
    """Look up a family by name.

    Args:
        name: Name of a shipped family or of one in the folder ``KANDINSKY_FAMILIES`` names.

    Returns:
        The family.

    Raises:
        RequestError: There is no such family; the message suggests the nearest names.
    """
    if name in SHIPPED:
        return _family_in(f"kandinsky.families.{name}.family")
    folder = _own_folder("KANDINSKY_FAMILIES")
    if folder and name.isidentifier() and (folder / name / "family.py").is_file():
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
        return _family_in(f"{name}.family")
    raise unknown(name, (*SHIPPED, *_own(folder)), "family")


def families() -> list[Family]:
    """All families: the shipped ones, then those in the folder that ``KANDINSKY_FAMILIES`` names."""
    return [family(name) for name in (*SHIPPED, *_own(_own_folder("KANDINSKY_FAMILIES")))]


def part(kind: str) -> Part:
    """Look up a kind of network in whichever family has it.

    Args:
        kind: The `kind` a card gives a component, such as `kandinsky5.dit`.

    Returns:
        The part.

    Raises:
        RequestError: No family has a network of this kind.
    """
    for one in families():
        if kind in one.parts:
            return one.parts[kind]
    raise RequestError(f"no family has a network `{kind}`")


def _own(folder: Path | None) -> list[str]:
    return sorted(path.parent.name for path in folder.glob("*/family.py")) if folder else []


def _own_folder(variable: str) -> Path | None:
    """The folder that a variable of the environment names, if it is set. Raises: RequestError where there is none."""
    if not (given := os.environ.get(variable)):
        return None
    folder = local_path(given, variable)
    if not folder.is_dir():
        raise RequestError(f"{variable} is `{escaped(given)}`, which is not a folder: name one, or unset it")
    return folder


def _family_in(module: str) -> Family:
    found = import_module(module).FAMILY
    assert isinstance(found, Family), f"`{module}.FAMILY` is no Family"
    return found


# -- cards -------------------------------------------------------------------------------------------------------------


def parse(values: dict[str, Any], *, where: str) -> Card:
    """Build a card from parsed TOML.

    Args:
        values: The parsed tables.
        where: What to call the source in errors, such as the path of the file.

    Returns:
        The validated card.

    Raises:
        RequestError: A key or value is wrong; the message names the source and the key.
    """
    return card_files.parse(values, where=where, families=family)


def read(path: Path) -> Card:
    """Read one card file, with its bases.

    Args:
        path: The TOML file.

    Returns:
        The validated card.

    Raises:
        RequestError: The file is not valid TOML or not a valid card.
    """
    return card_files.read(path, families=family)


@cache
def _shipped() -> dict[str, Card]:
    return {stem: _shipped_card(stem) for stem in sorted(path.stem for path in HERE.glob("*.toml"))}


@cache
def _shipped_card(name: str) -> Card:
    """The shipped card in the file of this name, which is its id."""
    return read(HERE / f"{name}.toml")


def _known(name: str) -> Card | None:
    """The card of an id; None if there is none. A shipped one is read alone: all of them take half a second."""
    if _own_folder("KANDINSKY_CARDS") is None and _ID.fullmatch(name):
        return _shipped_card(name) if (HERE / f"{name}.toml").is_file() else None
    return cards().get(name)


def cards() -> dict[str, Card]:
    """All cards by id: the shipped ones and those in the folder ``KANDINSKY_CARDS`` names, which take precedence.

    Raises:
        RequestError: There is no such folder, or a card in it is not valid.
    """
    if (folder := _own_folder("KANDINSKY_CARDS")) is None:
        return dict(_shipped())
    files = listed(folder, ".toml")
    bases = listed(folder / card_files.BASES, ".toml")
    return dict(_with_own(tuple(files), tuple(map(_written, (*files, *bases)))))


@lru_cache(maxsize=1)
def _with_own(files: tuple[Path, ...], written: tuple[tuple[Path, int, int], ...]) -> dict[str, Card]:
    """The shipped cards and those of ``files``; read again when one of these, or of their bases, was written."""
    return _shipped() | {card.id: card for card in map(read, files)}


def _written(path: Path) -> tuple[Path, int, int]:
    try:
        state = path.stat()
    except OSError:  # reading it will say so
        return path, 0, 0
    return path, state.st_mtime_ns, state.st_size


def all_cards() -> Iterable[Card]:
    """All cards."""
    return cards().values()


def find(model: str) -> Card:
    """Look up a card by its catalogue id.

    Args:
        model: The id, such as `nano-t2v`.

    Returns:
        The card.

    Raises:
        RequestError: There is no such id; the hint names the model that stands for it, or the nearest ones.
    """
    if (found := _known(model)) is not None:
        return found
    known = cards()
    name = model.strip().rstrip("/").lower()
    for card in known.values():
        if name in card.stands_for:
            ways = f"{card.sampling.steps} steps" if card.sampling.steps > 1 else "one step"
            guided = f"guidance {card.sampling.guidance:g}" if card.sampling.guidance > 1 else "no guidance"
            raise RequestError(
                f"there is no model `{shown(model)}`", hint=f"use `{card.id}`, which takes {ways}, {guided} by default"
            )
    parts = [one for one in known if name and name in one][:3]
    near = ", ".join(f"`{one}`" for one in parts or difflib.get_close_matches(name, known, n=3))
    raise RequestError(
        f"unknown model `{shown(model)}`: `kandinsky models` lists all {len(known)}",
        hint=f"the nearest are {near}" if near else "there is no file or folder of this name either",
    )


class _Cards:
    """The catalogue as formats see it."""

    find = staticmethod(find)
    all = staticmethod(all_cards)


CARDS = _Cards()


# -- names -------------------------------------------------------------------------------------------------------------


def source_of(model: str | Path, *, weights: str | Path | None = None) -> Source:
    """Find the model a name stands for.

    Args:
        model: Catalogue id, local folder, official YAML file or Hugging Face repository.
        weights: Official `weights/` folder to read a catalogue model from, instead of the Hugging Face cache.

    Returns:
        The card, the folder with its files, and the name that finds it again.

    Raises:
        RequestError: The name is none of these, or ``weights`` was given for a model that brings its own.
        WeightsError: The folder does not hold a model.
    """
    name, place = str(model), local_path(model, "model")
    root = None if weights is None else local_path(weights, "weights folder")
    if (card := _known(name)) is not None:
        return Source(card, root, name)
    if place.is_dir():
        if weights is not None:
            raise RequestError("`weights` is for catalogue models: a folder brings its own weights")
        return from_folder(place.resolve())
    if place.is_file() and (card := _in_format(place)) is not None:
        if weights is not None:
            raise RequestError("`weights` is for catalogue models: a YAML file names its own weights")
        return Source(card, None, str(place.resolve()))
    if place.exists():
        raise RequestError(f"`{escaped(name)}` is not a model: give a folder, an official YAML file or a catalogue id")
    if isinstance(model, Path) or name.startswith((".", "/", "~")):
        raise RequestError(f"model folder `{name}` is not there: give an existing folder or a catalogue id")
    if name.count("/") == 1 and (card := from_repository(name)):
        return Source(card, root, name)
    return Source(find(name), root, name)


def from_folder(folder: Path) -> Source:
    """Find the model in a local folder.

    Args:
        folder: The folder, in any layout that this library or a family knows.

    Returns:
        The card, the folder with its files, and the name that finds it again.

    Raises:
        WeightsError: The folder does not hold a model, or its files are broken.
        RequestError: The folder's card or configuration is not valid.
    """
    with reading(folder, "holds values that make no model"):
        return _from_folder(folder)


def _from_folder(folder: Path) -> Source:
    name = str(folder)
    if (path := folder / "card.toml").is_file():
        return Source(read(path), None, name)
    if (folder / "model_index.json").is_file():
        return Source(_diffusers_folder(folder), None, name)
    if (card := _in_format(folder)) is not None:
        return Source(card, None, name)
    found = []
    for root in (folder, folder / "weights"):
        for card in all_cards():
            local = card.dit.parts[0].local
            if local and (root / local).is_file():
                found.append(Source(card, root, name))
    if not found:
        raise WeightsError(
            f"folder `{folder}` holds no model: looked for `card.toml`, `model_index.json`, an official YAML file, "
            "and `model/` with a catalogue model's file"
        )
    if len(found) > 1:
        ids = ", ".join(f"`{source.card.id}`" for source in found)
        raise RequestError(f"folder `{folder}` holds several models, {ids}: name one, with `weights` the folder")
    return found[0]


def from_repository(repository: str) -> Card | None:
    """The card of a Hugging Face repository, official or in the Diffusers layout; None if no card names it."""
    owner, _, bare = repository.partition("/")
    for card in all_cards():
        for known, is_twin in ((card.dit.parts[0].repo, False), (diffusers_repository(card), True)):
            known_owner, _, known_bare = known.partition("/")
            # the first release lay under another owner
            if known_bare and known_bare == bare and owner in (known_owner, "ai-forever"):
                return in_diffusers_layout(card, repository) if is_twin else card
    return None


def _in_format(place: Path) -> Card | None:
    formats = (entry for one in families() for entry in one.formats)
    with reading(place, "holds values that make no model"):
        return next((entry.read()(place, CARDS) for entry in formats if entry.holds()(place)), None)


def _diffusers_folder(folder: Path) -> Card:
    kind = str(read_table(folder / "model_index.json").get("_class_name"))
    layouts = [one.diffusers for one in families() if one.diffusers is not None]
    for layout in layouts:
        if kind in layout.pipelines:
            return layout.read()(folder, find(layout.pipelines[kind]), CARDS)
    known = ", ".join(f"`{name}`" for layout in layouts for name in layout.pipelines)
    raise BackendError(f"`{folder}` holds a `{kind}`, which is not supported: use one of {known}")


# -- load --------------------------------------------------------------------------------------------------------------


class _Load(Protocol[P]):
    """The signature of ``load`` for type checkers; its options are the fields of ``RunOptions``."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a literal is a str, too
        self, model: Literal["nano-v2a", "kandinsky4-v2a"], *args: P.args, **options: P.kwargs
    ) -> VideoToAudioPipeline: ...
    @overload
    def __call__(self, model: str | Path = DEFAULT_MODEL, *args: P.args, **options: P.kwargs) -> GenerationPipeline: ...


class _Plan(Protocol[P]):
    """The signature of ``plan`` for type checkers."""

    def __call__(self, model: str | Path = DEFAULT_MODEL, *args: P.args, **options: P.kwargs) -> Plan: ...


def _as_load(kind: Callable[P, RunOptions]) -> Callable[[Callable[..., Any]], _Load[P]]:
    return cast("Callable[[Callable[..., Any]], _Load[P]]", spelled_out(kind))


def _as_plan(kind: Callable[P, RunOptions]) -> Callable[[Callable[..., Plan]], _Plan[P]]:
    return cast("Callable[[Callable[..., Plan]], _Plan[P]]", spelled_out(kind))


@_as_load(RunOptions)
def load(model: str | Path = DEFAULT_MODEL, **options: Any) -> GenerationPipeline | VideoToAudioPipeline:
    """Load a pipeline for a model; files are found and their headers checked now, weights are read at first use.

    Args:
        model: Catalogue id, local folder (official or Diffusers layout), official YAML file, or hub repository.
        options: Fields of ``engine.options.RunOptions``.

    Returns:
        A ``GenerationPipeline``; for models that generate audio, a ``VideoToAudioPipeline``.

    Raises:
        RequestError: A name or an option is unknown, or a value has the wrong type.
        WeightsError: A file is missing or broken; the message names it.
        BackendError: A device, package or attention backend is not available.
    """
    from kandinsky.engine.build import places_for

    chosen = RunOptions.from_dict(options)
    model = checked("model", model, str | Path)
    # refuse a missing device before looking for files; names are checked against the card later
    places_for(chosen, chosen.device if isinstance(chosen.device, Mapping) else ())
    return open_model(source_of(model, weights=chosen.weights), chosen)


def open_model(source: Source, options: RunOptions) -> GenerationPipeline | VideoToAudioPipeline:
    """Load a pipeline for a model that has already been found.

    Args:
        source: The model, as ``source_of`` returns it.
        options: How it runs.

    Returns:
        A ``GenerationPipeline``; for models that generate audio, a ``VideoToAudioPipeline``.

    Raises:
        RequestError: An option does not suit the model.
        WeightsError: A file is missing or broken; the message names it.
        BackendError: A device, package or attention backend is not available.
    """
    from kandinsky.engine.build import build
    from kandinsky.engine.pipeline import pipeline_of

    return pipeline_of(build(source.card, options, root=source.root, name=source.name))


@_as_plan(PlanOptions)
def plan(model: str | Path = DEFAULT_MODEL, **options: Any) -> Plan:
    """Estimate what one clip of a model needs; prompts and images make no difference and are not needed.

    Args:
        model: As for ``load``.
        options: Fields of ``engine.options.PlanOptions``; ``offload`` is chosen if not given.

    Returns:
        Download size, peak memory, time, and the placement that was chosen.

    Raises:
        RequestError: A generation with these options would be refused.
        BackendError: A device, package or attention backend is not available.
    """
    from kandinsky.engine.plan import plan_resolved
    from kandinsky.engine.request import resolve
    from kandinsky.model.values import Request
    from kandinsky.weights.branch_files import read_branch

    chosen = PlanOptions.from_dict(options)
    model = checked("model", model, str | Path)
    source = source_of(model, weights=chosen.weights)
    names = (
        "seconds",
        "overlap",
        "upscale",
        "upscale_strength",
        "steps",
        "guidance",
        "fps",
        "width",
        "height",
        "cache",
    )
    asked = {name: getattr(chosen, name) for name in names}
    job = resolve(Request(str(model), "any", seed=0, **asked), source.card, needs_image=False)
    files = list(map(read_branch, chosen.branches))
    for one in files:
        one.check_beside(source.card.dit, source.card.id)
    return plan_resolved(job, chosen.run(), root=source.root, memory=chosen.memory, gpus=chosen.gpus, branches=files)
