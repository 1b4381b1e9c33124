"""Block offload: a network's blocks live on the host and visit their device one at a time, from outside, by hooks.

The network stays the plain network. Each block of its lists (``block_lists``) gets two hooks: one that puts copies of
its tensors on the device in their place, one that puts the host's own tensors back. While a block runs, the one that
followed it last time is copied on a side stream, so at most two blocks are on the device: order is observed, not
assumed, and a step cache that skips blocks costs one wrong guess.

On CPU the host is the device. There the blocks stay as they were read, which for safetensors means mapped from their
file and evictable, and a block is converted to the compute type while it runs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Moves:
    """Statistics of block offload.

    Attributes:
        brought: Blocks brought to the device.
        foreseen: How many of them were already being copied.
        wrong: Blocks copied in vain.
        peak: Most blocks on the device at once.
    """

    brought: int = 0
    foreseen: int = 0
    wrong: int = 0
    peak: int = 0


@dataclass(slots=True)
class _Visit:
    """A block's tensors on the device; ``ready`` is the event after which they may be read, if a stream copies them."""

    tensors: list[Tensor]
    ready: Any = None


def block_lists(net: nn.Module) -> list[nn.ModuleList]:
    """The lists of blocks that may be moved one by one.

    A network that has an attribute ``offload_blocks`` names them (dotted; an empty tuple: none, it runs parts of its
    blocks itself). Otherwise they are the outermost module lists; their members must be run by calling them.
    """
    named = getattr(net, "offload_blocks", None)
    lists = list(_outermost(net)) if named is None else [net.get_submodule(name) for name in named]
    return [found for found in lists if isinstance(found, nn.ModuleList)]


def _outermost(net: nn.Module) -> Iterator[nn.Module]:
    for child in net.children():
        if isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _outermost(child)


class BlockSwap:
    """Moves one network; ``enter`` and ``leave`` bracket its use, ``remove`` makes it a plain network again.

    Edit weights only while no block runs: what is on the device then is a copy.

    Args:
        net: The network, on the host, with its weights.
        device: Where it runs.
        dtype: Type of its floating tensors while they run; None = as they are. The rest of the network is converted at
            once; blocks keep the type they were read in on CPU, and are converted at once elsewhere.
        ahead: Copy the next block while one runs; by default if the device has streams.
    """

    def __init__(
        self, net: nn.Module, device: torch.device, *, dtype: torch.dtype | None = None, ahead: bool | None = None
    ) -> None:
        self.net = net
        self.device = device
        self.dtype = dtype
        self.moves = Moves()
        self.blocks = [block for found in block_lists(net) for block in found if block is not None]
        self._streams = device.type == "cuda"
        self._ahead = self._streams if ahead is None else ahead
        self._lock = threading.RLock()
        self._users = [0] * len(self.blocks)
        self._at_home: dict[int, list[tuple[dict[str, Any], str, Tensor]]] = {}
        self._coming: dict[int, _Visit] = {}
        self._follower: dict[int, int] = {}
        self._last: int | None = None
        self._side: Any = torch.cuda.Stream(device) if self._streams else None
        self._freed: Any = None
        inside = {id(module) for block in self.blocks for module in block.modules()}
        self._rest = [module for module in net.modules() if id(module) not in inside]
        for module in self._rest:
            module._apply(self._typed, recurse=False)
        if self._streams:  # copies without waiting need page-locked memory
            for block in self.blocks:
                block._apply(lambda tensor: _pinned(self._typed(tensor)))
        self._handles = [
            handle
            for number, block in enumerate(self.blocks)
            for handle in (
                block.register_forward_pre_hook(lambda *_, n=number: self._bring(n), prepend=True),
                block.register_forward_hook(lambda *_, n=number: self._release(n), always_call=True),
            )
        ]

    def enter(self) -> None:
        """Put everything but the blocks on the device."""
        for module in self._rest:
            module._apply(lambda tensor: tensor.to(self.device), recurse=False)

    def leave(self) -> None:
        """Put it back on the host, and drop blocks being copied."""
        with self._lock:
            self._forget()
        home = torch.device("cpu")
        for module in self._rest:
            module._apply(lambda tensor: tensor.to(home), recurse=False)

    def remove(self) -> nn.Module:
        """Remove the hooks; the network is plain again, on the host, in its compute type."""
        self.leave()
        for handle in self._handles:
            handle.remove()
        for block in self.blocks:
            block._apply(self._typed)
        return self.net

    def _bring(self, number: int) -> None:
        with self._lock:
            self._users[number] += 1
            if self._users[number] > 1:  # another call of the same block is under way
                return
            visit = self._coming.pop(number, None)
            if visit is None:
                self._forget()
                visit = self._copy(number)
            else:
                self.moves.foreseen += 1
            self._at_home[number] = _exchange(self.blocks[number], visit.tensors)
            if visit.ready is not None:
                torch.cuda.current_stream(self.device).wait_event(visit.ready)
            self.moves.brought += 1
            if self._last is not None:
                self._follower[self._last] = number
            self._last = number
            following = self._follower.get(number, (number + 1) % len(self.blocks))
            if self._ahead and not self._users[following] and not self._coming:
                self._coming[following] = self._copy(following)
            self.moves.peak = max(self.moves.peak, len(self._at_home) + len(self._coming))

    def _release(self, number: int) -> None:
        with self._lock:
            self._users[number] -= 1
            if self._users[number]:
                return
            for table, name, tensor in self._at_home.pop(number):
                table[name] = tensor
            if self._streams:
                # the side stream may overwrite this block once the kernels queued so far are done
                self._freed = torch.cuda.current_stream(self.device).record_event()

    def _copy(self, number: int) -> _Visit:
        tensors = [tensor for _, _, tensor in _tensors(self.blocks[number])]
        if not self._streams:
            return _Visit([self._typed(tensor.to(self.device)) for tensor in tensors])
        with torch.cuda.stream(self._side):
            if self._freed is not None:
                self._side.wait_event(self._freed)
            # typed again: what was added to a block later, such as an adapter, may have another type
            copies = [self._typed(tensor.to(self.device, non_blocking=True)) for tensor in tensors]
            return _Visit(copies, self._side.record_event())

    def _forget(self) -> None:
        self.moves.wrong += len(self._coming)
        self._coming.clear()

    def _typed(self, tensor: Tensor) -> Tensor:
        return tensor if self.dtype is None or not tensor.is_floating_point() else tensor.to(self.dtype)


def _tensors(block: nn.Module) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """Where each tensor of a block is stored: the table, the name in it, the tensor."""
    for module in block.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    yield table, name, tensor


def _exchange(block: nn.Module, tensors: list[Tensor]) -> list[tuple[dict[str, Any], str, Tensor]]:
    """Put these tensors in a block, in the order of ``_tensors``; returns the previous ones."""
    before = list(_tensors(block))
    for (table, name, old), new in zip(before, tensors, strict=True):
        table[name] = nn.Parameter(new, requires_grad=False) if isinstance(old, nn.Parameter) else new
    return before


def _pinned(tensor: Tensor) -> Tensor:
    """A page-locked copy, also of a tensor made of tensors (quantised); the tensor itself if none can be had."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, context = tensor.__tensor_flatten__()
        inner = {name: _pinned(getattr(tensor, name)) for name in names}
        out: Tensor = type(tensor).__tensor_unflatten__(inner, context, tensor.size(), tensor.stride())  # type: ignore[attr-defined]
        return out
    try:
        return tensor.pin_memory()
    except RuntimeError as error:
        log.warning("no page-locked memory (%s): block offload will wait for its copies", str(error).splitlines()[0])
        return tensor
