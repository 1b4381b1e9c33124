"""Convolutions of what was doubled by repeating pixels, without computing at the copies of a pixel again.

A kernel of three over doubled pixels sees each pixel once or twice: of two outputs side by side, one sees the pixel
before and its own twice, the other its own twice and the one behind. Each is a kernel of two over the pixels as they
were, with sums of the weights: two thirds of the products along each doubled axis, 8 of 27 in time and space. The
result is the same up to rounding, that of the summed weights to their type included.

Legend: tensors are [B, C, (T,) H, W], in any memory format.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.ops.convolution import Conv3d
from kandinsky.ops.convolution import convolve as convolve_3d
from kandinsky.ops.linear import computes

# What happens along an axis: nothing; doubled, an output sees one pixel on either side; doubled, it sees the past alone
Axis = Literal["kept", "doubled", "past"]


def pays(x: Tensor, layer: nn.Module) -> bool:
    """Whether ``convolve_doubled`` is to be used: on processors, where it was measured, and not in training.

    In bfloat16, of clips alone, sums of weights are rounded to it, which took the distance of a HunyuanVideo decode
    from float32 from 2.4 to 2.5 % of its norm, and its time to 0.86.

    Args:
        x: What is to be doubled.
        layer: The convolution behind it.
    """
    return (
        type(layer) in (nn.Conv2d, nn.Conv3d, Conv3d)
        and x.is_cpu
        and (x.dtype.itemsize >= 4 or (x.dim() == 5 and computes(x.dtype)))  # images gain less
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled(x.device.type)
        and not torch.compiler.is_compiling()
    )


@dataclass(frozen=True, slots=True)
class _Phase:
    """One of the outputs that share a pixel, along one axis.

    Attributes:
        joins: Which of the three weights fall on one pixel: 0, the first two; 1, the last two.
        offset: The first pixel that is seen.
    """

    joins: int
    offset: int

    def of(self, weight: Tensor, dim: int) -> Tensor:
        """The kernel of two along an axis."""
        first, middle, last = weight.unbind(dim)
        parts = (first + middle, last) if self.joins == 0 else (first, middle + last)
        return torch.stack(parts, dim)


_PHASES: dict[Axis, tuple[_Phase, ...]] = {
    "doubled": (_Phase(joins=1, offset=0), _Phase(joins=0, offset=1)),
    "past": (_Phase(joins=0, offset=0), _Phase(joins=1, offset=0)),
}


def convolve_doubled(x: Tensor, weight: Tensor, bias: Tensor | None, axes: tuple[Axis, ...]) -> Tensor:
    """Convolve x, doubled along some axes, without doubling it.

    Args:
        x: Padded before it is doubled: along a `doubled` axis by one pixel at both ends, along `past` by one in front,
            along `kept` as the kernel wants.
        weight: [out, in, …], 3 long along axes that are doubled.
        bias: [out].
        axes: What happens along each axis behind B and C.

    Returns:
        [B, out, …], along doubled axes twice as long as x without its padding; in the memory format of x.
    """
    dims = [dim for dim, axis in enumerate(axes, start=2) if axis != "kept"]
    sizes = [size - weight.shape[dim] + 1 for dim, size in enumerate(x.shape[2:], start=2)]
    for dim in dims:
        sizes[dim - 2] = 2 * (x.shape[dim] - (2 if axes[dim - 2] == "doubled" else 1))
    convolve = F.conv2d if len(axes) == 2 else convolve_3d
    out: Tensor | None = None
    for phases in product(*(_PHASES[axes[dim - 2]] for dim in dims)):
        # sums of weights are rounded once
        kernel, seen = weight.to(torch.promote_types(weight.dtype, torch.float32)), x
        for dim, phase in zip(dims, phases, strict=True):
            kernel = phase.of(kernel, dim)
            seen = seen.narrow(dim, phase.offset, sizes[dim - 2] // 2 + 1)
        made = convolve(seen, kernel.to(weight.dtype), bias)
        if out is None:
            strides = "channels_last" if len(axes) == 2 else "channels_last_3d"
            like = getattr(torch, strides) if made.stride(1) == 1 else torch.contiguous_format
            out = torch.empty((x.shape[0], len(weight), *sizes), dtype=made.dtype, device=x.device, memory_format=like)
        target = out
        for dim, phase in zip(dims, phases, strict=True):
            place = _PHASES[axes[dim - 2]].index(phase)
            target = target[(slice(None),) * dim + (slice(place, None, 2),)]
        target.copy_(made)
    assert out is not None
    return out


def convolve_doubled_image(x_BCHW: Tensor, layer: nn.Conv2d) -> Tensor:
    """``layer``, a convolution with a kernel of 3 and a padding of 1, of images twice as large by the nearest pixel."""
    if not pays(x_BCHW, layer):
        out: Tensor = layer(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))
        return out
    return convolve_doubled(F.pad(x_BCHW, (1, 1, 1, 1)), layer.weight, layer.bias, ("doubled", "doubled"))


class Doubling(nn.Module):
    """Every pixel of an image four times, then a convolution; the name of its tensors is `conv`."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return convolve_doubled_image(x_BCHW, self.conv)
