"""Cards: one TOML file per checkpoint, the only home of a default.

``find(id)`` answers with a validated ``Card``; an unknown key anywhere in a card is an error. Users add cards of their
own by pointing ``KANDINSKY_CARDS`` at a folder of TOML files. This module imports no torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from kandinsky.errors import RequestError

HERE = Path(__file__).parent
DEFAULT_MODEL = "nano-t2v"


@dataclass(frozen=True, slots=True)
class Part:
    """Files that come from one place.

    repo:  Hugging Face repository, or `package` for weights shipped inside this package (`kandinsky/assets/`), or a
           folder of this machine: `/…`, `~/…`, or `./…` from the folder the card lies in.
    files: paths inside the repository; a path ending in `/` means the whole folder.
    name:  tells the parts of one component apart (`qwen`, `clip`); may be empty where there is one part.
    local: where the same files lie in an official `weights/` folder: a file, or a folder when it ends in `/`.
    bytes: size to fetch, for `kandinsky plan`.
    dtype: type of the numbers in the files, also for the plan.
    gated: the hub wants a token and an accepted licence first.
    """

    repo: str
    files: tuple[str, ...]
    name: str = ""
    revision: str = "main"
    local: str = ""
    bytes: int = 0
    dtype: str = "float32"
    gated: bool = False


@dataclass(frozen=True, slots=True)
class Component:
    """One network of a model: the class that builds it, its hyper-parameters, and the files it is read from.

    kind: which class builds it (`kandinsky5.dit`, `qwen-clip`, `hunyuan`, `nano.vae`, `nano.text`, …).
    """

    kind: str
    parts: tuple[Part, ...]
    params: dict[str, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Size of all parts together."""
        return sum(part.bytes for part in self.parts)


@dataclass(frozen=True, slots=True)
class Sampling:
    """Defaults of the sampling loop. guidance 1.0 = off, then no second pass runs."""

    steps: int
    guidance: float
    shift: float
    rope_scale: tuple[float, float, float]
    negative_prompt: str = ""
    max_steps: int = 1000
    noise: str = "float32"  # dtype the noise is drawn in: "bfloat16" (official, latest) or "float32"
    condition: str = "zeros"  # what the condition channels hold without an image: "zeros" or "coordinates"
    attention: dict[str, Any] = field(default_factory=lambda: {"type": "dense"})
    mag_ratios: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Clip:
    """Legal clips. Sizes are `WIDTHxHEIGHT`. A duration of 0 seconds is one still frame."""

    fps: float
    seconds: float
    min_seconds: float
    max_seconds: float
    sizes: tuple[str, ...]
    default_size: str
    temporal: int = 4
    spatial: int = 8
    channels: int = 16


@dataclass(frozen=True, slots=True)
class Card:
    id: str
    family: str
    task: str
    title: str
    licence: str
    parameters: int
    source: str
    dit: Component
    text: Component
    vae: Component
    sampling: Sampling
    clip: Clip
    notes: tuple[str, ...] = ()

    def component(self, name: str) -> Component:
        return {"dit": self.dit, "text": self.text, "vae": self.vae}[name]


def parse(values: dict[str, Any], *, where: str) -> Card:
    """Build a card from parsed TOML. Raises: RequestError naming the file and the offending key."""
    card = _build(Card, values, where)
    if card.clip.default_size not in card.clip.sizes:
        raise RequestError(f"{where}: clip.default_size `{card.clip.default_size}` is not one of clip.sizes")
    return card


def read(path: Path) -> Card:
    """Read one card file. Raises: RequestError where it is no valid TOML or no valid card."""
    try:
        card = parse(tomllib.loads(path.read_text(encoding="utf-8")), where=path.name)
        return _anchored(card, path.parent.absolute())
    except tomllib.TOMLDecodeError as error:
        raise RequestError(f"card `{path}` is not valid TOML: {error}") from error


def _anchored(card: Card, folder: Path) -> Card:
    """The card with parts at `./…` made paths below its own folder, so that a model's folder can be moved."""

    def part(entry: Part) -> Part:
        if entry.repo != "." and not entry.repo.startswith("./"):
            return entry
        return dataclasses.replace(entry, repo=str(folder / entry.repo))

    def component(entry: Component) -> Component:
        return dataclasses.replace(entry, parts=tuple(part(p) for p in entry.parts))

    return dataclasses.replace(card, dit=component(card.dit), text=component(card.text), vae=component(card.vae))


@cache
def _shipped() -> dict[str, Card]:
    return {card.id: card for card in (read(path) for path in sorted(HERE.glob("*.toml")))}


def catalogue() -> dict[str, Card]:
    """All cards by id: the shipped ones, then those of the folder ``KANDINSKY_CARDS`` names, which win."""
    cards = dict(_shipped())
    if folder := os.environ.get("KANDINSKY_CARDS"):
        for path in sorted(Path(folder).glob("*.toml")):
            card = read(path)
            cards[card.id] = card
    return cards


def find(model: str) -> Card:
    """The card of a catalogue id. Raises: RequestError with the nearest ids."""
    cards = catalogue()
    if model in cards:
        return cards[model]
    near = difflib.get_close_matches(model, cards, n=3, cutoff=0.3) or sorted(cards)[:3]
    raise RequestError(
        f"unknown model `{model}`: `kandinsky models` lists all {len(cards)}",
        hint="the nearest are " + ", ".join(f"`{name}`" for name in near),
    )


def to_dict(card: Card) -> dict[str, Any]:
    """A card as plain values, the inverse of ``parse``."""
    return dataclasses.asdict(card)


def _build(cls: type, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise RequestError(f"{where}: `{cls.__name__.lower()}` must be a table")
    hints = get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise RequestError(
                f"{where}: unknown key `{key}` in {cls.__name__.lower()}"
                + (f", did you mean `{near[0]}`" if near else "")
            )
    for name, f in known.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise RequestError(f"{where}: key `{name}` is missing in {cls.__name__.lower()}")
    return cls(**{key: _convert(hints[key], value, f"{where}: {key}") for key, value in values.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where)  # type: ignore[arg-type]
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise RequestError(f"{where} must be a list")
        args = get_args(hint)
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) != len(value):
            raise RequestError(f"{where} must have {len(kinds)} entries, not {len(value)}")
        return tuple(_convert(kind, entry, where) for kind, entry in zip(kinds, value, strict=True))
    if get_origin(hint) is dict:
        return dict(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise RequestError(f"{where} must be {hint.__name__}, not `{value!r}`")
    return value
