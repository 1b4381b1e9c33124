"""Portraits: what a concept looks like while it moves, as codes of 36 places of its own image.

A portrait is 25 frames of premultiplied RGBA, 144 × 144 pixels. Three linear maps make the codes, each the principal
components of what the one before gives: of 12 × 12 pixels of one frame, of their 25 frames together, and of 2 × 2 such
places. So one place of the codes stands for 24 × 24 pixels of all frames, and zero stands for nothing to be seen.

Legend: N portraits, T frames, P places of the codes in rows, E codes of a place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kandinsky.families.nano.params import CELL as CELL
from kandinsky.families.nano.params import FRAMES as FRAMES
from kandinsky.families.nano.params import GRID as GRID
from kandinsky.families.nano.params import MOVES as MOVES
from kandinsky.families.nano.params import PIXELS as PIXELS
from kandinsky.families.nano.params import PORTRAIT
from kandinsky.families.nano.tones import ToneMap

SIDE = PORTRAIT
FAINT, FULL = 0.25, 0.75
"""Opacities of the components' sum that mean none and all: what few codes lose shows as haze where they are between."""


class PortraitDecoder(nn.Module):
    """Codes to portraits; buffers only, for they are computed and not trained.

    Args:
        codes: Of a place.
    """

    pixels: Tensor
    moves: Tensor
    places: Tensor

    def __init__(self, codes: int) -> None:
        super().__init__()
        self.register_buffer("pixels", torch.zeros(4 * CELL**2, PIXELS))
        self.register_buffer("moves", torch.zeros(FRAMES * PIXELS, MOVES))
        self.register_buffer("places", torch.zeros(4 * MOVES, codes))
        self.tones = ToneMap()

    def forward(self, codes_NPE: Tensor, frames: int = FRAMES, tones: Sequence[int] = ()) -> Tensor:
        """The first frames of portraits, premultiplied RGBA in [0, 1]: float32 [N, T, 4, 144, 144].

        Args:
            codes_NPE: Of each portrait.
            frames: How many.
            tones: Of the skin in each of the first portraits, see ``tones.py``; 0 leaves one in its own colours.
        """
        N, fine = len(codes_NPE), 2 * GRID
        x = (codes_NPE.float() @ self.places.float().T).view(N, GRID, GRID, 2, 2, MOVES)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(N, fine, fine, MOVES)
        x = x @ self.moves[: frames * PIXELS].float().T
        x = x.view(N, fine, fine, frames, PIXELS) @ self.pixels.float().T
        x = x.view(N, fine, fine, frames, 4, CELL, CELL).permute(0, 3, 4, 1, 5, 2, 6)
        x = sharpened(x.reshape(N, frames, 4, SIDE, SIDE))
        for image_TCHW, tone in zip(x, tones, strict=False):
            if tone:
                image_TCHW.copy_(self.tones(image_TCHW, [tone])[:, 0])
        return x


def sharpened(image_NTCHW: Tensor) -> Tensor:
    """Premultiplied RGBA of clearer edges, with colours that premultiplied ones can have."""
    opacity = image_NTCHW[:, :, 3:].clamp(0, 1)
    clear = ((opacity - FAINT) / (FULL - FAINT)).clamp(0, 1)
    colour = image_NTCHW[:, :, :3].clamp_min(0) * (clear / opacity.clamp_min(1e-3))
    return torch.cat([torch.minimum(colour, clear), clear], dim=2)
