"""A model's networks without its files: built on the meta device, materialised where they run, filled with noise.

Speed and memory do not depend on the values, so a full-size model can be measured before or without downloading it, and
at other sizes. Such a pipeline generates noise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kandinsky.engine.build import COMPONENTS, bare_network, check_blocks, computing, places_for, shape_of, ways_of
from kandinsky.engine.context import Context
from kandinsky.engine.options import RunOptions
from kandinsky.engine.pipeline import GenerationPipeline, VideoToAudioPipeline, pipeline_of
from kandinsky.errors import BackendError, RequestError
from kandinsky.model.card import Card, Component
from kandinsky.model.family import Reader
from kandinsky.runtime import tuning
from kandinsky.runtime.compiling import compiled
from kandinsky.runtime.placement import Placement, Precision
from kandinsky.weights.locate import locate_parts
from kandinsky.weights.made_up import fill
from kandinsky.weights.read import made_tensors

NO_FILES = Path("random-weights")  # a network that would look for a `config.json` finds none


def random_pipeline(
    card: Card,
    *,
    changes: Mapping[str, Any] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    offload: str = "none",
    attention: str = "auto",
    backends: str = "default",
    used: Collection[str] = COMPONENTS,
) -> GenerationPipeline | VideoToAudioPipeline:
    """Build a pipeline for a card, each network made at its first use, from one seed.

    Args:
        card: The model.
        changes: Hyper-parameters to replace, by component: ``{"dit.model_dim": 512, "text.num_layers": 4}``; for text
            encoders, what their part's ``made_up`` reads.
        device: As for ``load``.
        dtype: As for ``load``.
        offload: As for ``load``.
        attention: As for ``load``.
        backends: As for ``load``.
        used: Names of the networks that will run: only these are checked now, and only their packages are needed.

    Returns:
        The pipeline.

    Raises:
        RequestError: There is no such hyper-parameter, or its value is not valid.
        BackendError: A component's kind cannot be made with random weights.
    """
    places = places_for(RunOptions(device=device))
    precision = Precision.choose(dtype, places["dit"])
    card = changed(card, changes or {})
    work, more = partial(shape_of, card, precision, places["dit"]), partial(ways_of, card, precision, places["dit"])
    choices = tuning.settle(backends, work, more)
    check_blocks(choices, offload, places["dit"])
    builders: dict[str, Callable[[], Any]] = {}
    for part in COMPONENTS:
        component, kind = card.component(part), card.part(part)
        if kind.network is not None:
            make = partial(bare_network, kind, component, NO_FILES)
            if part in used:
                with torch.device("meta"):
                    make()  # refuses a wrong hyper-parameter now
            builders[part] = partial(_materialised, make, places[part], precision.compute)
        elif kind.made_up is not None:
            builders[part] = partial(kind.made_up(), card, places[part], precision.compute)
        elif kind.reader is not None and not kind.remote_code:
            # encoders that ship with the package, vocabulary and all, need no stand-in
            builders[part] = partial(_as_it_is, kind.reader(), component, card.id, precision)
        else:
            raise BackendError(f"component `{component.kind}` cannot be made with random weights")
    if choices.blocks == "compiled":
        builders["dit"] = partial(compiled, builders["dit"])
    placement = Placement(builders, device=places["dit"], places=places, offload=offload)
    name = f"{card.id} (random weights)"
    return pipeline_of(
        Context(card, placement, precision, attention=attention, name=name, **computing(choices, precision))
    )


def _as_it_is(read: Reader, component: Component, model: str, precision: Precision) -> Any:
    return read(component, locate_parts(component, model=model), precision)


def changed(card: Card, changes: Mapping[str, Any]) -> Card:
    """Replace some hyper-parameters of a card.

    Args:
        card: The model.
        changes: New values by `COMPONENT.NAME`.

    Returns:
        The changed card.

    Raises:
        RequestError: A name has no component.
    """
    for name, value in changes.items():
        part, dot, key = name.partition(".")
        if not dot or part not in COMPONENTS:
            raise RequestError(f"`{name}` names no hyper-parameter: use `dit.…`, `text.…` or `vae.…`")
        component = card.component(part)
        replaced: Any = {part: dataclasses.replace(component, params=component.params | {key: value})}
        card = dataclasses.replace(card, **replaced)
    return card


def parse_changes(texts: Sequence[str]) -> dict[str, Any]:
    """Parse hyper-parameters such as `dit.model_dim=512` or `dit.axes_dims=8,12,12`.

    Args:
        texts: `NAME=VALUE`, the value a number or several with commas between.

    Returns:
        Values by name.

    Raises:
        RequestError: A text has another form, or a value is not a number.
    """

    def number(text: str) -> int | float:
        try:
            return int(text) if text.lstrip("-").isdecimal() else float(text)
        except ValueError:
            raise RequestError(f"`{text}` is not a number, such as `dit.model_dim=512` takes") from None

    values: dict[str, Any] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign:
            raise RequestError(f"`{text}` is not of the form `dit.model_dim=512`")
        parts = [number(part) for part in value.split(",")]
        values[name] = parts if len(parts) > 1 else parts[0]
    return values


def _materialised(make: Callable[[], nn.Module], device: torch.device, dtype: torch.dtype) -> nn.Module:
    with torch.device("meta"):
        net = make()
    made = made_tensors(net)
    if names := [name for name, _ in net.named_buffers() if name not in made]:
        raise BackendError(
            f"`{names[0]}` of this network is a table and no weight, so it cannot be made up: measure the model with "
            "its files, without random weights"
        )
    net = net.to(dtype).to_empty(device=device)
    net.load_state_dict(made, strict=False)
    return fill(net).eval().requires_grad_(False)
