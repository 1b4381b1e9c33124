"""The U-Net as a denoiser: what the sampling loop calls, for generation and conformance alike."""

from __future__ import annotations

from torch import Tensor

from kandinsky.diffusion.cogvideox import level_of
from kandinsky.nets.v2a.layers import Conditions
from kandinsky.nets.v2a.unet import V2AUNet


class SoundDenoiser:
    """A network bound to text and frames; callable as ``(x_BTHWC, t) -> noise_BTHWC``. A picture has T = 1.

    Args: text_BLE, frames_BTE: states of B prompts and clips.
    """

    def __init__(self, net: V2AUNet, text_BLE: Tensor, frames_BTE: Tensor) -> None:
        self.net = net
        dtype = next(net.parameters()).dtype
        self.conditions = Conditions(text_BLE.to(dtype), frames_BTE.to(dtype))

    def __call__(self, x_BTHWC: Tensor, t: Tensor) -> Tensor:
        """The noise at time t in [0, 1], which the network is told as the level t·1000 − 1."""
        level = (level_of(t) - 1).to(x_BTHWC.device).expand(len(x_BTHWC))
        return self.net(x_BTHWC[:, 0], level, self.conditions)[:, None]
