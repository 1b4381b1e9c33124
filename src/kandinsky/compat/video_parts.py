"""What Kandinsky Video 1.0 and 1.1 share: networks one by one, a pipeline of them, and where files lie."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kandinsky.compat.official_call import at_path
from kandinsky.engine.build import bare_network
from kandinsky.engine.context import Context
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.families.parts.projected import ProjectedParams, ProjectedT5Encoder, projection_of
from kandinsky.model.card import Card, Component
from kandinsky.runtime.placement import Placement, Precision, place
from kandinsky.text.t5 import read_t5
from kandinsky.weights.keymaps import keymap_of
from kandinsky.weights.locate import locate_part, places
from kandinsky.weights.read import load_into

Device = str | torch.device


def found_in(card: Card, cache_dir: str | Path | None) -> Card:
    """The card with all files taken from a folder that it has, by their own names or as huggingface_hub caches them.

    Other files are looked for in the usual places. A folder that does not exist holds nothing, and is not created.
    """
    if cache_dir is None or not (folder := Path(cache_dir).expanduser()).is_dir():
        return card

    def from_folder(_name: str, component: Component) -> Component:
        for part in component.parts:
            here = next((at for at in places(part, root=folder) if not at.missing()), None)
            component = component if here is None else at_path(component, here.target.absolute(), part.name)
        return component

    return card.with_components(from_folder)


def read_network(
    card: Card, component: Component, device: Device, dtype: torch.dtype, path: Path | None = None
) -> nn.Module:
    """Read a network to its device.

    Args:
        card: The model.
        component: The network's entry in the card.
        device: Where it runs.
        dtype: Its type.
        path: Its file; by default where the entry says.

    Returns:
        The network.

    Raises:
        WeightsError: The file does not exist or does not fit.
        BackendError: The device is not available.
    """
    path, part = path or locate_part(component.parts[0]), card.family.part(component.kind)
    with torch.device("meta"):
        net = bare_network(part, component, path)
    load_into(net, path, keymap=keymap_of(part), dtype=dtype)
    return net.to(place(str(device))).eval().requires_grad_(False)


def null_state(net: nn.Module) -> Tensor:
    """A U-Net's embedding for an empty prompt."""
    return net.get_buffer("null_embedding")


def read_encoder(
    folders: tuple[Path, Path],
    projections: Mapping[str, Mapping[str, Tensor]],
    *,
    params: ProjectedParams | None = None,
    dtype: torch.dtype,
    projection_dtype: torch.dtype,
    where: str,
) -> ProjectedT5Encoder:
    """Read a text encoder to the host, with projections that are in memory.

    Args:
        folders: Folders of the encoder and of its tokenizer.
        projections: Tensors of `text`, and of `gaps` if the interpolation has its own.
        params: Its parameters.
        dtype: Its type.
        projection_dtype: Type of the projections.
        where: What to call the projections in messages.

    Returns:
        The encoder.

    Raises:
        WeightsError: A file is missing or damaged, or a projection does not fit.
        BackendError: A package is not available.
    """
    made = {name: projection_of(tensors, dtype=projection_dtype, where=where) for name, tensors in projections.items()}
    bare = read_t5(*folders, dtype=dtype)
    return ProjectedT5Encoder(bare.encoder, bare.tokenizer, made["text"], params, gaps=made.get("gaps"))


def encoder_folders(card: Card, weights_path: str) -> tuple[Path, Path]:
    """Folders of encoder and tokenizer: a local folder, or a repository that was downloaded.

    Raises:
        WeightsError: They are not on this machine.
    """
    local = Path(weights_path).expanduser()
    if local.is_dir():
        return local, local
    parts = {part.name: dataclasses.replace(part, repo=weights_path) for part in card.text.parts}
    return locate_part(parts["t5"], model=card.id), locate_part(parts["tokenizer"], model=card.id)


def pipeline_of(
    card: Card,
    networks: Mapping[str, nn.Module],
    nulls: Mapping[str, Tensor | None],
    *,
    devices: Mapping[str, torch.device],
    dtype: torch.dtype,
) -> GenerationPipeline:
    """Build a pipeline from networks that are already in memory.

    Args:
        card: The model.
        networks: Networks by our names.
        nulls: Embeddings for an empty prompt that were passed along with the networks.
        devices: Devices by our names.
        dtype: Type of the U-Nets.

    Returns:
        The pipeline.
    """
    for name, null in nulls.items():
        if null is not None:
            mine = null_state(networks[name])
            mine.copy_(null.detach().flatten().to(mine))
    builders = {name: partial(_as_it_is, net) for name, net in networks.items()}
    placement = Placement(builders, device=devices["dit"], places={name: devices[name] for name in networks})
    return GenerationPipeline(Context(card, placement, Precision(dtype)))


def _as_it_is(net: Any) -> Any:
    return net
