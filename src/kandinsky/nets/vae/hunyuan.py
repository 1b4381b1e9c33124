"""The HunyuanVideo causal 3D autoencoder: Diffusers' network behind our interface.

Legend: B batch, T frames, H rows, W columns, C channels; pixels in [-1, 1].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from kandinsky.errors import BackendError, RequestError
from kandinsky.nets.vae.tiling import Tiling, tiled

LOGVAR_RANGE = (-30.0, 20.0)


@dataclass(frozen=True, slots=True)
class HunyuanParams:
    """Hyper-parameters under Diffusers' names; the defaults are the released autoencoder's."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 16
    down_block_types: tuple[str, ...] = ("HunyuanVideoDownBlock3D",) * 4
    up_block_types: tuple[str, ...] = ("HunyuanVideoUpBlock3D",) * 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    act_fn: str = "silu"
    norm_num_groups: int = 32
    scaling_factor: float = 0.476986
    spatial_compression_ratio: int = 8
    temporal_compression_ratio: int = 4
    mid_block_add_attention: bool = True

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HunyuanParams:
        """Read a card's or a `config.json`'s values; keys that begin with `_` are notes. Raises: RequestError."""
        known = {f.name for f in dataclasses.fields(cls)}
        chosen: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in values.items()
            if not key.startswith("_")
        }
        if unknown := sorted(set(chosen) - known):
            raise RequestError(f"unknown autoencoder parameter `{unknown[0]}`: use one of {', '.join(sorted(known))}")
        return cls(**chosen)


class HunyuanAutoencoder(nn.Module):
    """Encode and decode whole, or in the official tiles.

    Args: params: hyper-parameters.
          tiling: None codes the clip whole: exact, and the default. "official" lays the official tiles
                  (see ``Tiling.official``); a ``Tiling`` lays exactly these.
    The weights load with ``keymaps.HUNYUAN_VAE``; the network itself is ``net``.
    Quirk: Diffusers' own ``decode`` tiles in time by itself above 16 frames, which moves the result; its parts are
    called directly here.
    Raises: BackendError where Diffusers is not installed.
    """

    def __init__(
        self, params: HunyuanParams | None = None, *, tiling: Literal["official"] | Tiling | None = None
    ) -> None:
        super().__init__()
        try:
            from diffusers import AutoencoderKLHunyuanVideo
        except ImportError as error:
            raise BackendError(
                "the HunyuanVideo autoencoder needs the package `diffusers`: install `kandinsky-video[full]`"
            ) from error
        self.params = params or HunyuanParams()
        self.tiling = tiling
        self.net: Any = AutoencoderKLHunyuanVideo(**dataclasses.asdict(self.params))

    def encode(self, video_BTHWC: Tensor) -> Tensor:
        """Pixels → scaled latents (the posterior's mode). T must be 1 + a multiple of 4, H and W multiples of 8."""
        return self.posterior(video_BTHWC)[0] * self.params.scaling_factor

    def posterior(self, video_BTHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and clamped log-variance of the latents, channels last, without the scaling factor."""
        moments = self._run(self._moments, _channels_first(video_BTHWC), "encode")
        mean, logvar = moments.chunk(2, dim=1)
        # clamped after blending, as the official tiling does
        return _channels_last(mean), _channels_last(logvar.clamp(*LOGVAR_RANGE))

    def decode(self, latents_BTHWC: Tensor) -> Tensor:
        """Scaled latents → pixels."""
        z = _channels_first(latents_BTHWC / self.params.scaling_factor)
        return _channels_last(self._run(self._pixels, z, "decode"))

    def _run(self, coder: Callable[[Tensor], Tensor], x: Tensor, direction: Literal["encode", "decode"]) -> Tensor:
        x = x.to(next(self.net.parameters()).dtype)
        temporal, spatial = self.params.temporal_compression_ratio, self.params.spatial_compression_ratio
        if self.tiling is None:
            return coder(x)
        tiling = self.tiling
        if not isinstance(tiling, Tiling):
            factor = spatial if direction == "decode" else 1
            tiling = Tiling.official(x.shape[3] * factor, x.shape[4] * factor)
        return tiled(coder, x, tiling, direction=direction, temporal=temporal, spatial=spatial)

    def _moments(self, x: Tensor) -> Tensor:
        return self.net.quant_conv(self.net.encoder(x))

    def _pixels(self, z: Tensor) -> Tensor:
        return self.net.decoder(self.net.post_quant_conv(z))


def _channels_first(x_BTHWC: Tensor) -> Tensor:
    return x_BTHWC.permute(0, 4, 1, 2, 3)


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 4, 1)
