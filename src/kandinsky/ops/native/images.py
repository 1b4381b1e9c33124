"""Group norm of images, scaled and shifted by a smaller image, and activation, in one pass; see ``kernels.cpp``.

Legend: B batch; C channels; H W rows, columns; h w those of the smaller image.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from kandinsky.ops.native import library

LANES = 16
LEAST = 2**16  # numbers: below, results stay what PyTorch's operations give
LAST = torch.channels_last


class Image(ctypes.Structure):
    """What is to be done; see `struct Image` in ``kernels.cpp``."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "out", "weight", "bias", "scale", "shift")),
        *((name, ctypes.c_int64) for name in ("B", "H", "W", "C", "groups", "h", "w", "threads")),
        ("activates", ctypes.c_int32),
        ("eps", ctypes.c_float),
    ]


def serves(x_BCHW: Tensor, norm: nn.Module, sides: tuple[int, int] | None = None) -> bool:
    """Whether the kernels take images and their norm, with a smaller image of ``sides`` if there is one.

    Its pixels must be whole pieces of the images.
    """
    if x_BCHW.dim() != 4 or x_BCHW.numel() < LEAST or x_BCHW.shape[1] % LANES:
        return False
    if type(norm) is not nn.GroupNorm or norm.weight is None or norm.weight.dtype is not x_BCHW.dtype:
        return False
    if sides is not None and (x_BCHW.shape[2] % sides[0] or x_BCHW.shape[3] % sides[1]):
        return False
    return library.serves(x_BCHW)


def normed(
    x_BCHW: Tensor, norm: nn.GroupNorm, pieces: tuple[Tensor, Tensor] | None = None, *, activates: bool
) -> Tensor:
    """norm(x), or norm(x)·scale + shift, and its SiLU; the channels last in memory; of what ``serves``.

    Args:
        x_BCHW: In any memory format.
        norm: With a weight and a bias.
        pieces: Scale and shift, [B, C, h, w], each number of all the pixels that its place covers; None for none.
        activates: Whether SiLU follows.
    """
    made = library.kernels()
    assert made is not None
    x = x_BCHW.contiguous(memory_format=LAST)
    B, C, H, W = x.shape
    out = torch.empty_like(x, memory_format=LAST)
    weight, bias = norm.weight.detach().float().contiguous(), norm.bias.detach().float().contiguous()
    work = Image(
        x=x.data_ptr(), out=out.data_ptr(), weight=weight.data_ptr(), bias=bias.data_ptr(), B=B, H=H, W=W, C=C,
        groups=norm.num_groups, threads=torch.get_num_threads(), activates=activates, eps=norm.eps,
    )  # fmt: skip
    if pieces is not None:
        scale, shift = (one.to(x.dtype).expand(B, C, -1, -1).contiguous(memory_format=LAST) for one in pieces)
        if scale.shape != shift.shape or H % scale.shape[2] or W % scale.shape[3]:
            raise ValueError(f"scale {tuple(scale.shape)} and shift {tuple(shift.shape)} do not cover {tuple(x.shape)}")
        work.scale, work.shift = scale.data_ptr(), shift.data_ptr()
        work.h, work.w = scale.shape[2:]
    made.normed_image(ctypes.byref(work), x.dtype is torch.bfloat16)
    return out
