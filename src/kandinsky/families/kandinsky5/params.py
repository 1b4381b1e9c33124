"""Hyper-parameters of the Kandinsky 5 networks. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kandinsky.errors import RequestError
from kandinsky.families.parts.params import TransformerParams


@dataclass(frozen=True, slots=True)
class DiTParams(TransformerParams):
    """Hyper-parameters under their official names, with the official constructor defaults.

    Attributes:
        visual_cond: The input carries condition channels and a mask besides the latent (image-to-video ability).
        instruct_type: "channel" for image editing: source latent and a mask in the same extra channels.
    """

    in_visual_dim: int = 4
    in_text_dim: int = 3584
    in_text_dim2: int = 768
    time_dim: int = 512
    out_visual_dim: int = 4
    patch_size: tuple[int, int, int] = (1, 2, 2)
    model_dim: int = 2048
    ff_dim: int = 5120
    num_text_blocks: int = 2
    num_visual_blocks: int = 32
    axes_dims: tuple[int, int, int] = (16, 24, 24)
    visual_cond: bool = False
    instruct_type: str | None = None

    def __post_init__(self) -> None:
        TransformerParams.__post_init__(self)
        if self.instruct_type not in (None, "channel"):
            raise RequestError(f"unknown instruct_type `{self.instruct_type}`: use `channel` or leave it out")

    @property
    def has_condition_channels(self) -> bool:
        return self.visual_cond or self.instruct_type == "channel"

    @property
    def text_widths(self) -> tuple[int, int]:
        """Widths of a text token and of the pooled text that the network takes."""
        return self.in_text_dim, self.in_text_dim2


@dataclass(frozen=True, slots=True)
class QwenClipSizes:
    """Sizes that determine the work of both text encoders; the defaults are those of Qwen2.5-VL-7B and CLIP-L."""

    qwen_width: int = 3584
    clip_width: int = 768
    qwen_layers: int = 28
    clip_layers: int = 12
    vocabulary: int = 152064

    @classmethod
    def read(cls, values: Mapping[str, Any], **widths: int) -> QwenClipSizes:
        """Sizes from a card's text parameters, if it has them.

        Args:
            values: The card's parameters.
            **widths: Replace the defaults.

        Returns:
            The sizes.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**(widths | {key: value for key, value in values.items() if key in known}))

    @property
    def hidden(self) -> int:
        """Width of Qwen's feed-forward layers."""
        return round(self.qwen_width * 18944 / 3584 / 16) * 16

    @property
    def qwen_layer(self) -> int:
        """Weights of one of Qwen's layers: seven heads share a key."""
        return self.qwen_width**2 * 16 // 7 + 3 * self.qwen_width * self.hidden

    @property
    def outside(self) -> int:
        """Weights outside Qwen's blocks: two vocabularies, and CLIP."""
        return 2 * self.vocabulary * self.qwen_width + self.clip_layers * 12 * self.clip_width**2
