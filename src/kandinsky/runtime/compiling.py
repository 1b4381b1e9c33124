"""A network's blocks by `torch.compile`: one program for all blocks of a kind, kept on disk.

A block is compiled and not the network, since blocks are alike: one of them is compiled, in seconds, and all run it.
What hooks around a block (offload, another process' tokens) stays outside. The programs lie in the folder `inductor` of
the cache folder, so that another process reads them; where `TORCHINDUCTOR_CACHE_DIR` is set, they lie there.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from kandinsky.files import cache_folder
from kandinsky.runtime.blocks import block_lists

log = logging.getLogger(__name__)
PLACE = "TORCHINDUCTOR_CACHE_DIR"
Compile = Callable[[Callable[..., Any]], Callable[..., Any]]


def compiled(make: Callable[[], nn.Module]) -> nn.Module:
    """Build a network whose blocks are compiled at their first call."""
    net = make()
    compile_blocks(net)
    return net


def compile_blocks(net: nn.Module, by: Compile = torch.compile) -> int:
    """Have a network's blocks compiled at their first call; where that fails, they run as before.

    Args:
        net: The network; its names, tensors and hooks stay.
        by: The compiler.

    Returns:
        How many blocks there are.
    """
    _keep()
    blocks = [block for found in block_lists(net) for block in found]
    for block in blocks:
        block.forward = _Compiled(block.forward, by, blocks)
    return len(blocks)


def _keep() -> None:
    """Have programs kept in our cache folder, unless the user chose another; torch's own choice is none."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    if (cache := cache_folder()) is not None and os.environ.get(PLACE) in (None, default_cache_dir()):
        os.environ[PLACE] = str(cache / "inductor")


def plain(blocks: list[nn.Module]) -> None:
    """Undo ``compile_blocks``."""
    for block in blocks:
        vars(block).pop("forward", None)


class _Compiled:
    """A block's ``forward``, compiled; the plain one once the compiler has failed."""

    def __init__(self, forward: Callable[..., Any], by: Compile, blocks: list[nn.Module]) -> None:
        self.forward, self.made, self.blocks = forward, by(forward), blocks

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from torch._dynamo.exc import TorchDynamoException
        from torch._inductor.exc import InductorError

        try:
            return self.made(*args, **kwargs)
        except (TorchDynamoException, InductorError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            log.warning("blocks run as they are, since they cannot be compiled: %s", reason)
            plain(self.blocks)
            return self.forward(*args, **kwargs)
