"""Inpainting masks: which pixels of an image are to be repainted. White means repaint.

Imports neither torch nor Pillow until a mask is opened.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky.errors import RequestError
from kandinsky.media.image import FittedImage, InputImage, open_image

if TYPE_CHECKING:
    import numpy as np

MOST_GROWTH = 256  # pixels


@dataclass(frozen=True, slots=True)
class Mask:
    """Pixels of an image, each to be repainted or kept; two masks are equal if their digests and growth are.

    Attributes:
        repaint_HW: True where the image is repainted.
        sha256: As in ``InputImage``.
        file: As in ``InputImage``.
        grow: Pixels by which the mask was grown.
    """

    repaint_HW: np.ndarray = field(compare=False, repr=False)
    sha256: str
    file: str | None = field(default=None, compare=False)
    grow: int = 0

    def fitted(self, image: FittedImage) -> np.ndarray:
        """Weights [height, width] of the mask, fitted as its image is, float32: 1 repaint, 0 keep, in between on edges.

        Bilinear without antialiasing, as officially: an edge stays two pixels wide however far it is scaled down.
        Source: ai-forever/Kandinsky-3@a4c9e92, inpainting_pipeline.py (skimage's resize of order 1).
        """
        import numpy as np

        H, W = self.repaint_HW.shape
        wide, high, left, top = image.window
        rows = (np.arange(image.height) + top + 0.5) * (H / high) - 0.5
        columns = (np.arange(image.width) + left + 0.5) * (W / wide) - 0.5
        weights = self.repaint_HW.astype(np.float32)
        return _between(_between(weights, rows, 0), columns, 1)

    def record(self) -> dict[str, Any]:
        """Its entry in a recipe."""
        return {"file": self.file, "sha256": self.sha256, "grow": self.grow}


def open_mask(source: Any, image: InputImage, *, grow: int = 0) -> Mask:
    """Read a mask from a path, a Pillow image or an array, and check it against its image.

    Source: ai-forever/Kandinsky-3@a4c9e92, utils.py, prepare_mask: grown by 6.

    Args:
        source: An image, repainted where it is at least half white; or an array [H, W] of bool, of numbers from 0 to 1,
            or of uint8 from 0 to 255.
        image: The image it belongs to.
        grow: Pixels to grow the mask by on all sides, since it rarely follows edges exactly.

    Returns:
        The mask.

    Raises:
        RequestError: The mask cannot be read, does not have the image's size, or marks nothing.
    """
    if isinstance(grow, bool) or not isinstance(grow, int) or not 0 <= grow <= MOST_GROWTH:
        raise RequestError(f"mask growth `{grow}` must be a whole number of pixels from 0 to {MOST_GROWTH}")
    file = str(source) if isinstance(source, str | Path) else None
    what = f"mask `{file}`" if file else "the mask"
    repaint = _repainted(source, what)
    if (given := repaint.shape[::-1]) != image.size:
        raise RequestError(
            f"{what} is {given[0]}x{given[1]} and the image {image.size[0]}x{image.size[1]}: give a mask of the "
            "image's size"
        )
    if not repaint.any():
        raise RequestError(f"{what} marks nothing: what is to be painted anew must be white, what stays black")
    digest = hashlib.sha256(f"{repaint.shape}".encode() + repaint.tobytes()).hexdigest()
    return Mask(grown(repaint, grow), digest, file, grow)


def _repainted(source: Any, what: str) -> np.ndarray:
    import numpy as np

    if not hasattr(source, "__array_interface__") or hasattr(source, "convert"):  # Pillow's images have both
        try:
            image = open_image(source).image
        except RequestError as error:
            raise RequestError(str(error).replace("image", "mask", 1), hint=error.hint) from error
        return np.asarray(image.convert("L")) >= 128
    values = np.asarray(source)
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    if values.ndim != 2 or 0 in values.shape or values.dtype.kind not in "buif":
        raise RequestError(
            f"{what} is an array {list(values.shape)} of {values.dtype}: give [H, W], 1 where to repaint"
        )
    if values.dtype == bool:
        return values
    low, high = float(values.min()), float(values.max())
    most = 255 if values.dtype == np.uint8 and high > 1 else 1
    if not (low >= 0 and high <= most):
        raise RequestError(f"{what} holds numbers from {low:g} to {high:g}: use 0 to 1, or uint8 from 0 to 255")
    return values >= most / 2


def grown(repaint_HW: np.ndarray, by: int) -> np.ndarray:
    """True within ``by`` rows and columns of what was True: the sum over a window is not 0."""
    import numpy as np

    grown = repaint_HW
    for axis in (0, 1) if by else ():
        length = grown.shape[axis]
        sums = np.insert(np.cumsum(grown, axis=axis), 0, 0, axis=axis)
        places = np.arange(length)
        ends, begins = np.minimum(places + by + 1, length), np.maximum(places - by, 0)
        grown = (sums.take(ends, axis) - sums.take(begins, axis)) > 0
    return grown


def _between(values: np.ndarray, places: np.ndarray, axis: int) -> np.ndarray:
    """Values interpolated between neighbours along an axis; beyond the ends, those at the ends."""
    import numpy as np

    last = values.shape[axis] - 1
    places = places.clip(0, last)
    below = np.floor(places).astype(int)
    share = (places - below).astype(np.float32)
    share = share[:, None] if axis == 0 else share[None]
    out: np.ndarray = values.take(below, axis) * (1 - share) + values.take(np.minimum(below + 1, last), axis) * share
    return out
