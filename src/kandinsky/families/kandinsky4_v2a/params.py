"""Hyper-parameters of the video-to-audio U-Net, under their official (Diffusers') names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kandinsky.errors import RequestError
from kandinsky.model.params import Readable, without_fixed

CROSS_DOWN, PLAIN_DOWN = "CrossAttnDownBlock2D", "DownBlock2D"
CROSS_UP, PLAIN_UP = "CrossAttnUpBlock2D", "UpBlock2D"
# Keys that Diffusers writes into every U-Net's `config.json`, and the only value that makes this network.
FIXED: dict[str, Any] = {
    "act_fn": "silu",
    "addition_embed_type": None,
    "attention_type": "default",
    "class_embed_type": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
    "transformer_layers_per_block": 1,
    "upcast_attention": False,
    "use_linear_projection": False,
}


@dataclass(frozen=True, slots=True)
class V2AParams(Readable):
    """The defaults are the released network's.

    Attributes:
        attention_head_dim: The *number* of heads; Stable Diffusion 1 misnamed it, and the name stayed.
        encoder_dim: Width of the embeddings of text and frames; 4096 is hard-coded in the official layers.
        sample_size: Accepted, but nothing depends on it.
    """

    what = "U-Net parameter"
    sample_size: int | None = 64
    in_channels: int = 4
    out_channels: int = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = (CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, PLAIN_DOWN)
    up_block_types: tuple[str, ...] = (PLAIN_UP, CROSS_UP, CROSS_UP, CROSS_UP)
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    downsample_padding: int = 1
    mid_block_scale_factor: float = 1
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 768
    attention_head_dim: int = 8
    encoder_dim: int = 4096

    @property
    def text_widths(self) -> tuple[int, int]:
        """Of the embeddings of words; there are none of a whole prompt."""
        return self.encoder_dim, 0

    @classmethod
    def prepared(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Without Diffusers' keys that have one value only."""
        # Diffusers leaves what is not set as null; the class defaults hold then
        return {key: value for key, value in without_fixed(values, FIXED, cls.what).items() if value is not None}

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        for name, known in (
            ("down_block_types", (CROSS_DOWN, PLAIN_DOWN)),
            ("up_block_types", (CROSS_UP, PLAIN_UP)),
        ):
            kinds = getattr(self, name)
            if len(kinds) != levels:
                raise RequestError(f"U-Net parameter `{name}` names {len(kinds)} levels, and there are {levels} widths")
            if wrong := [kind for kind in kinds if kind not in known]:
                raise RequestError(f"U-Net parameter `{name}`: `{wrong[0]}` is not built: use {' or '.join(known)}")
        for width in self.block_out_channels:
            if width % self.attention_head_dim or width % self.norm_num_groups:
                raise RequestError(
                    f"U-Net width {width} must be a multiple of the {self.attention_head_dim} heads "
                    f"and of the {self.norm_num_groups} groups of its norms"
                )

    @property
    def num_heads(self) -> int:
        return self.attention_head_dim
