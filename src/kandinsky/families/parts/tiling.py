"""The official tiling of the HunyuanVideo autoencoder: overlapping tiles, blended linearly, finished in order of time.

Legend: tensors here are [B, C, T, H, W]. Tiles are laid in time first, in space within each time tile.
Source: kandinskylab/kandinsky-5, kandinsky/models/vae.py, as described in its numbers (tiles, strides, blends).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from kandinsky.families.parts.tiles import Tiling, starts_of

Coder = Callable[[Tensor], Tensor]
# (decoder of a tile, temporal and spatial factor) -> the decoder to use, such as one that lets others do a part
Spread = Callable[[Coder, int, int], Coder]
TIME, ROWS, COLUMNS = 2, 3, 4


def tiled(
    coder: Coder, x: Tensor, tiling: Tiling, *, direction: Literal["encode", "decode"], temporal: int, spatial: int
) -> Iterator[Tensor]:
    """Run ``coder`` (pixels → moments, or latents → pixels) over tiles of x and blend the results.

    If the official grid leaves a right or bottom edge (or last frames, when encoding) uncovered, and so returns a
    smaller clip, a last tile is laid flush with the edge; elsewhere the result is the official one.

    Args:
        coder: Encodes or decodes one tile.
        x: Pixels or latents.
        tiling: The tiles.
        direction: Whether to encode or to decode.
        temporal: Pixel frames per latent frame.
        spatial: Pixels per latent pixel, along each side.

    Yields:
        The result in pieces along time, each as soon as it is final: at most two tiles in time are held at once,
        however long the clip is.
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
        starts = [starts_of(clip.shape[dim], tile_s[i], stride_s[i]) for i, dim in enumerate((ROWS, COLUMNS))]
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
    starts = starts_of(frames, tile_t, stride_t, slack=int(decoding))
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
