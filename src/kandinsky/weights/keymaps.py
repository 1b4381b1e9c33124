"""Tensor names in official files and in our networks, as pairs of patterns that work in both directions.

A pattern is a name in which ``{word}`` stands for any text; both sides of a pair carry the same words. The first pair
that fits decides; a name that fits none stays as it is. Kandinsky 5 needs no pairs: our names are the official ones,
which are also those of Diffusers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from kandinsky.model.family import Part

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class KeyMap:
    """A translation of tensor names, applied in both directions.

    Attributes:
        pairs: (official pattern, our pattern).
        table: Prefix of the network's tensors in files that hold several networks, as official U-Net files do; tensors
            with another prefix belong to other parts of the model.
        beside: Tensors of the network that such a file stores outside the table, with or without a batch axis.
        elsewhere: Prefixes of other parts in a file without tables.
        stand_ins: (name in the file, name of the tensor that is used if the first is missing).
        matrices: Patterns of tensors that are matrices in the file and 1×1 convolutions in the network.
        then: A map applied to the result of these pairs.
    """

    pairs: tuple[tuple[str, str], ...] = ()
    table: str = ""
    beside: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    stand_ins: tuple[tuple[str, str], ...] = ()
    matrices: tuple[str, ...] = ()
    then: KeyMap | None = None

    def own(self, entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a file that belong to this network."""
        stand_ins = {name: entries[other] for name, other in self.stand_ins if other in entries}
        entries = stand_ins | {name: entry for name, entry in entries.items() if not name.startswith(self.elsewhere)}
        entries = {name: entry[..., None, None] if self.is_matrix(name) else entry for name, entry in entries.items()}
        prefix = f"{self.table}."
        if not self.table or not any(name.startswith(prefix) for name in entries):
            return entries
        found = {name.removeprefix(prefix): entry for name, entry in entries.items() if name.startswith(prefix)}
        return found | {name: entries[name].flatten() for name in self.beside if name in entries}

    def to_ours(self, official: str) -> str:
        """Our name of an official tensor name."""
        name = _translate(official, self.pairs)
        return name if self.then is None else self.then.to_ours(name)

    def to_official(self, ours: str) -> str:
        """The official name of one of our tensor names."""
        name = ours if self.then is None else self.then.to_official(ours)
        return _translate(name, tuple((b, a) for a, b in self.pairs))

    def as_file(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A network's tensors with the names and shapes they have in a file without tables."""
        named = {self.to_official(name): tensor for name, tensor in tensors.items()}
        return {name: tensor[..., 0, 0] if self.is_matrix(name) else tensor for name, tensor in named.items()}

    def is_matrix(self, official: str) -> bool:
        """Whether a tensor has two axes fewer in the file than in the network."""
        return any(_regex(pattern).fullmatch(official) for pattern in self.matrices)


def _translate(name: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for source, target in pairs:
        if match := _regex(source).fullmatch(name):
            return target.format(**match.groupdict())
    return name


@cache
def _regex(pattern: str) -> re.Pattern[str]:
    pieces = re.split(r"\{(\w+)\}", pattern)
    return re.compile("".join(f"(?P<{piece}>.+?)" if i % 2 else re.escape(piece) for i, piece in enumerate(pieces)))


IDENTITY = KeyMap()


def keymap_of(part: Part) -> KeyMap:
    """How the official files of a network name its tensors."""
    return IDENTITY if part.keymap is None else part.keymap()


def keymap_for(part: Part, names: Collection[str]) -> KeyMap:
    """How to read a file with these names: by the official names unless another spelling fits."""
    found = (spelling()(names) for spelling in part.spellings)
    return next((keymap for keymap in found if keymap is not None), keymap_of(part))
