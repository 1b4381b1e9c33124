"""Pictures of the second Nano for its card and the README, by rule: ``python -m kandinsky.lab.nano2.picture FOLDER``.

Makes the 48 fixed prompts by the shipped model, each with its number as the seed: `contact_sheet.webp`, all of them as
six frames each, in their order; `moving.webp`, the first twelve side by side as they move.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from kandinsky.catalogue import load
from kandinsky.lab.nano2.evaluate import Made
from kandinsky.lab.nano2.fidelity import Clip
from kandinsky.lab.nano2.measures import fixed_prompts

SHEET = 56  # pixels of a frame's side on the sheet
MOVING, ACROSS, SIDE = 12, 6, 128  # clips that move, how many beside one another, and their side


def strips(made: Sequence[Clip], real: Sequence[Clip] | None = None, *, across: int = 3) -> Image.Image:
    """Clips as six frames each, stills as one; the real ones, where given, above the made."""

    def strip(clip: Clip) -> np.ndarray:
        shown = np.linspace(0, len(clip) - 1, min(6, len(clip))).astype(int)
        return np.concatenate([clip[t] for t in shown], axis=1)

    cells = [strip(c) if real is None else np.concatenate([strip(real[i]), strip(c)]) for i, c in enumerate(made)]
    cells += [np.zeros_like(cells[0])] * (-len(cells) % across)
    return Image.fromarray(
        np.concatenate([np.concatenate(cells[at : at + across], 1) for at in range(0, len(cells), across)])
    )


def moving(clips: Sequence[Clip], target: Path) -> None:
    """Write clips beside and below one another as one animated WebP that runs for ever."""
    rows = [clips[at : at + ACROSS] for at in range(0, len(clips), ACROSS)]
    frames = [
        Image.fromarray(np.concatenate([np.concatenate([clip[t] for clip in row], 1) for row in rows]))
        for t in range(len(clips[0]))
    ]
    small = [f.resize((SIDE * ACROSS, SIDE * len(rows)), Image.Resampling.LANCZOS) for f in frames]
    small[0].save(target, save_all=True, append_images=small[1:], duration=83, loop=0, quality=70, method=6)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="nano2-t2v")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    clips = Made(load(options.model))([prompt["text"] for prompt in fixed_prompts()])
    moving(clips[:MOVING], options.folder / "moving.webp")
    sheet = strips(clips)
    shrink = SHEET / clips[0].shape[1]
    small = sheet.resize((round(sheet.width * shrink), round(sheet.height * shrink)), Image.Resampling.LANCZOS)
    small.save(options.folder / "contact_sheet.webp", quality=80, method=6)


if __name__ == "__main__":
    main()
