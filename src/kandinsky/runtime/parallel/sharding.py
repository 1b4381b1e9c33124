"""Weights in shards (FSDP2), for models that do not fit: a block's weights are gathered only while it runs."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard


def shard_block(block: nn.Module, mesh: DeviceMesh) -> None:
    """Keep one shard of a block, on the mesh's device; the whole block is there while it runs."""
    fully_shard(block, mesh=mesh, reshard_after_forward=True)


def shard_rest(net: nn.Module, blocks: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Shard everything outside the blocks, and fetch each block's weights while the one before it runs."""
    fully_shard(net, mesh=mesh, reshard_after_forward=False)
    ordered = [cast(FSDPModule, block) for block in blocks]
    for block, following in pairwise(ordered):
        block.set_modules_to_forward_prefetch([following])
    for module in net.modules():
        # buffers are small and are not sharded
        for name, buffer in module._buffers.items():
            if buffer is not None and mesh.device_type != buffer.device.type:
                module._buffers[name] = buffer.to(torch.device(mesh.device_type))
