"""Clips made along time, chunk by chunk, each after what was made before it: for generation and for training alike.

A chunk's frames are denoised together while the finished ones before them stay as they are, clean or at a low noise
level of their own, which teaches the network not to trust them blindly. ``CachedPast`` lets every finished chunk go
through the network once and remembers its keys and values; ``WholePast`` shows the network all frames again each time.
Under causal attention both give the same predictions.

Legend: B batch; T H W C latent frames, rows, columns, channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from kandinsky.ops.key_values import KeyValues

# (latents, their times: one for all, [B] or [B, T]; the place of their first frame in the clip) -> prediction
Ask = Callable[[Tensor, Tensor, int], Tensor]


class Finished(NamedTuple):
    """A chunk that is done.

    Attributes:
        begin: Place of its first frame in the clip.
        frames_BTHWC: Its latents as later chunks see them, see ``as_context``.
    """

    begin: int
    frames_BTHWC: Tensor


class Past(Protocol):
    """Finished chunks, and the network that is asked for what comes after them."""

    def ask(self, x_BTHWC: Tensor, t: Tensor, begin: int) -> Tensor:
        """The prediction for a chunk at times t, one or [B], whose first frame stands at ``begin``."""
        ...

    def keep(self, chunk: Finished) -> None:
        """Go on from this chunk too."""
        ...


class CachedPast:
    """Remembers keys and values of what the next chunk sees.

    Args:
        ask: The network on the frames of a chunk alone, with these memories; under guidance it is several passes.
        memories: Of each pass.
        level: Time of the noise that finished frames have.
    """

    def __init__(self, ask: Ask, memories: Sequence[KeyValues], level: float = 0.0) -> None:
        self.ask, self.memories, self.level = ask, tuple(memories), level

    @torch.no_grad()
    def keep(self, chunk: Finished) -> None:
        """Let a finished chunk go through the network once; no gradient goes into what is remembered of it."""
        frames = chunk.frames_BTHWC
        with ExitStack() as kept:
            for memory in self.memories:
                kept.enter_context(memory.keeping(frames.shape[1]))
            self.ask(frames, torch.full((len(frames),), self.level, device=frames.device), chunk.begin)


class WholePast:
    """Shows the network all frames of the clip so far, each at a time of its own.

    Args:
        ask: The network on all frames.
        level: Time of the noise that finished frames have.
    """

    def __init__(self, ask: Ask, level: float = 0.0) -> None:
        self._ask, self.level = ask, level
        self.chunks: list[Finished] = []

    def keep(self, chunk: Finished) -> None:
        """As ``Past``."""
        self.chunks.append(chunk)

    def ask(self, x_BTHWC: Tensor, t: Tensor, begin: int) -> Tensor:
        """As ``Past``."""
        t_B = t.to(x_BTHWC.device).expand(len(x_BTHWC))
        if not self.chunks:
            return self._ask(x_BTHWC, t_B, begin)
        done = torch.cat([chunk.frames_BTHWC for chunk in self.chunks], dim=1)
        before = torch.full_like(t_B, self.level)[:, None].expand(-1, done.shape[1])
        times = torch.cat((before, t_B[:, None].expand(-1, x_BTHWC.shape[1])), dim=1)
        return self._ask(torch.cat((done, x_BTHWC), dim=1), times, self.chunks[0].begin)[:, done.shape[1] :]


def as_context(
    noised: Callable[[Tensor, Tensor, Tensor], Tensor], clean_BTHWC: Tensor, noise_BTHWC: Tensor, level: float
) -> Tensor:
    """Finished frames as later chunks see them: clean, or with the noise of time ``level``.

    Args:
        noised: The noise process, see ``samplers.Noising``.
        clean_BTHWC: Latents.
        noise_BTHWC: Of their shape.
        level: 0 for none.
    """
    return noised(clean_BTHWC, noise_BTHWC, torch.tensor(level, device=clean_BTHWC.device)) if level else clean_BTHWC


def caught_up(past: Past, chunks: Sequence[Finished]) -> Past:
    """A past that has seen nothing yet, gone on from these chunks; how a new prompt learns of what is there."""
    for chunk in chunks:
        past.keep(chunk)
    return past
