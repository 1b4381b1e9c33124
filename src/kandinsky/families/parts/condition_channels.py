"""Condition channels beside the latent in a network's input: what they hold, and a denoiser that takes them.

Legend: B batch; T H W C latent frames, rows, columns, channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from kandinsky.diffusion.guidance import Pairing
from kandinsky.errors import RequestError
from kandinsky.model.denoiser import VIDEO, Known, Pass
from kandinsky.ops.packed import Size, laid, taken


class TakesCondition(Protocol):
    """Parameters of a network whose input may carry condition channels."""

    @property
    def in_visual_dim(self) -> int: ...

    @property
    def has_condition_channels(self) -> bool: ...


def join_condition(x_BTHWC: Tensor, params: TakesCondition, condition_BTHWC: Tensor | None = None) -> Tensor:
    """Append the condition channels to the latent.

    Args:
        x_BTHWC: The latent.
        params: Parameters of the network.
        condition_BTHWC: ``in_visual_dim`` condition channels and a mask; None = nothing given, zeros.

    Returns:
        [B, T, H, W, params.input_channels]; x itself if the network has no condition channels.

    Raises:
        RequestError: The network has no channels for the condition, or it has another shape.
    """
    if not params.has_condition_channels:
        if condition_BTHWC is not None:
            raise RequestError("this model has no condition channels: it cannot take an image")
        return x_BTHWC
    shape = (*x_BTHWC.shape[:-1], params.in_visual_dim + 1)
    if condition_BTHWC is None:
        condition_BTHWC = x_BTHWC.new_zeros(shape)
    elif condition_BTHWC.shape != shape:
        raise RequestError(f"condition channels have shape {tuple(condition_BTHWC.shape)}, the latent needs {shape}")
    return torch.cat((x_BTHWC, condition_BTHWC.to(x_BTHWC)), dim=-1)


def coordinate_channels(latent_BTHWC: Tensor, place_BP: Tensor | None = None) -> Tensor:
    """Condition channels that say where each place is: cosines and sines of row and column, and an empty mask.

    Rotary positions are relative only; a small network learns slowly from them alone where the borders are.

    Args:
        latent_BTHWC: Gives size, type and device; its C must be a multiple of 4.
        place_BP: Where the middle of what is shown stands, as shares of the frame to the right and down of its own
            middle; coordinates are then those of what is shown, as far as the borders.

    Returns:
        [B, T, H, W, C + 1].
    """
    B, T, H, W, C = latent_BTHWC.shape
    if C % 4:
        raise RequestError(f"coordinates need a multiple of 4 latent channels, not {C}")
    turns = torch.pi * torch.arange(1, C // 4 + 1, device=latent_BTHWC.device)

    def waves(size: int, shift_B: Tensor | None = None) -> Tensor:
        places = (torch.arange(size, device=latent_BTHWC.device) + 0.5) / size
        if shift_B is not None:
            half = 0.5 / size
            places = (places - shift_B[:, None].to(places)).clamp(half, 1 - half)
        angles = places[..., None] * turns
        return torch.cat((angles.cos(), angles.sin()), dim=-1)

    if place_BP is not None:
        across, down = place_BP[:, 0], place_BP[:, 1]
        rows, columns = (
            waves(H, down)[:, None, :, None].expand(-1, T, H, W, -1),
            waves(W, across)[:, None, None].expand(-1, T, H, W, -1),
        )
        moved = torch.cat((rows, columns, rows.new_zeros(*rows.shape[:-1], 1)), dim=-1)
        return moved.to(latent_BTHWC.dtype).expand(B, T, H, W, C + 1)
    rows, columns = waves(H)[:, None].expand(H, W, -1), waves(W)[None].expand(H, W, -1)
    both = torch.cat((rows, columns, rows.new_zeros(H, W, 1)), dim=-1)
    return both.to(latent_BTHWC.dtype).expand(B, T, H, W, C + 1)


# What the condition channels hold where nothing is known, by the card's `sampling.condition`.
CONDITIONS: dict[str, Callable[[Tensor], Tensor | None]] = {
    "zeros": lambda latent_BTHWC: None,
    "coordinates": coordinate_channels,
}


def condition_channels(latent_BTHWC: Tensor, known: Known, kind: str) -> Tensor | None:
    """The condition channels, [B, T, H, W, C + 1]; None for zeros.

    Args:
        latent_BTHWC: Gives size, type and device.
        known: Of known frames, only the mask is given, since they are pinned in the latent (FACTS section 3.4); of a
            source to edit, its latent and a mask of ones; of a world, the place of its subject.
        kind: A key of ``CONDITIONS``.

    Returns:
        The channels.
    """
    if (source := known.extra.get("source")) is not None:
        return torch.cat((source, torch.ones_like(source[..., :1])), dim=-1).to(latent_BTHWC)
    place = known.extra.get("place")
    plain = CONDITIONS[kind](latent_BTHWC) if place is None else coordinate_channels(latent_BTHWC, place)
    if (mask := known.mask.get(VIDEO)) is None:
        return plain
    shape = (*latent_BTHWC.shape[:-1], latent_BTHWC.shape[-1] + 1)
    marked = latent_BTHWC.new_zeros(shape) if plain is None else plain.clone()
    marked[..., -1:] = mask.to(marked.device, marked.dtype)
    return marked


def _channels(x_BTHWC: Tensor, known: Known, run: Pass) -> Tensor | None:
    """The condition channels; of clips that lie end to end, each by itself, since coordinates are of a clip."""
    if run.lengths is None:
        return condition_channels(x_BTHWC, known, run.condition)
    lengths, found = run.lengths, []
    for number, x in enumerate(taken(x_BTHWC, lengths)):
        own = known.over(partial(_one_of, lengths, number))
        found.append(condition_channels(x, own, run.condition))
    if all(one is None for one in found):
        return None
    shape = (1, 1, 1, 1, x_BTHWC.shape[-1] + 1)
    sizes = zip(found, lengths, strict=True)
    return laid([x_BTHWC.new_zeros(shape).expand(1, *size, -1) if one is None else one for one, size in sizes])


def _one_of(lengths: Sequence[Size], number: int, x: Tensor) -> Tensor:
    return taken(x, lengths)[number]


class Conditioned(Protocol):
    """A denoiser of plain tensors that takes condition channels."""

    condition_BTHWC: Tensor | None

    def __call__(self, x_BTHWC: Tensor, t: Tensor) -> Tensor: ...


@dataclass(eq=False, slots=True)
class WithChannels:
    """A denoiser with its condition channels, which are computed at the first call and shared by all passes."""

    inner: Conditioned
    known: Known
    run: Pass

    def __call__(self, x_BTHWC: Tensor, t: Tensor) -> Tensor:
        self._condition(x_BTHWC)
        return self.inner(x_BTHWC, t)

    def pair(self, other: object) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
        """Both passes in one call, if that was asked for and they differ in their texts alone; else None."""
        if not self.run.together or not isinstance(self.inner, Pairing) or not isinstance(other, WithChannels):
            return None
        if self.known is not other.known or self.run.shared is not other.run.shared:
            return None
        both = self.inner.pair(other.inner)
        if both is None:
            return None

        def paired(x_BTHWC: Tensor, t: Tensor) -> tuple[Any, Any]:
            self._condition(x_BTHWC)
            return both(x_BTHWC, t)

        return paired

    def _condition(self, x_BTHWC: Tensor) -> None:
        if "condition" not in self.run.shared:
            self.run.shared["condition"] = _channels(x_BTHWC, self.known, self.run)
        self.inner.condition_BTHWC = self.run.shared["condition"]
