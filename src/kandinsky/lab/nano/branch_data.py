"""Data of Nano's branches: composited clips and stills with captions, and for references an image of each.

    kandinsky data nano
    python -m kandinsky.lab.nano.branch_data .cache/nano runs/nano-branches

leaves `control/` and `reference/`, the folders that recipes/nano-control.yaml and recipes/nano-reference.yaml name.
The clips that ``splits.autoencoder_rows`` holds out are in neither: they are what the branches are measured on.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from kandinsky.lab.nano import captions
from kandinsky.lab.nano.concepts import load_concepts
from kandinsky.lab.nano.emoji import FPS, Clips, Scene, composite
from kandinsky.lab.nano.flow import EXTRAS
from kandinsky.lab.nano.splits import autoencoder_rows
from kandinsky.media.video import write_video
from kandinsky.model.values import Video

SIDE = 96
EVERY = 3  # of the emoji, so many are clips
WHITE = captions.COLOURS[captions.WHITE].rgb


@dataclass(frozen=True, slots=True)
class Shown:
    """An emoji in a scene, and how it is called.

    Attributes:
        row: Of the clips.
        colour: Of the background.
        scene: Where it stands.
        words: The caption.
    """

    row: int
    colour: int
    scene: Scene
    words: str


def unnamed(colour: int) -> str:
    """The caption of an emoji that is not named."""
    return f"an emoji {captions.background(colour, 'en')}"


def shown(row: int, number: int, concept: int | None) -> Shown:
    """A scene of an emoji, the same for the same numbers; every other one is moved or filmed by a moving camera.

    Args:
        row: Of the clips.
        number: Of the scene.
        concept: Which it is; None for one that is not named.
    """
    rng = np.random.default_rng((row, number))
    colour = int(rng.integers(len(captions.COLOURS)))
    words: dict[str, str | None] = {"position": None, "scale": None, "camera": None}
    if number % 2:
        kind = str(rng.choice(list(EXTRAS)))
        words[kind] = str(rng.choice(EXTRAS[kind]))
    scene = Scene(captions.COLOURS[colour].rgb, **words)
    if concept is None:
        return Shown(row, colour, scene, unnamed(colour))
    text = captions.caption(load_concepts()[concept], colour, lang="en", rng=random.Random(row * 100 + number), **words)  # type: ignore[arg-type]
    return Shown(row, colour, scene, text)


def write_control(clips: Clips, rows: list[int], folder: Path) -> None:
    """A clip and two stills of each third emoji, with captions; the second still is not named."""
    named = {clips.row(one.file): number for number, one in enumerate(load_concepts())}
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows[::EVERY]:
        rgba = np.asarray(clips.rgba_NTHWC[row])
        for number in range(3):
            one = shown(row, number, named.get(row) if number < 2 else None)
            frames = composite(rgba if number == 0 else rgba[12 * (number - 1)][None], one.scene, side=SIDE)
            _write(frames, folder / f"{row:03}-{number}", one.words)


def write_reference(clips: Clips, rows: list[int], folder: Path) -> None:
    """Two stills of each emoji, and a clip of each third; the reference is a moment of it, on white."""
    for name in ("clips", "references"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for place, row in enumerate(rows):
        rgba = np.asarray(clips.rgba_NTHWC[row])
        for number in range(1 if place % EVERY else 0, 3):
            one = shown(row, number, None)
            frames = composite(rgba if number == 0 else rgba[12 * (number - 1)][None], one.scene, side=SIDE)
            _write(frames, folder / "clips" / f"{row:03}-{number}", one.words)
            Image.fromarray(reference_of(rgba)).save(folder / "references" / f"{row:03}-{number}.png")


def reference_of(rgba_THWC: np.ndarray) -> np.ndarray:
    """The image that stands for an emoji, [H, W, 3]."""
    image: np.ndarray = composite(rgba_THWC[6][None], Scene(WHITE), side=SIDE)[0]
    return image


def _write(frames: np.ndarray, stem: Path, words: str) -> None:
    if len(frames) == 1:
        Image.fromarray(frames[0]).save(stem.with_suffix(".png"))
    else:
        write_video(Video(frames, fps=FPS, seed=0), stem.with_suffix(".mp4"))
    stem.with_suffix(".txt").write_text(words, encoding="utf-8")


def main() -> None:
    """Write both folders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path, help="Where `kandinsky data nano` put the clips.")
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    clips = Clips(asked.cache)
    rows, _ = autoencoder_rows(asked.cache)
    write_control(clips, rows, asked.folder / "control")
    write_reference(clips, rows, asked.folder / "reference")


if __name__ == "__main__":
    main()
