"""When does something begin to sound? Onsets of a waveform, and how well they agree with the true times.

An onset is a moment at which many mel bands grow louder at once: the sum of the growths of their logarithms over two
steps ("spectral flux") has a peak there that stands out from its surroundings.
The numbers below were chosen on training clips.
Source of the idea: Bello et al., A Tutorial on Onset Detection in Music Signals (2005).
Legend: S samples, M mel bands, T steps in time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

from kandinsky.media.spectrogram import SpectrogramParams, mel_of_waveform

STEP_MS = 10
SPREAD = 2  # steps over which a band's growth is taken
FLOOR = 5.5e-5  # share of full scale that is as good as silence: −85 dB
PEAK_STEPS = 6  # an onset is the largest growth within so many steps to both sides
LEAST = 1.0  # mean growth of all bands, in units of ln: hits have 2 and more, steady noise up to a half
SHARE = 0.2  # and of the clip's strongest onset
EDGE = 4  # steps at the end, where a window hears the sound's own mirror image
FULL = 1.35e7  # what a full-scale sine gives in its mel band, with the parameters below


@dataclass(frozen=True, slots=True)
class Agreement:
    """How many onsets were found, true, and both."""

    found: int = 0
    true: int = 0
    both: int = 0

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(self.found + other.found, self.true + other.true, self.both + other.both)

    @property
    def precision(self) -> float:
        return self.both / max(1, self.found)

    @property
    def recall(self) -> float:
        return self.both / max(1, self.true)

    @property
    def f1(self) -> float:
        return 2 * self.both / max(1, self.found + self.true)


def loudness_steps(waveform_S: np.ndarray, rate: int) -> torch.Tensor:
    """ln(floor + magnitude) of mel bands, [M, T], one column each ``STEP_MS``; int16 units."""
    params = SpectrogramParams(
        sample_rate=rate,
        step_size_ms=STEP_MS,
        window_duration_ms=40,
        padded_duration_ms=64,
        num_frequencies=40,
        max_frequency=min(8000, rate // 2),
    )
    mel = mel_of_waveform(torch.from_numpy(np.asarray(waveform_S, np.float32))[None], params)[0]
    return torch.log(mel / FULL + FLOOR)


def onsets(waveform_S: np.ndarray, rate: int) -> list[float]:
    """Times in seconds at which something begins to sound, rising."""
    flux = F.pad(loudness_steps(waveform_S, rate).diff(dim=1), (1, 0)).relu()
    flux = (
        flux[:, :-EDGE].unfold(1, SPREAD, 1).sum(-1).mean(0)
    )  # one fewer than steps; the growth ends at step t + SPREAD − 1
    largest = F.max_pool1d(flux[None], 2 * PEAK_STEPS + 1, 1, PEAK_STEPS)[0]
    least = max(LEAST, SHARE * float(flux.max()))
    peaks = torch.nonzero((flux == largest) & (flux >= least))[:, 0]
    return [float(t + (SPREAD - 1) / 2) * STEP_MS / 1000 for t in peaks]


def agree(found: Sequence[float], true: Sequence[float], *, within: float = 0.1) -> Agreement:
    """Pair found and true times one to one, as many as possible, none further apart than ``within`` seconds."""
    return Agreement(len(found), len(true), len(pairs(found, true, within=within)))


def pairs(found: Sequence[float], true: Sequence[float], *, within: float = 0.1) -> list[tuple[int, int]]:
    """Numbers (found, true) of a largest set of pairs. Both lists rise: to take the earliest that fits is best."""
    out, i, j = [], 0, 0
    while i < len(found) and j < len(true):
        if abs(found[i] - true[j]) <= within:
            out.append((i, j))
            i, j = i + 1, j + 1
        elif found[i] < true[j]:
            i += 1
        else:
            j += 1
    return out
