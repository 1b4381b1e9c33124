"""The U-Net as a denoiser: what the sampling loop calls, for generation and conformance alike."""

from __future__ import annotations

import torch
from torch import Tensor

from kandinsky.diffusion.cogvideox import level_of
from kandinsky.nets.v2a.layers import Conditions, sinusoid
from kandinsky.nets.v2a.unet import V2AUNet


class SoundDenoiser:
    """A network bound to text and frames; callable as ``(x_BTHWC, t) -> noise_BTHWC``. A picture has T = 1.

    A network that takes more channels than it gives is told in these when each column sounds, see ``moments``.
    Args: text_BLE, frames_BTE: states of B prompts and clips.
    """

    def __init__(self, net: V2AUNet, text_BLE: Tensor, frames_BTE: Tensor) -> None:
        self.net = net
        dtype = next(net.parameters()).dtype
        self.conditions = Conditions(text_BLE.to(dtype), frames_BTE.to(dtype))

    def __call__(self, x_BTHWC: Tensor, t: Tensor) -> Tensor:
        """The noise at time t in [0, 1], which the network is told as the level t·1000 − 1."""
        level = (level_of(t) - 1).to(x_BTHWC.device).expand(len(x_BTHWC))
        x_BHWC = x_BTHWC[:, 0]
        if spare := self.net.params.in_channels - self.net.params.out_channels:
            told = moments(x_BHWC, self.conditions.frames_BTE.shape[1], spare)
            x_BHWC = torch.cat((x_BHWC, told.expand(*x_BHWC.shape[:3], -1)), dim=-1)
        return self.net(x_BHWC, level, self.conditions)[:, None]


def moments(x_BHWC: Tensor, frames: int, channels: int) -> Tensor:
    """When each column of a picture sounds, counted in frames, by the code that the frames' own places have: [W, C].

    The official network has no such channels: its pixels learn where they are from the borders alone.
    """
    W = x_BHWC.shape[2]
    places = (torch.arange(W, device=x_BHWC.device) + 0.5) / W * frames - 0.5
    return sinusoid(places, channels, shift=1).to(x_BHWC.dtype)
