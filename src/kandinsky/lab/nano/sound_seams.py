"""Whether the windows of generated audio can be heard: what changes where they are joined, against everywhere else.

    kandinsky generate --video minute.mp4 "drum" --seed 5 -o loud.mp4
    python -m kandinsky.lab.nano.sound_seams loud.mp4

Audio is cut into frames of 20 ms. The change between neighbours is that of the logarithm of their spectra (mean over
frequencies), and that of their level in dB.

Legend: F frames, S samples, N frequencies.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from kandinsky import catalogue
from kandinsky.engine.request import resolve
from kandinsky.families.kandinsky4_v2a.request import choice_of
from kandinsky.media.audio import read_audio
from kandinsky.model.card import sound_of
from kandinsky.model.values import Request

MODEL = "nano-v2a"
FRAME_S = 0.02
FLOOR = 1e-9  # of full scale


@dataclass(frozen=True, slots=True)
class Joins:
    """What changes at the joins of windows, and elsewhere.

    Attributes:
        windows: How many windows.
        seam: Change of the spectrum within the cross-fades, over that elsewhere.
        level: Mean change of the level there, in dB.
        usual: The same elsewhere.
        worst: The largest change of the level there.
        loudest: The same elsewhere.
    """

    windows: int
    seam: float
    level: float
    usual: float
    worst: float
    loudest: float


def joins_of(path: Path) -> Joins:
    """Measure a clip with audio of ``MODEL``.

    Args:
        path: The clip.

    Returns:
        The changes.
    """
    card = catalogue.find(MODEL)
    windows = choice_of(resolve(Request(MODEL, "any", video=path, seed=0), card)).windows
    audio = read_audio(path, mono=True)
    samples_S = audio.samples_SC[:, 0].astype(np.float64) / 2**15
    length = int(FRAME_S * audio.rate)
    frames_FS = samples_S[: len(samples_S) // length * length].reshape(-1, length)
    spectra_FN = np.log(np.abs(np.fft.rfft(frames_FS * np.hanning(length), axis=1)) ** 2 + FLOOR)
    flux = np.abs(np.diff(spectra_FN, axis=0)).mean(axis=1)
    level = np.abs(np.diff(10 * np.log10(np.square(frames_FS).mean(axis=1) + FLOOR)))
    middles = [(b + a + windows.length_s) / 2 for a, b in pairwise(windows.starts_s)]
    reach = sound_of(card).overlap_s / 2 + FRAME_S
    times = np.arange(1, len(flux) + 1) * FRAME_S
    near = np.any([np.abs(times - middle) <= reach for middle in middles], axis=0)
    return Joins(
        len(windows.starts_s),
        float(flux[near].mean() / flux[~near].mean()),
        float(level[near].mean()),
        float(level[~near].mean()),
        float(level[near].max()),
        float(level[~near].max()),
    )


def main(args: Sequence[str] | None = None) -> int:
    (path,) = sys.argv[1:] if args is None else args
    one = joins_of(Path(path))
    sys.stdout.write(
        f"{one.windows} windows: seam {one.seam:.2f}; level changes by {one.level:.2f} dB at joins, {one.usual:.2f} "
        f"elsewhere; at most {one.worst:.1f} and {one.loudest:.1f}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
