"""A folder of images and videos with a caption beside each: `panda.mp4` and `panda.txt`.

Legend: T H W frames, rows, columns of pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from kandinsky.errors import RequestError
from kandinsky.files import local_path
from kandinsky.media.image import cover
from kandinsky.media.video import read_video
from kandinsky.printing import escaped
from kandinsky.weights.untrusted import shown

ENDINGS = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".gif", ".webp", ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
LONGEST_CAPTION = 64 << 10  # bytes


@dataclass(frozen=True, slots=True)
class Example:
    """One image or video, and what it shows."""

    file: Path
    caption: str


def find(folder: str) -> list[Example]:
    """The examples in a folder, by name.

    Args:
        folder: Subfolders are not looked into, and hidden files are left out.

    Raises:
        RequestError: The folder is absent or holds no example, or a file has no caption or a caption no file.
    """
    place = local_path(folder, "data folder")
    if not place.is_dir():
        raise RequestError(f"data folder `{escaped(folder)}` does not exist: give one with images or videos")
    there = sorted(path for path in place.iterdir() if path.is_file() and not path.name.startswith("."))
    media = [path for path in there if path.suffix.lower() in ENDINGS]
    captions = {path.with_suffix("") for path in there if path.suffix == ".txt"}
    if not media:
        raise RequestError(f"data folder `{escaped(folder)}` holds no images or videos: {', '.join(ENDINGS)} are read")
    if silent := [path for path in media if path.with_suffix("") not in captions]:
        raise RequestError(
            f"`{escaped(silent[0])}` has no caption: write it into `{escaped(silent[0].with_suffix('.txt').name)}`"
        )
    if alone := sorted(captions - {path.with_suffix("") for path in media}):
        raise RequestError(f"caption `{escaped(alone[0].name)}.txt` belongs to no image or video")
    return [Example(path, _caption(path.with_suffix(".txt"))) for path in media]


def fingerprint(examples: Sequence[Example]) -> str:
    """A hash of names, sizes and captions: what a training must find unchanged when it goes on."""
    facts = [f"{one.file.name}\0{one.file.stat().st_size}\0{one.caption}" for one in examples]
    return hashlib.sha256("\0\0".join(facts).encode()).hexdigest()[:16]


def frames(example: Example, *, width: int, height: int, fps: float, step: int, most: int) -> np.ndarray:
    """The clip of an example, scaled and cut to a size, at a frame rate.

    Args:
        example: Of ``find``.
        width: In pixels.
        height: In pixels.
        fps: Frames a second that the model makes.
        step: A clip has 1 + a multiple of so many frames.
        most: Frames at most; later ones are left out.

    Returns:
        [T, H, W, 3], uint8. One frame of an image, and of a video too short for more.

    Raises:
        RequestError: The file cannot be read.
    """
    video = read_video(example.file)
    last = (len(video.frames) - 1) / video.fps  # when the last frame is shown
    count = min(most, 1 + int(last * fps + 1e-6))
    count = 1 + (count - 1) // step * step
    wanted = [min(len(video.frames) - 1, round(number * video.fps / fps)) for number in range(count)]
    return np.stack([np.asarray(cover(Image.fromarray(video.frames[number]), width, height)) for number in wanted])


def _caption(path: Path) -> str:
    try:
        if path.stat().st_size > LONGEST_CAPTION:
            raise RequestError(f"caption `{escaped(path)}` is longer than {LONGEST_CAPTION >> 10} KB")
        text = path.read_text(encoding="utf-8-sig").strip()
    except OSError as error:
        raise RequestError(f"caption `{escaped(path)}` cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"caption `{escaped(path)}` is not UTF-8 text: {shown(error)}") from error
    if not text:
        raise RequestError(f"caption `{escaped(path)}` is empty: write what the file shows")
    return text
