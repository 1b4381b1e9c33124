"""Hyper-parameters read into frozen dataclasses: from a card, an official file, a `config.json` or a recipe."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from kandinsky.errors import RequestError

Params = TypeVar("Params")


def read_params(cls: type[Params], values: Mapping[str, Any], what: str) -> Params:
    """The dataclass ``cls`` with these values.

    Args:   what: how an unknown key is called, such as `autoencoder parameter`.
    Lists become tuples; keys that begin with `_` are notes, as Diffusers writes them.
    Raises: RequestError for a key the dataclass has not, with the nearest.
    """
    known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    chosen = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in values.items()
        if not key.startswith("_")
    }
    if unknown := sorted(set(chosen) - set(known)):
        near = difflib.get_close_matches(unknown[0], known, n=1)
        advice = f"did you mean `{near[0]}`" if near else f"use one of {', '.join(known)}"
        raise RequestError(f"unknown {what} `{unknown[0]}`: {advice}")
    return cls(**chosen)


def without_fixed(values: Mapping[str, Any], fixed: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The values of all other keys, after a look that those of ``fixed`` are, where given, what is built.

    Args:   what: how a key is called, such as `autoencoder parameter`.
    Raises: RequestError for another value.
    """
    for key, only in fixed.items():
        value = values.get(key, only)
        if value != only and not (_is_list(value) and _is_list(only) and list(value) == list(only)):
            raise RequestError(f"{what} `{key}` = `{value}` is not built: only `{only}` is")
    return {key: value for key, value in values.items() if key not in fixed}


def refuse_unknown(values: Mapping[str, Any], known: tuple[str, ...], what: str) -> None:
    """Raises: RequestError for the first key that is not known, with the nearest; `_` begins a note."""
    if unknown := sorted(key for key in values if key not in known and not key.startswith("_")):
        near = difflib.get_close_matches(unknown[0], known, n=1)
        advice = f"did you mean `{near[0]}`" if near else f"use one of {', '.join(known)}"
        raise RequestError(f"unknown {what} `{unknown[0]}`: {advice}")


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def three(values: Mapping[str, Any], key: str, what: str) -> tuple[int, int, int]:
    """Three whole numbers (t, h, w) of a key that is there. Raises: RequestError."""
    value = values[key]
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise RequestError(f"{what} `{key}` needs three numbers (t, h, w), not {value}")
    t, h, w = (int(entry) for entry in value)
    return t, h, w
