"""What the network of inpainting learns: an image, given what is left of it when a part is hidden.

Legend: M masks of an image; H W C rows, columns, channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from kandinsky.engine.context import Context
from kandinsky.engine.lesson import LATENT, Lesson
from kandinsky.engine.request import Job
from kandinsky.engine.stages import encode_image
from kandinsky.model.denoiser import Known

KEPT = "kept"
MASKS = 4  # of each image; one of them is drawn at each visit


class Inpainting(Lesson):
    """``kept`` [M, 1, H, W, C + 1] holds, for several masks, what generation gives the network of an image."""

    tensors = (LATENT, KEPT)
    is_plain = False

    def shapes(self, job: Job) -> dict[str, tuple[int, ...]]:
        """Of the image, and of what is kept of it."""
        *places, channels = job.latent.as_tuple()
        return super().shapes(job) | {KEPT: (MASKS, *places, channels + 1)}

    def encode(self, context: Context, *frames_THWC: np.ndarray) -> dict[str, Tensor]:
        """The image, and what is kept of it under masks that follow from its pixels."""
        (frames,) = frames_THWC
        image = frames[:1]
        generator = torch.Generator().manual_seed(int(image.astype(np.int64).sum()))
        pixels = torch.from_numpy(image)[None].float() / 127.5 - 1.0
        device = context.placement.device("vae")
        with context.placement.hold("vae") as vae, torch.no_grad():
            masks = [repainted(image.shape[1], image.shape[2], generator) for _ in range(MASKS)]
            kept = [encode_image(vae.encode, pixels.to(device), mask) for mask in masks]
            return {LATENT: vae.encode(pixels.to(device)), KEPT: torch.cat(kept)}

    def given(self, job: Job, tensors: Mapping[str, Tensor], generator: torch.Generator) -> tuple[Tensor, Known]:
        """The image, and what is kept of it under one of the masks."""
        kept = tensors[KEPT].float()
        number = int(torch.randint(len(kept), (), generator=generator))
        return tensors[LATENT].float(), Known(extra={KEPT: kept[number : number + 1]})


def repainted(rows: int, columns: int, generator: torch.Generator) -> np.ndarray:
    """Weights [H, W] of an inpainting mask, 1 = to be painted: one to three boxes, now and then the whole image."""
    if float(torch.rand((), generator=generator)) < 0.1:
        return np.ones((rows, columns), np.float32)
    mask = np.zeros((rows, columns), np.float32)
    for _ in range(int(torch.randint(1, 4, (), generator=generator))):
        spans = []
        for size in (rows, columns):
            length = int(torch.randint(max(1, size // 6), max(2, 2 * size // 3), (), generator=generator))
            start = int(torch.randint(size - length + 1, (), generator=generator))
            spans.append(slice(start, start + length))
        mask[spans[0], spans[1]] = 1
    return mask


INPAINTING = Inpainting()
