"""Where the official tiles of the HunyuanVideo autoencoder lie. No torch; ``tiling.py`` runs and blends them.

Source: kandinskylab/kandinsky-5, kandinsky/models/vae.py, as described in its numbers (tiles, strides).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# frames·rows·columns that "auto" codes whole: about the largest tile of the official rule
WHOLE_VOXELS = 2**23
# Decoding layer by layer (``layered.py``): numbers of one activation in work, 32 MB in half precision; and bytes of
# a layer's kept activations that stay where they were made
CHUNK, ON_DEVICE = 2**24, 2**31


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


def starts_of(size: int, tile: int, stride: int, slack: int = 0) -> list[int]:
    """Where tiles begin along one axis.

    Args:
        size: Length of the axis.
        tile: Length of a tile.
        stride: Distance of tiles.
        slack: A last tile may extend this far beyond the end.

    Returns:
        Starts.
    """
    starts = list(range(0, max(size - tile, 0) + slack + 1, stride))
    if starts[-1] + tile < size:
        starts.append(size - tile)
    return starts
