"""References to values that are imported when they are first needed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Generic, TypeVar

T_co = TypeVar("T_co", covariant=True)


@cache
def _imported(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)


@dataclass(frozen=True, slots=True)
class Lazy(Generic[T_co]):
    """A reference to a value of a module; calling it imports the module and returns the value.

    Attributes:
        where: `package.module:name`.
    """

    where: str

    def __call__(self) -> T_co:
        found: T_co = _imported(self.where)
        return found
