"""Values checked against annotations: the one place that looks at types, before anything else does.

Values that travel (``Request``, ``RunOptions``, ``Video``) and the public calls say in their annotations what they
take; here a value is validated against them, so that a wrong type is a ``RequestError`` that names the argument, and
never a traceback from inside another library. NumPy's numbers become Python's. Nothing here imports torch, NumPy or
Pillow: their classes are recognised by name.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import numbers
import os
import sys
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache, wraps
from pathlib import Path
from types import SimpleNamespace, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin
from weakref import WeakKeyDictionary

from kandinsky.errors import RequestError
from kandinsky.printing import escaped

P = ParamSpec("P")
T = TypeVar("T")
SHOWN = 60  # most characters of a value that a message shows
LARGEST = 2**64  # of integers: above any seed, with few enough digits to print
LONGEST_PATH, LONGEST_NAME = 4096, 255  # bytes


class _Elsewhere(type):
    """A class that is recognised by its name, so that its module need not be imported."""

    def __instancecheck__(cls, value: object) -> bool:
        names = {f"{one.__module__}.{one.__qualname__}" for one in type(value).__mro__}
        return bool(names & cls.names)  # type: ignore[attr-defined]


def _elsewhere(shown: str, *names: str) -> Any:
    return _Elsewhere(shown, (), {"names": {shown, *names}})


class _Array(_Elsewhere):
    """Arrays, and objects that can be viewed as one without a copy."""

    def __instancecheck__(cls, value: object) -> bool:
        return hasattr(value, "__array_interface__") and hasattr(value, "shape")


# Names that annotations use and modules import for type checkers alone.
_NAMES: dict[str, Any] = {
    "torch": SimpleNamespace(
        device=_elsewhere("torch.device"),
        dtype=_elsewhere("torch.dtype"),
        Tensor=_elsewhere("torch.Tensor"),
        Generator=_elsewhere("torch.Generator", "torch._C.Generator"),
    ),
    "np": SimpleNamespace(ndarray=_Array("numpy.ndarray", (), {})),
    "Image": _elsewhere("PIL.Image.Image"),
    "Video": _elsewhere("Video", "kandinsky.model.values.Video"),
    "InputVideo": _elsewhere("kandinsky.media.mux.InputVideo"),
    "CacheSettings": _elsewhere("CacheSettings", "kandinsky.diffusion.caching._Option"),
}


_HINTS: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()


# -- messages ----------------------------------------------------------------------------------------------------------


def shown(value: object) -> str:
    """A value as a message may show it: escaped, on one line, shortened; only its type unless it is number or text."""
    if isinstance(value, bool) or value is None or isinstance(value, float):
        return str(value)
    if isinstance(value, int):
        return str(value) if abs(value) <= LARGEST else f"a number of {value.bit_length()} bits"
    if not isinstance(value, str | os.PathLike):
        return type(value).__name__
    text = escaped(str(value)[: 4 * SHOWN])
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def unknown(name: object, known: Iterable[str], what: str) -> RequestError:
    """The error for an unknown name, with the nearest of the known ones."""
    names = list(known)
    near = difflib.get_close_matches(str(name), names, n=1)
    advice = f"did you mean `{near[0]}`" if near else f"use one of {', '.join(names)}"
    return RequestError(f"unknown {what} `{shown(name)}`: {advice}")


def allowed(hint: Any) -> str:
    """An annotation in words."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        kinds = [one for one in args if one is not type(None)]
        if Path in kinds:  # a path in either form
            kinds.remove(Path)
        words = list(dict.fromkeys("a path" if one is str and Path in args else allowed(one) for one in kinds))
        return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
    if origin is Literal:
        return " or ".join(f"`{one}`" for one in args)
    if typing.is_typeddict(hint):
        return f"an object with {', '.join(f'`{key}`' for key in hint.__annotations__)}"
    if origin is not None and isinstance(origin, type):
        if issubclass(origin, Mapping):
            return "a mapping"
        if issubclass(origin, Iterable):
            return f"a list of {many(args[0])}" if args else "a list"
        if issubclass(origin, Callable):  # type: ignore[arg-type]
            return "a function"
    words_of: dict[Any, str] = {
        bool: "True or False", int: "a whole number", float: "a finite number", str: "text", Path: "a path",
        type(None): "None", Mapping: "a mapping", dict: "a mapping",
    }  # fmt: skip
    return words_of.get(hint) or f"a `{getattr(hint, '__qualname__', hint)}`"


def many(hint: Any) -> str:
    """An annotation in words, of several values."""
    plural = {int: "whole numbers", float: "finite numbers", str: "texts", Path: "paths"}
    return plural.get(hint) or allowed(hint).removeprefix("a ").replace("a path", "paths").replace("path", "paths", 1)


def _given(value: object) -> str:
    """A value in backticks; text in quotes too, which tells `"5"` from `5`."""
    return f'`"{shown(value)}"`' if isinstance(value, str) else f"`{shown(value)}`"


# -- values ------------------------------------------------------------------------------------------------------------


class _Misfit(Exception):  # noqa: N818 - caught here, it is the answer no
    """A value does not fit the annotation; ``why`` is said instead of what is allowed."""

    def __init__(self, why: str = "") -> None:
        super().__init__(why)
        self.why = why


def checked(name: str, value: Any, hint: Any) -> Any:
    """Check a value against an annotation.

    Args:
        name: What to call the value in a message.
        value: What was given.
        hint: The annotation, evaluated.

    Returns:
        The value; a NumPy number as Python's, an iterable that can be read only once as a tuple.

    Raises:
        RequestError: The annotation does not allow it.
    """
    try:
        return _fit(value, hint)
    except _Misfit as misfit:
        if misfit.why:
            raise RequestError(f"`{name}` {misfit.why}") from None
        raise RequestError(f"`{name}` must be {allowed(hint)}, not {_given(value)}") from None


def fits(value: Any, hint: Any) -> bool:
    """Whether an annotation allows a value."""
    try:
        _fit(value, hint)
    except _Misfit:
        return False
    return True


def _fit(value: Any, hint: Any) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return value
    if typing.is_typeddict(hint):
        return _fit_table(value, hint)
    if hint is None or hint is type(None):
        if value is not None:
            raise _Misfit
        return value
    if origin in (Union, UnionType):
        return _fit_one(value, args)
    if origin is Literal:
        if not any(type(value) is type(one) and value == one for one in args):
            raise _Misfit
        return value
    if hint is str:
        if not isinstance(value, str):
            raise _Misfit
        return _text(value)
    if hint in (int, float):
        return _number(value, hint)
    if hint is Path:
        if not isinstance(value, Path):
            raise _Misfit
        return _path(value)
    if isinstance(origin, type):
        return _fit_generic(value, origin, args)
    if isinstance(hint, type) and not isinstance(value, hint):
        raise _Misfit
    return value


def _fit_one(value: Any, kinds: Sequence[Any]) -> Any:
    """The value as the first of several types that allows it."""
    if isinstance(value, str) and str in kinds and Path in kinds:
        return _path(value)
    why = ""
    for kind in kinds:
        try:
            return _fit(value, kind)
        except _Misfit as misfit:
            why = why or misfit.why
    raise _Misfit(why)


def _fit_table(value: Any, hint: Any) -> Any:
    """A mapping with the keys of a ``TypedDict``; other keys are not looked at, and null stands for absence."""
    if not isinstance(value, Mapping) or not hint.__required_keys__ <= value.keys():
        raise _Misfit
    for key, kind in hints_of(hint).items():
        if value.get(key) is not None:
            _fit(value[key], kind)
    return value


def _fit_generic(value: Any, origin: type, args: tuple[Any, ...]) -> Any:
    if issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise _Misfit
        if not args:
            return value
        entries = {_entry(key, args[0]): _entry(one, args[1]) for key, one in value.items()}
        return value if all(one is value[key] for key, one in entries.items()) else entries
    if issubclass(origin, Iterable) and args:
        # a text is a sequence of letters, which nobody means
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, origin):
            raise _Misfit
        if issubclass(origin, typing.Iterator):  # taken by somebody else
            return value
        kinds = args[:1] if origin is not tuple or args[-1] is Ellipsis else args
        try:
            given = list(value)
        except TypeError as error:  # an array without axes says that it is a collection
            raise _Misfit from error
        if len(kinds) > 1 and len(kinds) != len(given):
            raise _Misfit
        fitting = [_entry(one, kinds[i % len(kinds)]) for i, one in enumerate(given)]
        is_kept = isinstance(value, Collection) and all(a is b for a, b in zip(given, fitting, strict=True))
        return value if is_kept else fitting if origin is list else tuple(fitting)
    if not isinstance(value, origin):
        raise _Misfit
    if callable(value) and args and isinstance(args[0], list):  # only a function's annotation has a list of types
        _check_callable(value, len(args[0]))
    return value


def _check_callable(value: Callable[..., Any], count: int) -> None:
    """Raises: _Misfit for a function that cannot be called with so many arguments, which would fail in mid-run."""
    try:
        inspect.signature(value).bind(*[None] * count)
    except TypeError as error:
        raise _Misfit(f"must be a function of {count} arguments: {error}") from None
    except ValueError:  # some of C's have no signature
        return


def _entry(value: Any, kind: Any) -> Any:
    try:
        return _fit(value, kind)
    except _Misfit as misfit:
        raise _Misfit(misfit.why or f"must hold {many(kind)}, not {_given(value)}") from None


def _number(value: Any, kind: type) -> int | float:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral if kind is int else numbers.Real):
        raise _Misfit
    try:
        number: int | float = int(value) if isinstance(value, numbers.Integral) else float(value)
    except OverflowError:  # of a fraction
        raise _Misfit from None
    if isinstance(number, float) and not math.isfinite(number):
        raise _Misfit
    if isinstance(number, int) and abs(number) > LARGEST:
        raise _Misfit(f"is {shown(number)}, which is too large")
    return number


def _text(value: str) -> str:
    if "\0" in value:  # no file, command line or recipe can hold it
        raise _Misfit(f"is no valid text: `{shown(value)}` holds a NUL")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _Misfit(f"is not valid text: `{shown(value[error.start : error.end])}` is half a character") from None
    return value


def _path(value: str | Path) -> str | Path:
    text = str(value)
    if not text:
        raise _Misfit("is an empty path")
    if "\0" in text:
        raise _Misfit(f"is not a path: `{shown(value)}` holds a NUL")
    if text.startswith("~"):
        try:
            Path(text).expanduser()
        except RuntimeError:
            raise _Misfit(f"is not a path: nobody has the home folder of `{shown(value)}`") from None
    try:
        raw = os.fsencode(text)
    except UnicodeEncodeError:
        raise _Misfit(f"is not a path: `{shown(value)}` holds half a character") from None
    if len(raw) > LONGEST_PATH or any(len(part) > LONGEST_NAME for part in raw.split(os.sep.encode())):
        raise _Misfit(f"is not a path: `{shown(value)}` is longer than file systems allow")
    return value


# -- dataclasses and calls ---------------------------------------------------------------------------------------------


def hints_of(kind: Any) -> dict[str, Any]:
    """Annotations of a class or function, evaluated, including names that are imported for type checkers alone."""
    if kind not in _HINTS:
        _HINTS[kind] = typing.get_type_hints(kind, localns=_NAMES)
    return _HINTS[kind]


def check_fields(value: Any, *, what: str = "") -> None:
    """Check the fields of a frozen dataclass against its annotations; for ``__post_init__``.

    Args:
        value: The instance; NumPy's numbers are replaced by Python's.
        what: Put in front of a field's name in messages.

    Raises:
        RequestError: A field has a value that its annotation does not allow.
    """
    hints = hints_of(type(value))
    for field in dataclasses.fields(value):
        given = getattr(value, field.name)
        fitting = checked(f"{what}{field.name}", given, hints[field.name])
        least, most = field.metadata.get("least"), field.metadata.get("most")
        if fitting is not None and ((least is not None and fitting < least) or (most is not None and fitting > most)):
            raise RequestError(f"`{field.name}` must be {allowed(hints[field.name])} from {least} to {most}, "
                               f"not `{shown(given)}`")  # fmt: skip
        if fitting is not given:
            object.__setattr__(value, field.name, fitting)


def check_names(
    given: Iterable[str], known: Collection[str], what: str, answers: Mapping[str, str] | None = None
) -> None:
    """Refuse names that are not known.

    Args:
        given: The names.
        known: The known names.
        what: What to call them in messages.
        answers: Messages for some unknown names that other libraries use.

    Raises:
        RequestError: A name is not known; the message is its answer, or suggests the nearest name.
    """
    for name in given:
        if name not in known:
            if answer := (answers or {}).get(name):
                raise RequestError(f"`{name}` is not taken: {answer}")
            raise unknown(name, known, what)


def check_call(answers: Mapping[str, str] | None = None) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function so that its arguments are checked against its annotations before it runs.

    The names of keyword arguments are checked too: a wrong one is a ``RequestError`` that says which was meant. What a
    function takes as ``**options: Unpack[SomeDict]`` is checked against the ``TypedDict``, and shown in its signature.

    Args:
        answers: See ``check_names``.

    Returns:
        The decorator. The decorated function raises ``RequestError`` for an argument that its annotations do not allow.
    """
    return lambda function: _checking(function, answers)


def _checking(function: Callable[P, T], answers: Mapping[str, str] | None) -> Callable[P, T]:
    signature = inspect.signature(function)
    more = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), None)

    @cache
    def hints() -> tuple[dict[str, Any], dict[str, Any]]:
        own = hints_of(function)
        return own, ({} if more is None else hints_of(get_args(own[more])[0]))

    @wraps(function)
    def run(*args: P.args, **options: P.kwargs) -> T:
        own, further = hints()
        names = [*(name for name in signature.parameters if name not in ("self", more)), *further]
        check_names(options, names, "argument", answers)
        try:
            bound = signature.bind(*args, **options)
        except TypeError as error:
            raise RequestError(f"`{function.__qualname__.removesuffix('.__call__')}`: {error}") from None
        for name, value in bound.arguments.items():
            if name == more:
                bound.arguments[name] = {key: checked(key, one, further[key]) for key, one in value.items()}
            elif name in own:
                bound.arguments[name] = checked(name, value, own[name])
        return function(*bound.args, **bound.kwargs)

    if more is not None:
        run.__signature__ = _spelled_out(function, signature, more)  # type: ignore[attr-defined]
    return run


def _spelled_out(function: Callable[..., Any], signature: inspect.Signature, more: str) -> inspect.Signature:
    """A signature in which the keys of a ``TypedDict`` are listed one by one."""
    name = str(signature.parameters[more].annotation).removeprefix("Unpack[").removesuffix("]")
    found = vars(sys.modules[function.__module__])[name].__annotations__
    further = [
        inspect.Parameter(
            key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=getattr(one, "__forward_arg__", one)
        )
        for key, one in found.items()
    ]
    return signature.replace(parameters=[p for p in signature.parameters.values() if p.name != more] + further)
