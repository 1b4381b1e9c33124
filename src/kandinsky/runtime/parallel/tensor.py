"""Tensor parallelism: each process holds some heads and part of the hidden layer of every block.

PyTorch's ``parallelize_module`` does the work: linear layers that produce heads or hidden features are cut by their
outputs, those after them by their inputs, and their results are summed. Everything else, including modulation, is small
and stays whole on every process.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from kandinsky.runtime.parallel.split import Cut


def cut_block(block: nn.Module, cut: Cut, mesh: DeviceMesh) -> None:
    """Keep only this process' part of a block; every process must hold the same weights, since nothing is sent."""
    if cut.prepare is not None:
        cut.prepare(block, mesh.size())
    plan: dict[str, Any] = {name: ColwiseParallel() for name in cut.by_outputs}
    plan |= {name: RowwiseParallel() for name in cut.by_inputs}
    parallelize_module(block, mesh, plan, src_data_rank=None)
