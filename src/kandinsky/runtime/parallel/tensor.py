"""Tensor parallelism: each process holds some heads and part of the hidden layer of every block.

PyTorch's ``parallelize_module`` does the work: linear layers that produce heads or hidden features are cut by their
outputs, those after them by their inputs, and their results are summed. Everything else, including modulation, is small
and stays whole on every process.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from kandinsky.runtime.parallel.split import Cut


def cut_block(block: nn.Module, cut: Cut, mesh: DeviceMesh) -> None:
    """Keep only this process' part of a block; every process must hold the same weights, since nothing is sent."""
    for name, count in cut.fused.items():
        with torch.no_grad():
            for tensor in block.get_submodule(name).parameters(recurse=False):
                tensor.data = _by_part(tensor, count, mesh.size())
    plan: dict[str, Any] = {name: ColwiseParallel() for name in cut.by_outputs}
    plan |= {name: RowwiseParallel() for name in cut.by_inputs}
    parallelize_module(block, mesh, plan, src_data_rank=None)


def _by_part(tensor: Tensor, count: int, parts: int) -> Tensor:
    """The rows of ``count`` layers in one, ordered so that each part has its rows of all of them."""
    rows: Tensor = tensor.unflatten(0, (count, parts, -1)).transpose(0, 1).flatten(0, 2)
    return rows
