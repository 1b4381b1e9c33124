"""The image autoencoders of FLUX.1 and Stable Diffusion: Diffusers' network behind our interface.

Legend: B batch, T frames, H rows, W columns, C channels; pixels in [-1, 1]. Each frame is an image of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kandinsky.errors import BackendError
from kandinsky.model.params import read_params

LOGVAR_RANGE = (-30.0, 20.0)
# What Stable Diffusion's autoencoder has otherwise: the same network, Diffusers' own defaults.
STABLE_DIFFUSION: dict[str, Any] = {
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
}


@dataclass(frozen=True, slots=True)
class FluxParams:
    """Hyper-parameters under Diffusers' names; the defaults are the released autoencoder's.

    shift_factor and the latents' mean and deviation are known and not used, sample_size and force_upcast say nothing
    about the numbers: Kandinsky's image models were trained on latents that are scaled only.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 16
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",) * 4
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",) * 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    act_fn: str = "silu"
    norm_num_groups: int = 32
    sample_size: int = 1024
    scaling_factor: float = field(default=0.3611, metadata={"above": 0})
    shift_factor: float | None = 0.1159
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True
    use_quant_conv: bool = False
    use_post_quant_conv: bool = False
    mid_block_add_attention: bool = True

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FluxParams:
        """Read a card's or a `config.json`'s values; keys that begin with `_` are notes. Raises: RequestError."""
        return read_params(cls, values, "autoencoder parameter")


class FluxAutoencoder(nn.Module):
    """Images to latents of an eighth of their sides, and back.

    The weights load with ``keymaps.FLUX_VAE``; the network itself is ``net``.
    Quirk: shift_factor is ignored in both directions, as the official code does (FACTS section 9.2).

    Raises:
        BackendError: If Diffusers is not installed.
    """

    def __init__(self, params: FluxParams | None = None) -> None:
        super().__init__()
        try:
            from diffusers import AutoencoderKL
        except ImportError as error:
            raise BackendError(
                "the image autoencoder needs the package `diffusers`: install `kandinsky-video[full]`"
            ) from error
        self.params = params or FluxParams()
        net: Any = AutoencoderKL(**dataclasses.asdict(self.params))
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
        return images.movedim(1, -1).unflatten(0, like_BTHWC.shape[:2])
