"""The U-Net: levels from fine to coarse and back, conditioned on time and text in every layer.

Legend: B clips; T frames (or gaps between frames); H W C latent rows, columns, channels; R = B·T rows; L text tokens.

Source: ai-forever/Kandinsky-3@a4c9e92, kandinsky3/model/unet.py; ai-forever/KandinskyVideo@4e10a23 and @914eac1,
model/unet.py and model/unet_interpolation.py. The four official classes share every layer that has the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.errors import RequestError
from kandinsky.families.parts.unet.layers import (
    Attention,
    AttentionBlock,
    ResNetBlock,
    TemporalResNetBlock,
    TimeMLP,
    Told,
)
from kandinsky.families.parts.unet.params import MOTION_MARK, NOISE_MARK, UNetParams
from kandinsky.model.values import TextEmbeddings

SKIPS = 20  # rows of the table of frames between two keyframes


@dataclass(frozen=True, slots=True)
class Marks:
    """Conditions of a video network beside text and time; the same for all clips of a batch.

    Attributes:
        positions: Place of each frame, T numbers.
        noise_level: Noise mixed into the first frame, a level's number.
        motion: How much should move, 1 to 100.
        skip: Frames missing between two that are given, for interpolation.
        perturbation: Time of the noise in the given frames.
        mixes: Whether gaps see each other.
    """

    positions: Sequence[float] = ()
    noise_level: float = 0.0
    motion: float = 0.0
    skip: int = 0
    perturbation: float = 0.0
    mixes: bool = True


class Stage(nn.Module):
    """Two residual blocks with attention to the text between, and their blocks along time; a block that can be moved.

    Official names are numbers: 0 residual, 1 attention to the text, 2 residual, 3 and 4 along time.

    Args:
        time_leads: A block along time comes before its residual block, as on the way up; else after it.
    """

    def __init__(
        self,
        widths: tuple[int, int, int],
        params: UNetParams,
        *,
        cross: bool,
        up: bool = False,
        down: bool = False,
        time_leads: bool,
    ) -> None:
        super().__init__()
        before, middle, after = widths
        self.add_module("0", ResNetBlock(before, middle, params, up=up))
        self.add_module("1", AttentionBlock(middle, params, context=params.context_dim) if cross else None)
        self.add_module("2", ResNetBlock(middle, after, params, down=down))
        if params.temporal.frame_blocks:
            self.add_module("3", TemporalResNetBlock(before if time_leads else middle, params))
            self.add_module("4", TemporalResNetBlock(middle if time_leads else after, params))
        self.order = "30142" if time_leads else "03124"

    def forward(self, x: Tensor, told: Told) -> Tensor:
        for number in self.order:
            layer = self._modules.get(number)
            if isinstance(layer, AttentionBlock):
                x = layer.to_text(x, told)
            elif layer is not None and (told.mixes or not isinstance(layer, TemporalResNetBlock)):
                x = layer(x, told)
        return x


class Level(nn.Module):
    """The stages of one size, with attention within frames and along time at the side of the finer level."""

    def __init__(self, attended: int, params: UNetParams, stages: Sequence[Stage], *, attends: bool, up: bool) -> None:
        super().__init__()
        self.up = up
        self.self_attention_block = AttentionBlock(attended, params) if attends else None
        temporal = params.temporal
        has_time = attends and (temporal.frame_blocks or temporal.gap_attention)
        self.temporal_attention_block = (
            AttentionBlock(attended, params, merged=temporal.gap_mixing) if has_time else None
        )
        # official order on the way up: over the frames of a clip first, but over gaps last
        self.time_last = not up or temporal.gap_mixing
        self.resnet_attn_blocks = nn.ModuleList(stages)

    def forward(self, x: Tensor, told: Told) -> Tensor:
        if not self.up:
            x = self._attend(x, told)
        for stage in self.resnet_attn_blocks:
            x = stage(x, told)
        return self._attend(x, told) if self.up else x

    def _attend(self, x: Tensor, told: Told) -> Tensor:
        over_time = self.temporal_attention_block if told.mixes else None
        if over_time is not None and not self.time_last:
            x = over_time.over_time(x, told)
        if self.self_attention_block is not None:
            x = self.self_attention_block.over_pixels(x, told.spatial)
        if over_time is not None and self.time_last:
            x = over_time.over_time(x, told)
        return x


class UNet(nn.Module):
    """Noisy latents, time and text to a prediction of the same size.

    ``params.temporal`` says what happens along time; for images T is 1 or the frames know nothing of each other.
    """

    def __init__(self, params: UNetParams) -> None:
        super().__init__()
        self.params = params
        D, temporal = params.time_embed_dim, params.temporal
        first = params.init_channels
        self.to_time_embed = TimeMLP(first, D)
        self.feature_pooling = nn.ModuleDict(
            {"attention": Attention(params.context_dim, params.context_dim, D, params.head_dim)}
        )
        if temporal.frame_blocks:
            self.to_temporal_embed = TimeMLP(first, D)
            for name in temporal.clip_marks:
                self.add_module(name, TimeMLP(first, D))
        if temporal.gap_mixing:
            self.perturbation_to_time_embed = TimeMLP(first, D)
            self.skip_embeddings = nn.Embedding(SKIPS, D)
            self.time_embed_merge = nn.Parameter(torch.zeros(1))
            self.skip_merge = nn.Parameter(torch.zeros(1))
        self.register_buffer("null_embedding", torch.zeros(params.context_dim))
        self.in_layer = nn.Conv2d(params.num_channels, first, 3, padding=1)
        self.image_in_layer = nn.Conv2d(params.num_channels, first, 3, padding=1) if temporal.image_layer else None
        self.down_samples = nn.ModuleList(_level_down(i, params) for i in range(len(params.dim_mult)))
        self.up_samples = nn.ModuleList(_level_up(i, params) for i in reversed(range(len(params.dim_mult))))
        self.out_layer = nn.Sequential(
            nn.GroupNorm(params.groups, first), nn.SiLU(), nn.Conv2d(first, params.out_channels, 3, padding=1)
        )

    def made_tensors(self) -> dict[str, Tensor]:
        """Tensors missing in files of the network alone: the learned embedding of an empty prompt, stored beside it."""
        return {"null_embedding": torch.zeros(self.params.context_dim)}

    @property
    def offload_blocks(self) -> tuple[str, ...]:
        """Lists of blocks that may be moved one by one; levels are too large for that."""
        return tuple(
            f"{side}.{i}.resnet_attn_blocks"
            for side in ("down_samples", "up_samples")
            for i in range(len(self.params.dim_mult))
        )

    def forward(self, x_BTHWC: Tensor, time_B: Tensor, text: TextEmbeddings, marks: Marks | None = None) -> Tensor:
        """Predict noise (or v) for B clips.

        Args:
            x_BTHWC: The state and its condition channels, ``num_channels`` in all.
            time_B: What the network calls the time, 0 … 999.
            text: Context states; ``pooled_BC`` is the mean over their rows, see ``projected.py``. A clip whose states
                are all masked has no text: it gets the network's own state for that.
            marks: Of a clip. None: nothing is done along time, every frame is an image of its own.

        Returns:
            [B, T, H, W, out_channels].

        Raises:
            RequestError: The sides of a latent do not halve often enough.
        """
        B, T, H, W, _ = x_BTHWC.shape
        unit = 2**self.params.halvings
        if H % unit or W % unit:
            raise RequestError(f"a latent of {W}x{H} does not fit the network: both sides must be multiples of {unit}")
        dtype = self.in_layer.weight.dtype
        told = self._told(time_B, self._with_null(text.to(dtype)), marks, T)
        is_clip = marks is not None or self.image_in_layer is None
        layer = self.in_layer if is_clip else self.image_in_layer
        x_NCHW = x_BTHWC.to(dtype).flatten(0, 1).permute(0, 3, 1, 2)
        x = layer(x_NCHW).permute(0, 2, 3, 1)  # type: ignore[misc]
        skips = []
        for level in self.down_samples:
            x = level(x, told)
            skips.append(x)
        for number, level in enumerate(self.up_samples):
            skip = skips.pop()
            x = level(x if number == 0 else torch.cat((x, skip), dim=-1), told)
        out: Tensor = self.out_layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).unflatten(0, (B, T))
        return out

    def _with_null(self, text: TextEmbeddings) -> TextEmbeddings:
        if text.mask_BL is None:
            return text
        null = self.get_buffer("null_embedding").to(text.tokens_BLC.dtype)
        nothing_B1 = ~text.mask_BL.any(dim=1, keepdim=True)
        first = torch.where(nothing_B1, null, text.tokens_BLC[:, 0])
        tokens = torch.cat((first[:, None], text.tokens_BLC[:, 1:]), dim=1)
        mask = torch.cat((text.mask_BL[:, :1] | nothing_B1, text.mask_BL[:, 1:]), dim=1)
        return TextEmbeddings(tokens, torch.where(nothing_B1, null, text.pooled_BC), mask)

    def _told(self, time_B: Tensor, text: TextEmbeddings, marks: Marks | None, T: int) -> Told:
        temporal = self.params.temporal
        time = self.to_time_embed(time_B)
        pooling = self.feature_pooling["attention"]
        pooled = pooling(text.pooled_BC[:, None], text.tokens_BLC, text.mask_BL)[:, 0]

        def number(value: float) -> Tensor:
            return torch.full((len(time_B),), float(value), device=time_B.device)

        if temporal.gap_mixing:
            gaps = marks or Marks()
            time = time + pooled if temporal.pools_first else time
            time = torch.lerp(time, self.perturbation_to_time_embed(number(gaps.perturbation)), self.time_embed_merge)
            time = time + self.skip_merge * self.skip_embeddings(number(gaps.skip).long())
            told = time if temporal.pools_first else time + pooled
        else:
            told = time + pooled
        spatial = F.silu(told)
        along = place = spatial
        if temporal.frame_blocks and marks is not None:
            place = self._places(marks, number, told, T)
            if temporal.frame_marks_sum:
                along = place
        mixes = temporal.is_on and marks is not None and marks.mixes
        return Told(spatial, along, place, text.tokens_BLC, text.mask_BL, T, mixes)

    def _places(self, marks: Marks, number: Callable[[float], Tensor], told: Tensor, frames: int) -> Tensor:
        """Condition of each frame's place, [B·T, D]."""
        if len(marks.positions) != frames:
            raise RequestError(f"{len(marks.positions)} positions do not fit {frames} frames")
        positions = torch.tensor(marks.positions, dtype=torch.float32, device=told.device)
        places = self.to_temporal_embed(positions)[None]
        values = {NOISE_MARK: marks.noise_level, MOTION_MARK: marks.motion}
        for name in self.params.temporal.clip_marks:
            places = places + self.get_submodule(name)(number(values[name]))[:, None]
        if self.params.temporal.frame_marks_sum:
            places = places + told[:, None]
        return F.silu(places.expand(len(told), -1, -1).flatten(0, 1))


def _level_down(number: int, params: UNetParams) -> Level:
    before, width = params.widths[number], params.widths[number + 1]
    count, cross = params.num_blocks[number], params.add_cross_attention[number]
    halves = number < params.halvings
    stages = [
        Stage(
            (width if i else before, width, width),
            params,
            cross=cross,
            down=halves and i == count - 1,
            time_leads=False,
        )
        for i in range(count)
    ]
    return Level(before, params, stages, attends=params.add_self_attention[number], up=False)


def _level_up(number: int, params: UNetParams) -> Level:
    after, width = params.widths[number], params.widths[number + 1]
    count, cross = params.num_blocks[number], params.add_cross_attention[number]
    doubles = number < params.halvings
    stages = []
    for i in range(count):
        first, last = i == 0, i == count - 1
        before = 2 * width if first and doubles else width  # what comes up, beside what was left on the way down
        stages.append(
            Stage(
                (before, before, after if last else width),
                params,
                cross=cross,
                up=first and doubles,
                time_leads=True,
            )
        )
    return Level(after, params, stages, attends=params.add_self_attention[number], up=True)
