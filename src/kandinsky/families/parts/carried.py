"""The HunyuanVideo autoencoder piece by piece: causal convolutions remember the end of the piece before.

Convolutions give what they give of the whole clip; norms and the attention of the middle look at one piece, as the
CogVideoX autoencoder's do. So this is another function than coding the clip whole, with memory that does not grow with
its length: the one a long context is trained with.

Legend: activations are [B, C, T, H, W].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

Memory = dict[str, Tensor]


@runtime_checkable
class Carrying(Protocol):
    """A layer that can be told the frames before a piece."""

    forward: Callable[[Tensor], Tensor]

    @property
    def past(self) -> int:
        """How many of them it needs."""
        ...

    def behind(self, past: Tensor, x: Tensor, *, first: bool) -> Tensor:
        """What it gives of a piece behind them."""
        ...


def run_piece(
    network: nn.Module, run: Callable[[Tensor], Tensor], piece: Tensor, memory: Memory | None
) -> tuple[Tensor, Memory]:
    """Run a part of the autoencoder on a piece of a clip.

    Args:
        network: Holds the layers that ``run`` calls.
        run: The part.
        piece: The first holds 1 + n · ratio frames (of latents 1 + n), each further one n · ratio (n).
        memory: What the piece before left; None for the first.

    Returns:
        What the part gives, and what it remembers.
    """
    kept: Memory = {}
    with _carrying(network, memory, kept):
        return run(piece), kept


@contextmanager
def _carrying(network: nn.Module, memory: Memory | None, kept: Memory) -> Iterator[None]:
    changed = []
    for name, layer in network.named_modules():
        if type(layer).__name__ == "HunyuanVideoCausalConv3d":  # of Diffusers, which is optional
            layer.forward = _convolution(name, layer, memory, kept)
        elif isinstance(layer, Carrying):
            layer.forward = _enlargement(name, layer, memory, kept)
        else:
            continue
        changed.append(layer)
    try:
        yield
    finally:
        for layer in changed:
            del layer.forward  # the class's own is seen again


def _convolution(name: str, layer: Any, memory: Memory | None, kept: Memory) -> Callable[[Tensor], Tensor]:
    left, right, top, bottom, before, _ = layer.time_causal_padding
    remembered = layer.conv.kernel_size[0] - layer.conv.stride[0]

    def forward(x: Tensor) -> Tensor:
        if before:
            past = x[:, :, :1].expand(-1, -1, before, -1, -1) if memory is None else memory[name]
            x = torch.cat((past, x), dim=2)
        if remembered > 0:
            kept[name] = x[:, :, x.shape[2] - remembered :]
        out: Tensor = layer.conv(F.pad(x, (left, right, top, bottom, 0, 0), mode=layer.pad_mode))
        return out

    return forward


def _enlargement(name: str, layer: Carrying, memory: Memory | None, kept: Memory) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        past = x[:, :, :1].expand(-1, -1, layer.past, -1, -1) if memory is None else memory[name]
        kept[name] = torch.cat((past, x), dim=2)[:, :, -layer.past :]
        out: Tensor = layer.behind(past, x, first=memory is None)
        return out

    return forward
