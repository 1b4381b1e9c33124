"""Branches beside a denoiser's blocks: networks that see the tokens of each block and add to them.

A network that can carry branches offers each of them a ``Site`` in every pass; the branch answers with what is to be
added behind each block. Nothing here knows what a branch is told, or which network it stands beside.

Legend: B batch; T H W frames, rows, columns of tokens; S tokens; D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

# (number of a block, tokens before it, tokens behind it) -> what is added behind it; None for nothing
Adds = Callable[[int, Tensor, Tensor], Tensor | None]


@dataclass(frozen=True, slots=True)
class Site:
    """What a network offers a branch in one pass.

    Attributes:
        place: Tokens of a clip [B, T, H, W, D], in the form and order in which the blocks see theirs.
        clips: The blocks' tokens as [B, S, D], one row for each clip.
        back: The way back.
        run: ``(number, block, tokens) -> tokens``: runs a block of the network's kind as the network's own of that
            number, with the same text, times and positions.
    """

    place: Callable[[Tensor], Tensor]
    clips: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]
    run: Callable[[int, nn.Module, Tensor], Tensor]


class Branch(Protocol):
    """A network beside another."""

    def beside(self, signal: Tensor, site: Site) -> Adds:
        """What it adds in one pass.

        Args:
            signal: What it is told of the B clips.
            site: Of the pass.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Beside:
    """A branch with what it is told, for one request.

    Attributes:
        branch: The branch.
        signal: What it is told of each clip.
        strength: What it adds is multiplied by this.
        begin: The first time, and the largest, at which it works.
        end: The last time.
    """

    branch: Branch
    signal: Tensor
    strength: float = 1.0
    begin: float = 1.0
    end: float = 0.0

    def works_at(self, t: Tensor) -> bool:
        """Whether it works at these times; those of a batch are looked at together."""
        if (self.begin, self.end) == (1.0, 0.0):
            return True
        return self.end <= float(t.min()) and float(t.max()) <= self.begin


def at_work(branches: Sequence[Beside], t: Tensor) -> tuple[Beside, ...]:
    """Those that work at these times."""
    return tuple(one for one in branches if one.strength and one.works_at(t))


def added(branches: Sequence[Beside], sites: Callable[[int], Site]) -> Callable[[int, Tensor, Tensor], Tensor]:
    """What stands behind each block, with what the branches add.

    Args:
        branches: That work in this pass.
        sites: The site of each branch, by its place among them.

    Returns:
        ``(number of a block, tokens before it, tokens behind it) -> tokens``.
    """
    adding = [(one.strength, one.branch.beside(one.signal, sites(place))) for place, one in enumerate(branches)]

    def behind(number: int, before: Tensor, after: Tensor) -> Tensor:
        out = after
        for strength, adds in adding:
            if (more := adds(number, before, after)) is not None:
                out = out + strength * more
        return out

    return behind
