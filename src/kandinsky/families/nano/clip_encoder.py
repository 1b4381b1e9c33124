"""Nano's video encoder: what CogVLM2 is for the large video-to-audio model, small enough to be trained with its U-Net.

Each frame is processed with its changes from the frame before and to the frame after, so plain backgrounds vanish and
motion stands out; positions are kept to the end, since a contact is a matter of where. Then every frame's state is
mixed with those of its neighbours in time. There are few words, and they are looked up; unknown ones are ignored.

Legend: B clips or prompts, T frames, H W rows and columns, C channels, L words of a prompt, E width of the embeddings.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.model.params import Readable

PATCH = 4  # pixels that the first layer takes together
GROUPS = 8


@dataclass(frozen=True, slots=True)
class NanoClipEncoderParams(Readable):
    """Hyper-parameters of Nano's encoder of clips and words.

    Attributes:
        side: Every frame is resized to a square of this many pixels.
        widths: Channels at a quarter and an eighth of the side.
        places: Channels kept for every position at the end.
        moments: Number of layers that mix neighbouring frames; each reaches one frame further.
        words: The vocabulary; entries such as `drum|барабан` are synonyms.
        prompt_words: L, how many words are used.
    """

    what = "clip encoder parameter"
    encoder_dim: int = 96
    side: int = 48
    widths: tuple[int, ...] = (32, 64)
    places: int = 16
    moments: int = 4
    words: tuple[str, ...] = ()
    prompt_words: int = 2


class Moment(nn.Module):
    """Refines a frame's embedding with those of its two neighbours."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.near = nn.Conv1d(width, 2 * width, 3, padding=1)
        self.out = nn.Linear(2 * width, width)

    def forward(self, x_BTE: Tensor) -> Tensor:
        h = self.near(self.norm(x_BTE).transpose(1, 2)).transpose(1, 2)
        out: Tensor = x_BTE + self.out(F.silu(h))
        return out


class NanoClipEncoder(nn.Module):
    """Encodes frames and words for the U-Net; satisfies ``ClipEncoder``."""

    def __init__(self, params: NanoClipEncoderParams) -> None:
        super().__init__()
        self.params = p = params
        first, second = p.widths
        self.patches = nn.Conv2d(9, first, PATCH, stride=PATCH)
        self.shrink = nn.Conv2d(first, second, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(GROUPS, second)
        self.mix = nn.Conv2d(second, second, 3, padding=1)
        self.narrow = nn.Conv2d(second, p.places, 1)
        grid = p.side // PATCH // 2
        self.to_state = nn.Linear(p.places * grid * grid, p.encoder_dim)
        self.moments = nn.ModuleList(Moment(p.encoder_dim) for _ in range(p.moments))
        self.out = nn.LayerNorm(p.encoder_dim)
        self.words = nn.Embedding(1 + len(p.words), p.encoder_dim)  # 0: no word

    def forward(self, frames_BTCHW: Tensor) -> Tensor:
        """Frames of side × side in [0, 1] → states [B, T, E]."""
        x = frames_BTCHW.to(self.patches.weight.dtype) * 2 - 1
        change = x.diff(dim=1)
        none = torch.zeros_like(x[:, :1])
        # a contact shows as a small change, which is amplified to the scale of the image itself
        before, after = 4 * torch.cat((none, change), 1), 4 * torch.cat((change, none), 1)
        h = self.patches(torch.cat((x, before, after), dim=2).flatten(0, 1))
        h = self.shrink(F.silu(h))
        h = h + self.mix(F.silu(self.norm(h)))
        state = self.to_state(self.narrow(F.silu(h)).flatten(1)).unflatten(0, x.shape[:2])
        for moment in self.moments:
            state = moment(state)
        out: Tensor = self.out(state)
        return out

    def squares(self, frames_THWC: Tensor) -> Tensor:
        """uint8 frames of any size → [T, 3, side, side] in [0, 1], stretched, so that nothing is cut off."""
        x = frames_THWC.permute(0, 3, 1, 2).to(torch.float32) / 255
        side = self.params.side
        if x.shape[-2:] == (side, side):
            return x
        return F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False, antialias=True)

    def encode_frames(self, frames_THWC: Tensor, times_s: Tensor) -> Tensor:
        """uint8 RGB frames [T, H, W, 3] of any size → states [1, T, E]. The frames are taken as evenly spaced."""
        out: Tensor = self(self.squares(frames_THWC)[None])
        return out

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """States [B, L, E] of the first known words of each prompt, filled up with "no word"."""
        out: Tensor = self.words(
            torch.tensor([self.numbers(prompt) for prompt in prompts], device=self.words.weight.device)
        )
        return out

    def numbers(self, prompt: str) -> list[int]:
        """Numbers of the first L known words, padded with 0."""
        names = {name: number for number, entry in enumerate(self.params.words, 1) for name in entry.split("|")}
        found = [names[word] for word in re.findall(r"\w+", prompt.lower()) if word in names]
        return (found + [0] * self.params.prompt_words)[: self.params.prompt_words]
