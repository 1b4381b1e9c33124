"""A network as a small file beside that of another: low-rank updates of its linear layers.

A student that differs little from its teacher is kept as what was added, ``up · down`` of each layer. A card names the
file as the part `update` of a network; it is added when the weights are read, so nothing later knows of it.

Legend: R rank; I inputs, O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from kandinsky.errors import WeightsError
from kandinsky.ops.lora import LowRank, fuse, layer_shapes
from kandinsky.weights.read import read_meta, read_state
from kandinsky.weights.write import write_state

PART = "update"
DOWN, UP = ".down_RI", ".up_RO"


def write_update(updates: Mapping[str, LowRank], path: Path) -> Path:
    """Write updates as int8 rows, a row for each direction.

    Args:
        updates: By the layer's name.
        path: The file.

    Returns:
        ``path``.
    """
    state = {}
    for layer, update in updates.items():
        state[layer + DOWN] = update.down_RI.float()
        state[layer + UP] = update.up_OR.float().T.contiguous() * update.scale
    return write_state(state, path, layout="official", int8=["*"])


def check_update(net: nn.Module, path: Path) -> None:
    """Refuse a file that is no update of a network, by its header.

    Raises:
        WeightsError: It is not.
    """
    _layers(net, read_meta(path), path)


def add_update(net: nn.Module, path: Path, *, dtype: torch.dtype | None) -> None:
    """Add the update of a file to a network's weights.

    Args:
        net: The network, with its weights.
        path: The file.
        dtype: Type of the sums; that of each weight if omitted.

    Raises:
        WeightsError: The file is no update of this network.
    """
    state = read_state(path)
    updates = {
        layer: [(LowRank(state[layer + DOWN], state[layer + UP].T, 1.0), 1.0)] for layer in _layers(net, state, path)
    }
    fuse(net, updates, home=torch.device("cpu"), dtype=dtype)


def _layers(net: nn.Module, state: Mapping[str, Tensor], path: Path) -> list[str]:
    """Names of the layers that a file updates.

    Raises:
        WeightsError: One is not there, or has another shape, or half of an update is missing.
    """
    shapes, names = layer_shapes(net), list[str]()
    for name, tensor in state.items():
        layer = name.removesuffix(DOWN).removesuffix(UP)
        outputs, inputs = shapes.get(layer, (0, 0))
        width = inputs if name.endswith(DOWN) else outputs
        halves = {state.get(layer + end, tensor).shape[:1] for end in (DOWN, UP)}
        if layer == name or tensor.ndim != 2 or tensor.shape[1] != width or len(halves) > 1:
            raise WeightsError(f"tensor `{name}` in `{path}` does not fit the network: it is no update of its layers")
        if layer + DOWN not in state or layer + UP not in state:
            raise WeightsError(f"tensor `{name}` in `{path}` is half of an update: the other half is missing")
        if name.endswith(DOWN):
            names.append(layer)
    return names
