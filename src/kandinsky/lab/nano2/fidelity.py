"""Honest measures of a Nano: how far a clip is from the one right clip, frame by frame and pixel by pixel.

Retrieval asks which of the known clips is nearest and is content with a smear; a person is not. These compare with
the real clip of the concept over the colour asked for, beside what the autoencoder alone would give and beside the
real first frame held still, which a model that does not move would reach.

Everything works on clips uint8 [T, H, W, 3], from any model. Legend: T frames, H W pixels, M clips.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kandinsky.evaluate.clips import first_jump, flicker, psnr, ssim

Clip = np.ndarray


def held_still(real_THWC: Clip) -> Clip:
    """The first frame for the whole clip."""
    return np.broadcast_to(real_THWC[:1], real_THWC.shape)


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Figures of a group of clips.

    Args:
        psnr_db, ssim: Medians against the real clips; ``lowest_tenth_db`` is the tenth percentile.
        over_20, over_24: Shares of clips at least so near.
        still_db, floor_db: Medians of the real first frame held still, and of the autoencoder's own round trip (NaN
            where it was not measured), against the same clips.
        nearer_than_still: Share of clips nearer to the truth than their real first frame held still. Concepts whose
            image stands still are left out.
        first_frame_db: Median PSNR of frame 0.
        flicker: Sum of the made clips' second differences over that of the real clips.
        worst: Names and dB of the ten farthest clips.
    """

    clips: int
    psnr_db: float
    lowest_tenth_db: float
    ssim: float
    over_20: float
    over_24: float
    still_db: float
    floor_db: float
    nearer_than_still: float
    first_frame_db: float
    flicker: float
    worst: tuple[tuple[str, float], ...]


def fidelity(
    made: Sequence[Clip],
    real: Sequence[Clip],
    names: Sequence[str],
    *,
    round_trip: Callable[[Clip], Clip] | None = None,
) -> Fidelity:
    """Compare generated clips with the real ones.

    Args:
        names: What each clip shows, for the list of the worst.
        round_trip: Encodes and decodes a clip, to measure what the autoencoder costs.

    Raises:
        ValueError: Clips and names differ in number, or a clip differs in shape from the real one.
    """
    decibels, similar, stills, floors, firsts, nearer, trembling = [], [], [], [], [], [], []
    for clip, truth, _ in zip(made, real, names, strict=True):
        if clip.shape != truth.shape:
            raise ValueError(f"a clip of shape {clip.shape} cannot be compared with a real clip of shape {truth.shape}")
        decibels.append(psnr(clip, truth))
        similar.append(ssim(clip, truth))
        firsts.append(psnr(clip[:1], truth[:1]))
        still = psnr(held_still(truth), truth)
        stills.append(still)
        if still < 60:
            nearer.append(decibels[-1] > still)
        if round_trip is not None:
            floors.append(psnr(round_trip(truth), truth))
        trembling.append((flicker(clip), flicker(truth)))
    order = np.argsort(decibels)[:10]
    d = np.array(decibels)
    tremble = np.array(trembling).sum(0)
    return Fidelity(
        clips=len(d),
        psnr_db=float(np.median(d)),
        lowest_tenth_db=float(np.quantile(d, 0.1)),
        ssim=float(np.median(similar)),
        over_20=float((d >= 20).mean()),
        over_24=float((d >= 24).mean()),
        still_db=float(np.median(stills)),
        floor_db=float(np.median(floors)) if floors else float("nan"),
        nearer_than_still=float(np.mean(nearer)) if nearer else float("nan"),
        first_frame_db=float(np.median(firsts)),
        flicker=float(tremble[0] / max(tremble[1], 1e-9)),
        worst=tuple((names[i], round(decibels[i], 2)) for i in order),
    )


@dataclass(frozen=True, slots=True)
class Jumps:
    """Image to video: ``made`` and ``real`` are medians of ``first_jump``; ``over_3`` the share of clips above 3.

    Args:
        kept_db: Median PSNR of frame 1 against the given image: what words must not throw away.
        real_kept_db: The same of the real clips.
    """

    clips: int
    made: float
    real: float
    over_3: float
    kept_db: float
    real_kept_db: float


def jumps(made: Sequence[Clip], real: Sequence[Clip]) -> Jumps:
    """How the second frame follows the given first one."""
    mine, theirs = [first_jump(c) for c in made], [first_jump(c) for c in real]
    return Jumps(
        clips=len(mine),
        made=float(np.median(mine)),
        real=float(np.median(theirs)),
        over_3=float((np.array(mine) > 3).mean()),
        kept_db=float(np.median([psnr(c[1:2], r[:1]) for c, r in zip(made, real, strict=True)])),
        real_kept_db=float(np.median([psnr(r[1:2], r[:1]) for r in real])),
    )


@dataclass(frozen=True, slots=True)
class Reading:
    """What a model's text side does with a group of texts: shares of them, by what should have been understood."""

    texts: int
    right: float


def reading(understood: Sequence[int | None], meant: Sequence[int | None]) -> Reading:
    """Share of texts understood as they were meant; None stands for "nothing known"."""
    if len(understood) != len(meant):
        raise ValueError(f"{len(understood)} answers for {len(meant)} texts")
    return Reading(len(meant), float(np.mean([a == b for a, b in zip(understood, meant, strict=True)])))
