"""The U-Net as a denoiser: what the sampling loop calls, for generation and conformance alike.

Legend: B clips; T H W C latent frames (or gaps), rows, columns, channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kandinsky.diffusion.cogvideox import level_of
from kandinsky.nets.unet.unet import Marks, UNet
from kandinsky.types import TextStates


class UNetDenoiser:
    """A network bound to one prompt batch; callable as ``(x_BTHWC, t) -> prediction_BTHWC``.

    Args: text: states of B prompts, or of one prompt for any B.
          before_BTHWC, condition_BTHWC: channels that go in before and behind the state's own.
          marks: what a video network is told of the clip; None for images.
    """

    def __init__(
        self,
        net: UNet,
        text: TextStates,
        *,
        before_BTHWC: Tensor | None = None,
        condition_BTHWC: Tensor | None = None,
        marks: Marks | None = None,
    ) -> None:
        self.net = net
        self.text = text
        self.before_BTHWC = before_BTHWC
        self.condition_BTHWC = condition_BTHWC
        self.marks = marks

    def __call__(self, x_BTHWC: Tensor, t: Tensor) -> Tensor:
        """Noise or v at time t in [0, 1], which the network is told as t·1000 − 1."""
        B = len(x_BTHWC)
        around = (self.before_BTHWC, x_BTHWC, self.condition_BTHWC)
        x = torch.cat([one.to(x_BTHWC) for one in around if one is not None], dim=-1)
        time = (level_of(t) - 1).to(x.device).expand(B)
        return self.net(x, time, self.text.expand(B), self.marks)
