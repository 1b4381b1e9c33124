"""Hyper-parameters as Diffusers writes them into `config.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from kandinsky.errors import RequestError

Params = TypeVar("Params")


def from_config(cls: type[Params], values: Mapping[str, Any]) -> Params:
    """A frozen dataclass of hyper-parameters from a card's or a `config.json`'s values.

    Lists become tuples; keys that begin with `_` are notes. Raises: RequestError for a key the dataclass has not.
    """
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    chosen: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in values.items()
        if not key.startswith("_")
    }
    if unknown := sorted(set(chosen) - known):
        raise RequestError(f"unknown autoencoder parameter `{unknown[0]}`: use one of {', '.join(sorted(known))}")
    return cls(**chosen)
