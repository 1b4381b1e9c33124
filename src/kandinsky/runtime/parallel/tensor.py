"""Tensor parallelism: each process holds some heads and some of the hidden layer of every visual block.

PyTorch's ``parallelize_module`` does it: linear layers that make heads or hidden features are cut by their outputs,
those behind them by their inputs, and their results are added up. Everything else, modulation included, is small and
stays whole on every process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from kandinsky.errors import BackendError
from kandinsky.families.kandinsky4 import dit as kandinsky4
from kandinsky.families.kandinsky5 import dit as kandinsky5


def cut_block(block: nn.Module, mesh: DeviceMesh) -> None:
    """Leave this process its part of a block. Every process must hold the same weights: nothing is sent.

    Raises: BackendError for a kind of block without an entry.
    """
    entry = next((entry for kind, entry in CUTS.items() if isinstance(block, kind)), None)
    if entry is None:
        raise BackendError(f"blocks of kind `{type(block).__name__}` cannot be cut: use `ulysses` or `fsdp`")
    by_outputs, by_inputs, prepare = entry
    if prepare is not None:
        prepare(block, mesh.size())
    plan: dict[str, Any] = {name: ColwiseParallel() for name in by_outputs}
    plan |= {name: RowwiseParallel() for name in by_inputs}
    parallelize_module(block, mesh, plan, src_data_rank=None)


def _rows_by_part(block: nn.Module, parts: int) -> None:
    """Order the rows of the fused layer (queries, keys, values) so that each part has its heads of all three."""
    layer = block.get_submodule("self_attention.to_query_key_value")
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        for tensor in (layer.weight, layer.bias):
            rows = tensor.unflatten(0, (3, parts, -1)).transpose(0, 1).flatten(0, 2)
            tensor.data = rows


Prepare = Callable[[nn.Module, int], None]
_ATTENTION = ("to_query", "to_key", "to_value")
# kind of block → layers cut by outputs, layers cut by inputs, what to do before
CUTS: dict[type[nn.Module], tuple[tuple[str, ...], tuple[str, ...], Prepare | None]] = {
    kandinsky5.VisualBlock: (
        (
            *(f"{part}.{name}" for part in ("self_attention", "cross_attention") for name in _ATTENTION),
            "feed_forward.in_layer",
        ),
        ("self_attention.out_layer", "cross_attention.out_layer", "feed_forward.out_layer"),
        None,
    ),
    kandinsky4.Block: (
        ("self_attention.to_query_key_value", "feed_forward.in_layer"),
        ("self_attention.output_layer", "feed_forward.out_layer"),
        _rows_by_part,
    ),
}
