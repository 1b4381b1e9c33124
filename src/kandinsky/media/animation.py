"""Animated images (GIF, WebP, PNG): their frames and how long each is shown.

Pillow reads them, since it handles transparency and disposal; FFmpeg's readers show hidden colours or nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky.errors import RequestError
from kandinsky.media.image import opened, quiet, upright_rgb

if TYPE_CHECKING:
    import numpy as np

# What browsers use for a frame without a duration in an animation that has some.
_UNTIMED_MS = 100.0


def image_format(path: Path) -> str | None:
    """Recognise an image file by its content.

    Args:
        path: The file.

    Returns:
        `GIF`, `PNG`, `WEBP` or `JPEG`; None for anything else.

    Raises:
        RequestError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except (OSError, ValueError) as error:
        raise RequestError(f"`{path}` cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    magic = {b"GIF8": "GIF", b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG"}
    return next((name for begin, name in magic.items() if head.startswith(begin)), None)


def is_animated(path: Path) -> bool:
    """Whether an image has more than one frame.

    Raises:
        RequestError: The file cannot be read.
    """
    with opened(path, f"image `{path}`") as image, quiet():
        return _last(image) > _first(image)


def frames_of(path: Path) -> Iterator[tuple[np.ndarray, float]]:
    """Read frames one by one; a still image is one frame.

    Args:
        path: The file.

    Yields:
        A frame, upright, [H, W, 3] uint8, transparency on white; and how long it is shown, in ms, 0 if no frame of the
        file has a duration.

    Raises:
        RequestError: The file cannot be read to its end.
    """
    import numpy as np

    what = f"image `{path}`"
    with opened(path, what) as image:
        for number in range(_first(image), _last(image) + 1):
            with quiet():
                image.seek(number)
                image.load()  # WebP knows the frame's duration only now
            duration = float(image.info.get("duration", 0) or 0)
            yield np.asarray(upright_rgb(image, what)), max(0.0, duration)


def timed(durations_ms: list[float]) -> list[float]:
    """Durations with missing ones filled in, unless all are missing."""
    return [one or _UNTIMED_MS for one in durations_ms] if any(durations_ms) else durations_ms


def _first(image: Any) -> int:
    """1 if the first image of a PNG is for viewers that do not animate, and is not a frame."""
    return int(bool(getattr(image, "default_image", False)))


def _last(image: Any) -> int:
    return int(getattr(image, "n_frames", 1)) - 1
