"""Hyper-parameters read into frozen dataclasses: from a card, an official file, a `config.json` or a recipe."""

from __future__ import annotations

import dataclasses
import operator
import re
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from kandinsky.errors import RequestError
from kandinsky.model.checks import fits, many, unknown
from kandinsky.printing import escaped

Params = TypeVar("Params")
MOST = 1000  # layers of one kind, and entries of a list
# bounds of a field's number: whether one keeps it, and how it is said
_BOUNDS: Mapping[str, tuple[Callable[[float, float], bool], str]] = {
    "above": (operator.gt, "above {}"),
    "below": (operator.lt, "below {}"),
    "least": (operator.ge, "{} or more"),
    "most": (operator.le, "{} or less"),
}
_COUNTS = re.compile(r"(\w+_)?(blocks|layers)(_per_block)?|depth")


def read_params(cls: type[Params], values: Mapping[str, Any], what: str) -> Params:
    """Build a dataclass from values of a file.

    Lists become tuples, and tables become dataclasses if the field is one; keys that begin with `_` are notes, as
    Diffusers writes them.

    Args:
        cls: A dataclass. Its annotations say which types are allowed; ``metadata={"above": 0}`` of a field is an
            exclusive bound, as ``below`` is, ``least`` and ``most`` are inclusive ones; of each number of a list.
        values: From a file or a card.
        what: What to call a key in messages, such as `autoencoder parameter`.

    Returns:
        The instance.

    Raises:
        RequestError: A key is unknown (the nearest is named) or missing, or its value has the wrong type or is out of
            range.
    """
    if not isinstance(values, Mapping):
        raise RequestError(f"{what}s must be a table, not `{_short(values)}`")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    chosen = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in values.items()
        if not (isinstance(key, str) and key.startswith("_"))
    }
    if foreign := sorted(map(str, set(chosen) - set(fields))):
        raise unknown(foreign[0], fields, what)
    hints = get_type_hints(cls)
    for name, f in fields.items():
        if name not in chosen and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise RequestError(f"{what} `{name}` is missing")
    chosen = {key: _nested(value, hints[key], f"{what} `{key}`:") for key, value in chosen.items()}
    for key, value in chosen.items():
        if not fits(value, hints[key]):
            raise RequestError(f"{what} `{key}` must be {_name(hints[key])}, not `{_short(value)}`")
        numbers = value if isinstance(value, tuple) else (value,)
        if (_COUNTS.fullmatch(key) and any(isinstance(n, int) and n > MOST for n in numbers)) or len(numbers) > MOST:
            raise RequestError(f"{what} `{key}` is `{_short(value)}`: more than {MOST} are not built")
        _check_bounds(value, fields[key].metadata, f"{what} `{key}`")
    return cls(**chosen)


def _check_bounds(value: Any, bounds: Mapping[str, float], where: str) -> None:
    """Raises: RequestError for a number out of bounds, or one of a list or table of numbers."""
    numbers = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple) else (value,)
    each = " each" if isinstance(value, Mapping | tuple) else ""
    for n in numbers:
        if isinstance(n, bool) or not isinstance(n, int | float):
            continue
        for name, (keeps, words) in _BOUNDS.items():
            if (bound := bounds.get(name)) is not None and not keeps(n, bound):
                raise RequestError(f"{where} must be {words.format(bound)}{each}, not `{_short(n)}`")


class Readable:
    """Hyper-parameters that are read from plain values, of a card, an official file or a `config.json`."""

    __slots__ = ()
    what: ClassVar[str] = "parameter"  # what a key is called

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """These hyper-parameters; see ``read_params``.

        Raises:
            RequestError: A key is unknown, or a value is not supported.
        """
        return read_params(cls, cls.prepared(values), cls.what)

    @classmethod
    def prepared(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """The values without those that say nothing of this network, after a look at them."""
        return values


def _nested(value: Any, hint: Any, where: str) -> Any:
    """A table, or a tuple or table of tables, as the dataclass that an annotation names; other values unchanged."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if value is None and type(None) in args:
            return None
        hint = next((one for one in args if dataclasses.is_dataclass(one)), hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if not isinstance(value, Mapping):
            raise RequestError(f"{where.removesuffix(':')} must be a table, not `{_short(value)}`")
        read = getattr(hint, "from_dict", None)  # it may know further namings
        return read_params(hint, value, f"{where} key") if read is None else read(dict(value))
    if origin is tuple and isinstance(value, tuple) and dataclasses.is_dataclass(args[0]):
        return tuple(_nested(one, args[0], f"{where} {number}.") for number, one in enumerate(value, 1))
    if origin in (dict, Mapping) and isinstance(value, Mapping) and dataclasses.is_dataclass(args[1]):
        return {key: _nested(one, args[1], f"{where} `{_short(key)}`:") for key, one in value.items()}
    return value


def _name(hint: Any) -> str:
    """An annotation in words."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(map(_name, args))
    if origin is Literal:
        return " or ".join(f"`{one}`" for one in args)
    if origin is tuple:
        return f"a list of {many(args[0])}" if args[-1] is Ellipsis else f"{len(args)} {many(args[0])}"
    if origin in (dict, Mapping):
        return "a table"
    words = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false", type(None): "null"}
    return words.get(hint, str(hint))


def _short(value: Any) -> str:
    text = escaped(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def without_fixed(values: Mapping[str, Any], fixed: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Drop keys that may have only one value, after checking that they have it.

    Args:
        values: From a file or a card.
        fixed: The only supported value of each such key.
        what: What to call a key in messages, such as `autoencoder parameter`.

    Returns:
        The values of all other keys.

    Raises:
        RequestError: A key of ``fixed`` has another value.
    """
    for key, only in fixed.items():
        value = values.get(key, only)
        if value != only and not (_is_list(value) and _is_list(only) and list(value) == list(only)):
            raise RequestError(f"{what} `{key}` = `{value}` is not built: only `{only}` is")
    return {key: value for key, value in values.items() if key not in fixed}


def refuse_unknown(values: Mapping[str, Any], known: tuple[str, ...], what: str) -> None:
    """Refuse unknown keys; one that begins with `_` is a note.

    Args:
        values: From a file or a card.
        known: The known keys.
        what: What to call a key in messages, such as `autoencoder parameter`.

    Raises:
        RequestError: A key is not known; the message names the first and the nearest known key.
    """
    if foreign := sorted(key for key in values if key not in known and not key.startswith("_")):
        raise unknown(foreign[0], known, what)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)
