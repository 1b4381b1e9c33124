"""What a given image does in the sampler: condition channels, and a first frame that stays what it is.

Legend: B batch; T H W C latent frames, rows, columns, channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from kandinsky.diffusion.first_frame import pin_first_frame
from kandinsky.families.kandinsky5.denoiser import CONDITIONS, mark_first_frame

Pin = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class ImageUse:
    """channels: (latent, plain condition channels or None, image latents) → condition channels.

    pins_first_frame: the state's first latent frame is the image before every step.
    """

    channels: Callable[[Tensor, Tensor | None, Tensor], Tensor]
    pins_first_frame: bool


def _first_frame_channels(latent_BTHWC: Tensor, plain_BTHWC: Tensor | None, image_BTHWC: Tensor) -> Tensor:
    """The plain channels, and a mask that is 1 on the first frame."""
    return mark_first_frame(latent_BTHWC, plain_BTHWC, torch.ones(len(latent_BTHWC), dtype=torch.bool))


def _source_channels(latent_BTHWC: Tensor, plain_BTHWC: Tensor | None, image_BTHWC: Tensor) -> Tensor:
    """The image's latent, and a mask of ones."""
    return torch.cat((image_BTHWC, torch.ones_like(image_BTHWC[..., :1])), dim=-1)


def _given_channels(latent_BTHWC: Tensor, plain_BTHWC: Tensor | None, image_BTHWC: Tensor) -> Tensor:
    """What ``encode_image`` made of the image and its mask."""
    return image_BTHWC


def encode_image(
    encode: Callable[[Tensor], Tensor], pixels_BTHWC: Tensor, repaint_HW: np.ndarray | None = None
) -> Tensor:
    """Latents of an image; of one with a mask, a channel that says what is kept, and the latents of what is kept.

    Args:   encode: pixels in [-1, 1] to latents.   repaint_HW: weights, 1 = paint anew.
    Quirk:  any weight above 0 hides a pixel (grey stands in its place), and of each square of pixels that share a
            latent the first one's weight counts.
    Source: ai-forever/Kandinsky-3@a4c9e92, inpainting_pipeline.py.
    """
    if repaint_HW is None:
        return encode(pixels_BTHWC)
    repaint_HW1 = torch.from_numpy(repaint_HW).to(pixels_BTHWC)[..., None]
    latents = encode(pixels_BTHWC * (repaint_HW1 == 0))
    square = len(repaint_HW1) // latents.shape[2]
    kept_HW1 = 1 - repaint_HW1[::square, ::square]
    return torch.cat((kept_HW1.to(latents).expand(*latents.shape[:-1], 1), latents), dim=-1)


# What a given image does, by the card's `task` (FACTS section 3.4).
IMAGE_USES = {
    "image-to-video": ImageUse(_first_frame_channels, pins_first_frame=True),
    "image-editing": ImageUse(_source_channels, pins_first_frame=False),
    "inpainting": ImageUse(_given_channels, pins_first_frame=False),
}


def condition(
    task: str, kind: str, noise_BTHWC: Tensor, image_BTHWC: Tensor | None
) -> tuple[Tensor | None, Pin | None]:
    """Condition channels for the whole run, and what keeps the first frame.

    Args: task: of the card.   kind: the card's `sampling.condition`, of the channels without an image.
          image_BTHWC: clean latents of the images, T = 1; None without.
    """
    plain = CONDITIONS[kind](noise_BTHWC)
    if image_BTHWC is None:
        return plain, None
    use = IMAGE_USES[task]
    image_BTHWC = image_BTHWC.to(noise_BTHWC)
    pin = partial(pin_first_frame, image_BTHWC=image_BTHWC) if use.pins_first_frame else None
    return use.channels(noise_BTHWC, plain, image_BTHWC), pin
