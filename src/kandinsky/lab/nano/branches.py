"""How well Nano's branches are followed, on emoji that they never saw.

    python -m kandinsky.lab.nano.branches .cache/nano --control FILE --reference FILE --sheets runs/branches

Edges: of the result against those of the control clip, as F-score of edge pixels that have one of the other within two
pixels. References: the result among all emoji that no branch was trained on, as the nearest of them by small images of
a few moments on the same background. Both beside the same model, prompts and seeds without a branch.

Legend: N clips; T H W frames, rows, columns of pixels.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import kandinsky
from kandinsky import Control, Reference, Video
from kandinsky.lab.nano import captions
from kandinsky.lab.nano.branch_data import SIDE, WHITE, reference_of, unnamed
from kandinsky.lab.nano.emoji import FPS, Clips, Scene, composite
from kandinsky.lab.nano.splits import autoencoder_rows
from kandinsky.media.signals import edges_of

NEAR = 2  # pixels by which an edge may be off
SMALL = 24  # side of the images by which emoji are told apart
MOMENTS = (0, 6, 12, 18, 24)


def edge_score(made_THWC: np.ndarray, wanted_THWC: np.ndarray, near: int = NEAR) -> float:
    """F-score of the edges of one clip against those of another, the mean over its frames; 1 where neither has any.

    Args:
        made_THWC: uint8.
        wanted_THWC: Of the same shape.
        near: Pixels by which an edge may be off.

    Returns:
        0 to 1.
    """
    made, wanted = edges_of(made_THWC), edges_of(wanted_THWC)
    scores = []
    for own, other in zip(made, wanted, strict=True):
        if not own.any() and not other.any():
            scores.append(1.0)
            continue
        precise = (own & _grown(other, near)).sum() / max(own.sum(), 1)
        whole = (other & _grown(own, near)).sum() / max(other.sum(), 1)
        scores.append(2 * precise * whole / max(precise + whole, 1e-9))
    return float(np.mean(scores))


def _grown(found_HW: np.ndarray, near: int) -> np.ndarray:
    """True within a square of so many pixels around what is true."""
    H, W = found_HW.shape
    padded = np.pad(found_HW, near)
    shifts = range(2 * near + 1)
    out: np.ndarray = np.any([padded[r : r + H, c : c + W] for r in shifts for c in shifts], axis=0)
    return out


def small(frames_THWC: np.ndarray, moments: Sequence[int] = MOMENTS) -> np.ndarray:
    """A clip as small images of some moments, [moments, SMALL·SMALL·3] in 0 to 1."""
    images = [Image.fromarray(frames_THWC[min(at, len(frames_THWC) - 1)]) for at in moments]
    resized = [image.resize((SMALL, SMALL), Image.Resampling.BOX) for image in images]
    return np.stack([np.asarray(image, np.float32).ravel() / 255 for image in resized])


def ranks(made: Sequence[np.ndarray], gallery: Sequence[np.ndarray], own: Sequence[int]) -> list[int]:
    """For each clip, the place of its own emoji among all, from 0: by the nearest moments of both."""
    found = []
    for clip, number in zip(made, own, strict=True):
        distances = [float(((clip[:, None] - one[None]) ** 2).mean(-1).min(1).mean()) for one in gallery]
        found.append(int(np.argsort(distances).tolist().index(number)))
    return found


def controls(clips: Clips, rows: Sequence[int]) -> Iterator[tuple[str, Video]]:
    """A prompt that names the background alone, and a clip to be followed, of each emoji."""
    for place, row in enumerate(rows):
        colour = (5 * place + 1) % len(captions.COLOURS)
        scene = Scene(captions.COLOURS[colour].rgb, scale=(None, "small")[place % 2])
        yield unnamed(colour), Video(composite(np.asarray(clips.rgba_NTHWC[row]), scene, side=SIDE), FPS)


def sheet(rows: Sequence[Sequence[np.ndarray]], path: Path) -> None:
    """Write rows of frames as one image."""
    joined = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    Image.fromarray(joined).resize((joined.shape[1], joined.shape[0]), Image.Resampling.NEAREST).save(path)


def measure_control(pipe: Any, clips: Clips, rows: Sequence[int], file: Path, strengths: Sequence[float],
                    sheets: Path | None, **options: Any) -> Iterator[tuple[float, float]]:  # fmt: skip
    """Edge scores by strength; 0 is the model alone."""
    shown: list[list[np.ndarray]] = []
    for strength in (0.0, *strengths):
        scores = []
        for number, (prompt, wanted) in enumerate(controls(clips, rows)):
            conditions = [Control(wanted, branch=file, strength=strength)] if strength else []
            made = pipe(prompt, seed=100 + number, seconds=2, conditions=conditions, progress=False, **options)
            scores.append(edge_score(made.frames, wanted.frames))
            if number < 8:
                if not strength:
                    lines = np.repeat((edges_of(wanted.frames[12:13])[0] * np.uint8(255))[..., None], 3, axis=-1)
                    shown.append([wanted[12], lines])
                shown[number] += [made[0], made[12], made[24]]
        yield strength, float(np.mean(scores))
    if sheets is not None:
        sheet(shown, sheets / "control.png")


def measure_reference(pipe: Any, clips: Clips, rows: Sequence[int], count: int, file: Path, strengths: Sequence[float],
                      sheets: Path | None, **options: Any) -> Iterator[tuple[float, float, float]]:  # fmt: skip
    """Shares of the results whose own emoji is the nearest, and among the five nearest, by strength."""
    gallery = [small(composite(np.asarray(clips.rgba_NTHWC[row]), Scene(WHITE), side=SIDE)) for row in rows]
    images = [reference_of(np.asarray(clips.rgba_NTHWC[row])) for row in rows[:count]]
    shown = [[image] for image in images[:8]]
    for strength in (0.0, *strengths):
        found = []
        for number, image in enumerate(images):
            conditions = [Reference(image, branch=file, strength=strength)] if strength else []
            made = pipe(unnamed(captions.WHITE), seed=200 + number, seconds=2, conditions=conditions, progress=False,
                        **options)  # fmt: skip
            found.append(small(made.frames))
            if number < 8:
                shown[number] += [made[0], made[12], made[24]]
        places = np.array(ranks(found, gallery, range(count)))
        yield strength, float((places == 0).mean()), float((places < 5).mean())
    if sheets is not None:
        sheet(shown, sheets / "reference.png")


def main() -> None:
    """Print a line for each strength."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--control", type=Path)
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--count", type=int, default=24, help="Emoji of each.")
    parser.add_argument("--strengths", type=float, nargs="+", default=[1.0])
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--sheets", type=Path)
    asked = parser.parse_args()
    if asked.sheets is not None:
        asked.sheets.mkdir(parents=True, exist_ok=True)
    clips = Clips(asked.cache)
    _, rows = autoencoder_rows(asked.cache)
    pipe = kandinsky.load("nano-t2v", device="cpu")
    options = {"steps": asked.steps, "guidance": asked.guidance}
    count, sheets = min(asked.count, len(rows)), asked.sheets
    if asked.control is not None:
        for strength, score in measure_control(pipe, clips, rows[:count], asked.control, asked.strengths, sheets,
                                               **options):  # fmt: skip
            sys.stdout.write(f"edges      strength {strength:4.2f}  F-score {score:.3f}  of {count} clips\n")
            sys.stdout.flush()
    if asked.reference is not None:
        for strength, first, five in measure_reference(pipe, clips, rows, count, asked.reference, asked.strengths,
                                                       sheets, **options):  # fmt: skip
            sys.stdout.write(
                f"reference  strength {strength:4.2f}  nearest {first:.1%}, among five {five:.1%}  of {count} emoji, "
                f"chance {1 / len(rows):.1%}\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
