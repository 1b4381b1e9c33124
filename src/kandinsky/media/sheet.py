"""A contact sheet: a clip as one image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kandinsky.errors import RequestError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

GAP_PX = 2
_BACKGROUND = (255, 255, 255)


def contact_sheet(frames_THWC: np.ndarray, columns: int = 8) -> Image:
    """Show up to ``columns`` frames side by side, evenly spread from the first to the last.

    Args:
        frames_THWC: uint8 RGB.
        columns: Number of frames, ≥ 1; a shorter clip gives a narrower sheet.

    Returns:
        The sheet.

    Raises:
        RequestError: ``columns`` is below 1.
    """
    from PIL import Image

    T, H, W, _ = frames_THWC.shape
    chosen = chosen_frames(T, columns)
    sheet = Image.new("RGB", (len(chosen) * (W + GAP_PX) - GAP_PX, H), _BACKGROUND)
    for place, index in enumerate(chosen):
        sheet.paste(Image.fromarray(frames_THWC[index]), (place * (W + GAP_PX), 0))
    return sheet


def chosen_frames(count: int, columns: int = 8) -> list[int]:
    """Choose the frames that a contact sheet shows.

    Args:
        count: Number of frames of the clip.
        columns: Number of frames to show.

    Returns:
        Frame numbers.

    Raises:
        RequestError: ``columns`` is below 1.
    """
    import numpy as np

    if columns < 1:
        raise RequestError(f"a contact sheet needs at least 1 column, not `{columns}`")
    return [int(n) for n in np.unique(np.linspace(0, count - 1, min(columns, count)).round())]
