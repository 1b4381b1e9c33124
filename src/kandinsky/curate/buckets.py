"""Buckets of scenes: the size and the length that each gets, as training gives them; quick over millions of rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kandinsky.train.data.clips import Bucket, Cutting


def plan(
    names: Sequence[str],
    widths: np.ndarray,
    heights: np.ndarray,
    seconds: np.ndarray,
    *,
    sizes: Sequence[str],
    lengths: Sequence[float],
) -> tuple[np.ndarray, np.ndarray]:
    """The bucket of each scene.

    Args:
        names: Of the scenes, which draws of sizes that keep a share depend on.
        widths: In pixels.
        heights: In pixels.
        seconds: How long scenes last.
        sizes: As ``Bucket.parse`` reads them.
        lengths: Rising, in seconds.

    Returns:
        Sizes such as `768x512`, and the longest length that the scene covers; None and NaN where there is none.

    Raises:
        RequestError: A size is none.
    """
    cutting = Cutting(tuple(Bucket.parse(one) for one in sizes), 24.0, 1, (1,))
    found = np.full(len(names), None, object)
    if sizes:
        is_drawn = any(bucket.keep < 1 for bucket in cutting.buckets)
        pairs = np.asarray(widths, np.int64) << 32 | np.asarray(heights, np.int64)
        if is_drawn:
            rows = zip(names, widths.tolist(), heights.tolist(), strict=True)
            every = [cutting.bucket_for(int(w), int(h), name) for name, w, h in rows]
            found[:] = [None if one is None else str(one) for one in every]
        else:
            unique, inverse = np.unique(pairs, return_inverse=True)
            each = [cutting.bucket_for(int(pair >> 32), int(pair & 0xFFFFFFFF), "") for pair in unique]
            found = np.array([None if one is None else str(one) for one in each], object)[inverse]
    steps = np.asarray([np.nan, *lengths])
    long = steps[np.searchsorted(np.asarray(lengths, float), np.asarray(seconds, float) + 1e-6, side="right")]
    return found, long
