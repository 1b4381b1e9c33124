"""Tensor names in official files and in our networks, as pairs of patterns that work in both directions.

A pattern is a name in which ``{word}`` stands for any text; both sides of a pair carry the same words. The first pair
that fits decides; a name that fits none stays as it is. Kandinsky 5 needs no pairs: our names are the official ones,
which are also those of Diffusers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KeyMap:
    """``pairs`` of (official pattern, our pattern)."""

    pairs: tuple[tuple[str, str], ...] = ()

    def to_ours(self, official: str) -> str:
        """Our name of an official tensor name."""
        return _translate(official, self.pairs)

    def to_official(self, ours: str) -> str:
        """The official name of one of our tensor names."""
        return _translate(ours, tuple((b, a) for a, b in self.pairs))


def _translate(name: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for source, target in pairs:
        if match := re.fullmatch(_regex(source), name):
            return target.format(**match.groupdict())
    return name


def _regex(pattern: str) -> str:
    pieces = re.split(r"\{(\w+)\}", pattern)
    return "".join(f"(?P<{piece}>.+?)" if i % 2 else re.escape(piece) for i, piece in enumerate(pieces))


IDENTITY = KeyMap()
KANDINSKY5_DIT = IDENTITY
# these autoencoders keep Diffusers' network behind their own interface
HUNYUAN_VAE = KeyMap((("{name}", "net.{name}"),))
COGVIDEOX_VAE = HUNYUAN_VAE  # kept the same way
KANDINSKY4_DIT = IDENTITY
FLUX_VAE = HUNYUAN_VAE

_BY_KIND = {
    "kandinsky5.dit": KANDINSKY5_DIT,
    "hunyuan": HUNYUAN_VAE,
    "kandinsky4.dit": KANDINSKY4_DIT,
    "cogvideox": COGVIDEOX_VAE,
    "flux": FLUX_VAE,
}


def for_kind(kind: str) -> KeyMap:
    """The map of a card's component kind; kinds made by this project need none."""
    return _BY_KIND.get(kind, IDENTITY)
