"""Fields that doors render: what a request or a run may be given, declared once with its help."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable
from typing import Any

# `steps=4`, `size="512x512"`, `image=…` or `trust_remote_code=True`, as messages name an option
_NAMED = re.compile(r"`(\w+)=(\"[^\"`]*\"|[^\s`]*)`")


def option(
    default: Any,
    about: str = "",
    *,
    flags: tuple[str, ...] = (),
    short: str = "",
    metavar: str | None = None,
    least: float | None = None,
    most: float | None = None,
) -> Any:
    """A field of a frozen dataclass that doors render.

    Args:
        default: Its value where nothing is given.
        about: What it is, for Python and the API.
        flags: On the command line; none = it is not asked for there.
        short: Help on the command line.
        metavar: What its value is called there.
        least: The smallest number that makes sense whatever the model.
        most: The largest.
    """
    metadata = {
        "about": about,
        "flags": flags,
        "help": short or about,
        "metavar": metavar,
        "least": least,
        "most": most,
    }
    return dataclasses.field(default=default, metadata=metadata)


def described(kind: type, *, only: Collection[str] | None = None, indent: int = 8) -> str:
    """The fields of a dataclass as the `Args:` of a docstring have them, one a line; ``only`` some of them."""
    return "\n".join(
        f"{' ' * indent}{f.name}: {about[:1].upper()}{about[1:].rstrip('.')}."
        for f in dataclasses.fields(kind)
        if (only is None or f.name in only) and (about := f.metadata.get("about") or f.metadata.get("help"))
    )


def in_flags(text: str, kinds: Iterable[type], more: dict[str, str] | None = None) -> str:
    """A message that names options as Python does, with the flags of the command line instead.

    Args:
        text: The message; `steps=4` in backticks becomes `--steps 4`, `image=…` becomes `--image FILE`, and
            `trust_remote_code=True` its flag alone. Names that have no flag stay as they are.
        kinds: Dataclasses whose fields say their flags.
        more: Further names and their flags.
    """
    fields = {f.name: f.metadata for kind in kinds for f in dataclasses.fields(kind) if f.metadata.get("flags")}

    def flag(match: re.Match[str]) -> str:
        name, value = match[1], match[2].strip('"')
        if name not in fields and name not in (more or {}):
            return match[0]
        spelled = fields[name]["flags"][0] if name in fields else (more or {})[name]
        if value == "…":
            value = (fields[name]["metavar"] if name in fields else None) or name.upper()
        return f"`{spelled}`" if value == "True" else f"`{spelled} {value}`"

    return _NAMED.sub(flag, text)
