"""Which names a weight file uses, where a network's files come in more than one spelling. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Collection

from kandinsky.families.kandinsky3 import folder as kandinsky3_folder
from kandinsky.weights import keymaps
from kandinsky.weights.keymaps import KeyMap

# By the card's kind of network: each says whether names are of its spelling, and then how they are read.
SPELLINGS: dict[str, tuple[Callable[[Collection[str]], KeyMap | None], ...]] = {
    "kandinsky3.unet": (kandinsky3_folder.unet_of,),
    "movq": (kandinsky3_folder.movq_of,),
}


def for_file(kind: str, names: Collection[str]) -> KeyMap:
    """The map of a file with these names; the official one where no other spelling fits."""
    found = (spelling(names) for spelling in SPELLINGS.get(kind, ()))
    return next((keymap for keymap in found if keymap is not None), keymaps.for_kind(kind))
