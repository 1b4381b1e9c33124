"""Fields that doors render: what a request or a run may be given, declared once with its help."""

from __future__ import annotations

import dataclasses
from typing import Any


def option(
    default: Any, about: str = "", *, flags: tuple[str, ...] = (), short: str = "", metavar: str | None = None
) -> Any:
    """A field of a frozen dataclass that doors render.

    Args:
        about: what it is, for Python and the API.
        flags: on the command line; none = it is not asked for there.
        short: help on the command line.
        metavar: what its value is called there.
    """
    return dataclasses.field(
        default=default, metadata={"about": about, "flags": flags, "help": short or about, "metavar": metavar}
    )
