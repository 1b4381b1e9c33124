"""Equivariance of an autoencoder: latents that are turned or made smaller should decode to the clip turned or smaller.

Sources: EQ-VAE (arXiv 2502.09509: quarter turns and scales from 0.25 to 1, in half of the steps) and scale
equivariance (arXiv 2502.14831: whole clips made smaller, so that high frequencies of latents carry no more than those
of pixels). Both leave the encoder alone: only the decoder is asked again.

Legend: B batch; T H W C frames, rows, columns, channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


@dataclass(frozen=True, slots=True)
class Change:
    """What is done to latents and to pixels alike.

    Attributes:
        rows: Of the latents afterwards, before they are turned.
        columns: The same.
        turns: By a quarter, from rows to columns.
    """

    rows: int
    columns: int
    turns: int = 0

    def __call__(self, x_BTHWC: Tensor, pixels: int = 1) -> Tensor:
        """Changed in space, every frame alike; float32 where it is made smaller.

        Args:
            x_BTHWC: Latents, or a clip.
            pixels: Rows and columns of one latent place; 1 for latents.
        """
        size = [self.rows * pixels, self.columns * pixels]
        if list(x_BTHWC.shape[2:4]) != size:
            frames = x_BTHWC.flatten(0, 1).permute(0, 3, 1, 2).float()
            frames = F.interpolate(frames, size=size, mode="bilinear", antialias=True)
            x_BTHWC = frames.permute(0, 2, 3, 1).unflatten(0, x_BTHWC.shape[:2])
        return torch.rot90(x_BTHWC, self.turns, (2, 3))


def drawn(
    rows: int, columns: int, generator: torch.Generator, *, least_scale: float, is_turned: bool, share: float
) -> Change | None:
    """A change of latents of so many rows and columns, or none in the other steps.

    Args:
        rows: Of the latents.
        columns: Of the latents.
        generator: Draws.
        least_scale: Sides become so short at the least, in whole latent places, one at the least; 1 keeps them.
        is_turned: Whether they are turned by a quarter, a half or three quarters, or not, equally often.
        share: Of the steps that have a change.

    Returns:
        The change; None where there is none in this step, or the one that was drawn changes nothing.
    """
    chance, scale, turn = torch.rand(3, generator=generator).tolist()
    factor = least_scale + (1 - least_scale) * scale
    found = Change(max(1, round(rows * factor)), max(1, round(columns * factor)), int(4 * turn) % 4 if is_turned else 0)
    is_same = (found.rows, found.columns, found.turns) == (rows, columns, 0)
    return None if chance >= share or is_same else found
