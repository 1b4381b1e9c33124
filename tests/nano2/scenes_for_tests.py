"""Stand-ins for the images: drawn in a few lines, so the tests of the second Nano need no data."""

from __future__ import annotations

import torch
from torch import Tensor


class DrawnSources:
    """Concept 0 is a white square in the middle half of its image, all others a bar of their own shade that moves."""

    def __init__(self, count: int = 574) -> None:
        self.count = count
        self.wordless: list[int] = [3, 4]
        self.held: list[int] = [5]

    def __len__(self) -> int:
        return self.count

    def moves(self, concept: int) -> bool:
        return concept != 0

    def frames(self, concept: int | None, row: int | None = None, *, count: int = 25) -> Tensor:
        image = torch.zeros(1 if concept == 0 else count, 4, 160, 160)
        if concept == 0:
            image[:, :, 40:120, 40:120] = 1
            return image
        number = concept if concept is not None else (row or 0)
        for t in range(count):
            at = 20 + 4 * t % 100
            image[t, :3, 40:120, at : at + 30] = (number % 7 + 1) / 8
            image[t, 3, 40:120, at : at + 30] = 1
        return image

    def toned(self, concept: int, tone: int, *, count: int = 25) -> Tensor:
        """The same, darker by a tenth for each tone."""
        image = self.frames(concept, count=count)
        return torch.cat([image[:, :3] * (1 - tone / 10), image[:, 3:]], dim=1)
