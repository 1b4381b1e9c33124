"""The image autoencoders of FLUX.1 and Stable Diffusion: Diffusers' network behind our interface.

Legend: B batch, T frames, H rows, W columns, C channels; pixels in [-1, 1]. Each frame is an image of its own.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from kandinsky.errors import needs
from kandinsky.families.parts.params import FluxParams
from kandinsky.ops.enlarge import Doubling

LOGVAR_RANGE = (-30.0, 20.0)


class FluxAutoencoder(nn.Module):
    """Images to latents of an eighth of their sides, and back.

    The weights load with ``keymaps.FLUX_VAE``; the network itself is ``net``.
    Quirk: shift_factor is ignored in both directions, as the official code does (FACTS section 9.2).

    Raises:
        BackendError: Diffusers is not installed.
    """

    def __init__(self, params: FluxParams | None = None) -> None:
        super().__init__()
        with needs("diffusers", "the image autoencoder"):
            from diffusers import AutoencoderKL
        self.params = params or FluxParams()
        net: Any = AutoencoderKL(**dataclasses.asdict(self.params))
        for block in net.decoder.up_blocks:
            if block.upsamplers is not None:
                block.upsamplers = nn.ModuleList(Doubling(one.conv) for one in block.upsamplers)
        self.net = net

    def encode(self, video_BTHWC: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Pixels → scaled latents. H and W must be multiples of 8.

        Args:
            generator: Take a sample of the posterior, as the official code does; by default its mode.
        """
        mean, logvar = self.posterior(video_BTHWC)
        if generator is not None:
            # drawn with channels first, so that a seed gives the noise it gives in Diffusers
            shape = [mean.shape[i] for i in (0, 1, 4, 2, 3)]
            noise = torch.randn(shape, generator=generator, device=generator.device, dtype=mean.dtype)
            mean = mean + (0.5 * logvar).exp() * noise.movedim(2, -1).to(mean.device)
        return mean * self.params.scaling_factor

    def posterior(self, video_BTHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and clamped log-variance of the latents, channels last, without the scaling factor."""
        x = self.net.encoder(self._images(video_BTHWC))
        moments = x if self.net.quant_conv is None else self.net.quant_conv(x)
        mean, logvar = self._frames(moments, video_BTHWC).chunk(2, dim=-1)
        return mean, logvar.clamp(*LOGVAR_RANGE)

    def decode(self, latents_BTHWC: Tensor) -> Tensor:
        """Scaled latents → pixels, about [-1, 1], not clamped."""
        z = self._images(latents_BTHWC / self.params.scaling_factor)
        z = z if self.net.post_quant_conv is None else self.net.post_quant_conv(z)
        return self._frames(self.net.decoder(z), latents_BTHWC)

    def _images(self, x_BTHWC: Tensor) -> Tensor:
        return x_BTHWC.flatten(0, 1).movedim(-1, 1).to(next(self.net.parameters()).dtype)

    def _frames(self, images: Tensor, like_BTHWC: Tensor) -> Tensor:
        out: Tensor = images.movedim(1, -1).unflatten(0, like_BTHWC.shape[:2])
        return out
