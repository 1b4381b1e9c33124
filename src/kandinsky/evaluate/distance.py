"""Distances between sets of clips by their features: Fréchet distance (FVD, FID, FAD) and kernel distance (KVD, KID).

Features come from any network; which one, and the frames, rate, resolution and number of clips, belong beside the
figure, since it means nothing without them.

Legend: N clips; D features.
"""

from __future__ import annotations

import numpy as np

from kandinsky.errors import RequestError


def frechet(features_ND: np.ndarray, others_ND: np.ndarray) -> float:
    """Squared Fréchet distance of the normal distributions with these features' means and covariances, in float64.

    |m - m'|² + tr(C + C' - 2 (C C')^½) (Dowson and Landau 1982; Heusel et al. 2017). The trace of the root is taken
    from the eigenvalues of C^½ C' C^½, which is symmetric, so that no imaginary part has to be dropped.

    Args:
        features_ND: Features of one set, N ≥ 2.
        others_ND: Features of the other set; another N is allowed.

    Returns:
        The distance, 0 or more.

    Raises:
        RequestError: Fewer than two rows, other widths, or values that are not finite.
    """
    one, other = _checked(features_ND, others_ND)
    difference = one.mean(axis=0) - other.mean(axis=0)
    covariance, other_covariance = (np.atleast_2d(np.cov(rows, rowvar=False)) for rows in (one, other))
    root = _root(covariance)
    crossed = np.linalg.eigvalsh(root @ other_covariance @ root)
    trace = np.sqrt(np.clip(crossed, 0.0, None)).sum()
    distance = difference @ difference + np.trace(covariance) + np.trace(other_covariance) - 2.0 * trace
    return max(0.0, float(distance))


def kernel(features_ND: np.ndarray, others_ND: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy under the kernel (x·y / D + 1)³; usable with few clips.

    Source: Bińkowski et al., Demystifying MMD GANs (2018). May be slightly negative for equal distributions.

    Args:
        features_ND: Features of one set, N ≥ 2.
        others_ND: Features of the other set; another N is allowed.

    Returns:
        The discrepancy.

    Raises:
        RequestError: Fewer than two rows, other widths, or values that are not finite.
    """
    one, other = _checked(features_ND, others_ND)
    width = one.shape[1]

    def similarity(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.asarray((x @ y.T / width + 1.0) ** 3)

    def within(x: np.ndarray) -> float:
        table = similarity(x, x)
        return float((table.sum() - np.trace(table)) / (len(x) * (len(x) - 1)))

    return within(one) + within(other) - 2.0 * float(similarity(one, other).mean())


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray((vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T)


def _checked(features_ND: np.ndarray, others_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    one, other = (np.asarray(rows, dtype=np.float64) for rows in (features_ND, others_ND))
    for rows in (one, other):
        if rows.ndim != 2 or len(rows) < 2:
            raise RequestError(f"features have the shape {list(rows.shape)}: use two or more rows of features")
        if not np.isfinite(rows).all():
            raise RequestError("features are not finite: clips or the network that reads them are damaged")
    if one.shape[1] != other.shape[1]:
        raise RequestError(
            f"features of {one.shape[1]} and {other.shape[1]} columns: use the same network for both sets"
        )
    return one, other
