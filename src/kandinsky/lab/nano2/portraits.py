"""Portraits: what a concept looks like, as 36 tokens that an encoder makes of its own images.

A memory row that only its own concept trains is seen a few hundred times in a run, so most of a network's weights
went into learning 574 subjects by heart. An encoder that is shared by all of them learns at every clip how a subject
becomes tokens, and the denoiser how tokens become a subject anywhere on the canvas; what a release keeps is the
encoder's answer for each concept. Images of no concept train it as well, and one that was never seen has tokens too.

Legend: N subjects, T frames, P places of the portrait's grid in rows, F features of a place, C channels of a token.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.families.nano.geometry import GRID
from kandinsky.lab.nano2.catalogue import Sources

log = logging.getLogger(__name__)

SIDE, FRAMES = 96, 25
PLACES = GRID * GRID
SPATIAL, STATES = 128, 256
"""Components of a place in one frame, and of its 25 frames together: the start of a token."""


def own_frame(image_TCHW: Tensor) -> Tensor:
    """Premultiplied RGBA at the portrait's size, [25, 4, 96, 96]; a still image repeats."""
    small = F.interpolate(image_TCHW, size=(SIDE, SIDE), mode="bilinear", antialias=True)
    return small.expand(FRAMES, 4, SIDE, SIDE)


def places_of(portrait_TCHW: Tensor) -> Tensor:
    """[P, T, F] of a portrait, F = 4 · 16 · 16."""
    side = SIDE // GRID
    x = portrait_TCHW.reshape(FRAMES, 4, GRID, side, GRID, side)
    return x.permute(2, 4, 0, 1, 3, 5).reshape(PLACES, FRAMES, -1)


class Portraits(nn.Module):
    """Components of the portraits of all concepts, then of the wordless images, as far as they train.

    Buffers only: ``features`` [N, P, 25 · SPATIAL] float16, of about unit variance; ``start`` the principal directions
    among them, [STATES, 25 · SPATIAL].
    """

    features: Tensor
    mean: Tensor
    basis: Tensor
    scale: Tensor
    start: Tensor

    def __init__(self, subjects: int) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(subjects, PLACES, FRAMES * SPATIAL, dtype=torch.float16))
        self.register_buffer("mean", torch.zeros(4 * (SIDE // GRID) ** 2))
        self.register_buffer("basis", torch.zeros(4 * (SIDE // GRID) ** 2, SPATIAL))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("start", torch.zeros(STATES, FRAMES * SPATIAL))

    def features_of(self, image_TCHW: Tensor) -> Tensor:
        """[P, 25 · SPATIAL] of the frames of any subject, premultiplied RGBA in [0, 1]."""
        places = places_of(own_frame(image_TCHW))
        return ((places - self.mean) @ self.basis).flatten(1) * self.scale

    @classmethod
    def read(cls, path: Path) -> Portraits:
        """What ``of`` wrote."""
        state = torch.load(path, weights_only=True, mmap=True)
        result = cls(len(state["features"]))
        result.load_state_dict(state, assign=True)
        return result

    @classmethod
    @torch.no_grad()
    def of(cls, sources: Sources, target: Path) -> Portraits:
        """Read them from ``target``, or compute and write them there."""
        if target.exists():
            return cls.read(target)
        images = [(number, None) for number in range(len(sources))] + [(None, row) for row in sources.wordless]
        result = cls(len(images))
        sample = [places_of(own_frame(sources.frames(c, r))).flatten(0, 1)[::11] for c, r in images[::2]]
        x = torch.cat(sample)
        result.mean.copy_(x.mean(0))
        x = x - result.mean
        _, vectors = torch.linalg.eigh(x.T @ x / len(x))
        result.basis.copy_(vectors[:, -SPATIAL:].flip(1))
        for n, (c, r) in enumerate(images):
            result.features[n] = result.features_of(sources.frames(c, r)).half()
        result.scale.copy_(1 / result.features.float().pow(2).mean().sqrt())
        result.features.copy_((result.features.float() * result.scale).half())
        rows = result.features.flatten(0, 1)[::2].float()
        result.start.copy_(torch.svd_lowrank(rows, q=STATES + 64, niter=2)[2][:, :STATES].T)
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.save(result.state_dict(), target)
        log.info("portraits of %d subjects", len(images))
        return result


class PortraitBlock(nn.Module):
    """Attention among the places of a portrait, then a feed-forward; starts as the identity."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.wide = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        for last in (self.out, self.narrow):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x_NPD: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x_NPD)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2]).transpose(1, 2).flatten(2)
        x_NPD = x_NPD + self.out(mixed)
        out: Tensor = x_NPD + self.narrow(F.silu(self.wide(self.norm2(x_NPD))))
        return out


class PortraitMemory(nn.Module):
    """Tokens and the pooled vector of subjects, by their number plus one; 0 is "not said".

    Args:
        portraits: Of all subjects that train; they are not part of the weights.
    """

    portraits: Portraits
    start: Tensor

    def __init__(self, portraits: Portraits, *, dim: int = STATES, width: int = 384, blocks: int = 2) -> None:
        super().__init__()
        self.__dict__["portraits"] = portraits  # data beside the network, not a part of it
        self.inner = nn.Linear(FRAMES * SPATIAL, width)
        self.place = nn.Parameter(torch.randn(PLACES, width) * 0.5)
        self.blocks = nn.ModuleList(PortraitBlock(width, 3) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, dim)
        self.pooled = nn.Linear(width, dim)
        self.open_tokens = nn.Parameter(torch.randn(PLACES, dim))
        self.open_pooled = nn.Parameter(torch.randn(dim))
        start = portraits.start[:dim]
        spread = (portraits.features[::8].flatten(0, 1).float() @ start.T).std(0)
        start = start / spread.sqrt()[:, None] / spread.sqrt().mean()
        self.register_buffer("start", start, persistent=False)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def encode(self, features_NPF: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [N, P, C] and pooled [N, C] of features."""
        x = self.inner(features_NPF) + self.place
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return F.linear(features_NPF, self.start) + self.last(x), self.pooled(x.mean(1))

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of subjects [B, S]: tokens [B, S, P, C], pooled [B, S, C]."""
        known, where = rows.flatten().unique(return_inverse=True)
        said = known[known > 0]
        tokens, pooled = self.open_tokens[None], self.open_pooled[None]
        if len(said):
            made = self.encode(self.portraits.features[said - 1].float())
            if len(said) < len(known):
                made = (torch.cat([tokens, made[0].float()]), torch.cat([pooled, made[1].float()]))
            tokens, pooled = made
        return tokens[where].unflatten(0, rows.shape).float(), pooled[where].unflatten(0, rows.shape).float()
