"""Checks full-size checkpoints by name and shape only: networks are built on the meta device.

A manifest is compared with the network built from its own hyper-parameters, and with that of every card that names its
checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kandinsky import catalogue
from kandinsky.engine.build import bare_network
from kandinsky.errors import KandinskyError, RequestError
from kandinsky.model.card import Component
from kandinsky.weights.keymaps import keymap_of
from kandinsky.weights.read import check_shapes

COMPONENT = "manifest"


def check_manifest(file: Path) -> str:
    """Check that networks have exactly the manifest's tensors, through the key map, with exactly their shapes.

    Args:
        file: The manifest, a JSON file.

    Returns:
        The number of tensors and the cards they were compared with, in words.

    Raises:
        RequestError: The file is not a manifest.
        WeightsError: A network differs; the message names the first tensor that does.
        KandinskyError: A network has another number of parameters.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        tensors = {name: tuple(map(int, shape)) for name, shape in values["tensors"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RequestError(f"`{file}` is not a manifest, a JSON object with a table `tensors` of shapes") from error
    holders: list[str] = []
    checked: list[Component] = []
    for holder, component in _components(values):
        bare = replace(component, parts=())
        if bare not in checked:  # many cards share a network
            _check(bare, values, tensors, f"{file}, {holder}")
            checked.append(bare)
        holders.append(holder)
    return f"{len(tensors)} tensors; {', '.join(holders[1:]) or 'no card'}"


def _components(values: dict[str, Any]) -> Iterator[tuple[str, Component]]:
    """The networks that should have these tensors: that of the manifest's own hyper-parameters, then those of cards."""
    owns = (family.manifest() for family in catalogue.families() if family.manifest is not None)
    own = next((found for component_of in owns if (found := component_of(values)) is not None), None)
    if own is None:
        raise RequestError("no family has a network with these hyper-parameters")
    yield "its own parameters", own
    named, files = values.get("checkpoint") or [], values.get("file") or []
    repositories = {named} if isinstance(named, str) else set(named)
    files = {files} if isinstance(files, str) else set(files)
    for card in catalogue.cards().values():
        for name, component in card.components.items():
            parts = [part for part in component.parts if part.repo in repositories]
            # a repository may hold several networks; then the file, or its folder, tells them apart
            if parts and name != "text" and _share(parts[0].files, files):
                yield card.id, component


def _share(listed: Iterable[str], named: set[str]) -> bool:
    """Whether one of a part's files, or the folder of several, is among those a manifest names."""
    if len(of_part := set(listed)) == 1:
        return bool(of_part & named)
    return bool({file.partition("/")[0] for file in of_part} & {file.partition("/")[0] for file in named})


def _check(component: Component, values: dict[str, Any], tensors: dict[str, tuple[int, ...]], where: str) -> None:
    """Compare one network with the manifest.

    Raises:
        WeightsError: A tensor differs; the message names the first.
        KandinskyError: The number of parameters differs.
    """
    part = catalogue.part(component.kind)
    keymap = keymap_of(part)
    with torch.device("meta"):
        # the file is not a folder with a `config.json`: only the component's values count
        net = bare_network(part, component, Path(where))
    shapes = {keymap.to_ours(name): shape for name, shape in tensors.items()}
    check_shapes(net, shapes, keymap=keymap, where=where)
    count = sum(p.numel() for p in net.parameters())
    if count != values.get("parameters", count):
        raise KandinskyError(f"{count} parameters, expected {values['parameters']} ({where})")
