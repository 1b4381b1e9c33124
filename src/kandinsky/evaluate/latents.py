"""What latents are like for whoever has to model them: their spectrum beside that of pixels, and their channels.

Denoisers make low frequencies first and high ones last, so latents with more high frequencies than pixels are harder to
model (Skorokhodov et al., Improving the diffusability of autoencoders, arXiv 2502.14831, which looks at the discrete
cosine transform of latents too; here of whole frames, by distance from the constant one).

Legend: T frames; H W rows and columns; C channels; K bins.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from kandinsky.errors import RequestError

BINS = 16
HIGH = 0.5  # from here on frequencies are high, in units of the highest along a side
FLOOR = 1e-12


@lru_cache(16)
def cosines(n: int) -> np.ndarray:
    """The orthonormal discrete cosine transform (DCT-II) of so many values, [n, n]."""
    at, wave = np.arange(n)[None] + 0.5, np.arange(n)[:, None]
    table = np.cos(math.pi / n * at * wave) * math.sqrt(2 / n)
    table[0] /= math.sqrt(2)
    return np.asarray(table)


def power(x_THWC: np.ndarray) -> np.ndarray:
    """Squares of the cosine transform of each frame and channel, their mean over frames, [H, W, C]."""
    rows, columns = (cosines(n) for n in x_THWC.shape[1:3])
    x_TCHW = np.moveaxis(x_THWC.astype(np.float64), -1, 1)
    return np.asarray(np.moveaxis(np.square(rows @ x_TCHW @ columns.T).mean(axis=0), 0, -1))


def frequencies(height: int, width: int) -> np.ndarray:
    """The frequency of each number of a transform, [H, W]: 0 to 1 along a side, up to 1.41 in the corner."""
    return np.hypot(np.arange(height)[:, None] / height, np.arange(width)[None] / width)


def by_frequency(power_HWC: np.ndarray) -> np.ndarray:
    """Sums of power over channels by frequency, [K]: bins of equal width from 0 to 1, the corner in the last one.

    The constant is left out.
    """
    power_HW = power_HWC.sum(axis=-1)
    place = np.minimum((frequencies(*power_HW.shape) * BINS).astype(int), BINS - 1)
    power_HW[0, 0] = 0.0
    return np.bincount(place.ravel(), power_HW.ravel(), minlength=BINS)


def high_share(power_HWC: np.ndarray) -> float:
    """Share of the power, without the constant, at frequencies of a half and more; 0 of constants."""
    power_HW = power_HWC.sum(axis=-1)
    power_HW[0, 0] = 0.0
    total = float(power_HW.sum())
    return float(power_HW[frequencies(*power_HW.shape) >= HIGH].sum()) / total if total > FLOOR else 0.0


def smaller(clip_THWC: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Means of a clip's squares, as many as latents have places."""
    T, H, W, C = clip_THWC.shape
    return np.asarray(clip_THWC.reshape(T, rows, H // rows, columns, W // columns, C).mean((2, 4), dtype=np.float64))


class LatentStatistics:
    """Gathers latents and the clips they are of, all of one number of channels; sizes may differ."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: Any = 0.0
        self.products: Any = 0.0
        self.least: Any = np.inf
        self.most: Any = -np.inf
        self.spectra = {name: np.zeros(BINS) for name in ("latents", "pixels", "pixels made as small")}
        self.shares: dict[str, list[float]] = {name: [] for name in self.spectra}
        self.channel_shares: list[list[float]] = []

    def add(self, latents_THWC: np.ndarray, clip_THWC: np.ndarray) -> None:
        """Add a clip.

        Args:
            latents_THWC: Its latents.
            clip_THWC: Its pixels; rows and columns are multiples of those of the latents.

        Raises:
            RequestError: Latents are not finite, or have another number of channels than before.
        """
        flat = latents_THWC.reshape(-1, latents_THWC.shape[-1]).astype(np.float64)
        if not np.isfinite(flat).all():
            raise RequestError("latents are not finite: use --dtype float32, or other weights")
        if self.count and flat.shape[1] != len(self.sums):
            raise RequestError(f"latents of {flat.shape[1]} channels do not go with those of {len(self.sums)}")
        self.count += len(flat)
        self.sums = self.sums + flat.sum(0)
        self.products = self.products + flat.T @ flat
        self.least, self.most = np.minimum(self.least, flat.min(0)), np.maximum(self.most, flat.max(0))
        small = smaller(clip_THWC, *latents_THWC.shape[1:3])
        for name, x in zip(self.spectra, (latents_THWC, clip_THWC, small), strict=True):
            found = power(x)
            sums = by_frequency(found)
            self.spectra[name] += sums / max(float(sums.sum()), FLOOR)
            self.shares[name].append(high_share(found))
            if name == "latents":
                self.channel_shares.append([high_share(found[..., c : c + 1]) for c in range(found.shape[-1])])

    def result(self) -> dict[str, Any]:
        """Plain values: channels, spectra in shares of the power without the constant, and how hard it looks to model.

        `excess_db` is the power of latents over that of pixels made as small, in the high half of the bins, where each
        spectrum has a sum of 1: above 0, latents have more of the details that denoisers make last.
        """
        mean = self.sums / self.count
        covariance = self.products / self.count - np.outer(mean, mean)
        deviation = np.sqrt(np.clip(np.diag(covariance), 0.0, None))
        spectra = {name: sums / max(float(sums.sum()), FLOOR) for name, sums in self.spectra.items()}
        own, theirs = (spectra[name][int(HIGH * BINS) :].sum() for name in ("latents", "pixels made as small"))
        values = np.clip(np.linalg.eigvalsh(covariance), 0.0, None)
        return {
            "deviation": float(np.sqrt(np.square(deviation).mean())),
            "effective_channels": float(values.sum() ** 2 / max(float(np.square(values).sum()), FLOOR)),
            "high_share": {name: float(np.mean(shares)) for name, shares in self.shares.items()},
            "excess_db": float(10 * np.log10((own + FLOOR) / (theirs + FLOOR))),
            "channels": [
                {"mean": float(m), "deviation": float(d), "least": float(lo), "most": float(hi), "high_share": float(s)}
                for m, d, lo, hi, s in zip(
                    mean, deviation, self.least, self.most, np.mean(self.channel_shares, axis=0), strict=True
                )
            ],
            "frequencies": [(k + 0.5) / BINS for k in range(BINS)],
            "spectra": {name: [float(v) for v in shares] for name, shares in spectra.items()},
        }
