"""Hyper-parameters of the Kandinsky 4 transformer. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kandinsky.errors import RequestError
from kandinsky.model.params import read_params, three

Groups = tuple[int, int, int]
WHOLE: Groups = (1, 1, 1)


@dataclass(frozen=True, slots=True)
class DiTParams:
    """Hyper-parameters under their official names, with the official constructor defaults; then ours.

    Attributes:
        num_blocks: Pairs of a local and a global block.
        num_groups: Parts that attention cuts frames, rows and columns into; (1, 1, 1) attends to everything. An
            argument of the official call; the released model was run with (1, 1, 1), HD was to take (1, 2, 2).
        rope_angles: "stored" takes the angles as they are in the file, or exact ones where it has none; "bfloat16"
            rounds them, as the official loader does by casting the whole module: up to 0.06 rad, and trained weights
            are used that way. "exact" is without rounding, whatever the file holds.
        visual_cond: The input carries condition channels and a mask besides the latent (image-to-video ability).
    """

    in_visual_dim: int = 4
    in_text_dim: int = 2048
    time_dim: int = 512
    out_visual_dim: int = 4
    patch_size: tuple[int, int, int] = (1, 2, 2)
    model_dim: int = 2048
    ff_dim: int = 5120
    num_blocks: int = 8
    axes_dims: tuple[int, int, int] = (16, 24, 24)
    num_groups: Groups = WHOLE
    rope_angles: str = "stored"
    visual_cond: bool = False

    def __post_init__(self) -> None:
        if self.model_dim % self.head_dim or self.model_dim % 2:
            raise RequestError(f"model_dim {self.model_dim} is not a multiple of the head width {self.head_dim}")
        if any(width % 2 for width in self.axes_dims):
            raise RequestError(f"axes_dims {list(self.axes_dims)}: every entry must be even")
        if self.rope_angles not in ("stored", "bfloat16", "exact"):
            raise RequestError(f"unknown rope_angles `{self.rope_angles}`: use `stored`, `bfloat16` or `exact`")
        if self.patch_size[0] != 1:
            raise RequestError(f"patch_size {list(self.patch_size)}: a patch of Kandinsky 4 is one frame deep")
        check_groups(self.num_groups)

    @property
    def head_dim(self) -> int:
        return sum(self.axes_dims)

    @property
    def num_heads(self) -> int:
        return self.model_dim // self.head_dim

    @property
    def has_condition_channels(self) -> bool:
        return self.visual_cond

    @property
    def input_channels(self) -> int:
        """Channels of the input: the latent, and with conditioning as many again and a mask."""
        return 2 * self.in_visual_dim + 1 if self.visual_cond else self.in_visual_dim

    @property
    def text_widths(self) -> tuple[int, int]:
        """Widths of a text token that the network expects, and of the pooled text, which it ignores."""
        return self.in_text_dim, 1

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DiTParams:
        """Read official hyper-parameters.

        Raises:
            RequestError: A key is unknown.
        """
        what = "transformer parameter"
        axes = {key: three(values, key, what) for key in ("patch_size", "axes_dims", "num_groups") if key in values}
        return read_params(cls, {**values, **axes}, what)


def check_groups(groups: Groups) -> None:
    """Check a grouping of attention.

    Raises:
        RequestError: Groups cut time, which the official segment bounds do not allow, or are below 1.
    """
    if groups[0] != 1 or min(groups) < 1:
        raise RequestError(f"num_groups {list(groups)} is not allowed: (1, rows, columns), each 1 or more")
