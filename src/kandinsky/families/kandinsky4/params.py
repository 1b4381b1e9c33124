"""Hyper-parameters of the Kandinsky 4 transformer. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from kandinsky.errors import RequestError
from kandinsky.families.parts.params import TransformerParams

Groups = tuple[int, int, int]
WHOLE: Groups = (1, 1, 1)


@dataclass(frozen=True, slots=True)
class DiTParams(TransformerParams):
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
        TransformerParams.__post_init__(self)
        if self.rope_angles not in ("stored", "bfloat16", "exact"):
            raise RequestError(f"unknown rope_angles `{self.rope_angles}`: use `stored`, `bfloat16` or `exact`")
        if self.patch_size[0] != 1:
            raise RequestError(f"patch_size {list(self.patch_size)}: a patch of Kandinsky 4 is one frame deep")
        check_groups(self.num_groups)

    @property
    def has_condition_channels(self) -> bool:
        return self.visual_cond

    @property
    def text_widths(self) -> tuple[int, int]:
        """Widths of a text token that the network expects, and of the pooled text, which it ignores."""
        return self.in_text_dim, 1


def check_groups(groups: Groups) -> None:
    """Check a grouping of attention.

    Raises:
        RequestError: Groups cut time, which the official segment bounds do not allow, or are below 1.
    """
    if groups[0] != 1 or min(groups) < 1:
        raise RequestError(f"num_groups {list(groups)} is not allowed: (1, rows, columns), each 1 or more")
