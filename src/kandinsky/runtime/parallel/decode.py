"""Decoding by several processes, if that gives the same pixels as by one.

| autoencoder | split by | equal |
|---|---|---|
| HunyuanVideo, in tiles | tiles: each is decoded separately, the first process blends them | to the bit |
| nano | time: it looks back a few latent frames only, which are decoded again | up to the order of sums |
| others, and clips decoded whole | clips of a batch; a single clip is decoded by the first process | to the bit |

HunyuanVideo as a whole and CogVideoX normalise over all pixels of a clip or a piece, and CogVideoX's pieces remember
each other: cut, they would be another function.
Legend: B batch, T frames, H rows, W columns, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor

from kandinsky.model.autoencoder import VideoAutoencoder, decode_pieces
from kandinsky.runtime.parallel.exchange import Group, shares, span

if TYPE_CHECKING:
    from kandinsky.model.autoencoder import Coder, Spread


@runtime_checkable
class TiledAutoencoder(VideoAutoencoder, Protocol):
    """Decodes tiles separately; ``spread``, if set, wraps the function that decodes one."""

    spread: Spread | None


@runtime_checkable
class CausalAutoencoder(VideoAutoencoder, Protocol):
    """A frame depends on this many latent frames before its own, and on no later one."""

    @property
    def reach(self) -> int: ...

    @property
    def temporal(self) -> int:
        """Pixel frames per latent frame, except the first."""
        ...


def decode_shared(vae: VideoAutoencoder, latents_BTHWC: Tensor, group: Group) -> Iterator[Tensor]:
    """``decode_pieces`` by all processes, each of which must consume all pieces; only the first one's hold pixels."""
    if isinstance(vae, CausalAutoencoder):
        yield _in_time(vae, latents_BTHWC, group)
    elif isinstance(vae, TiledAutoencoder):
        with _tiles_in_turn(vae, group):
            yield from decode_pieces(vae, latents_BTHWC)
    else:
        yield from decode_pieces(vae, latents_BTHWC)


def _in_time(vae: CausalAutoencoder, latents_BTHWC: Tensor, group: Group) -> Tensor:
    B, T = latents_BTHWC.shape[:2]
    own = span(counts := shares(T, group.size()), group.rank())
    first = max(0, own.start - vae.reach)

    def pixel_frames(start: int, stop: int) -> int:
        return vae.temporal * (stop - start) - (vae.temporal - 1 if start == 0 else 0)

    frames = pixel_frames(own.start, own.stop)
    if own.stop > own.start:
        pixels = vae.decode(latents_BTHWC[:, first : own.stop])
        pixels = pixels[:, pixels.shape[1] - frames :].contiguous()
        like = pixels
    else:
        like = vae.decode(latents_BTHWC[:, :1])
        pixels = like[:, :0]
    if group.rank():
        if frames:
            dist.send(pixels, dist.get_global_rank(group, 0), group=group)
        return like.new_zeros(B, sum(pixel_frames(*_ends(counts, i)) for i in range(len(counts))), *like.shape[2:])
    parts = [pixels]
    for place in range(1, group.size()):
        if count := pixel_frames(*_ends(counts, place)):
            part = pixels.new_empty(B, count, *pixels.shape[2:])
            dist.recv(part, dist.get_global_rank(group, place), group=group)
            parts.append(part)
    return torch.cat(parts, dim=1)


def _ends(counts: list[int], place: int) -> tuple[int, int]:
    where = span(counts, place)
    return where.start, where.stop


@contextmanager
def _tiles_in_turn(vae: TiledAutoencoder, group: Group) -> Iterator[None]:
    """Tile n is decoded by process n modulo their number; the first process gets all of them, the others zeros."""

    def spread(coder: Coder, temporal: int, spatial: int) -> Coder:
        number = 0

        def decode(z: Tensor) -> Tensor:
            nonlocal number
            turn, number = number % group.size(), number + 1
            B, _, t, h, w = z.shape
            shape = (B, 3, temporal * (t - 1) + 1, spatial * h, spatial * w)
            if turn == group.rank():
                made = coder(z).contiguous()
                if turn:
                    dist.send(made, dist.get_global_rank(group, 0), group=group)
                return made
            if group.rank():
                return z.new_zeros(1).expand(shape)
            received = z.new_empty(shape)
            dist.recv(received, dist.get_global_rank(group, turn), group=group)
            return received

        return decode

    vae.spread = spread
    try:
        yield
    finally:
        vae.spread = None
