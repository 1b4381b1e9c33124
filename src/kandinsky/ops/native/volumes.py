"""Group norm, activation and repeated edges of volumes in one pass by our own kernels; see ``kernels.cpp``.

Legend: B batch; C channels; T H W frames, rows, columns.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from kandinsky.ops.native import library

LANES = 16
LEAST = 2**16  # numbers: below, results stay what PyTorch's operations give
LAST = torch.channels_last_3d


class Volume(ctypes.Structure):
    """What is to be done; see `struct Volume` in ``kernels.cpp``."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "out", "weight", "bias")),
        *((name, ctypes.c_int64) for name in ("B", "T", "H", "W", "C", "groups", "front", "side", "threads")),
        ("activates", ctypes.c_int32),
        ("eps", ctypes.c_float),
    ]


def serves(x_BCTHW: Tensor, channels: int) -> bool:
    """Whether the kernels take volumes like x of that many channels."""
    return (
        x_BCTHW.dim() == 5
        and channels % LANES == 0
        and x_BCTHW.numel() // x_BCTHW.shape[1] * channels >= LEAST
        and library.serves(x_BCTHW)
    )


def normed(x_BCTHW: Tensor, norm: nn.GroupNorm | None, *, activates: bool, front: int = 0, side: int = 0) -> Tensor:
    """SiLU(norm(x)) with repeated edges, the channels last in memory; of what ``serves``.

    Args:
        x_BCTHW: In any memory format.
        norm: With a weight and a bias; None for none.
        activates: Whether SiLU follows.
        front: Frames before the first.
        side: Pixels on each of the four sides.
    """
    made = library.kernels()
    assert made is not None
    x = x_BCTHW.contiguous(memory_format=LAST)
    B, C, T, H, W = x.shape
    shape = (B, C, front + T, H + 2 * side, W + 2 * side)
    out = torch.empty(shape, dtype=x.dtype, memory_format=LAST)
    work = Volume(
        x=x.data_ptr(), out=out.data_ptr(), B=B, T=T, H=H, W=W, C=C, front=front, side=side,
        threads=torch.get_num_threads(), activates=activates,
    )  # fmt: skip
    if norm is not None:
        weight, bias = norm.weight.detach().float().contiguous(), norm.bias.detach().float().contiguous()
        work.weight, work.bias = weight.data_ptr(), bias.data_ptr()
        work.groups, work.eps = norm.num_groups, norm.eps
    made.normed_volume(ctypes.byref(work), x.dtype is torch.bfloat16)
    return out
