"""Fields that users set: what a request or a run accepts, declared once with its help for Python, CLI and API."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable
from typing import Any

# `steps=4`, `size="512x512"`, `image=…` or `trust_remote_code=True`, as messages name an option
_NAMED = re.compile(r"`(\w+)=(\"[^\"`]*\"|[^\s`]*)`")
_WORD = re.compile(r"(?<![\w./-])[a-z]\w*(?![\w/]|\.\w)")


def option(
    default: Any,
    about: str = "",
    *,
    flags: tuple[str, ...] = (),
    short: str = "",
    metavar: str | None = None,
    least: float | None = None,
    most: float | None = None,
    served: bool | None = None,
) -> Any:
    """Declare a field of a frozen dataclass that users set.

    Args:
        default: Its value if nothing is given.
        about: What it is, for Python and the API.
        flags: Its flags on the command line; none = it has no flag.
        short: Help on the command line.
        metavar: What its value is called there.
        least: The smallest number that makes sense for any model.
        most: The largest.
        served: Whether a request to a server may choose it; None as its dataclass says: all of ``Request``, none of
            ``RunOptions``.

    Returns:
        The field.
    """
    metadata = {
        "about": about,
        "flags": flags,
        "help": short or about,
        "metavar": metavar,
        "least": least,
        "most": most,
        "served": served,
    }
    return dataclasses.field(default=default, metadata=metadata)


def described(kind: type, *, only: Collection[str] | None = None, indent: int = 8) -> str:
    """The fields of a dataclass as lines of a docstring's `Args:`; ``only`` some of them."""
    return "\n".join(
        f"{' ' * indent}{f.name}: {about[:1].upper()}{about[1:].rstrip('.')}."
        for f in dataclasses.fields(kind)
        if (only is None or f.name in only) and (about := f.metadata.get("about") or f.metadata.get("help"))
    )


def in_fields(text: str) -> str:
    """Replace the options that a message names as Python does with the fields of a JSON body.

    Args:
        text: The message; `image=…` in backticks becomes `image`, `steps=4` becomes `steps: 4`, `expand=True` becomes
            `expand: true`.

    Returns:
        The message for a client of the server.
    """

    def field(match: re.Match[str]) -> str:
        name, value = match[1], match[2]
        if value in ("…", ""):
            return f"`{name}`"
        return f"`{name}: {value.lower() if value in ('True', 'False') else value}`"

    return _NAMED.sub(field, text)


def in_flags(text: str, kinds: Iterable[type], more: dict[str, str] | None = None) -> str:
    """Replace the options that a message names as Python does with the flags of the command line.

    Args:
        text: The message; `steps=4` in backticks becomes `--steps 4`, `image=…` becomes `--image FILE`, and
            `trust_remote_code=True` its flag alone, as does `fade=…`, whose value has no name. A name with an
            underscore is its flag also where it stands without a value. Names that have no flag stay as they are.
        kinds: Dataclasses whose fields say their flags.
        more: Further names and their flags.

    Returns:
        The message for the command line.
    """
    fields = {f.name: f.metadata for kind in kinds for f in dataclasses.fields(kind) if f.metadata.get("flags")}

    def flag(match: re.Match[str]) -> str:
        name, value = match[1], match[2].strip('"')
        if name not in fields and name not in (more or {}):
            return match[0]
        spelled = fields[name]["flags"][0] if name in fields else (more or {})[name]
        if value == "…":
            value = (fields[name]["metavar"] if name in fields else None) or ""
        return f"`{spelled}`" if value in ("True", "") else f"`{spelled} {value}`"

    def bare(match: re.Match[str]) -> str:
        # a name of one word is an English word, too
        return fields[match[0]]["flags"][0] if "_" in match[0] and match[0] in fields else match[0]

    told = _NAMED.sub(flag, text).split("`")
    # what stands in backticks is what was given, unless it is a name as a whole
    return "`".join(
        _WORD.sub(bare, part) if number % 2 == 0 or _WORD.fullmatch(part) else part for number, part in enumerate(told)
    )
