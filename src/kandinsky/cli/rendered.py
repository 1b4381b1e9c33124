"""Flags of a command from the fields of values: ``Request`` and ``RunOptions`` are declared once and rendered here."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer

from kandinsky.cli.complete import words_of
from kandinsky.model.checks import hints_of

P = ParamSpec("P")
T = TypeVar("T")
Made = TypeVar("Made")
# How the command line writes fields whose Python type says too little, or too much.
WRITTEN: dict[str, Any] = {
    **dict.fromkeys(("image", "last_image", "mask", "reference", "states"), Path | None),
    **dict.fromkeys(("video", "control"), str | None),
    **dict.fromkeys(("device", "dtype", "quantize", "cache", "text_cache", "parallel"), str | None),
    **dict.fromkeys(("lora", "conditions", "branch", "prompt_at"), list[str] | None),
    "overlap": str | None,
    "upscale": str | None,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Flags:
    """The fields of a value that become flags.

    Attributes:
        kind: The dataclass.
        only: Names of fields; None = all that have flags.
        help: Help by field, in place of the field's own.
    """

    kind: type
    only: tuple[str, ...] | None = None
    help: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def fields(self) -> list[dataclasses.Field[Any]]:
        """The fields, in their order."""
        found = [f for f in dataclasses.fields(self.kind) if f.metadata.get("flags")]
        return [f for f in found if self.only is None or f.name in self.only]

    def parameters(self) -> list[inspect.Parameter]:
        """One keyword parameter per field, as typer reads it."""
        hints = hints_of(self.kind)
        made = []
        for f in self.fields():
            kind = WRITTEN.get(f.name, hints.get(f.name, str | None))
            told = typer.Option(
                *f.metadata["flags"],
                metavar=f.metadata["metavar"],
                help=self.help.get(f.name, f.metadata["help"]),
                autocompletion=words_of(f.name),
            )
            made.append(
                inspect.Parameter(
                    f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=Annotated[kind, told]
                )
            )
        return made


def taken(values: dict[str, Any], flags: Flags) -> dict[str, Any]:
    """Take the fields' values out of a command's arguments, as the dataclass expects them."""
    found = {f.name: values.pop(f.name) for f in flags.fields()}
    for name, value in found.items():
        if isinstance(value, Path):
            found[name] = str(value)
    return found


def rendered(**places: Flags) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Decorate a command so that typer sees a flag for each field of some parameters.

    Args:
        places: Flags by the parameter's name; the parameter receives a mapping of what was given, to build the value
            from.

    Returns:
        The decorator.
    """

    def around(command: Callable[..., T]) -> Callable[..., T]:
        signature = inspect.signature(command, eval_str=True)
        parameters: list[inspect.Parameter] = []
        for name, parameter in signature.parameters.items():
            if name in places:
                parameters += places[name].parameters()
            else:
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

        @wraps(command)
        def run(**values: Any) -> T:
            made = {name: taken(values, flags) for name, flags in places.items()}
            return command(**values, **made)

        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": signature.return_annotation}
        del run.__wrapped__  # typer would look through it
        return run

    return around
