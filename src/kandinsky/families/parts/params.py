"""Hyper-parameters of the networks that several families share. No torch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kandinsky.errors import RequestError
from kandinsky.model.params import Readable, without_fixed

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


class TransformerParams(Readable):
    """What the transformers of Kandinsky 4 and 5 have in common, and their fields say.

    A patch is `patch_size` of the latent; a head is as wide as all axes of its rotation together.
    """

    __slots__ = ()
    what = "transformer parameter"
    in_visual_dim: int
    in_text_dim: int
    model_dim: int
    axes_dims: tuple[int, int, int]

    def __post_init__(self) -> None:
        if self.model_dim % self.head_dim or self.model_dim % 2:
            raise RequestError(f"model_dim {self.model_dim} is not a multiple of the head width {self.head_dim}")
        if any(width % 2 for width in self.axes_dims):
            raise RequestError(f"axes_dims {list(self.axes_dims)}: every entry must be even")

    @property
    def head_dim(self) -> int:
        return sum(self.axes_dims)

    @property
    def num_heads(self) -> int:
        return self.model_dim // self.head_dim

    @property
    @abstractmethod
    def has_condition_channels(self) -> bool:
        """Whether the input carries condition channels and a mask behind the latent."""

    @property
    def input_channels(self) -> int:
        """Channels of the input: the latent, and with conditioning as many again and a mask."""
        return 2 * self.in_visual_dim + 1 if self.has_condition_channels else self.in_visual_dim


@dataclass(frozen=True, slots=True)
class HunyuanParams(Readable):
    """Hyper-parameters under Diffusers' names; the defaults are the released autoencoder's."""

    what = "autoencoder parameter"
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


@dataclass(frozen=True, slots=True)
class FluxParams(Readable):
    """Hyper-parameters under Diffusers' names; the defaults are the released autoencoder's.

    shift_factor and the latents' mean and deviation are accepted but unused, sample_size and force_upcast do not affect
    the result: Kandinsky's image models were trained on latents that are scaled only.
    """

    what = "autoencoder parameter"
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


@dataclass(frozen=True, slots=True)
class CogVideoXParams(Readable):
    """Hyper-parameters under Diffusers' names; the defaults are those of CogVideoX-5b, which Kandinsky 4 uses."""

    what = "autoencoder parameter"
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
    def prepared(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Without Diffusers' keys that nothing here depends on.

        Raises:
            RequestError: For one that would change the result, and that no CogVideoX of Kandinsky sets.
        """
        for key in COGVIDEOX_UNSET:
            if values.get(key):
                raise RequestError(f"autoencoder parameter `{key}` = `{values[key]}` is not built: leave it out")
        return {key: value for key, value in values.items() if key not in COGVIDEOX_IGNORED}

    @property
    def spatial_compression_ratio(self) -> int:
        out: int = 2 ** (len(self.block_out_channels) - 1)
        return out


@dataclass(frozen=True, slots=True)
class MovqParams(Readable):
    """Official names; the defaults are the released image autoencoder's.

    Attributes:
        attn_resolutions: Sizes at which levels have attention, counted from ``resolution`` whatever the image's size.
        temporal: The decoder mixes every convolution with one along time.
        temporal_attention_block: And has attention along time.
    """

    what = "autoencoder parameter"
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
    def prepared(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Without official arguments that have one value only."""
        return without_fixed(values, MOVQ_ONLY, cls.what)

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
