"""Weights in shards (FSDP2), for models that do not fit: a block's weights are gathered only while it runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard


@dataclass(frozen=True, slots=True)
class Keeping:
    """How shards are kept.

    Attributes:
        param_dtype: In which weights meet; as they are stored where absent.
        reduce_dtype: In which gradients are added up; that of the gradients where absent.
        offload: Shards lie in main memory, and so do their gradients.
    """

    param_dtype: torch.dtype | None = None
    reduce_dtype: torch.dtype | None = None
    offload: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """For ``fully_shard``. What goes into a block keeps its type: times stay float32."""
        policy = MixedPrecisionPolicy(self.param_dtype, self.reduce_dtype, cast_forward_inputs=False)
        options: dict[str, Any] = {"mp_policy": policy}
        return options | ({"offload_policy": CPUOffloadPolicy(torch.cuda.is_available())} if self.offload else {})


def shard_block(block: nn.Module, mesh: DeviceMesh, keeping: Keeping | None = None) -> None:
    """Keep one shard of a block, on the mesh's device; the whole is there while it runs."""
    fully_shard(block, mesh=mesh, reshard_after_forward=True, **({} if keeping is None else keeping.options))


def shard_rest(net: nn.Module, blocks: Iterable[nn.Module], mesh: DeviceMesh, keeping: Keeping | None = None) -> None:
    """Shard what is no block, and fetch each block's weights while the one before it runs."""
    fully_shard(net, mesh=mesh, reshard_after_forward=False, **({} if keeping is None else keeping.options))
    ordered = [cast(FSDPModule, block) for block in blocks]
    for block, following in pairwise(ordered):
        block.set_modules_to_forward_prefetch([following])
    for module in net.modules():
        # buffers are small and are not sharded
        for name, buffer in module._buffers.items():
            if buffer is not None and mesh.device_type != buffer.device.type:
                module._buffers[name] = buffer.to(torch.device(mesh.device_type))
