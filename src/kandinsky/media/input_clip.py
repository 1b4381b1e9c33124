"""Images and clips that a request brings: opened from anywhere, cut, read at another rate, and fitted to a size.

Legend: T H W frames, rows, columns of pixels.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky.errors import RequestError
from kandinsky.media.image import FittedImage, InputImage, open_image
from kandinsky.model.given import part_of
from kandinsky.model.values import Video

if TYPE_CHECKING:
    import numpy as np

    from kandinsky.media.mux import InputVideo

SAME_RATE = 0.01  # frames a second by which rates in files are off
CLOSE_S = 1e-6  # times in files are rounded
HELD = 8  # frames of a file in memory at once, before they are fitted


@dataclass(frozen=True, slots=True)
class InputClip:
    """An image, or a part of a clip.

    Attributes:
        first: Its first frame, upright.
        times_s: When each frame of the part is shown, from its start; one time for an image.
        fps: Frames per second; None for an image, and for an array, which has the result's.
        seconds: How long the part lasts; 0 for an image.
        begin: The part's first frame in the clip.
        sha256: Digest of the file, or of the frames from memory.
        file: The path as given; None from memory.
        frames: Where its frames are: an array, or a probed file.
    """

    first: InputImage
    times_s: tuple[float, ...]
    fps: float | None
    seconds: float
    begin: int
    sha256: str
    file: str | None
    frames: np.ndarray | InputVideo = field(repr=False)

    @property
    def what(self) -> str:
        """What a message calls it."""
        return f"`{self.file}`" if self.file else "the clip from memory" if len(self.times_s) > 1 else "the image"

    @property
    def is_image(self) -> bool:
        return self.fps is None and len(self.times_s) == 1

    @property
    def given(self) -> str:
        """Size, and for a clip its frames and their rate."""
        size = "{}x{}".format(*self.first.size)
        count = len(self.times_s)
        return size if self.is_image else f"{size}, {count} frames" + (f" at {self.fps:g} fps" if self.fps else "")

    def shown_at(self, fps: float) -> list[int]:
        """Numbers of the part's frames that are shown one after another at a rate."""
        if self.fps is None or abs(self.fps - fps) < SAME_RATE:
            return list(range(len(self.times_s)))
        count = max(1, round(self.seconds * fps))
        return [max(0, bisect_right(self.times_s, i / fps + CLOSE_S) - 1) for i in range(count)]

    def read(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """Frames of the part by number, in ascending order; each [H, W, 3] uint8, a few held at a time.

        Raises:
            RequestError: They cannot be decoded.
        """
        import numpy as np

        wanted = [self.begin + number for number in numbers]
        if isinstance(self.frames, np.ndarray):
            for number in wanted:
                yield self.frames[number]
            return
        from kandinsky.media.mux import frames_of_windows

        for frames in frames_of_windows(self.frames, [wanted[i : i + HELD] for i in range(0, len(wanted), HELD)]):
            yield from frames


@dataclass(frozen=True, slots=True)
class FittedClip:
    """Frames of an image or a clip at the size they are used at; two are equal if digest, numbers and size are.

    Attributes:
        frames_THWC: The frames, uint8.
        numbers: Which frames of the clip they are.
        sha256: As in ``InputClip``.
        file: As in ``InputClip``.
        given: Size and rate as given.
        used: Size as used.
        fit: How they were fitted.
    """

    frames_THWC: np.ndarray = field(compare=False, repr=False)
    numbers: tuple[int, ...]
    sha256: str
    file: str | None = field(default=None, compare=False)
    given: str = ""
    used: str = ""
    fit: str = ""

    def record(self) -> dict[str, Any]:
        """Its entry in a recipe."""
        return {"file": self.file, "sha256": self.sha256, "given": self.given, "used": self.used, "fit": self.fit}


def open_clip(source: Any, cut: str | None = None) -> InputClip:
    """Open an image or a clip; of a file, its times and its first frame are read.

    Args:
        source: A path, a Pillow image, an array [H, W, 3] or [T, H, W, 3] of uint8, or a ``Video``.
        cut: The part that is used, see ``given.part_of``.

    Returns:
        The clip.

    Raises:
        RequestError: It cannot be read, the part is not in it, or a part of an image is asked for.
    """
    import numpy as np

    if isinstance(source, str | Path):
        return _of_file(Path(source).expanduser(), str(source), cut)
    if isinstance(source, Video):
        return _of_array(np.asarray(source.frames_THWC), source.fps, cut)
    if hasattr(source, "__array_interface__") and not hasattr(source, "convert"):
        array = np.asarray(source)
        if array.ndim == 4:
            if array.dtype != np.uint8 or array.shape[-1] != 3 or 0 in array.shape:
                raise RequestError(
                    f"a clip is an array {list(array.shape)} of {array.dtype}: give [T, H, W, 3] of uint8"
                )
            return _of_array(array, None, cut)
    return _of_image(open_image(source), cut)


def _of_file(path: Path, named: str, cut: str | None) -> InputClip:
    from kandinsky.media import animation, mux

    if path.is_file() and animation.image_format(path) is not None and not animation.is_animated(path):
        return _of_image(open_image(path), cut)
    if not path.is_file():
        raise RequestError(f"`{named}` is not a file" if path.exists() else f"`{named}` does not exist")
    try:
        video = mux.probe(path)
    except RequestError as error:
        try:  # an image of a kind that only Pillow knows
            image = open_image(path)
        except RequestError:
            raise error from None
        return _of_image(image, cut)
    count = len(video.times_s)
    begin, stop = part_of(cut, f"the part of `{named}`", fps=video.fps, frames=count)
    end_s = video.times_s[stop] if stop < count else video.seconds
    times = tuple(time - video.times_s[begin] for time in video.times_s[begin:stop])
    (first,) = mux.frames_at(video, [begin])
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return InputClip(open_image(first), times, video.fps, end_s - video.times_s[begin], begin, digest, str(path), video)


def _of_array(frames_THWC: np.ndarray, fps: float | None, cut: str | None) -> InputClip:
    begin, stop = part_of(cut, "the part of the clip from memory", fps=fps or 1.0, frames=len(frames_THWC))
    digest = hashlib.sha256(f"{frames_THWC.shape} {fps}".encode() + frames_THWC.tobytes()).hexdigest()
    count, rate = stop - begin, fps or 1.0
    times = tuple(i / rate for i in range(count))
    return InputClip(open_image(frames_THWC[begin]), times, fps, count / rate, begin, digest, None, frames_THWC)


def _of_image(image: InputImage, cut: str | None) -> InputClip:
    import numpy as np

    if cut is not None:
        raise RequestError(f"{f'`{image.file}`' if image.file else 'the image'} is a still and has no part `{cut}`")
    return InputClip(image, (0.0,), None, 0.0, 0, image.sha256, image.file, np.asarray(image.image)[None])


def fit_clip(clip: InputClip, numbers: Sequence[int], used: FittedImage) -> FittedClip:
    """Frames of a clip, fitted as its first frame is.

    Args:
        clip: The clip.
        numbers: Frames of its part; some may repeat.
        used: Its first frame at the size it is used at.

    Returns:
        The frames.

    Raises:
        RequestError: They cannot be decoded.
    """
    import numpy as np

    distinct = sorted(set(numbers))
    fitted = {
        number: np.asarray(FittedImage(open_image(frame), used.width, used.height, used.how).pixels())
        for number, frame in zip(distinct, clip.read(distinct), strict=True)
    }
    frames = np.stack([fitted[number] for number in numbers])
    return FittedClip(frames, tuple(numbers), clip.sha256, clip.file, clip.given, used.used, used.how)
