"""The memory that tensors take while something runs."""

from __future__ import annotations

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Held(TorchDispatchMode):
    """Counts the bytes of all tensors made inside that are still alive; ``peak`` is the most there ever were."""

    def __init__(self, *known: torch.Tensor) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in known}  # a view of a weight is nothing new
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                is_file = func is torch.ops.aten.from_file.default  # mapped: no memory of ours
                if storage._cdata not in self.known:
                    size = 0 if is_file else storage.nbytes()
                    self.alive.setdefault(storage._cdata, (StorageWeakRef(storage), size))
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return out
