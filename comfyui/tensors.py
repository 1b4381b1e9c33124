"""ComfyUI's tensors and the library's arrays: images, masks, sound, latents.

Legend: B batch; T H W C frames, rows, columns, channels; S samples; L latent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kandinsky.errors import RequestError
from kandinsky.model.values import Audio

_LOUDEST = 32768  # of int16


def image_of(frames_THWC: np.ndarray) -> Tensor:
    """Frames as ComfyUI's IMAGE: float32, 0 to 1; every level comes back exactly."""
    return torch.from_numpy(np.ascontiguousarray(frames_THWC)).float() / 255


def frames_of(image_BHWC: Tensor) -> np.ndarray:
    """ComfyUI's IMAGE as frames [B, H, W, 3], uint8; a channel of opacity is left out.

    Raises:
        RequestError: It is no image.
    """
    if image_BHWC.ndim != 4 or image_BHWC.shape[-1] < 3 or not len(image_BHWC):
        raise RequestError(f"an IMAGE has the shape [frames, height, width, 3], not {list(image_BHWC.shape)}")
    levels = (image_BHWC[..., :3].detach().float().nan_to_num() * 255).round().clamp(0, 255)
    frames: np.ndarray = levels.to("cpu", torch.uint8).numpy()
    return frames


def one_frame(image_BHWC: Tensor, what: str) -> np.ndarray:
    """The only frame of an IMAGE, [H, W, 3].

    Raises:
        RequestError: There are several.
    """
    frames = frames_of(image_BHWC)
    if len(frames) != 1:
        raise RequestError(
            f"`{what}` takes one image, and {len(frames)} were given: choose one, as with ImageFromBatch"
        )
    frame: np.ndarray = frames[0]
    return frame


def mask_of(mask: Tensor, height: int, width: int) -> np.ndarray:
    """ComfyUI's MASK at an image's size, [H, W] of bool, True where it is at least half on."""
    mask_11HW = mask.detach().float().reshape(-1, 1, *mask.shape[-2:])[:1]
    if tuple(mask_11HW.shape[-2:]) != (height, width):
        mask_11HW = torch.nn.functional.interpolate(mask_11HW, (height, width), mode="bilinear")
    is_on: np.ndarray = (mask_11HW[0, 0] >= 0.5).cpu().numpy()
    return is_on


def masks_of(mask: Tensor, height: int, width: int) -> np.ndarray:
    """ComfyUI's MASK for a clip at its size: one as ``mask_of``, several as a clip of masks [T, H, W, 3] of uint8."""
    masks_BHW = mask.detach().reshape(-1, *mask.shape[-2:])
    if len(masks_BHW) == 1:
        return mask_of(mask, height, width)
    are_on = np.stack([mask_of(one, height, width) for one in masks_BHW])
    clip: np.ndarray = np.repeat(are_on[..., None].astype(np.uint8) * 255, 3, axis=-1)
    return clip


def audio_of(audio: Audio) -> dict[str, Any]:
    """Sound as ComfyUI's AUDIO: a waveform [1, C, S] from -1 to 1, and its rate."""
    waveform_CS = torch.from_numpy(np.ascontiguousarray(audio.samples_SC.T)).float() / _LOUDEST
    return {"waveform": waveform_CS[None], "sample_rate": audio.rate}


def sound_of(audio: dict[str, Any] | None) -> Audio | None:
    """ComfyUI's AUDIO as sound of one or two channels; None of none."""
    if audio is None or not audio["waveform"].numel():
        return None
    waveform_CS = audio["waveform"][0, :2].detach().float().cpu()
    samples_SC = (waveform_CS.T * _LOUDEST).round().clamp(-_LOUDEST, _LOUDEST - 1).to(torch.int16)
    return Audio(samples_SC.contiguous().numpy(), int(audio["sample_rate"]))


def latent_of(latents_BTHWC: Tensor) -> Tensor:
    """Latents with channels where ComfyUI has them, [B, C, T, H, W]."""
    return latents_BTHWC.detach().float().cpu().movedim(-1, 1).contiguous()


def latents_of(samples: Tensor) -> Tensor:
    """The inverse, [B, T, H, W, C]; ComfyUI's latents of one image have no axis of time.

    Raises:
        RequestError: It is no latent of a clip or an image.
    """
    if samples.ndim == 4:
        samples = samples[:, :, None]
    if samples.ndim != 5:
        raise RequestError(
            f"a LATENT has the shape [batch, channels, frames, height, width], not {list(samples.shape)}"
        )
    return samples.movedim(1, -1).contiguous()
