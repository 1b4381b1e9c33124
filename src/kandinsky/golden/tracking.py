"""Values of a case that record which of them were read.

A runner gets the case's settings and tensors as mappings of this module. Whatever it did not read has no influence on
its result, so a case that holds such a value asks for something that was not checked; ``unread`` names it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from torch import Tensor

from kandinsky.errors import RequestError

T = TypeVar("T")
DEFAULT_LIMIT = 2**31 - 1


class CaseError(RequestError):
    """A case cannot be run as it stands.

    Attributes:
        name: The setting, tensor or file at fault.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"`{name}` {problem}")
        self.name = name
        self.problem = problem


class Settings(Mapping[str, object]):
    """A JSON object that records reads, at any depth.

    Objects inside are ``Settings`` too, and lists of objects are lists of ``Settings``; reading one does not count as
    reading its entries. Iterating reads nothing, so a strict reader such as ``Params.from_dict`` counts as having read
    exactly the entries it took. The typed readers raise ``CaseError`` for a key that is missing or a value of another
    type.
    """

    def __init__(self, values: Mapping[str, object], name: str) -> None:
        self.name = name
        self._values = {key: _tracked(value, self.full(key)) for key, value in values.items()}
        self._read: set[str] = set()

    def full(self, key: str) -> str:
        """The full name of an entry within the case, such as `call.cases[2].num_steps`."""
        return f"{self.name}.{key}" if self.name else key

    def __getitem__(self, key: str) -> object:
        if key not in self._values:
            raise CaseError(self.full(key), "is missing")
        self._read.add(key)
        return self._values[key]

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)

    def get(self, key: str, default: object = None) -> object:
        """The value, or ``default`` if the key is absent."""
        if key not in self:
            return default
        return self[key]

    def has(self, key: str) -> bool:
        """Whether the key has a value other than null; null counts as read, since it means "without"."""
        return self.get(key) is not None

    def documentary(self, *keys: str) -> None:
        """Mark keys, if present, as descriptions that no result depends on."""
        self._read |= set(keys)

    def text(self, key: str) -> str:
        """Read a string.

        Raises:
            CaseError: The key is missing, or its value is not a string.
        """
        return self._checked(key, self[key], lambda value: isinstance(value, str), str, "a string")

    def flag(self, key: str, default: bool | None = None) -> bool:
        """Read a boolean.

        Raises:
            CaseError: The key is missing and has no default, or its value is not a boolean.
        """
        value = self[key] if default is None else self.get(key, default)
        return self._checked(key, value, lambda value: isinstance(value, bool), bool, "true or false")

    def integer(self, key: str, *, least: int = 0, most: int = DEFAULT_LIMIT) -> int:
        """Read an integer from ``least`` to ``most``.

        Raises:
            CaseError: The key is missing, or its value is not such an integer.
        """
        return self._integer(key, self[key], least, most)

    def integers(self, key: str, count: int | None = None, *, least: int = 0, most: int = DEFAULT_LIMIT) -> list[int]:
        """Read a list of integers, ``count`` of them if given.

        Raises:
            CaseError: The key is missing, or its value is not such a list.
        """
        return [self._integer(key, value, least, most) for value in self._list(key, count)]

    def number(self, key: str) -> float:
        """Read a finite number.

        Raises:
            CaseError: The key is missing, or its value is not a finite number.
        """
        return self._number(key, self[key])

    def numbers(self, key: str, count: int | None = None) -> list[float]:
        """Read a list of finite numbers, ``count`` of them if given.

        Raises:
            CaseError: The key is missing, or its value is not such a list.
        """
        return [self._number(key, value) for value in self._list(key, count)]

    def factors(self, key: str) -> tuple[float, float, float]:
        """Three finite numbers; ones where the key is absent or null."""
        t, h, w = self.numbers(key, 3) if self.has(key) else (1.0, 1.0, 1.0)
        return t, h, w

    def table(self, key: str) -> Settings:
        """Read an object.

        Raises:
            CaseError: The key is missing, or its value is not an object.
        """
        value = self[key]
        if not isinstance(value, Settings):
            raise CaseError(self.full(key), f"is `{_shown(value)}`: an object is needed")
        return value

    def tables(self, key: str) -> list[Settings]:
        """Read a list of objects.

        Raises:
            CaseError: The key is missing, or its value is not a list of objects.
        """
        value = self[key]
        if not isinstance(value, list) or not all(isinstance(entry, Settings) for entry in value):
            raise CaseError(self.full(key), "is not a list of objects")
        return value

    def unread(self) -> list[str]:
        """Full names of the entries that nothing has read, in the file's order."""
        names: list[str] = []
        for key, value in self._values.items():
            if key not in self._read:
                names.append(self.full(key))
            else:
                for part in value if isinstance(value, list) else [value]:
                    names += part.unread() if isinstance(part, Settings) else []
        return names

    def leaves(self) -> Iterator[tuple[str, object]]:
        """Full name and value of every entry that is not an object or a list, without counting as a read."""
        for key, value in self._values.items():
            yield from _leaves(value, self.full(key))

    def _list(self, key: str, count: int | None) -> Sequence[object]:
        value = self[key]
        if not isinstance(value, list) or (count is not None and len(value) != count):
            needed = "a list" if count is None else f"a list of {count}"
            raise CaseError(self.full(key), f"is `{_shown(value)}`: {needed} is needed")
        return value

    def _integer(self, key: str, value: object, least: int, most: int) -> int:
        def allowed(value: object) -> bool:
            return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most

        return self._checked(key, value, allowed, int, f"a whole number from {least} to {most}")

    def _number(self, key: str, value: object) -> float:
        def allowed(value: object) -> bool:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            return is_number and abs(value) < 1e300 and math.isfinite(value)  # type: ignore[arg-type]

        return self._checked(key, value, allowed, float, "a finite number")

    def _checked(
        self, key: str, value: object, allowed: Callable[[object], bool], made: Callable[..., T], needed: str
    ) -> T:
        if not allowed(value):
            raise CaseError(self.full(key), f"is `{_shown(value)}`: {needed} is needed")
        return made(value)


class Tensors(Mapping[str, Tensor]):
    """Tensors of a file by name, recording reads."""

    def __init__(self, tensors: Mapping[str, Tensor], name: str) -> None:
        self.name = name
        self._tensors = dict(tensors)
        self._read: set[str] = set()

    def __getitem__(self, key: str) -> Tensor:
        if key not in self._tensors:
            raise CaseError(f"{self.name}.{key}", "is missing")
        self._read.add(key)
        return self._tensors[key]

    def __contains__(self, key: object) -> bool:
        return key in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def peek(self) -> dict[str, Tensor]:
        """All tensors, without counting as a read."""
        return dict(self._tensors)

    def optional(self, key: str) -> Tensor | None:
        """The tensor, or None if there is none of this name."""
        if key not in self:
            return None
        return self[key]

    def documentary(self, *keys: str) -> None:
        """Mark tensors, if present, as placeholders that no result depends on."""
        self._read |= set(keys)

    def unread(self) -> list[str]:
        """Full names of the tensors that nothing has read."""
        return [f"{self.name}.{key}" for key in self._tensors if key not in self._read]


def _tracked(value: object, name: str) -> object:
    if isinstance(value, dict):
        return Settings(value, name)
    if isinstance(value, list):
        return [_tracked(entry, f"{name}[{number}]") for number, entry in enumerate(value)]
    return value


def _leaves(value: object, name: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, Settings):
        yield from value.leaves()
    elif isinstance(value, list):
        for number, entry in enumerate(value):
            yield from _leaves(entry, f"{name}[{number}]")
    else:
        yield name, value


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
