"""Data of Nano's branches: composited clips and stills with captions, and for references an image of each.

    kandinsky data nano
    python -m kandinsky.lab.nano.branch_data .cache/nano runs/nano-branches

leaves `control/` and `reference/`, the folders that recipes/nano-control.yaml and recipes/nano-reference.yaml name.
Animated emoji give clips and stills; the still ones of `@lobehub/fluent-emoji-3d` (MIT), which are fetched here, give
more stills, since a branch for subjects that nobody named must have seen many. The emoji that
``splits.autoencoder_rows`` holds out are in neither, and behind a concept stand the backgrounds alone that training has
for it: the rest is what the branches are measured on.

Legend: T S frames, side of the square source.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from kandinsky.lab.nano import captions
from kandinsky.lab.nano.concepts import load_concepts
from kandinsky.lab.nano.emoji import FPS, SKIN_TONES, Clips, Scene, composite, fetch
from kandinsky.lab.nano.emoji import SIDE as SOURCE_SIDE
from kandinsky.lab.nano.flow import EXTRAS
from kandinsky.lab.nano.splits import autoencoder_rows
from kandinsky.media.video import write_video
from kandinsky.model.values import Video

SIDE = 96
STILLS = {"3d": ("@lobehub/fluent-emoji-3d@1.1.0", None)}
WHITE = captions.COLOURS[captions.WHITE].rgb
MOMENT = 6  # of a clip, which its reference shows where nothing else is said


@dataclass(frozen=True, slots=True)
class Shown:
    """An emoji in a scene, and how it is called.

    Attributes:
        row: Of the clips; numbers beyond theirs are still ones.
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
    entry = None if concept is None else load_concepts()[concept]
    allowed = range(len(captions.COLOURS)) if entry is None else captions.TRAIN_COLOURS(entry)
    colour = int(rng.choice(list(allowed)))
    words: dict[str, str | None] = {"position": None, "scale": None, "camera": None}
    if number % 2:
        kind = str(rng.choice(list(EXTRAS)))
        words[kind] = str(rng.choice(EXTRAS[kind]))
    scene = Scene(captions.COLOURS[colour].rgb, **words)
    if entry is None:
        return Shown(row, colour, scene, unnamed(colour))
    text = captions.caption(entry, colour, lang="en", rng=random.Random(row * 100 + number), **words)  # type: ignore[arg-type]
    return Shown(row, colour, scene, text)


def named_rows(clips: Clips) -> dict[int, int]:
    """Concepts by their rows."""
    return {clips.row(one.file): number for number, one in enumerate(load_concepts())}


def still_files(cache: Path, clips: Clips, held: list[int]) -> list[Path]:
    """Images of still emoji that are none of the held out ones, each in one colour of skin."""
    fetch(cache, STILLS)
    hidden = {_code(Path(clips.files[row]).stem) for row in held}
    files = sorted((cache / "packages" / "3d" / "assets").glob("*.webp"))
    return [
        file for file in files if not any(tone in file.stem for tone in SKIN_TONES) and _code(file.stem) not in hidden
    ]


def _code(stem: str) -> str:
    """A file's name without the mark that asks for a picture, which one package writes and another does not."""
    return "-".join(part for part in stem.split("-") if part != "fe0f")


def still_rgba(file: Path) -> np.ndarray:
    """A still emoji as one frame of a clip's source, premultiplied, [1, S, S, 4]."""
    with Image.open(file) as image:
        premultiplied = image.convert("RGBA").convert("RGBa")
    return np.asarray(premultiplied.resize((SOURCE_SIDE, SOURCE_SIDE), Image.Resampling.BOX))[None]


def recoloured(rgba_TSSC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another subject: red, green and blue in another order, and half of the time seen in a mirror."""
    mixed = rgba_TSSC[..., [*rng.permutation(3), 3]]
    return np.ascontiguousarray(mixed[:, :, ::-1] if rng.integers(2) else mixed)


def write_control(clips: Clips, rows: list[int], stills: list[Path], folder: Path) -> None:
    """A clip and two stills of each emoji, with captions, the second still not named; and a still of each still one."""
    named = named_rows(clips)
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        rgba = np.asarray(clips.rgba_NTHWC[row])
        for number in range(3):
            one = shown(row, number + row % 2, named.get(row) if number < 2 else None)
            frames = composite(rgba if number == 0 else rgba[12 * (number - 1)][None], one.scene, side=SIDE)
            _write(frames, folder / f"{row:04}-{number}", one.words)
    for row, file in enumerate(stills, len(clips)):
        one = shown(row, row % 2, None)
        _write(composite(still_rgba(file), one.scene, side=SIDE), folder / f"{row:04}-0", one.words)


def write_reference(clips: Clips, rows: list[int], stills: list[Path], folder: Path) -> None:
    """A clip and a still of each emoji, and two stills of each still one, of which the second is recoloured.

    The reference is a moment of it, on white.
    """
    for name in ("clips", "references"):
        (folder / name).mkdir(parents=True, exist_ok=True)

    def write(frames: np.ndarray, of: np.ndarray, one: Shown, name: str) -> None:
        _write(frames, folder / "clips" / name, one.words)
        Image.fromarray(composite(of, Scene(WHITE), side=SIDE)[0]).save(folder / "references" / f"{name}.png")

    for row in rows:
        rgba = np.asarray(clips.rgba_NTHWC[row])
        for number, moment in enumerate((MOMENT, 18)):
            one = shown(row, number + row % 2, None)
            frames = composite(rgba if number == 0 else rgba[:1], one.scene, side=SIDE)
            write(frames, rgba[moment : moment + 1], one, f"{row:04}-{number}")
    for row, file in enumerate(stills, len(clips)):
        for number, rgba in enumerate(_twice(still_rgba(file), np.random.default_rng(row))):
            one = shown(row, number + row % 2, None)
            write(composite(rgba, one.scene, side=SIDE), rgba, one, f"{row:04}-{number}")


def _twice(rgba_TSSC: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    yield rgba_TSSC
    yield recoloured(rgba_TSSC, rng)


def reference_of(rgba_THWC: np.ndarray) -> np.ndarray:
    """The image that stands for an emoji, [H, W, 3]."""
    image: np.ndarray = composite(rgba_THWC[MOMENT][None], Scene(WHITE), side=SIDE)[0]
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
    rows, held = autoencoder_rows(asked.cache)
    stills = still_files(asked.cache, clips, held)
    write_control(clips, rows, stills, asked.folder / "control")
    write_reference(clips, rows, stills, asked.folder / "reference")


if __name__ == "__main__":
    main()
