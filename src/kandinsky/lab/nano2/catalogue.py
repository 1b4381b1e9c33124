"""What the second Nano can show: the concepts of the first, further animated emoji, and everyday things that stand
still.

A concept's number is its place in ``catalogue()``: the first 396 keep theirs. ``Sources`` holds the images: animated
ones as 25 frames, still ones as a single frame.
"""

from __future__ import annotations

import json
from collections.abc import Container
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kandinsky.lab.nano.concepts import Concept, load_concepts
from kandinsky.lab.nano.emoji import FRAMES, SKIN_TONES, Clips, decode, decode_one

SOURCE_SIDE = 160
WORDLESS_HELD_EVERY = 6


@cache
def catalogue() -> tuple[Concept, ...]:
    """All concepts in their fixed order."""
    text = resources.files("kandinsky.lab.nano2").joinpath("more_concepts.json").read_text("utf-8")
    return load_concepts() + tuple(Concept.from_dict(v) for v in json.loads(text))


@cache
def toned() -> frozenset[int]:
    """Numbers of the concepts that are drawn in the five tones of skin too."""
    codes = json.loads(resources.files("kandinsky.lab.nano2").joinpath("toned.json").read_text("utf-8"))
    return frozenset(number for number, entry in enumerate(catalogue()) if entry.hexcode in codes)


def toned_file(file: str, tone: int, files: Container[str]) -> str | None:
    """The name of an emoji in a tone of skin among some names: the tone's code stands behind one of its own codes.

    Args:
        file: Name in its own colours, without folder and suffix.
        tone: 1 to 5.
        files: Names that there are, likewise.
    """
    codes = file.split("-")
    for at in range(1, len(codes) + 1):
        for skipped in (0, 1) if codes[at : at + 1] == ["fe0f"] else (0,):
            name = "-".join([*codes[:at], SKIN_TONES[tone - 1], *codes[at + skipped :]])
            if name in files:
                return name
    return None


class Images(Protocol):
    """Images of all concepts, from wherever."""

    def __len__(self) -> int: ...

    def frames(self, concept: int | None, row: int | None = None, *, count: int = FRAMES) -> Tensor:
        """Premultiplied RGBA in [0, 1], float32 [T, 4, S, S]; one frame where the image stands still."""
        ...

    def toned(self, concept: int, tone: int, *, count: int = FRAMES) -> Tensor | None:
        """The same in a tone of skin, 1 to 5; None where there is no such clip."""
        ...


def open_sources(folder: Path) -> Sources:
    """The images of a folder that ``kandinsky data nano --folder`` filled, decoded at their size if they are not yet.

    Raises:
        RequestError: There are none.
    """
    decode(folder, side=SOURCE_SIDE)
    return Sources(folder)


class Sources:
    """Images of all concepts, and of animated emoji that are none (``wordless`` for training, ``held`` for tests).

    Args:
        cache: Folder that ``kandinsky.lab.nano.emoji.fetch`` and ``decode(side=160)`` filled.
    """

    def __init__(self, cache: Path) -> None:
        self.clips = Clips(cache, side=SOURCE_SIDE)
        rows = {name: row for row, name in enumerate(self.clips.files)}
        entries = catalogue()
        self._folder = cache / "packages"
        self._stills: dict[int, Tensor] = {}
        self._rows: list[int] = []
        for number, entry in enumerate(entries):
            row = rows.get(entry.file)
            if row is None:
                self._stills[number] = decode_still(cache / "packages" / entry.file)
            self._rows.append(-1 if row is None else row)
        others = sorted(set(range(len(self.clips))) - set(self._rows))
        self.held = [row for n, row in enumerate(others) if n % WORDLESS_HELD_EVERY == 0]
        self.wordless = [row for n, row in enumerate(others) if n % WORDLESS_HELD_EVERY]

    def __len__(self) -> int:
        return len(self._rows)

    def moves(self, concept: int) -> bool:
        """Whether a concept's image is animated."""
        return concept not in self._stills

    def frames(self, concept: int | None, row: int | None = None, *, count: int = FRAMES) -> Tensor:
        """Premultiplied RGBA in [0, 1] of a concept, or of a row of the clips.

        Returns:
            float32 [T, 4, 160, 160]; a single frame where the image stands still.
        """
        if concept is not None and concept in self._stills:
            return self._stills[concept]
        number = self._rows[concept] if concept is not None else row
        assert number is not None
        frames = np.array(self.clips.rgba_NTHWC[number, :count])
        return torch.from_numpy(frames).permute(0, 3, 1, 2).float().div_(255)

    def toned(self, concept: int, tone: int, *, count: int = FRAMES) -> Tensor | None:
        """As ``frames`` of a concept in a tone of skin, decoded anew; None where it is drawn in none, or stands still.

        Args:
            concept: Its number.
            tone: 1 to 5.
            count: How many frames.
        """
        name = toned_file(Path(catalogue()[concept].file).stem, tone, self._toned_files)
        if name is None:
            return None
        frames = decode_one(self._toned_files[name], SOURCE_SIDE, FRAMES)[:count]
        if count > 1 and self.moves(concept) and not np.ptp(frames, axis=0).any():
            return None
        return torch.from_numpy(frames).permute(0, 3, 1, 2).float().div_(255)

    @cached_property
    def _toned_files(self) -> dict[str, Path]:
        every = (p for n in range(1, 5) for p in (self._folder / f"anim-{n}" / "assets").glob("*.webp"))
        return {path.stem: path for path in every}


def decode_still(path: Path, side: int = SOURCE_SIDE) -> Tensor:
    """One image as premultiplied RGBA in [0, 1], float32 [1, 4, side, side]."""
    with Image.open(path) as image:
        small = image.convert("RGBA").convert("RGBa").resize((side, side), Image.Resampling.BOX)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].float().div_(255)
