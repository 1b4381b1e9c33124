"""Control signals of clips: what a control branch is shown instead of the clip itself. No torch.

Legend: T H W frames, rows, columns of pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

LOW, HIGH = 0.128, 0.32  # steps at which an edge goes on, and begins, of the full range
BLUR = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)  # binomial, a standard deviation of one pixel
SLOPE = 10 / 32  # of a step of the full range after the blur, half the difference of two neighbours


@dataclass(frozen=True, slots=True)
class Signal:
    """One kind of control signal.

    Attributes:
        name: As requests and recipes name it.
        of_clip: Finds it in a clip [T, H, W, 3], uint8; None for one that only a clip of the signal itself can give.
    """

    name: str
    of_clip: Callable[[np.ndarray], np.ndarray] | None = None


def edges(frames_THWC: np.ndarray) -> np.ndarray:
    """Edges of every frame, white on black, one pixel wide.

    The steps are Canny's: blur, slope of the steepest colour channel, the ridge of the slope alone, and of it what is
    steep or joined to what is.

    Source: Canny, A Computational Approach to Edge Detection, 1986.

    Args:
        frames_THWC: [T, H, W, 3], uint8.

    Returns:
        [T, H, W, 3], uint8.
    """
    import numpy as np

    found: np.ndarray = np.repeat((edges_of(frames_THWC) * np.uint8(255))[..., None], 3, axis=-1)
    return found


def edges_of(frames_THWC: np.ndarray) -> np.ndarray:
    """Where the edges of every frame are, boolean [T, H, W]; see ``edges``."""
    import numpy as np

    x = frames_THWC.astype(np.float32) / 255
    for axis in (1, 2):
        x = _filtered(x, BLUR, axis)
    down = _filtered(_filtered(x, (-0.5, 0.0, 0.5), 1), (0.25, 0.5, 0.25), 2)
    right = _filtered(_filtered(x, (-0.5, 0.0, 0.5), 2), (0.25, 0.5, 0.25), 1)
    slope = np.hypot(down, right)
    steepest = slope.argmax(axis=-1)[..., None]
    down, right, slope = (np.take_along_axis(one, steepest, axis=-1)[..., 0] for one in (down, right, slope))
    ridge = slope / SLOPE * _is_ridge(slope, down, right)
    strong: np.ndarray = ridge >= HIGH
    weak = ridge >= LOW
    while True:
        grown: np.ndarray = strong | (_any_near(strong) & weak)
        if np.array_equal(grown, strong):
            return strong
        strong = grown


def _filtered(x: np.ndarray, weights: tuple[float, ...], axis: int) -> np.ndarray:
    """A correlation along an axis, the border repeated."""
    import numpy as np

    half, length = len(weights) // 2, x.shape[axis]
    pads = [(half, half) if one == axis else (0, 0) for one in range(x.ndim)]
    padded = np.moveaxis(np.pad(x, pads, mode="edge"), axis, 0)
    out = np.zeros_like(padded[:length])
    for i, w in enumerate(weights):
        out += w * padded[i : i + length]
    return np.moveaxis(out, 0, axis)


def _any_near(found_THW: np.ndarray) -> np.ndarray:
    """Where any of a place and its eight neighbours is true."""
    import numpy as np

    _, H, W = found_THW.shape
    padded = np.pad(found_THW, ((0, 0), (1, 1), (1, 1)))
    rows = padded[:, :H] | padded[:, 1 : H + 1] | padded[:, 2:]
    near: np.ndarray = rows[:, :, :W] | rows[:, :, 1 : W + 1] | rows[:, :, 2:]
    return near


def _is_ridge(slope: np.ndarray, down: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Where a slope is not smaller than its two neighbours along its own direction, one of four."""
    import numpy as np

    turn = np.round(np.arctan2(down, right) / (np.pi / 4)).astype(int) % 4
    padded = np.pad(slope, ((0, 0), (1, 1), (1, 1)))
    _, H, W = slope.shape

    def at(row: int, column: int) -> np.ndarray:
        return padded[:, 1 + row : 1 + row + H, 1 + column : 1 + column + W]

    out = np.zeros(slope.shape, bool)
    for number, (row, column) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        # of two that are equally steep, the first one stays
        out |= (turn == number) & (slope > at(-row, -column)) & (slope >= at(row, column))
    return out


EDGES = "edges"
SIGNALS: Mapping[str, Signal] = {
    one.name: one
    for one in (Signal(EDGES, edges), Signal("depth"), Signal("pose"), Signal("segmentation"), Signal("motion"))
}
