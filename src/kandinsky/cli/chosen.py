"""The model of commands that take its id bare as well as with `--model`."""

from __future__ import annotations

from kandinsky import catalogue
from kandinsky.errors import RequestError


def chosen_model(bare: str | None, option: str | None) -> str:
    """The one that was given, else the default. Raises: RequestError for two that differ."""
    if bare is not None and option is not None and bare != option:
        raise RequestError(f"both `{bare}` and `--model {option}` were given: use one")
    return bare or option or catalogue.DEFAULT_MODEL
