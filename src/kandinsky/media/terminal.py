"""Frames as coloured characters, two rows of pixels to a line, for terminals that know 24-bit colours."""

from __future__ import annotations

import numpy as np

HOME, HIDE, SHOW, CLEAR = "\x1b[H", "\x1b[?25l", "\x1b[?25h", "\x1b[2J"
_PLAIN = "\x1b[0m"


def drawn(frame_HWC: np.ndarray, columns: int, lines: int) -> str:
    """A frame as text, at most so many characters wide and lines high.

    Args:
        frame_HWC: uint8 RGB.
        columns: Of the terminal.
        lines: Of the terminal.
    """
    height, width = frame_HWC.shape[:2]
    scale = min(1.0, columns / width, 2 * lines / height)
    rows, across = max(2, int(height * scale) // 2 * 2), max(1, int(width * scale))
    small = frame_HWC[np.arange(rows) * height // rows][:, np.arange(across) * width // across]
    text = []
    for upper, lower in zip(small[::2].tolist(), small[1::2].tolist(), strict=True):
        cells = ("\x1b[38;2;{};{};{};48;2;{};{};{}m▀".format(*a, *b) for a, b in zip(upper, lower, strict=True))
        text.append("".join(cells) + _PLAIN)
    return "\n".join(text)
