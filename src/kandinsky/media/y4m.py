"""Uncompressed video as a stream, YUV4MPEG2: what players and encoders read from a pipe, whose end need not be known.

Source: `man 5 yuv4mpeg` of the mjpegtools; colours by ITU-R BT.601 in limited range, at full resolution (4:4:4).
Legend: T frames, H W rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np

# of red, green and blue, for numbers of 0 to 255
_TO_YCBCR = np.array(
    [[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]], np.float32
) / np.float32(255)
_OFFSET = np.array([16, 128, 128], np.float32)


def header(width: int, height: int, fps: float) -> bytes:
    """What a stream begins with."""
    rate = Fraction(fps).limit_denominator(1001)
    return f"YUV4MPEG2 W{width} H{height} F{rate.numerator}:{rate.denominator} Ip A1:1 C444\n".encode()


def frames(frames_THWC: np.ndarray) -> Iterator[bytes]:
    """Each frame of a clip as bytes.

    Args:
        frames_THWC: uint8 RGB.
    """
    for frame in frames_THWC:
        planes = frame.astype(np.float32) @ _TO_YCBCR.T + _OFFSET
        yield b"FRAME\n" + np.moveaxis(planes + 0.5, -1, 0).astype(np.uint8).tobytes()
