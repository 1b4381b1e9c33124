"""Whether tiles of a second stage show in clips of nano, and what the stage does to them.

    python -m kandinsky.lab.nano.upscaled --strengths 0.4 0.6 --sheet runs/upscaled.png

A seam is the mean change across the lines where tiles begin or end, over that across the other borders between places
of the latent, which nano's autoencoder makes visible in any clip; the same lines of the scaled source show what lies
there anyway. Sharpness is the mean change between neighbouring pixels, over that of the scaled source.

Legend: T H W frames, rows, columns of pixels.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

import kandinsky
from kandinsky.diffusion.tiles import Tiles
from kandinsky.engine.upscale import overlap_of
from kandinsky.media.image import FittedImage, open_image
from kandinsky.model.values import Video

PROMPTS = ("a panda on a blue background", "a red heart", "a cat on a yellow background")
FACTOR = 2


@dataclass(frozen=True, slots=True)
class Look:
    """How clips look.

    Attributes:
        seam: Change across the borders of tiles, over that across other borders of places of the latent.
        source: The same of the scaled source.
        sharpness: Change between neighbouring pixels, over that of the scaled source.
        likeness: PSNR in dB against the scaled source.
    """

    seam: float
    source: float
    sharpness: float
    likeness: float


def scaled(clip: Video, width: int, height: int) -> np.ndarray:
    """Frames of a clip at another size, as the second stage begins from them."""
    return np.stack([np.asarray(FittedImage(open_image(one), width, height, "cover").pixels()) for one in clip.frames])


def seam(frames_THWC: np.ndarray, tiles: Tiles, scale: int) -> float:
    """The change across borders of tiles, over that across the other borders of places of the latent."""
    at, elsewhere = [], []
    sides = ((1, tiles.tops, tiles.height, tiles.rows), (2, tiles.lefts, tiles.width, tiles.columns))
    for axis, begins, length, count in sides:
        steps = np.abs(np.diff(frames_THWC.astype(np.float32), axis=axis)).mean(axis=(0, 3 - axis, 3))
        lines = {begin for begin in begins if begin} | {begin + length for begin in begins if begin + length < count}
        at += [steps[line * scale - 1] for line in lines]
        elsewhere += [steps[line * scale - 1] for line in range(1, count) if line not in lines]
    return float(np.mean(at) / np.mean(elsewhere))


def look(made: np.ndarray, source: np.ndarray, tiles: Tiles, scale: int) -> Look:
    """Compare a clip with its scaled source."""

    def sharp(x: np.ndarray) -> float:
        return float(np.mean([np.abs(np.diff(x.astype(np.float32), axis=axis)).mean() for axis in (1, 2)]))

    error = float(np.square(made.astype(np.float32) - source).mean())
    return Look(
        seam(made, tiles, scale),
        seam(source, tiles, scale),
        sharp(made) / sharp(source),
        10 * np.log10(255**2 / max(error, 1e-9)),
    )


def measured(
    strengths: Sequence[float], *, seconds: float, steps: int, rows: list[np.ndarray]
) -> Iterator[tuple[float, Look]]:
    """The mean look of all prompts, for each strength; middle frames are added to ``rows``."""
    pipe = kandinsky.load("nano-t2v", device="cpu")
    clip = pipe.card.clip
    sources = [pipe(prompt, seconds=seconds, steps=steps, seed=5, progress=False) for prompt in PROMPTS]
    height, width = (side * FACTOR for side in sources[0].frames.shape[1:3])
    large = [scaled(one, width, height) for one in sources]
    cells = (height // FACTOR // clip.spatial, width // FACTOR // clip.spatial)
    overlap = (overlap_of(cells[0]), overlap_of(cells[1]))
    tiles = Tiles.over(height // clip.spatial, width // clip.spatial, tile=cells, overlap=overlap)
    rows.append(np.concatenate([one[len(one) // 2] for one in large], axis=1))
    for strength in strengths:
        made = [
            pipe(prompt, video=one, upscale=FACTOR, upscale_strength=strength, steps=steps, seed=5, progress=False)
            for prompt, one in zip(PROMPTS, sources, strict=True)
        ]
        rows.append(np.concatenate([one.frames[len(one) // 2] for one in made], axis=1))
        looks = [look(one.frames, source, tiles, clip.spatial) for one, source in zip(made, large, strict=True)]
        names = Look.__slots__
        yield strength, Look(*(float(np.mean([getattr(one, name) for one in looks])) for name in names))


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.2, 0.4, 0.6])
    parser.add_argument("--seconds", type=float, default=0.75)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--sheet", help="image of the middle frames, a row for the scaled source and each strength")
    asked = parser.parse_args(args)
    rows: list[np.ndarray] = []
    sys.stdout.write(f"{'strength':>8} {'seam':>6} {'source':>6} {'sharpness':>9} {'likeness dB':>11}\n")
    for strength, one in measured(asked.strengths, seconds=asked.seconds, steps=asked.steps, rows=rows):
        sys.stdout.write(
            f"{strength:8.2f} {one.seam:6.2f} {one.source:6.2f} {one.sharpness:9.2f} {one.likeness:11.1f}\n"
        )
        sys.stdout.flush()
    if asked.sheet:
        Image.fromarray(np.concatenate(rows)).save(asked.sheet)
    return 0


if __name__ == "__main__":
    sys.exit(main())
