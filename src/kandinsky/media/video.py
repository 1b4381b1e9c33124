"""Clips to files and back, by the file's ending. Files are written beside their target and renamed.

Frames are written as they come: a ``VideoStream`` becomes a file without being held in memory whole. Only the writers
of `.gif` and `.webp` need all frames before they begin.

| target | what is written |
|---|---|
| `x.mp4` | H.264, yuv420p, index in front (plays while it loads); audio as AAC |
| `x.webm` | VP9, yuv420p; audio as Opus |
| `x.gif`, `x.webp` | an animation that repeats |
| `x.png` | a contact sheet; the image itself for a still |
| `x/` or any name without ending | a folder of frames, `0000.png` and on |
| `x.jpg`, `x.jpeg` | the image itself; of a still alone |
| `x%03d.png` | one file per frame, numbered from 0 |

H.264 and VP9 in yuv420p need even sides: an odd side gets its last row or column twice, with a warning.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import numbers
import re
import struct
from collections.abc import Generator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky.errors import RequestError
from kandinsky.files import check_writable, listed, output_path, real_path, replacing, replacing_many
from kandinsky.media import animation, container, mux
from kandinsky.media import recipe as recipes
from kandinsky.media.sheet import chosen_frames, contact_sheet
from kandinsky.model.values import Video, VideoStream

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from PIL.PngImagePlugin import PngInfo

log = logging.getLogger(__name__)

_ANIMATIONS = (".gif", ".webp")
_CONTAINERS = (".mp4", ".webm")
_STILLS = (".jpg", ".jpeg")
ENDINGS = (*_CONTAINERS, *_ANIMATIONS, ".png", *_STILLS)
_NUMBERED = re.compile(r"%0?(\d{0,2})d")
_LONGEST_GIF_MS = 655_350  # the format counts hundredths of a second in 16 bits
_MOST_COPIES = 20_000  # most frames of an animation with uneven times, made even


def check_target(target: str | Path) -> Path:
    """Refuse a target that cannot be written, before anything heavy is loaded.

    Args:
        target: The file or folder.

    Returns:
        The target.

    Raises:
        RequestError: The ending is unknown, something is in the way, or no file can be created there.
    """
    path = output_path(target)
    if not path.name:
        raise RequestError(f"output `{target}` names no file")
    if str(target) == "-":
        raise RequestError("output `-`: results are not written to standard output, name a file")
    ending = path.suffix.lower()
    if ending and ending not in ENDINGS:
        raise RequestError(
            f"output `{path}` has the ending `{path.suffix}`: use {', '.join(ENDINGS)}, or none for a folder of frames"
        )
    if (numbers := len(_NUMBERED.findall(path.name))) and (ending != ".png" or numbers > 1):
        raise RequestError(f"output `{path}`: numbered frames are written as `%03d.png` only")
    check_writable(path)
    if ending and path.is_dir():
        raise RequestError(f"output `{path}` is a folder: name a file in it")
    if not ending and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RequestError(
            f"output `{path}` exists and is not an empty folder: name a new folder, or a file such as `x.mp4`"
        )
    return path


def check_sheet(target: str | Path, beside: str | Path | None = None) -> Path:
    """Refuse a contact sheet that cannot be written, before anything heavy is loaded.

    Args:
        target: The file, one `.png`.
        beside: The file of the clip itself, which it must not replace.

    Returns:
        The target.

    Raises:
        RequestError: The ending is not `.png`, the file cannot be written, or it is the clip's own.
    """
    path = check_target(target)
    if path.suffix.lower() != ".png" or _NUMBERED.search(path.name):
        raise RequestError(f"a contact sheet is an image: `{path}` must end in `.png`")
    if beside is not None and real_path(path) == real_path(beside):
        raise RequestError(f"the contact sheet and the result are one file, `{path}`: give them different names")
    return path


def write_video(
    video: Video | VideoStream, path: Path, sheet: Path | None = None, *, sample_aspect: Fraction | None = None
) -> Path:
    """Write a clip and its recipe; on failure nothing is left behind and an existing file stays as it was.

    Args:
        video: The clip; a stream's pieces are consumed one by one, and released when they are written.
        path: The file or folder.
        sheet: Also write a contact sheet here, see ``write_sheet``.
        sample_aspect: Width of a pixel for a height of 1, if the frames' pixels are not square. `.mp4` stores it; for
            other formats the frames are stretched.

    Returns:
        The path written.

    Raises:
        RequestError: The target cannot be written, or frames are not [T, H, W, 3] uint8 at a rate the format allows.
    """
    path = check_target(path)
    if sheet is not None:
        sheet = check_sheet(sheet, path)
    is_stored = path.suffix.lower() == ".mp4"
    frames = _Frames(video, None if is_stored else sample_aspect)
    with contextlib.closing(frames):
        _write(frames, path, sample_aspect if is_stored else None)
    if sheet is not None:
        _write_sheet(frames.sheet(), sheet, frames.recipe)
    return path


def _write(frames: _Frames, path: Path, sample_aspect: Fraction | None) -> None:
    ending = path.suffix.lower()
    if frames.audio is not None and ending not in _CONTAINERS:
        log.warning("`%s` cannot hold sound: it is left out", path)
    if not ending:
        with replacing(path, folder=True) as folder:
            _write_frames(frames, folder, _frame_names(_folder_pattern(frames.count), frames.count))
    elif _NUMBERED.search(path.name):
        names = _frame_names(path.name, frames.count)
        with replacing_many(path.parent, names) as folder:
            _write_frames(frames, folder, names)
    else:
        with replacing(path) as part:
            if ending in _CONTAINERS:
                comment = recipes.to_text(frames.recipe) if frames.recipe else None
                with container.writing(part, path, comment=comment) as made:
                    container.encode(frames, made, ending, frames.fps, sample_aspect=sample_aspect)
                if frames.audio is not None:
                    mux.copy_with_audio(mux.probe(part), frames.audio, part, recipe=frames.recipe, over=True)
            elif ending == ".png":
                _write_image(frames, part, path)
            elif ending in _STILLS:
                check_still(path, frames.count)
                (frame,) = frames
                with _saving(path):
                    _write_jpeg(frame, part, frames.recipe)
            else:
                _write_animation(frames, part, path)


def check_still(path: Path, frames: int) -> None:
    """Refuse a file of one image for a clip, before the clip is made.

    Raises:
        RequestError: The ending is that of an image without frames, and there are several.
    """
    if path.suffix.lower() in _STILLS and frames > 1:
        raise RequestError(
            f"output `{path}` is one image, and this is a clip of {frames} frames: use .mp4, .webm, .gif, .webp or "
            ".png (a contact sheet), or `seconds=0`"
        )


def frame_files(path: Path, frames: int) -> list[Path]:
    """The files that ``write_video`` writes for a clip of so many frames, in the order they appear."""
    if not path.suffix:
        return [path / name for name in _frame_names(_folder_pattern(frames), frames)]
    if _NUMBERED.search(path.name):
        return [path.with_name(name) for name in _frame_names(path.name, frames)]
    return [path]


def write_sheet(video: Video, path: Path, columns: int = 8) -> Path:
    """Write a contact sheet of a clip as PNG, with the recipe.

    Args:
        video: The clip.
        path: The file, one `.png`.
        columns: Number of frames to show.

    Returns:
        The path written.

    Raises:
        RequestError: The ending is not `.png`, or the file cannot be written.
    """
    path = check_sheet(path)
    _write_sheet(contact_sheet(_checked(video.frames_THWC), columns), path, video.recipe)
    return path


def read_video(path: str | Path) -> Video:
    """Read a clip: mp4, webm and other formats FFmpeg decodes, an animated or a still image, or a folder of frames.

    Frames are upright and in RGB, transparency composited on white. The frame rate is the true one: for frames at
    uneven times their average, for an animated image a rate at which all its frames fall on a multiple. The recipe and
    the seed come from the file's metadata; without metadata, the seed is 0 and the recipe empty.

    Args:
        path: The file or folder.

    Returns:
        The clip.

    Raises:
        RequestError: The file does not exist, cannot be read or holds no frames.
    """
    import numpy as np

    path = Path(path)
    if not path.exists():
        raise RequestError(f"`{path}` does not exist")
    if not path.is_dir() and animation.image_format(path) is None:
        return mux.read_input(mux.probe(path))
    recipe = recipes.read_if_any(path)
    fps = recipe.get("fps", 24.0)
    if path.is_dir():
        frames = [next(animation.frames_of(file))[0] for file in listed(path, ".png")]
    else:
        frames, fps = _even(list(animation.frames_of(path)), recipe.get("fps"))
    if not frames:
        raise RequestError(f"`{path}` holds no frames")
    if len({frame.shape for frame in frames}) > 1:
        raise RequestError(f"`{path}` holds frames of different sizes")
    return Video(np.stack(frames), fps=fps, seed=recipe.get("seed", 0), recipe=dict(recipe))


class _Frames:
    """A clip's frames one by one, [H, W, 3], each piece checked; those of a contact sheet are kept."""

    def __init__(self, video: Video | VideoStream, stretch: Fraction | None = None) -> None:
        fps: object = video.fps
        slowest, fastest = recipes.SLOWEST_FPS, recipes.FASTEST_FPS
        if not (isinstance(fps, int | float | numbers.Real) and slowest <= float(fps) <= fastest):
            raise RequestError(f"`{video.fps}` frames a second: use {slowest:g} to {fastest:g}")
        if isinstance(video, VideoStream):
            self.count, self._pieces = video.num_frames, video.pieces
        else:
            self.count, self._pieces = len(_checked(video.frames_THWC)), iter([video.frames_THWC])
        self.fps, self.recipe = video.fps, video.recipe
        self.audio = video.audio if isinstance(video, Video) else None
        self._chosen, self._kept = set(chosen_frames(self.count)), list[Any]()
        self._stretch = stretch or Fraction(1)
        self._frames = self._taken()

    def __iter__(self) -> _Frames:
        return self

    def __next__(self) -> np.ndarray:
        return next(self._frames)

    def sheet(self) -> Image:
        """The contact sheet, available when all frames have been consumed."""
        import numpy as np

        return contact_sheet(np.stack(self._kept))

    def close(self) -> None:
        """Release the source of the frames."""
        self._frames.close()
        if isinstance(self._pieces, Generator):
            self._pieces.close()

    def _taken(self) -> Generator[np.ndarray]:
        number = 0
        for piece in self._pieces:
            for frame in _checked(piece):
                if self._stretch != 1:
                    frame = _stretched(frame, self._stretch)
                if number in self._chosen:
                    self._kept.append(frame.copy())  # a view would keep its whole piece alive
                number += 1
                yield frame
            del piece, frame  # not while the next is made
        if number != self.count:
            raise RequestError(f"the clip has {number} frames, not {self.count} as announced")


def _checked(frames_THWC: np.ndarray) -> np.ndarray:
    import numpy as np

    shape: tuple[int, ...] = getattr(frames_THWC, "shape", ())
    if len(shape) != 4 or shape[-1] != 3 or 0 in shape or frames_THWC.dtype != np.uint8:
        kind = getattr(frames_THWC, "dtype", type(frames_THWC).__name__)
        raise RequestError(f"frames must be [T, H, W, 3] of uint8, not {list(shape)} of {kind}")
    return frames_THWC


def _write_animation(frames: _Frames, part: Path, path: Path) -> None:
    from PIL import Image

    is_gif = path.suffix.lower() == ".gif"
    unit_ms = 10 if is_gif else 1
    # The formats use integer units; rounding the times and not the steps preserves the total length. A frame
    # that would be shown for zero units is dropped.
    times = [round(i * 1000 / frames.fps / unit_ms) * unit_ms for i in range(frames.count + 1)]
    images, durations = list[Image.Image](), list[int]()
    for frame, duration in zip(frames, (b - a for a, b in itertools.pairwise(times)), strict=True):
        if duration or frames.count == 1:
            images.append(Image.fromarray(frame))
            durations.append(max(unit_ms, duration))
    if is_gif and max(durations) > _LONGEST_GIF_MS:
        raise RequestError(
            f"`{path}`: a frame of a GIF lasts at most {_LONGEST_GIF_MS / 1000:g} s, too short for {frames.fps:g} "
            "frames a second: use .webp"
        )
    text = recipes.to_text(frames.recipe) if frames.recipe else ""
    if is_gif:
        extra: dict[str, Any] = {"comment": text.encode("ascii"), "disposal": 1, "optimize": False}
    else:
        exif = Image.Exif()
        if text:
            exif[recipes.EXIF_IMAGE_DESCRIPTION] = text
        extra = {"exif": exif.tobytes(), "quality": 92, "method": 4}
    first, *rest = images
    with _saving(path):
        first.save(
            part, path.suffix[1:].upper(), save_all=True, append_images=rest, duration=durations, loop=0, **extra
        )


def _write_frames(frames: _Frames, folder: Path, names: list[str]) -> None:
    from PIL import Image

    for name, frame in zip(names, frames, strict=True):
        _write_png(Image.fromarray(frame), folder / name, frames.recipe)


def _write_image(frames: _Frames, part: Path, path: Path) -> None:
    """A still as it is, a clip as its contact sheet."""
    from PIL import Image

    if frames.count > 1:
        for _ in frames:
            pass
        image = frames.sheet()
    else:
        (frame,) = frames
        image = Image.fromarray(frame)
    with _saving(path):
        _write_png(image, part, frames.recipe)


@contextlib.contextmanager
def _saving(path: Path) -> Generator[None]:
    """Report what an image format cannot hold, in its writer's words."""
    try:
        yield
    except (ValueError, OverflowError, struct.error) as error:
        raise RequestError(f"`{path}` cannot be written: {error}") from error


def _write_sheet(sheet: Image, path: Path, recipe: dict[str, Any]) -> None:
    with replacing(path) as part, _saving(path):
        _write_png(sheet, part, recipe)


def _frame_names(pattern: str, count: int) -> list[str]:
    digits = _NUMBERED.search(pattern)
    assert digits
    before, after = pattern[: digits.start()], pattern[digits.end() :]
    return [f"{before}{i:0{digits[1] or 0}d}{after}" for i in range(count)]


def _folder_pattern(frames: int) -> str:
    return f"%0{max(4, len(str(frames - 1)))}d.png"


def _write_png(image: Image, path: Path, recipe: dict[str, Any]) -> None:
    image.save(path, format="PNG", pnginfo=_png_text(recipe))


def _write_jpeg(frame_HWC: np.ndarray, path: Path, recipe: dict[str, Any]) -> None:
    from PIL import Image

    exif = Image.Exif()
    if recipe:
        exif[recipes.EXIF_IMAGE_DESCRIPTION] = recipes.to_text(recipe)
    Image.fromarray(frame_HWC).save(path, format="JPEG", quality=95, exif=exif.tobytes())


def _png_text(recipe: dict[str, Any]) -> PngInfo | None:
    from PIL.PngImagePlugin import PngInfo

    if not recipe:
        return None
    info = PngInfo()
    info.add_text(recipes.PNG_KEY, recipes.to_text(recipe))
    return info


def _even(shown: list[tuple[np.ndarray, float]], recorded_fps: float | None) -> tuple[list[np.ndarray], float]:
    """Frames of an animated image at a constant rate.

    Writers merge equal neighbours into one longer frame; here they are split again. The recipe's rate,
    ``recorded_fps``, is used unless some frame is shorter than it implies.
    """
    frames = [frame for frame, _ in shown]
    durations_ms = animation.timed([duration for _, duration in shown])
    total_ms = sum(durations_ms)
    if total_ms <= 0:  # a still, or an animation without durations
        return frames, recorded_fps or 24.0
    average = 1000 * len(frames) / total_ms
    if recorded_fps and min(durations_ms) > 0.5 * 1000 / recorded_fps - 10:
        fps = recorded_fps
    elif max(durations_ms) - min(durations_ms) <= 10:  # one unit of GIF: all equal up to rounding
        return frames, average
    else:
        fps = 1000 / min(durations_ms)
    ends = [round(end * fps / 1000) for end in itertools.accumulate(durations_ms)]
    if ends[-1] > _MOST_COPIES + len(frames):
        return frames, average
    copies = (max(1, end - start) for start, end in itertools.pairwise([0, *ends]))
    return [frame for frame, n in zip(frames, copies, strict=True) for _ in range(n)], fps


def _stretched(frame_HWC: np.ndarray, factor: Fraction) -> np.ndarray:
    """A frame with square pixels, from pixels ``factor`` times as wide as high."""
    import numpy as np
    from PIL import Image

    H, W, _ = frame_HWC.shape
    return np.asarray(Image.fromarray(frame_HWC).resize((max(1, round(W * factor)), H), Image.Resampling.LANCZOS))
