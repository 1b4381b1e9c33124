"""The file that says how a data set is curated: filters, shots, duplicates, measures and buckets, in TOML."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from kandinsky.curate import captioners, duplicates, measures, shots
from kandinsky.curate.expressions import Expression, parse
from kandinsky.errors import RequestError
from kandinsky.printing import escaped
from kandinsky.weights.untrusted import first_line

LARGEST = 1 << 20  # bytes of the file
_SECTIONS = {
    "filters": (),
    "shots": tuple(one.name for one in fields(shots.Settings)),
    "duplicates": ("bits",),
    "measures": ("names",),
    "buckets": ("sizes", "seconds"),
    "captions": tuple(one.name for one in fields(captioners.Settings)),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rules:
    """How a data set is curated.

    Attributes:
        filters: Conditions by name, in their order; a scene is kept where all of them hold.
        shots: How shots are found.
        bits: Mean distance of perceptual hashes up to which scenes are near-duplicates.
        measures: Names of plug-ins.
        sizes: Buckets, such as `768x512` or `512x768:0.3` with the share that is kept.
        seconds: Lengths of clips, rising.
        captions: What a model writes; nothing by default.
    """

    filters: Mapping[str, Expression]
    shots: shots.Settings = field(default_factory=shots.Settings)
    bits: float = duplicates.BITS
    measures: tuple[str, ...] = measures.DEFAULT
    sizes: tuple[str, ...] = ()
    seconds: tuple[float, ...] = ()
    captions: captioners.Settings = field(default_factory=captioners.Settings)


def read(path: Path | None = None) -> Rules:
    """Read rules.

    Args:
        path: A TOML file; the rules that come with this library by default.

    Raises:
        RequestError: It cannot be read, a key is unknown, or a value or expression is wrong; the place is named.
        BackendError: A measure or detector is not installed.
    """
    path = path or Path(__file__).with_name("rules.toml")
    where = f"rules `{escaped(path)}`"
    try:
        if path.stat().st_size > LARGEST:
            raise RequestError(f"{where} are larger than 1 MB")
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"{where} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{where} are not valid TOML: {first_line(error)}") from error
    try:
        return _rules(told)
    except RequestError as error:
        raise RequestError(f"{where}: {error}", hint=error.hint) from error


def _rules(told: Mapping[str, Any]) -> Rules:
    for name, section in told.items():
        _known(name, _SECTIONS, "section")
        if not isinstance(section, dict):
            raise RequestError(f"`{name}` is no section: write `[{name}]`")
        for key in section if _SECTIONS[name] else ():
            _known(key, _SECTIONS[name], f"key of [{name}]")
    filters = {}
    for name, text in told.get("filters", {}).items():
        try:
            filters[name] = parse(text)
        except RequestError as error:
            raise RequestError(f"`{escaped(name)}`: {error}") from error
    bits = told.get("duplicates", {}).get("bits", duplicates.BITS)
    names = told.get("measures", {}).get("names", list(measures.DEFAULT))
    sizes = told.get("buckets", {}).get("sizes", [])
    seconds = told.get("buckets", {}).get("seconds", [])
    if not _is_number(bits) or not 0 <= bits <= 32:
        raise RequestError(f"`duplicates.bits` must be a number from 0 to 32, not `{escaped(bits)}`")
    for key, values in (("measures.names", names), ("buckets.sizes", sizes)):
        if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
            raise RequestError(f"`{key}` must be a list of texts")
    if not isinstance(seconds, list) or not all(_is_number(one) and 0 < one < float("inf") for one in seconds):
        raise RequestError("`buckets.seconds` must be a list of numbers above 0")
    measures.chosen(names)
    found = shots.Settings(**told.get("shots", {}))
    lists: dict[str, Any] = {
        name: tuple(one) if isinstance(one, list) else one for name, one in told.get("captions", {}).items()
    }
    captions = captioners.Settings(**lists)
    return Rules(filters, found, float(bits), tuple(names), tuple(sizes), tuple(sorted(map(float, seconds))), captions)


def _known(name: str, allowed: Any, what: str) -> None:
    if name not in allowed:
        near = difflib.get_close_matches(name, allowed, 1)
        hint = f"did you mean `{near[0]}`" if near else f"there are {', '.join(allowed)}"
        raise RequestError(f"unknown {what} `{escaped(name)}`: {hint}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
