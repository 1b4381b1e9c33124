"""Hyper-parameters of the U-Net, under the official names, and what a variant does along time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kandinsky.errors import RequestError
from kandinsky.model.params import without_fixed


@dataclass(frozen=True, slots=True)
class Temporal:
    """What a variant of the network does along time; the default is nothing, an image network.

    frame_blocks:    residual blocks and attention over the frames of a clip, told where each frame lies.
    frame_marks_sum: every norm of these is told the network's time *and* the frame's place; else the first norm of an
                     attention the place alone, all others the time alone.
    clip_marks:      further numbers of a clip that are added to the frames' places, by the names of their layers.
    image_layer:     images enter by a convolution of their own.
    gap_mixing:      every convolution is mixed with one over neighbouring gaps, those between the frames of a clip.
    gap_attention:   attention over the gaps as well.
    pools_first:     the pooled text is part of what the perturbation's time is blended with.
    """

    frame_blocks: bool = False
    frame_marks_sum: bool = False
    clip_marks: tuple[str, ...] = ()
    image_layer: bool = False
    gap_mixing: bool = False
    gap_attention: bool = False
    pools_first: bool = False

    @property
    def is_on(self) -> bool:
        return self.frame_blocks or self.gap_mixing


NOISE_MARK, MOTION_MARK = "temporal_noise_aug_time_encoding", "temporal_motion_score_encoding"
# official arguments that only one value is built for
ONLY: dict[str, Any] = {
    "temporal": True,
    "use_perturbation_time_embed": True,
    "merge_perturbation_time_with_diffusion_time": True,
    "merge_perturbation_time_with_context": False,
    "pass_skip_frames": True,
    "add_new_temporal_params": False,
}
PASSED_OVER = {"temporal_type", "num_frames"}  # the first is not used, the second follows from the clip


@dataclass(frozen=True, slots=True)
class UNetParams:
    """The defaults are those of Kandinsky 3.

    model_channels: width of the first level, times ``dim_mult`` that of each.   init_channels: of the first layer.
    num_channels, out_channels: of input and result.   context_dim: width of the text states.
    num_blocks: pairs of residual blocks a level, at least 2.   groups: of every normalisation.
    """

    model_channels: int = 384
    init_channels: int = 192
    num_channels: int = 4
    out_channels: int = 4
    time_embed_dim: int = 1536
    context_dim: int = 4096
    groups: int = 32
    head_dim: int = 64
    expansion_ratio: int = 4
    compression_ratio: int = 2
    dim_mult: tuple[int, ...] = (1, 2, 4, 8)
    num_blocks: tuple[int, ...] = (3, 3, 3, 3)
    add_cross_attention: tuple[bool, ...] = (False, True, True, True)
    add_self_attention: tuple[bool, ...] = (False, True, True, True)
    temporal: Temporal = Temporal()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> UNetParams:
        """Read official arguments; those of a video network say which variant it is.

        Raises: RequestError for a name that is not known, a value that is not built, or lists of unequal length.
        """
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, Sequence) else value
            for key, value in without_fixed(values, ONLY, "U-Net parameter").items()
        }
        temporal = _temporal(given)
        known = {field.name for field in dataclasses.fields(cls)} - {"temporal"}
        if unknown := sorted(set(given) - known):
            raise RequestError(f"unknown U-Net parameter `{unknown[0]}`: use one of {', '.join(sorted(known))}")
        params = cls(**given, temporal=temporal)
        lists = (params.dim_mult, params.num_blocks, params.add_cross_attention, params.add_self_attention)
        if len({len(entry) for entry in lists}) != 1:
            raise RequestError("dim_mult, num_blocks, add_cross_attention and add_self_attention differ in length")
        if min(params.num_blocks) < 2:
            raise RequestError(f"num_blocks `{min(params.num_blocks)}` is too few: use at least 2 a level")
        return params

    @property
    def kind(self) -> str:
        """The card's kind of this network; it decides how tensors are called in files."""
        time = self.temporal
        if not time.is_on:
            return "kandinsky3.unet"
        if time.frame_blocks:
            return f"kandinsky_video1.keyframes-{'1.1' if time.frame_marks_sum else '1.0'}"
        return f"kandinsky_video1.interpolation-{'1.0' if time.pools_first else '1.1'}"

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the first layer and of each level, from fine to coarse."""
        return (self.init_channels, *(self.model_channels * factor for factor in self.dim_mult))

    @property
    def text_widths(self) -> tuple[int, int]:
        """Widths of a text token and of the pooled text that the network takes."""
        return self.context_dim, self.context_dim

    @property
    def halvings(self) -> int:
        """A latent's sides must be multiples of 2 to this power."""
        return len(self.dim_mult) - 1


def _temporal(given: dict[str, Any]) -> Temporal:
    """Takes the arguments of video networks out of ``given``."""
    frames = given.get("num_frames")
    if any(given.get("time_downsample", ())):
        raise RequestError("U-Net parameter `time_downsample` is not built: no released network uses it")
    for key in PASSED_OVER:
        given.pop(key, None)
    marks = {NOISE_MARK: given.pop("noise_augmentation", None), MOTION_MARK: given.pop("motion_score", None)}
    gap_attention = bool(given.pop("add_temporal_attention", True))
    if given.pop("time_downsample", None) is not None:
        return Temporal(gap_mixing=True, gap_attention=gap_attention)
    if given.pop("interpolation", False):
        return Temporal(gap_mixing=True, pools_first=True)
    if any(value is not None for value in marks.values()):
        chosen = tuple(name for name, is_there in marks.items() if is_there)
        return Temporal(frame_blocks=True, frame_marks_sum=True, clip_marks=chosen, image_layer=True)
    return Temporal(frame_blocks=frames is not None)
