"""Small images of results that are still being sampled: latents mapped linearly to colours.

A card holds the map of its autoencoder (``LatentRGB``; `python -m kandinsky.bench.fit_preview` fits one). Without one
the image is grey: the direction in which the latents vary most.

Legend: B batch; T H W C frames, rows, columns, channels of latents.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

    from kandinsky.model.card import LatentRGB

SIDE = 256  # pixels of the longer side, approximately


class Preview(Tensor):
    """Clean latents [B, T, H, W, C] as currently predicted: an ordinary tensor that can also be viewed.

    ``image`` shows the first clip, ``images`` all of them; they are computed on request.
    """

    rgb: LatentRGB | None
    # results computed from it are plain tensors
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def of(cls, latents_BTHWC: Tensor, rgb: LatentRGB | None) -> Preview:
        """These latents, with their linear map to colours."""
        made = latents_BTHWC.as_subclass(cls)
        made.rgb = rgb
        return made

    @property
    def image(self) -> Image:
        """A small image of the first clip's middle frame."""
        return self.images[0]

    @property
    def images(self) -> list[Image]:
        """The same of every clip of the batch."""
        return [draw(latents_THWC[len(latents_THWC) // 2], self.rgb) for latents_THWC in self.as_subclass(Tensor)]


# (step from 1, total, the clean latents as currently predicted); returning False cancels, anything else continues
OnStep = Callable[[int, int, Preview], bool | None]


def draw(latents_HWC: Tensor, rgb: LatentRGB | None) -> Image:
    """One latent frame as a small image."""
    from PIL import Image as Pillow

    latents = latents_HWC.detach().float().cpu().nan_to_num()
    if rgb is not None and len(rgb.weights) == latents.shape[-1]:
        colours = latents @ torch.tensor(rgb.weights) + torch.tensor(rgb.bias)
    else:
        colours = _grey(latents)
    pixels = (colours.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    H, W = pixels.shape[:2]
    scale = max(1, round(SIDE / max(H, W)))
    return Pillow.fromarray(np.ascontiguousarray(pixels)).resize((W * scale, H * scale), Pillow.Resampling.BICUBIC)


def fit(latents_NC: Tensor, colours_N3: Tensor) -> tuple[list[list[float]], list[float]]:
    """Fit the linear map from latents to colours in least squares.

    Args:
        latents_NC: Latent vectors.
        colours_N3: Colour of each, 0 to 1.

    Returns:
        Weights `[C][3]` and bias `[3]`.
    """
    given = torch.cat([latents_NC.double(), torch.ones(len(latents_NC), 1, dtype=torch.float64)], dim=1)
    solved = torch.linalg.lstsq(given, colours_N3.double()).solution
    return solved[:-1].tolist(), solved[-1].tolist()


def _grey(latents_HWC: Tensor) -> Tensor:
    """The first principal component, from dark to bright; its largest weight is positive, for a stable sign."""
    flat = latents_HWC.flatten(0, 1)
    centred = flat - flat.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    direction = vectors[:, -1]
    direction = direction * (1 if direction[direction.abs().argmax()] >= 0 else -1)
    spread = (values[-1] / max(1, len(flat))).clamp_min(1e-12).sqrt()
    shade = (centred @ direction / (4 * spread) + 0.5).unflatten(0, latents_HWC.shape[:2])
    out: Tensor = shade[..., None].expand(-1, -1, 3)
    return out
