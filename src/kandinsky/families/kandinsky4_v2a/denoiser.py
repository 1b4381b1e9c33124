"""The U-Net as a denoiser: what the sampling loop calls, for generation and conformance alike."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.diffusion.cogvideox import level_of
from kandinsky.errors import BackendError
from kandinsky.families.kandinsky4_v2a.layers import Conditions
from kandinsky.families.kandinsky4_v2a.unet import V2AUNet
from kandinsky.model.denoiser import AUDIO, Denoiser, Known, OnTrack, Pass


class SoundDenoiser:
    """A network bound to text and frames; callable as ``(x_BTHWC, t) -> noise_BTHWC``. An image has T = 1.

    A network with more input than output channels receives in these what is seen at the time of a column: ``beside``.

    Args:
        text_BLE: Embeddings of B prompts.
        frames_BTE: Embeddings of B clips.
    """

    def __init__(self, net: V2AUNet, text_BLE: Tensor, frames_BTE: Tensor) -> None:
        self.net = net
        dtype = next(net.parameters()).dtype
        self.conditions = Conditions(text_BLE.to(dtype), frames_BTE.to(dtype))
        self.spare = net.params.in_channels - net.params.out_channels

    def __call__(self, x_BTHWC: Tensor, t: Tensor) -> Tensor:
        """The network's prediction at time t in [0, 1]; its own time is the level t·1000 − 1."""
        level = (level_of(t) - 1).to(x_BTHWC.device).expand(len(x_BTHWC))
        x_BHWC = x_BTHWC[:, 0]
        if self.spare:
            seen = beside(self.conditions.frames_BTE, *x_BHWC.shape[1:3])[..., : self.spare]
            x_BHWC = torch.cat((x_BHWC, seen.to(x_BHWC.dtype)), dim=-1)
        out: Tensor = self.net(x_BHWC, level, self.conditions)[:, None]
        return out


def beside(frames_BTE: Tensor, H: int, W: int) -> Tensor:
    """The frames' embeddings aligned with the spectrogram columns of the same time, [B, H, W, E].

    The official network has no such channels: its pixels must find their frame by attention alone, which a network of
    few channels, trained for an hour, did not learn.
    """
    states = F.interpolate(frames_BTE.transpose(1, 2).float(), size=W, mode="linear", align_corners=False)
    return states.transpose(1, 2)[:, None].expand(-1, H, -1, -1)


def bind(net: nn.Module, known: Known, run: Pass) -> Denoiser:
    """The U-Net as a denoiser of the track `audio`, conditioned on a clip by ``known.extra["frames"]``, [B, T, E].

    Raises:
        BackendError: There is a step cache: the U-Net's levels are not a sequence of blocks.
    """
    assert isinstance(net, V2AUNet)
    if run.runner is not None:
        raise BackendError("step caches are not supported for U-Nets: use `none`")
    return OnTrack(AUDIO, SoundDenoiser(net, run.text.tokens_BLC, known.extra["frames"]), "noise")
