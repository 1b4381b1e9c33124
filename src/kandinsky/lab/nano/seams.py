"""How well nano follows conditions: known frames against the autoencoder's round trip, and jumps at the seams.

    python -m kandinsky.lab.nano.seams --sheets runs/seams

Clips of nano itself are given back to it in parts. A seam is the change between the last known and the first generated
frame, over the median change between neighbouring frames of the source; in space, the change across the border of the
mask, over that of the source in the same places.

Legend: T H W frames, rows, columns of pixels.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

import kandinsky
from kandinsky import Frames, Source, Video
from kandinsky.media.video import write_sheet

PROMPTS = ("a panda waves", "a red heart beats", "a cat dances")
BOX = slice(32, 64)  # rows and columns that are painted anew


@dataclass(frozen=True, slots=True)
class Asked:
    """One task on one pair of clips.

    Attributes:
        options: What the call is given.
        known: For each known frame of the result, the frame it is compared with.
        seams: Pairs of neighbouring frames of the result, one of them known.
        box: Rows and columns that are generated within known frames.
    """

    options: dict[str, Any]
    known: dict[int, np.ndarray]
    seams: tuple[tuple[int, int], ...] = ()
    box: slice | None = None


def continuation(a: Video, b: Video) -> Asked:
    """The first nine frames go on."""
    return Asked({"conditions": [Frames(a, at=0, cut="0:9")]}, {i: a[i] for i in range(9)}, ((8, 9),))


def join(a: Video, b: Video) -> Asked:
    """Nine frames of one clip lead to eight of another."""
    known = {i: a[i] for i in range(9)} | {i: b[i] for i in range(17, 25)}
    options = {"conditions": [Frames(a, at=0, cut="0:9"), Frames(b, at="end", cut="17:25")]}
    return Asked(options, known, ((8, 9), (16, 17)))


def between(a: Video, b: Video) -> Asked:
    """From a first to a last image, which is held for four frames."""
    return Asked({"image": a[0], "last_image": a[24]}, {0: a[0], 24: a[24]}, ((0, 1), (20, 21)))


def retake(a: Video, b: Video) -> Asked:
    """Frames 9 to 16 are made again."""
    kept = [*range(9), *range(17, 25)]
    return Asked({"video": a, "span": "9:17"}, {i: a[i] for i in kept}, ((8, 9), (16, 17)))


def inpainting(a: Video, b: Video) -> Asked:
    """The middle of every frame is painted anew."""
    mask = np.zeros(a.frames.shape[1:3], bool)
    mask[BOX, BOX] = True
    return Asked({"conditions": [Source(a, mask=mask)]}, {i: a[i] for i in range(25)}, box=BOX)


TASKS: dict[str, Callable[[Video, Video], Asked]] = {
    "continuation": continuation,
    "join": join,
    "in-between": between,
    "retake": retake,
    "inpainting": inpainting,
}


def psnr(a: np.ndarray, b: np.ndarray, outside: slice | None = None) -> float:
    """Peak signal-to-noise ratio in dB of two frames, the box left out."""
    error = (a.astype(np.float64) - b) ** 2
    if outside is not None:
        keep = np.ones(error.shape[:2], bool)
        keep[outside, outside] = False
        error = error[keep]
    return float(10 * np.log10(255**2 / max(error.mean(), 1e-9)))


def jump(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute change between two frames."""
    return float(np.abs(a.astype(np.float64) - b).mean())


def border(frames_THWC: np.ndarray, box: slice) -> float:
    """Mean absolute change across the sides of a box."""
    x = frames_THWC.astype(np.float64)
    first, last = box.start, box.stop
    across = [np.abs(x[:, i, box] - x[:, i - 1, box]) for i in (first, last)]
    across += [np.abs(x[:, box, i] - x[:, box, i - 1]) for i in (first, last)]
    return float(np.mean([one.mean() for one in across]))


def round_trip(pipe: Any, a: Video) -> np.ndarray:
    """The clip after encoding and decoding."""
    pixels = torch.from_numpy(a.frames)[None].float() / 127.5 - 1
    with torch.no_grad(), pipe.placement.hold("vae") as vae:
        latents = vae.encode(pixels)
    made: np.ndarray = pipe.decode(latents)[0]
    return made


@dataclass(frozen=True, slots=True)
class Measured:
    """Means over the prompts.

    Attributes:
        known: PSNR of the known frames.
        coder: PSNR of the same frames after the autoencoder alone.
        seam: Change at the seams, over the median change of the source.
        usual: The same at borders of the autoencoder's groups of frames, in the source itself.
        inside: Median change in the result, over that of the source.
    """

    known: float
    coder: float
    seam: float
    usual: float
    inside: float


def measure(pipe: Any, task: str, pairs: Sequence[tuple[str, Video, Video]], sheets: Path | None, name: str,
            **options: Any) -> Measured:  # fmt: skip
    """Run one task on every pair."""
    rows = []
    for number, (prompt, a, b) in enumerate(pairs):
        asked = TASKS[task](a, b)
        made = pipe(prompt, seed=70 + number, progress=False, **asked.options, **options)
        trips = {id(clip): round_trip(pipe, clip) for clip in (a, b)}
        median = np.median([jump(x, y) for x, y in pairwise(a.frames)])
        known = np.mean([psnr(made[i], frame, asked.box) for i, frame in asked.known.items()])
        own = [
            psnr(trips[id(b if np.array_equal(frame, b[i]) else a)][i], frame, asked.box)
            for i, frame in asked.known.items()
        ]
        if asked.box is None:
            seam = np.mean([jump(made[i], made[j]) for i, j in asked.seams]) / median
            usual = np.mean([jump(a[i], a[i + 1]) for i in range(4, 24, 4)]) / median
        else:
            seam, usual = border(made.frames, asked.box) / border(a.frames, asked.box), 1.0
        inside = np.median([jump(x, y) for x, y in pairwise(made.frames)]) / median
        rows.append((known, np.mean(own), seam, usual, inside))
        if sheets is not None:
            write_sheet(made, sheets / f"{task}-{name}-{number}.png")
    return Measured(*(float(value) for value in np.mean(rows, axis=0)))


def runs(steps: int) -> Iterator[tuple[str, str, tuple[str, ...], dict[str, Any]]]:
    """Name, model, tasks and options of each way that is compared."""
    yield "replacement", "nano-t2v", tuple(TASKS), {"steps": steps}
    yield "resample-1", "nano-t2v", tuple(TASKS), {"steps": steps, "resample": 1}
    yield "first-frame-native", "nano-i2v", ("continuation", "join", "in-between", "retake"), {"steps": steps}


def main() -> None:
    """Print one line per task and way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--sheets", type=Path)
    asked = parser.parse_args()
    if asked.sheets is not None:
        asked.sheets.mkdir(parents=True, exist_ok=True)
    pipe = kandinsky.load("nano-t2v", device="cpu")
    options = {"steps": asked.steps, "progress": False}
    pairs = [(prompt, pipe(prompt, seed=1, **options), pipe(prompt, seed=2, **options)) for prompt in PROMPTS]
    if asked.sheets is not None:
        for number, (_, a, _) in enumerate(pairs):
            write_sheet(a, asked.sheets / f"source-{number}.png")
    sys.stdout.write(f"{'task':13} {'way':19} known dB  coder dB  seam  usual  motion\n")
    for name, model, tasks, more in runs(asked.steps):
        own = pipe if model == "nano-t2v" else kandinsky.load(model, device="cpu")
        for task in tasks:
            m = measure(own, task, pairs, asked.sheets, name, **more)
            sys.stdout.write(
                f"{task:13} {name:19} {m.known:8.2f}  {m.coder:8.2f}  {m.seam:4.2f}  {m.usual:5.2f}  {m.inside:6.2f}\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
