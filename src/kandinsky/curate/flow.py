"""Optical flow by matching of blocks from coarse to fine, and the camera's motion in it. No weights are needed.

At each scale of a pyramid, blocks of 8x8 pixels are looked for around where the coarser scale found them; matches are
refined below a pixel by the gradient. What has no texture has no flow, and counts for nothing.

Legend: T H W frames, rows, columns of pixels; h w rows and columns of blocks; brightness from 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kandinsky.curate.likeness import halved

BLOCK = 8  # pixels
_REACH = 2  # pixels that a match is looked for on each side, at each scale but the coarsest
_FARTHEST = 6  # the same at the coarsest
_SMALLEST = 2  # blocks along the shorter side of the coarsest scale
_TEXTURE = 0.02  # standard deviation of brightness of a block that can be matched
_UNMATCHED = 0.5  # share of a block's own variation that a match may leave
_STAY = 2e-5  # what a match must be better by for each pixel that it is farther than the coarser scale's
_NOISE = 0.25  # pixels of a shift that are the codec's
_FIRM = 1e-3  # keeps flat blocks where they were found
_ROUNDS = 6  # of the robust fit


@dataclass(frozen=True, slots=True)
class Flow:
    """How blocks move from one frame to the next.

    Attributes:
        shift_hw2: Pixels to the right and down.
        weight_hw: 1 for blocks that were matched, 0 for those that say nothing.
    """

    shift_hw2: np.ndarray
    weight_hw: np.ndarray

    @property
    def mean(self) -> float:
        """Mean length of the shifts in pixels; blocks without texture stand still, a quarter of a pixel is noise."""
        length = np.hypot(self.shift_hw2[..., 0], self.shift_hw2[..., 1])
        return float((np.maximum(length - _NOISE, 0) * self.weight_hw).mean())


@dataclass(frozen=True, slots=True)
class Camera:
    """The motion of a whole picture between two frames.

    Attributes:
        pan: Pixels to the right.
        tilt: Pixels down.
        zoom: By how much it grows, 0.1 for 10 percent.
        roll: By how much it turns clockwise, in radians.
        share: Of the matched blocks, those that move with it.
        apart: Mean length of what is left of the flow of blocks, in pixels.
    """

    pan: float = 0.0
    tilt: float = 0.0
    zoom: float = 0.0
    roll: float = 0.0
    share: float = 0.0
    apart: float = 0.0


def flow_between(one_HW: np.ndarray, other_HW: np.ndarray) -> Flow:
    """The flow from one frame to the next."""
    scales = [(one_HW, other_HW)]
    while min(scales[-1][0].shape) // 2 >= _SMALLEST * BLOCK:
        scales.append((halved(scales[-1][0]), halved(scales[-1][1])))
    shift = None
    for one, other in reversed(scales):
        h, w = (max(1, n // BLOCK) for n in one.shape)
        around = np.zeros((h, w, 2)) if shift is None else 2 * _spread(_smooth(shift), h, w)
        # the coarsest scale knows nothing yet
        reach = _REACH if shift is not None else max(_REACH, min(_FARTHEST, min(one.shape) // 3))
        shift, left = _matched(one, other, around.round(), reach)
    assert shift is not None
    own = _blocks(scales[0][0]).std(-1)
    weight = (own > _TEXTURE) & (left < _UNMATCHED * own**2)
    return Flow(shift, weight.astype(float))


def camera_of(flow: Flow) -> Camera:
    """The shift, zoom and roll that most blocks share, by weighted least squares whose outliers lose their weight."""
    h, w = flow.weight_hw.shape
    used = flow.weight_hw > 0
    if used.sum() < 4:
        return Camera()
    y, x = (np.indices((h, w)) + 0.5) * BLOCK - np.array([h, w])[:, None, None] * BLOCK / 2
    x, y, u, v = (one[used] for one in (x, y, flow.shift_hw2[..., 0], flow.shift_hw2[..., 1]))
    none, ones = np.zeros_like(x), np.ones_like(x)
    # u = pan + zoom·x − roll·y, v = tilt + zoom·y + roll·x
    rows = np.concatenate([np.stack([ones, none, x, -y], 1), np.stack([none, ones, y, x], 1)])
    aim = np.concatenate([u, v])
    found = np.array([np.median(u), np.median(v), 0.0, 0.0])
    for _ in range(_ROUNDS):
        apart = np.hypot(*np.split(aim - rows @ found, 2))
        scale = max(0.5, 1.5 * float(np.median(apart)))
        weights = np.clip(1 - (apart / (3 * scale)) ** 2, 0, 1)  # Tukey's
        both = np.concatenate([weights, weights])
        found = np.linalg.lstsq(rows * both[:, None], aim * both, rcond=None)[0]
    apart = np.hypot(*np.split(aim - rows @ found, 2))
    pan, tilt, zoom, roll = (float(one) for one in found)
    return Camera(pan, tilt, zoom, roll, float((apart < 1.5).mean()), float(apart.mean()))


def _blocks(image_HW: np.ndarray) -> np.ndarray:
    """[h, w, BLOCK · BLOCK]; what is left over at the right and bottom belongs to none."""
    size = min(BLOCK, *image_HW.shape)
    h, w = (max(1, n // BLOCK) for n in image_HW.shape)
    cut = image_HW[: h * size, : w * size].reshape(h, size, w, size)
    return cut.transpose(0, 2, 1, 3).reshape(h, w, size * size)


def _matched(
    one_HW: np.ndarray, other_HW: np.ndarray, around_hw2: np.ndarray, reach: int
) -> tuple[np.ndarray, np.ndarray]:
    """Shifts of blocks, and mean squares of what is left of each."""
    size = min(BLOCK, *one_HW.shape)
    blocks = _blocks(one_HW)
    h, w, _ = blocks.shape
    pad = reach + size
    wide = np.pad(other_HW, pad, mode="edge")
    rows, columns = np.arange(h)[:, None] * size, np.arange(w)[None] * size
    H, W = one_HW.shape
    inside_y, inside_x = np.arange(size).repeat(size), np.tile(np.arange(size), size)
    steps = range(-reach, reach + 1)
    errors = np.empty((len(steps), len(steps), h, w))
    places = np.empty((len(steps), len(steps), h, w, 2))
    for i, dy in enumerate(steps):
        for j, dx in enumerate(steps):
            y = np.clip(rows + around_hw2[..., 1] + dy, -pad, H + pad - size).astype(int)
            x = np.clip(columns + around_hw2[..., 0] + dx, -pad, W + pad - size).astype(int)
            seen = wide[y[..., None] + inside_y + pad, x[..., None] + inside_x + pad]
            errors[i, j] = np.square(seen - blocks).mean(-1) + _STAY * np.hypot(dx, dy)
            places[i, j, ..., 0], places[i, j, ..., 1] = x - columns, y - rows
    count = len(steps)
    best = errors.reshape(count * count, h, w).argmin(0)
    i, j = best // count, best % count
    grid = np.indices((h, w))
    shift = places[i, j, grid[0], grid[1]]
    left = errors[i, j, grid[0], grid[1]]
    # below a pixel: what is left of a block, by the gradient of where it was found
    y, x = (shift[..., 1] + rows).astype(int), (shift[..., 0] + columns).astype(int)
    at = y[..., None] + inside_y + pad, x[..., None] + inside_x + pad
    down, right = (one[at] for one in np.gradient(wide))
    apart = blocks - wide[at]
    xx, yy, xy = (right**2).sum(-1) + _FIRM, (down**2).sum(-1) + _FIRM, (right * down).sum(-1)
    ex, ey = (right * apart).sum(-1), (down * apart).sum(-1)
    whole = xx * yy - xy**2
    part = np.stack([yy * ex - xy * ey, xx * ey - xy * ex], -1) / whole[..., None]
    return shift + np.clip(part, -0.75, 0.75), left


def _smooth(shift_hw2: np.ndarray) -> np.ndarray:
    """The median of each block and its eight neighbours."""
    wide = np.pad(shift_hw2, ((1, 1), (1, 1), (0, 0)), mode="edge")
    h, w, _ = shift_hw2.shape
    around = [wide[dy : dy + h, dx : dx + w] for dy in range(3) for dx in range(3)]
    found: np.ndarray = np.median(np.stack(around), axis=0)
    return found


def _spread(shift_hw2: np.ndarray, h: int, w: int) -> np.ndarray:
    """The shifts of a coarser scale, at the blocks of a finer one."""
    rows = np.clip(np.arange(h) // 2, 0, shift_hw2.shape[0] - 1)
    columns = np.clip(np.arange(w) // 2, 0, shift_hw2.shape[1] - 1)
    return shift_hw2[rows][:, columns]
