"""NABLA: which blocks of keys a block of queries attends to, selected in every layer and head.

Tokens are ordered by tiles of 8×8 within a frame, so that a block of 64 tokens is a compact patch of the image. A query
block sees the key blocks that hold most of the mass of a coarse softmax over block means, and those of a fixed window
around it. Edge tiles of a grid that is not a multiple of 8 are smaller: their tokens are padded to 64 for the kernels
only, and padding is never attended to.

Source: kandinskylab/kandinsky-5, kandinsky/models/utils.py, fractal_flatten, fast_sta_nabla, nablaT_v2.
Legend: B batch; S tokens; N heads; K head width, or as an axis of a mask key blocks; Q query blocks; D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kandinsky.ops.attention import attention
from kandinsky.ops.attention_spec import TILE, AttentionSpec
from kandinsky.ops.block_sparse import BlockMask
from kandinsky.ops.precision import island

BLOCK = TILE * TILE
# most probabilities that are sorted at once: sorting needs several times their memory
SORTED_ENTRIES = 2**24


@dataclass(frozen=True, slots=True)
class TileOrder:
    """Order of the tokens of a (frames, rows, columns) grid by tiles, row-major within each and among them.

    Attributes:
        tiles: The grid in tiles.
        order_S: Row-major index of each token in tile order.
        inverse_S: The way back.
        slots_S: Place of each token, in tile order, when every tile is padded to 64; None where none needs it.
        counts_K: Tokens of each tile; None where all are 64.
    """

    tiles: tuple[int, int, int]
    order_S: Tensor
    inverse_S: Tensor
    slots_S: Tensor | None = None
    counts_K: Tensor | None = None

    @classmethod
    def of(cls, grid: tuple[int, int, int], device: torch.device | None = None) -> TileOrder:
        """The order of a grid of any size."""
        frames, height, width = grid
        tiles = (frames, math.ceil(height / TILE), math.ceil(width / TILE))

        def axis(size: int) -> tuple[Tensor, Tensor, Tensor]:
            """Of each place on an axis: its tile, its place in that tile, how many places that tile has."""
            place = torch.arange(size, device=device)
            tile = torch.div(place, TILE, rounding_mode="floor")
            return tile, place - TILE * tile, (size - TILE * tile).clamp(max=TILE)

        row, inner_row, rows = axis(height)
        column, inner_column, columns = axis(width)
        block = (row * tiles[2])[:, None] + column
        # real tokens first within a tile, so that padding is its tail
        inner = inner_row[:, None] * columns + inner_column
        frame = torch.arange(frames, device=device)[:, None, None] * (tiles[1] * tiles[2])
        slots = ((frame + block) * BLOCK + inner).flatten()
        order = slots.argsort()
        full = height % TILE == 0 and width % TILE == 0
        counts = torch.outer(rows[::TILE], columns[::TILE]).flatten().repeat(frames)
        return cls(tiles, order, order.argsort(), None if full else slots[order], None if full else counts)

    @property
    def num_blocks(self) -> int:
        return math.prod(self.tiles)

    def arrange(self, x_BSD: Tensor) -> Tensor:
        """Row-major tokens into tile order."""
        return x_BSD.index_select(1, self.order_S)

    def restore(self, x_BSD: Tensor) -> Tensor:
        """Tokens in tile order back to row-major."""
        return x_BSD.index_select(1, self.inverse_S)

    def pad(self, x_BSNK: Tensor) -> Tensor:
        """Tokens in tile order with zeros behind those of each smaller tile."""
        if self.slots_S is None:
            return x_BSNK
        padded = x_BSNK.new_zeros(x_BSNK.shape[0], self.num_blocks * BLOCK, *x_BSNK.shape[2:])
        return padded.index_copy(1, self.slots_S, x_BSNK)

    def unpad(self, x_BSNK: Tensor) -> Tensor:
        """The inverse of ``pad``."""
        return x_BSNK if self.slots_S is None else x_BSNK.index_select(1, self.slots_S)


def window_mask(
    tiles: tuple[int, int, int], widths: tuple[int, int, int], device: torch.device | None = None
) -> Tensor:
    """Blocks that see each other whatever they hold: at most ``width // 2`` tiles apart on every axis (t, h, w).

    Returns:
        [Q, K] bool.
    """
    near = [
        (torch.arange(size, device=device)[:, None] - torch.arange(size, device=device)).abs() <= width // 2
        for size, width in zip(tiles, widths, strict=True)
    ]
    t, h, w = near
    blocks = math.prod(tiles)
    joined = t[:, None, None, :, None, None] & h[None, :, None, None, :, None] & w[None, None, :, None, None, :]
    return joined.reshape(blocks, blocks)


def block_means(x_BSNK: Tensor, counts_K: Tensor | None = None) -> Tensor:
    """Mean of each block's real tokens, [B, N, blocks, K] float32; padding must be zeros."""
    blocks = x_BSNK.float().unflatten(1, (-1, BLOCK))
    means = blocks.mean(2) if counts_K is None else blocks.sum(2) / counts_K[:, None, None]
    out: Tensor = means.transpose(1, 2)
    return out


def block_probability(q_BNQK: Tensor, k_BNQK: Tensor) -> Tensor:
    """Softmax over key blocks of the means' scores, [B, N, Q, K]."""
    return (q_BNQK @ k_BNQK.mT / math.sqrt(q_BNQK.shape[-1])).softmax(-1)


def top_cdf(probability_BNQK: Tensor, P: float) -> Tensor:
    """The most probable key blocks of each row that together hold about P of the mass, bool.

    The official rule: in rising order, those from which on the running sum is at least 1 − P.
    """
    values, places = probability_BNQK.sort(-1)
    # put where they came from: the official code finds the same with two more sorts
    kept = values.cumsum(-1) >= 1.0 - P
    return torch.empty_like(kept).scatter_(-1, places, kept)


class KeptBlocks:
    """The share of key blocks that was kept in each layer of each pass of one generation.

    Made by the caller for one call and handed along; nothing else holds it. Shares stay on the device until asked for.
    """

    def __init__(self) -> None:
        self._passes: list[dict[int, Tensor]] = []

    def begin(self) -> None:
        """A pass of the network begins."""
        self._passes.append({})

    def note(self, layer: int, kept_BNQK: Tensor) -> None:
        """What one layer of the present pass keeps."""
        self._passes[-1][layer] = kept_BNQK.flatten(1).float().mean(1)

    def passes(self) -> list[dict[int, list[float]]]:
        """Of each pass: layer → share of each clip of the batch. Passes without block-sparse layers are left out."""
        return [{layer: share.tolist() for layer, share in one.items()} for one in self._passes if one]

    def layers(self) -> dict[int, float]:
        """Layer → mean share over passes and clips."""
        found: dict[int, list[Tensor]] = {}
        for one in self._passes:
            for layer, share in one.items():
                found.setdefault(layer, []).append(share.mean())
        return {layer: float(torch.stack(shares).mean()) for layer, shares in sorted(found.items())}

    def mean(self, clip: int | None = None) -> float | None:
        """Mean share over passes and layers, of one clip of the batch or of all; None where nothing was sparse."""
        shares = [share for one in self._passes for share in one.values()]
        if not shares:
            return None
        mean_B = torch.stack(shares).mean(0)
        return float(mean_B.mean() if clip is None else mean_B[clip])


@dataclass(frozen=True, slots=True)
class Nabla:
    """NABLA for one grid of tokens: what does not depend on the tokens, made once a generation.

    Attributes:
        window_QK: Blocks that are always seen.
        P: Mass to keep.
        backend: Of the block-sparse attention.
    """

    order: TileOrder
    window_QK: Tensor
    P: float
    backend: str = "auto"

    @classmethod
    def of(cls, grid: tuple[int, int, int], spec: AttentionSpec, device: torch.device | None = None) -> Nabla:
        """For a grid of (frames, rows, columns) tokens."""
        order = TileOrder.of(grid, device)
        return cls(order, window_mask(order.tiles, (spec.wT, spec.wH, spec.wW), device), spec.P, spec.backend)

    def select(self, q_BSNK: Tensor, k_BSNK: Tensor) -> BlockMask:
        """The blocks to see, from padded queries and keys after norm and rotation. No gradient passes."""
        with torch.no_grad(), island(q_BSNK):
            q, k = (block_means(x, self.order.counts_K) for x in (q_BSNK, k_BSNK))
            B, N, Q, _ = q.shape
            step = max(1, SORTED_ENTRIES // (B * N * Q))
            rows = [slice(start, start + step) for start in range(0, Q, step)]
            kept = [top_cdf(block_probability(q[:, :, part], k), self.P) | self.window_QK[part] for part in rows]
            return BlockMask(kept[0] if len(kept) == 1 else torch.cat(kept, dim=2), BLOCK, self.order.counts_K)

    def attend(
        self, q_BSNK: Tensor, k_BSNK: Tensor, v_BSNK: Tensor, note: Callable[[Tensor], None] | None = None
    ) -> Tensor:
        """Attention of tokens in tile order. ``note`` is called with the blocks kept, [B, N, Q, K]."""
        q, k, v = (self.order.pad(x) for x in (q_BSNK, k_BSNK, v_BSNK))
        blocks = self.select(q, k)
        if note is not None:
            note(blocks.kept_BNQK)
        return self.order.unpad(attention(q, k, v, blocks=blocks, backend=self.backend))
