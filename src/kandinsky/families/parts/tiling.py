"""The official tiling of the HunyuanVideo autoencoder: overlapping tiles, blended linearly, finished in order of time.

Legend: tensors here are [B, C, T, H, W]. Tiles are laid in time first, in space within each time tile.
Source: kandinskylab/kandinsky-5, kandinsky/models/vae.py, as described in its numbers (tiles, strides, blends).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

Coder = Callable[[Tensor], Tensor]
# (decoder of a tile, temporal and spatial factor) -> the decoder to use, such as one that lets others do a part
Spread = Callable[[Coder, int, int], Coder]
TIME, ROWS, COLUMNS = 2, 3, 4


@dataclass(frozen=True, slots=True)
class Tiling:
    """Tile and stride in pixels, (frames, height, width). Frames of a tile: 1 + a multiple of 4."""

    tile: tuple[int, int, int]
    stride: tuple[int, int, int]

    @classmethod
    def official(cls, height: int, width: int, memory_bytes: int = 64 * 2**30) -> Tiling:
        """The official rule for a clip of height × width pixels.

        Quirk: the official code asks the device for its free memory, so that the same seed gives other pixels on
        another machine; here the number is given, and the default is fixed.
        """
        max_area = memory_bytes / (256 * 17 * 8)
        volume = 256 * 17 * (height + 32) * (width + 32)
        if height * width < max_area and volume < 2**31:
            return cls((17, height, width), (8, height, width))
        k = max(height / width, width / height)
        parts = max(math.ceil(height * width / max_area), math.ceil(volume / 2**31))
        short, long = math.ceil(math.sqrt(parts / k)), math.ceil(math.sqrt(parts * k))
        rows, columns = (long, short) if height >= width else (short, long)
        sides = []
        for side, count in ((height, rows), (width, columns)):
            tile = math.ceil(side / count / 8) * 8 + 16
            sides.append((tile, tile - 32) if count > 1 else (side, side))
        return cls((17, sides[0][0], sides[1][0]), (8, sides[0][1], sides[1][1]))


def tiled(
    coder: Coder, x: Tensor, tiling: Tiling, *, direction: Literal["encode", "decode"], temporal: int, spatial: int
) -> Iterator[Tensor]:
    """Run ``coder`` (pixels → moments, or latents → pixels) over tiles of x and blend the results.

    however long the clip is.

    Where the official grid leaves a right or bottom edge (or last frames, when encoding) uncovered, and so returns a
    smaller clip, a last tile is laid flush with the edge; elsewhere the result is the official one.

    Yields:
        The result in pieces along time, each as soon as it is final: at most two tiles in time are held at once,.
    """
    decoding = direction == "decode"
    # sizes in units of the input; one unit of input makes `grow` units of output
    unit_t, unit_s = (temporal, spatial) if decoding else (1, 1)
    steps = tiling.tile[0] - 1
    tile_t, stride_t = steps // unit_t + 1, tiling.stride[0] // unit_t
    tile_s = [side // unit_s for side in tiling.tile[1:]]
    stride_s = [side // unit_s for side in tiling.stride[1:]]

    def grow(size: int, factor: int) -> int:
        return size * factor if decoding else size // factor

    def in_space(clip: Tensor) -> Tensor:
        starts = [_starts(clip.shape[dim], tile_s[i], stride_s[i]) for i, dim in enumerate((ROWS, COLUMNS))]
        if all(len(s) == 1 for s in starts):
            return coder(clip)
        out = [[coder(clip[..., r : r + tile_s[0], c : c + tile_s[1]]).clone() for c in starts[1]] for r in starts[0]]
        gaps = [[grow(b - a, spatial) for a, b in pairwise(s)] for s in starts]
        lengths = [grow(side, spatial) for side in tile_s]
        lines = []
        for i, line in enumerate(out):
            for j, tile in enumerate(line):
                # neighbours are blended already; rows before columns
                if i:
                    _blend(out[i - 1][j], tile, lengths[0] - gaps[0][i - 1], ROWS)
                if j:
                    _blend(line[j - 1], tile, lengths[1] - gaps[1][j - 1], COLUMNS)
        for i, line in enumerate(out):
            kept = [t.narrow(COLUMNS, 0, gaps[1][j]) if j < len(gaps[1]) else t for j, t in enumerate(line)]
            row = torch.cat(kept, dim=COLUMNS)
            lines.append(row.narrow(ROWS, 0, gaps[0][i]) if i < len(gaps[0]) else row)
        return torch.cat(lines, dim=ROWS)

    frames = x.shape[TIME]
    if frames <= tile_t:
        yield in_space(x)
        return
    # latents: the last tile may be one frame short instead of a further tile
    starts = _starts(frames, tile_t, stride_t, slack=int(decoding))
    last: Tensor | None = None
    for k, start in enumerate(starts):
        piece = in_space(x[:, :, start : start + tile_t])
        # a causal coder treats a tile's first frame as a still: later tiles drop it
        piece = piece.clone() if k == 0 else piece[:, :, 1:].clone()
        if last is not None:
            gap = grow(start - starts[k - 1], temporal)
            _blend(last, piece, grow(tile_t - 1, temporal) - gap, TIME)
            yield last.narrow(TIME, 0, gap + (k == 1))
        last = piece
    assert last is not None
    yield last


def _starts(size: int, tile: int, stride: int, slack: int = 0) -> list[int]:
    starts = list(range(0, max(size - tile, 0) + slack + 1, stride))
    if starts[-1] + tile < size:
        starts.append(size - tile)
    return starts


def _blend(before: Tensor, after: Tensor, extent: int, dim: int) -> None:
    """Fade from the end of ``before`` into the start of ``after``, in place, over ``extent`` entries."""
    extent = min(extent, before.shape[dim], after.shape[dim])
    if extent <= 0:
        return
    shape = [1] * after.dim()
    shape[dim] = extent
    weight = (torch.arange(extent, device=after.device, dtype=torch.float32) / extent).view(shape).to(after.dtype)
    end = before.narrow(dim, before.shape[dim] - extent, extent)
    head = after.narrow(dim, 0, extent)
    head.copy_(end * (1 - weight) + head * weight)
