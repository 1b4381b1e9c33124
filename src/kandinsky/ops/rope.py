"""Rotary positions: angles once a forward pass, then pairs of channels are turned by them.

Legend: S tokens, N heads, K head width. Channel pairs are adjacent: (2i, 2i+1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def frequencies(count: int, device: torch.device, max_period: float = 10000.0) -> Tensor:
    """Falling frequencies exp(-ln(max_period)·j/count), j = 0 … count-1, float32.

    Source: kandinskylab/kandinsky-5, kandinsky/models/utils.py, get_freqs.
    Quirk:  float32 from the first operation on; a sinusoid of t·1000 shows the last bit.
    """
    j = torch.arange(count, dtype=torch.float32, device=device)
    return torch.exp(-math.log(max_period) * j / count)


def axis_angles(positions: Tensor, width: int, scale: float = 1.0) -> Tensor:
    """Angles of one axis, [len(positions), width / 2] float32; ``scale`` divides angles, not positions."""
    angles = torch.outer(positions.float(), frequencies(width // 2, positions.device))
    return angles if scale == 1.0 else angles / scale


def grid_angles(positions: Sequence[Tensor], widths: Sequence[int], scales: Sequence[float]) -> Tensor:
    """Angles of a row-major grid: per token the axes' angles side by side.

    Source:  kandinskylab/kandinsky-5, kandinsky/models/nn.py, RoPE3D.

    Args:
        positions: One vector an axis (t, h, w).
        widths: Channels given to each axis, even.
        scales: Divisor of each axis' angles.

    Returns:
        [prod(len(p) for p in positions), sum(widths) / 2] float32.
    """
    shape = tuple(len(p) for p in positions)
    parts = []
    for axis, (p, width, scale) in enumerate(zip(positions, widths, scales, strict=True)):
        view = [1] * len(shape) + [width // 2]
        view[axis] = shape[axis]
        parts.append(axis_angles(p, width, scale).view(view).expand(*shape, width // 2))
    return torch.cat(parts, dim=-1).flatten(0, -2)


class Rotation:
    """Turns of a token sequence, shared by all layers and heads, and by all passes over clips of one size."""

    def __init__(self, angles_SK: Tensor) -> None:
        # cosines and sines side by side, [S, 1, K/2, 2]: broadcasts over batch and heads, and is held once
        self.table = torch.stack((angles_SK.cos(), angles_SK.sin()), dim=-1).unsqueeze(-3)

    @classmethod
    def joined(cls, parts: Sequence[Rotation]) -> Rotation:
        """The turns of several sequences, one behind the other."""
        all_of = cls.__new__(cls)
        all_of.table = torch.cat([one.table for one in parts], dim=-4)
        return all_of

    def part(self, start: int, count: int) -> Rotation:
        """The turns of a stretch of the tokens (of each frame's, where frames stand apart); shares memory."""
        part = type(self).__new__(type(self))
        part.table = self.table.narrow(-4, start, count)
        return part

    def __call__(self, x_BSNK: Tensor) -> Tensor:
        """Turn adjacent channel pairs: (a, b) → (a·cos − b·sin, a·sin + b·cos). float32 in, float32 out.

        One complex product, which is much faster on CPU than the same in real numbers; the compiler, which
        does not support complex numbers, gets the real form.
        """
        pairs = x_BSNK.unflatten(-1, (-1, 2))
        if torch.compiler.is_compiling():
            (a, b), (cos, sin) = pairs.unbind(-1), self.table.unbind(-1)
            return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
        return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(self.table)).flatten(-2)


class Unturned(Rotation):
    """Places of tokens that the attention turns itself, such as by what a chunk sees: nothing turns them before it."""

    @classmethod
    def of(cls, rotation: Rotation) -> Unturned:
        """The same places; shares memory."""
        same = cls.__new__(cls)
        same.table = rotation.table
        return same

    def __call__(self, x_BSNK: Tensor) -> Tensor:
        return x_BSNK
