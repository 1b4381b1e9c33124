"""Hyper-parameters of the U-Net, under the official names, and what a variant does along time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kandinsky.errors import RequestError
from kandinsky.model.params import read_params, without_fixed


@dataclass(frozen=True, slots=True)
class Temporal:
    """What a variant of the network does along time; the default is nothing, an image network.

    Attributes:
        frame_blocks: Residual blocks and attention over the frames of a clip, conditioned on each frame's place.
        frame_marks_sum: Every norm of these is conditioned on the network's time *and* the frame's place; else the
            first norm of an attention on the place alone, all others on the time alone.
        clip_marks: Further numbers of a clip that are added to the frames' places, by the names of their layers.
        image_layer: Images enter through a convolution of their own.
        gap_mixing: Every convolution is mixed with one over neighbouring gaps, those between the frames of a clip.
        gap_attention: Attention over the gaps as well.
        pools_first: The pooled text is part of what the perturbation's time is blended with.
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
# arguments that the official classes of video networks have besides these
GAPS_1_1 = ("time_downsample", "add_temporal_attention", "temporal_type", *ONLY)  # `temporal_type` is not used
FRAMES_1_1 = ("noise_augmentation", "motion_score", "temporal_type", "temporal")
ONE_0 = ("interpolation", "num_frames")  # the number of frames follows from the clip


@dataclass(frozen=True, slots=True)
class UNetParams:
    """The defaults are those of Kandinsky 3.

    Attributes:
        model_channels: Width of the first level, times ``dim_mult`` that of each.
        init_channels: Of the first layer.
        num_channels: Of the input.
        out_channels: Of the result.
        context_dim: Width of the text embeddings.
        num_blocks: Pairs of residual blocks a level, at least 2.
        groups: Of every normalisation.
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

        Raises:
            RequestError: A name is unknown, a value is not supported, or lists differ in length.
        """
        what = "U-Net parameter"
        without_fixed(values, ONLY, what)
        given = dict(values)
        temporal = _temporal(given)
        params = dataclasses.replace(read_params(cls, given, what), temporal=temporal)
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
        """Widths of the first layer and of each level, from fine to coarse."""
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
    """Takes the arguments of video networks out of ``given``; they say which of the official classes it is.

    Raises:
        RequestError: The class does not have an argument that was given.
    """
    if any(given.get("time_downsample") or ()):
        raise RequestError("U-Net parameter `time_downsample` is not supported: no released network uses it")
    asked = {key: given.pop(key) for key in (*GAPS_1_1, *FRAMES_1_1, *ONE_0) if key in given}
    chosen = {key for key, value in asked.items() if value is not None and value is not False}

    def of_class(known: tuple[str, ...], name: str) -> None:
        if other := sorted(chosen - set(known)):
            raise RequestError(f"U-Net parameter `{other[0]}` is none of {name}: leave it out")

    if asked.get("time_downsample") is not None:
        of_class(GAPS_1_1, "the interpolation U-Net 1.1")
        return Temporal(gap_mixing=True, gap_attention=bool(asked.get("add_temporal_attention", True)))
    if asked.get("interpolation"):
        of_class(ONE_0, "the interpolation U-Net 1.0")
        return Temporal(gap_mixing=True, pools_first=True)
    marks = {NOISE_MARK: asked.get("noise_augmentation"), MOTION_MARK: asked.get("motion_score")}
    if any(value is not None for value in marks.values()):
        of_class(FRAMES_1_1, "the keyframe U-Net 1.1")
        names = tuple(name for name, is_there in marks.items() if is_there)
        return Temporal(frame_blocks=True, frame_marks_sum=True, clip_marks=names, image_layer=True)
    of_class(ONE_0, "the keyframe U-Net 1.0 or the U-Net of Kandinsky 3")
    return Temporal(frame_blocks=asked.get("num_frames") is not None)
