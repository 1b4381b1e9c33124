"""Hyper-parameters of the networks that several families share. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kandinsky.errors import RequestError
from kandinsky.model.params import read_params, without_fixed

# What Stable Diffusion's autoencoder has otherwise: the same network, Diffusers' own defaults.
STABLE_DIFFUSION: dict[str, Any] = {
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
}
# CogVideoX: keys of Diffusers that would change the result and that no model of Kandinsky sets; then all that are
# ignored
COGVIDEOX_UNSET = ("shift_factor", "latents_mean", "latents_std", "use_quant_conv", "use_post_quant_conv")
COGVIDEOX_IGNORED = {"sample_height", "sample_width", "force_upcast", "invert_scale_latents", *COGVIDEOX_UNSET}
# CogVideoX: latent frames of a piece when decoding, pixel frames when encoding; what is left over joins the first piece
LATENT_PIECE, PIXEL_PIECE = 2, 8
MOVQ_PIECE = 4  # a clip is decoded in (number of latents // 4) pieces
# MoVQ: official arguments of the decoder along time that only one value is built for
MOVQ_ONLY: dict[str, Any] = {
    "double_z": False,
    "dropout": 0.0,
    "temporal_mid_blocks": True,
    "temporal_kernel_size": (3, 3, 3),
    "temporal_conv_padding": (1, 1, 1),
    "temporal_blocks": False,
    "flicker_augmentation": False,
    "build_3D_decoder": False,
}


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
    scaling_factor: float = field(default=0.476986, metadata={"above": 0})
    spatial_compression_ratio: int = 8
    temporal_compression_ratio: int = 4
    mid_block_add_attention: bool = True

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HunyuanParams:
        """Read a card's or a `config.json`'s values; keys that begin with `_` are notes.

        Raises:
            RequestError: A key is unknown, or a value is not valid.
        """
        return read_params(cls, values, "autoencoder parameter")


@dataclass(frozen=True, slots=True)
class FluxParams:
    """Hyper-parameters under Diffusers' names; the defaults are the released autoencoder's.

    shift_factor and the latents' mean and deviation are accepted but unused, sample_size and force_upcast do not affect
    the result: Kandinsky's image models were trained on latents that are scaled only.
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
        """Read a card's or a `config.json`'s values; keys that begin with `_` are notes.

        Raises:
            RequestError: A key is unknown, or a value is not valid.
        """
        return read_params(cls, values, "autoencoder parameter")


@dataclass(frozen=True, slots=True)
class CogVideoXParams:
    """Hyper-parameters under Diffusers' names; the defaults are those of CogVideoX-5b, which Kandinsky 4 uses."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 16
    down_block_types: tuple[str, ...] = ("CogVideoXDownBlock3D",) * 4
    up_block_types: tuple[str, ...] = ("CogVideoXUpBlock3D",) * 4
    block_out_channels: tuple[int, ...] = (128, 256, 256, 512)
    layers_per_block: int = 3
    act_fn: str = "silu"
    norm_eps: float = 1e-6
    norm_num_groups: int = 32
    temporal_compression_ratio: int = 4
    scaling_factor: float = field(default=0.7, metadata={"above": 0})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CogVideoXParams:
        """Read a card's or a `config.json`'s values; keys that begin with `_` are notes.

        Diffusers' keys that nothing here depends on are ignored; those that would change the result and that no
        CogVideoX of Kandinsky sets are refused.

        Raises:
            RequestError: A key is unknown or refused, or a value is not valid.
        """
        for key in COGVIDEOX_UNSET:
            if values.get(key):
                raise RequestError(f"autoencoder parameter `{key}` = `{values[key]}` is not built: leave it out")
        return read_params(
            cls, {key: value for key, value in values.items() if key not in COGVIDEOX_IGNORED}, "autoencoder parameter"
        )

    @property
    def spatial_compression_ratio(self) -> int:
        out: int = 2 ** (len(self.block_out_channels) - 1)
        return out


@dataclass(frozen=True, slots=True)
class MovqParams:
    """Official names; the defaults are the released image autoencoder's.

    Attributes:
        attn_resolutions: Sizes at which levels have attention, counted from ``resolution`` whatever the image's size.
        temporal: The decoder mixes every convolution with one along time.
        temporal_attention_block: And has attention along time.
    """

    z_channels: int = 4
    resolution: int = 256
    in_channels: int = 3
    out_ch: int = 3
    ch: int = 256
    ch_mult: tuple[int, ...] = (1, 2, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (32,)
    temporal: bool = False
    temporal_attention_block: bool = False

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MovqParams:
        """Read official hyper-parameters.

        Raises:
            RequestError: A name is unknown, or a value is not supported.
        """
        what = "autoencoder parameter"
        return read_params(cls, without_fixed(values, MOVQ_ONLY, what), what)

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.ch * factor for factor in self.ch_mult)

    @property
    def spatial(self) -> int:
        """Pixels of a latent's side."""
        out: int = 2 ** (len(self.ch_mult) - 1)
        return out

    def attends(self, level: int) -> bool:
        return self.resolution // 2**level in self.attn_resolutions


@dataclass(frozen=True, slots=True)
class T5Sizes:
    """What decides the size of a T5 encoder.

    Attributes:
        hidden: Width of the feed-forward layers.
        head: Width of one head; all heads together are as wide as the encoder.
    """

    width: int
    hidden: int
    num_layers: int
    head: int

    def changed(self, values: Mapping[str, Any]) -> T5Sizes:
        """The same with another width, the hidden width in proportion, or another depth, if ``values`` name them."""
        width = int(values.get("width", self.width))
        layers = int(values.get("num_layers", self.num_layers))
        return T5Sizes(width, self.hidden * width // self.width, layers, self.head)

    @property
    def layer(self) -> int:
        """Weights of one layer: four projections of attention, and a gated feed-forward layer."""
        return 4 * self.width**2 + 3 * self.width * self.hidden


T5_XXL = T5Sizes(4096, 10240, 24, 64)
FLAN_UL2 = T5Sizes(4096, 16384, 32, 256)
T5_VOCABULARY = 32128
