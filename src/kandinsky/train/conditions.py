"""What is given of a clip in training: frames or regions that the network sees clean, and is not asked for.

The same ``Span``s and ``Known`` values lead into the network as in generation, so whatever is trained here can be asked
for there: a first frame, a fragment to be continued, both ends, two clips to be joined, a region to be repainted.

Legend: B batch; T H W C latent frames, rows, columns, channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from kandinsky.engine.stages import with_frames
from kandinsky.model.condition import FIRST_FRAME, Span
from kandinsky.model.denoiser import Known

_SHARE = {"least": 0, "most": 1}


@dataclass(frozen=True, slots=True)
class Conditions:
    """Shares of the clips of which something is given; nothing is given of the rest.

    Attributes:
        first: The first frame.
        prefix: Some frames at the start, one to half of them.
        last: The last frame.
        suffix: Some frames at the end.
        between: The first and the last frame.
        merge: Some frames at either end, to be joined.
        frames: Any frames, each with a chance of one half.
        region: All but a box in space and time, to be repainted.
    """

    first: float = field(default=0.0, metadata=_SHARE)
    prefix: float = field(default=0.0, metadata=_SHARE)
    last: float = field(default=0.0, metadata=_SHARE)
    suffix: float = field(default=0.0, metadata=_SHARE)
    between: float = field(default=0.0, metadata=_SHARE)
    merge: float = field(default=0.0, metadata=_SHARE)
    frames: float = field(default=0.0, metadata=_SHARE)
    region: float = field(default=0.0, metadata=_SHARE)

    @property
    def total(self) -> float:
        """Share of clips of which anything is given."""
        return sum(float(getattr(self, f.name)) for f in fields(self))

    def kind(self, chance: float) -> str:
        """The kind that a number from 0 to 1 falls on; empty for nothing."""
        for f in fields(self):
            chance -= getattr(self, f.name)
            if chance < 0:
                return f.name
        return ""

    def known(self, clean_1THWC: Tensor, track: str, generator: torch.Generator) -> Known:
        """What is given of one clip. Of a single frame nothing is, since nothing would be left to learn.

        Args:
            clean_1THWC: Its latent.
            track: Of the state.
            generator: Of the clip.
        """
        kind = self.kind(float(torch.rand((), generator=generator)))
        T = clean_1THWC.shape[1]
        if not kind or (T == 1 and kind != "region"):
            return Known()
        if kind == "region":
            return Known({track: clean_1THWC}, {track: ~_box(clean_1THWC.shape, generator)})
        known = Known()
        for span in spans(kind, T, generator):
            known = with_frames(known, track, clean_1THWC[:, span.start : span.stop], span.start, T)
        return known


def spans(kind: str, T: int, generator: torch.Generator) -> tuple[Span, ...]:
    """The frames that a kind gives of T ≥ 2; at least one is left."""

    def length(most: int) -> int:
        return int(torch.randint(1, max(most, 1) + 1, (), generator=generator))

    last = Span(T - 1, T)
    match kind:
        case "first":
            return (FIRST_FRAME,)
        case "prefix":
            return (Span(0, length(T // 2)),)
        case "last":
            return (last,)
        case "suffix":
            return (Span(T - length(T // 2), T),)
        case "between":
            return (FIRST_FRAME, last) if T > 2 else (FIRST_FRAME,)
        case "merge":
            before, after = length((T - 1) // 2), length((T - 1) // 2)
            return (Span(0, before), Span(T - after, T)) if T > 2 else (FIRST_FRAME,)
    chosen = torch.rand(T, generator=generator) < 0.5
    chosen[int(torch.randint(T, (), generator=generator))] = False
    return tuple(Span(t, t + 1) for t in range(T) if chosen[t])


def _box(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """True within a box of a quarter to all of each side, [1, T, H, W, 1]."""
    inside = torch.zeros(1, *shape[1:4], 1, dtype=torch.bool)
    sides: list[slice] = []
    for size in shape[1:4]:
        length = int(torch.randint(max(1, size // 4), size + 1, (), generator=generator))
        start = int(torch.randint(size - length + 1, (), generator=generator))
        sides.append(slice(start, start + length))
    frames, rows, columns = sides
    inside[0, frames, rows, columns] = True
    return inside


def joined(each: list[Known], clean_BTHWC: Tensor, track: str) -> Known:
    """What is given of the clips of a batch; further inputs are those of all of them, or of none."""
    extra = {name: torch.cat([one.extra[name] for one in each]) for name in each[0].extra}
    if not any(one.mask for one in each):
        return Known(extra=extra)
    none = torch.zeros(1, *clean_BTHWC.shape[1:4], 1, dtype=torch.bool)
    if all(one.mask[track].shape[2:4] == (1, 1) for one in each if one.mask):  # whole frames
        none = none[:, :, :1, :1]
    masks = [one.mask[track] if one.mask else none for one in each]
    shape = (1, *(max(mask.shape[d] for mask in masks) for d in range(1, 5)))
    return Known({track: clean_BTHWC}, {track: torch.cat([mask.expand(shape) for mask in masks])}, extra)
