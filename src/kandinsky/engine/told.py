"""What a branch is told: frames as latents of the model's own autoencoder, or as states of its text encoder.

Legend: T H W C frames, rows, columns, channels; L tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kandinsky.errors import BackendError
from kandinsky.text.protocol import ImageTextEncoder
from kandinsky.weights.branch_files import LATENTS

if TYPE_CHECKING:
    from kandinsky.engine.context import Context


def told_of_frames(context: Context, frames_THWC: np.ndarray, features: str) -> Tensor:
    """What a branch is told of a clip or an image.

    Args:
        context: The model.
        frames_THWC: uint8.
        features: `vae` for a latent; `text` for states of the text encoder, of the first frame.

    Returns:
        [1, T, H, W, C] of the latent, or [1, L, C], float32.

    Raises:
        BackendError: The text encoder cannot be shown an image.
    """
    if features == LATENTS:
        pixels = torch.from_numpy(np.ascontiguousarray(frames_THWC))[None].float() / 127.5 - 1.0
        with context.placement.hold("vae") as vae, torch.no_grad():
            latent: Tensor = vae.encode(pixels.to(context.placement.device("vae")))
            return latent.to(context.precision.islands)
    with context.placement.hold("text") as encoder, torch.no_grad():
        if not isinstance(encoder, ImageTextEncoder):
            raise BackendError(f"`{type(encoder).__name__}` cannot be shown an image: use another branch")
        states: Tensor = encoder.encode_with_images([""], [Image.fromarray(frames_THWC[0])]).tokens_BLC
        return states.to(context.precision.islands)
