"""Inputs of nodes from the fields of ``Request`` and ``RunOptions``, which are declared in the library alone.

None, the model's own value, is -1 in a number, nothing in a text and ``DEFAULT`` in a menu, as widgets always hold
something.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any, get_args

from comfy_api.latest import io

from kandinsky.engine.request import SEED_LIMIT
from kandinsky.engine.words import WORDS
from kandinsky.model.checks import hints_of

DEFAULT = "default"
UNSET = -1
FREE = ("attention", "cache", "quantize")  # words that take options: a text, not a menu
LONG = ("negative_prompt",)
WIRED = ("expanded_prompt",)  # comes from another node
SIZES = ("upscale",)  # a number or a size: a text
MASKS = ("mask",)
# What differs at this door from what the fields say of themselves.
HERE = {
    "seed": "The same seed, with the same settings, makes the same result.",
    "device": "Where to run. The default is where ComfyUI computes.",
    "offload": "none: keep all networks loaded; module: one at a time; block: one block. The default is what fits.",
}


def inputs_of(kind: type, *, only: Collection[str]) -> list[Any]:
    """One optional input for each of some fields, in the order in which they are declared.

    Args:
        kind: The dataclass.
        only: Names of fields.

    Returns:
        ComfyUI's inputs.
    """
    hints = hints_of(kind)
    return [_input(field, hints[field.name]) for field in dataclasses.fields(kind) if field.name in only]


def images_of(kind: type, *, besides: Collection[str]) -> list[str]:
    """Names of the fields that hold an image of the result's own frames, apart from some."""
    hints = hints_of(kind)
    names = (field.name for field in dataclasses.fields(kind) if _is_image(hints[field.name]))
    return [name for name in names if name not in (*besides, *MASKS)]


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that were chosen, without those that leave the choice to the model."""
    return dict(_given(values))


def _given(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        is_unset = value == UNSET if isinstance(value, int | float) and not isinstance(value, bool) else value is None
        if isinstance(value, str):
            is_unset = not value.strip() or value == DEFAULT
        if not is_unset:
            yield name, value


def _is_image(hint: Any) -> bool:
    return any(getattr(one, "__name__", "").endswith("Image") for one in get_args(hint))


def _input(field: dataclasses.Field[Any], hint: Any) -> Any:
    name, about = field.name, _told(field)
    kinds = get_args(hint) or (hint,)
    told: dict[str, Any] = {"optional": True, "tooltip": about}
    if name == "seed":
        return io.Int.Input(
            name, default=0, min=0, max=SEED_LIMIT - 1, control_after_generate=True, tooltip=about, optional=True
        )
    if _is_image(hint):
        return io.Mask.Input(name, **told) if name in MASKS else io.Image.Input(name, **told)
    if bool in kinds:
        if hint is bool:
            return io.Boolean.Input(name, default=bool(field.default), **told)
        return io.Combo.Input(name, options=[DEFAULT, *WORDS[name]], default=DEFAULT, **told)
    if (int in kinds or float in kinds) and name not in SIZES:
        told["tooltip"] = f"{about} {UNSET} leaves it to the model."
        if int in kinds:
            return io.Int.Input(name, default=UNSET, min=UNSET, max=10_000, **told)
        return io.Float.Input(name, default=float(UNSET), min=float(UNSET), max=10_000.0, step=0.1, **told)
    if name in WORDS and name not in FREE:
        words = [word for word in WORDS[name] if word != DEFAULT]
        return io.Combo.Input(name, options=[DEFAULT, *words], default=DEFAULT, **told)
    if name in WIRED:
        return io.String.Input(name, default="", force_input=True, **told)
    told["tooltip"] = f"{about} Empty leaves it to the model."
    return io.String.Input(name, default="", multiline=name in LONG, **told)


def _told(field: dataclasses.Field[Any]) -> str:
    """What a field is: as the command line says it in short, unless that names its flags."""
    short: str = field.metadata["help"]
    text = HERE.get(field.name) or (field.metadata["about"] if "--" in short else short)
    text = text.replace("``", "`").rstrip(".")
    return f"{text[:1].upper()}{text[1:]}."
