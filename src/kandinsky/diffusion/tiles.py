"""One denoiser over a latent that is larger than it was trained for: it sees tiles, and what they say is blended.

All tiles look into the same state at every step, so neighbours never drift apart: a seam cannot come into being. Where
they overlap, their predictions are mixed with weights that rise from one tile's border to the other's.
Source: Bar-Tal et al., MultiDiffusion.

Legend: B batch; T H W C latent frames, rows, columns, channels; h w rows and columns of a tile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kandinsky.diffusion.guidance import Denoising
from kandinsky.diffusion.tile_starts import starts
from kandinsky.model.denoiser import each

if TYPE_CHECKING:
    from kandinsky.model.denoiser import State


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tiles over rows and columns.

    Attributes:
        rows: Of the whole latent.
        columns: Of the whole latent.
        height: Rows of a tile.
        width: Columns of a tile.
        tops: First rows of the tiles.
        lefts: First columns of the tiles.
    """

    rows: int
    columns: int
    height: int
    width: int
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @classmethod
    def over(cls, rows: int, columns: int, *, tile: tuple[int, int], overlap: tuple[int, int]) -> Tiles:
        """Tiles that cover a latent.

        Args:
            rows: Of the latent.
            columns: Of the latent.
            tile: Rows and columns of a tile; cut to the latent's.
            overlap: Rows and columns that neighbours share at least.
        """
        height, width = min(tile[0], rows), min(tile[1], columns)
        return cls(rows, columns, height, width, starts(rows, height, overlap[0]), starts(columns, width, overlap[1]))

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """First row and column of each tile."""
        return tuple((top, left) for top in self.tops for left in self.lefts)

    def cut(self, x_BTHWC: Tensor, place: tuple[int, int], scale: int = 1) -> Tensor:
        """What a tile sees of a tensor; an axis of one place is the same for all tiles.

        Args:
            x_BTHWC: Latents, or pixels.
            place: One of ``places``.
            scale: Places of the tensor for each of the latent: 1, or of pixels the autoencoder's.
        """
        top, left = (start * scale for start in place)
        x = x_BTHWC if x_BTHWC.shape[2] == 1 else x_BTHWC[:, :, top : top + self.height * scale]
        return x if x.shape[3] == 1 else x[:, :, :, left : left + self.width * scale]

    def blended(self, parts_BThwC: Sequence[Tensor]) -> Tensor:
        """The whole from what each tile says, in the order of ``places``; [B, T, H, W, C] of the parts' type."""
        first = parts_BThwC[0]
        if len(parts_BThwC) == 1:
            return first
        B, T, _, _, C = first.shape
        total = first.new_zeros(B, T, self.rows, self.columns, C, dtype=torch.float32)
        down, across = _ramps(self.tops, self.height), _ramps(self.lefts, self.width)
        shares = torch.zeros(self.rows, self.columns)
        for number, (part, (top, left)) in enumerate(zip(parts_BThwC, self.places, strict=True)):
            weights = torch.outer(down[number // len(self.lefts)], across[number % len(self.lefts)])
            rows, columns = slice(top, top + self.height), slice(left, left + self.width)
            total[:, :, rows, columns] += part.float() * weights[..., None].to(part.device)
            shares[rows, columns] += weights
        return (total / shares[..., None].to(total.device)).to(first.dtype)


def _ramps(begins: Sequence[int], length: int) -> list[Tensor]:
    """The weights of tiles along an axis: 1 where a tile is alone, rising over what it shares with each neighbour."""
    made = [torch.ones(length) for _ in begins]
    for number in range(1, len(begins)):
        shared = begins[number - 1] + length - begins[number]
        rising = torch.arange(1, shared + 1) / (shared + 1)
        made[number][:shared] *= rising
        made[number - 1][length - shared :] *= rising.flip(0)
    return made


def tiled(tiles: Tiles, of_tile: Callable[[tuple[int, int]], Denoising[State]]) -> Denoising[State]:
    """A denoiser of the whole from those of its tiles.

    Args:
        tiles: The tiles.
        of_tile: Binds a denoiser for the tile at a place.

    Returns:
        ``(x, t) -> prediction``.
    """
    denoisers = [of_tile(place) for place in tiles.places]

    def denoiser(x: State, t: Tensor) -> State:
        parts = [
            one(each(lambda whole, place=place: tiles.cut(whole, place), x), t)
            for one, place in zip(denoisers, tiles.places, strict=True)
        ]
        return {name: tiles.blended([part[name].to(whole.dtype) for part in parts]) for name, whole in x.items()}

    return denoiser
