"""Clips to files and back, by the file's ending. Files are written beside their target and renamed.

Frames are written as they come: a ``VideoStream`` becomes a file without lying in memory whole. The writers of `.gif`
and `.webp` alone need all frames before they begin.

| target | what is written |
|---|---|
| `x.mp4` | H.264, yuv420p, index in front (plays while it loads); sound as AAC |
| `x.webm` | VP9, yuv420p; sound as Opus |
| `x.gif`, `x.webp` | an animation that repeats |
| `x.png` | a contact sheet; the picture itself for a still |
| `x/` or any name without ending | a folder of frames, `0000.png` and on |
| `x%03d.png` | one file a frame, numbered from 0 |

H.264 and VP9 in yuv420p want even sides: an odd side gets its last row or column twice, and the log says so.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Generator, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky.errors import RequestError
from kandinsky.media import recipe as recipes
from kandinsky.media.sheet import chosen_frames, contact_sheet
from kandinsky.model.values import Video, VideoStream

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from PIL.PngImagePlugin import PngInfo

log = logging.getLogger(__name__)

_CONTAINERS: dict[str, dict[str, Any]] = {
    ".mp4": {
        "codec": "libx264",
        # Visually lossless: the frames are small and their making is what costs.
        # Without macroblock trees: x264's AVX-512 code for them reads memory that nobody wrote (build 165): the same
        # frames gave another file each time. The price: bits are shared out over time less cleverly.
        "options": {"crf": "14", "preset": "medium", "x264-params": "mbtree=0"},
        "container_options": {"movflags": "+faststart"},
    },
    ".webm": {
        "codec": "libvpx-vp9",
        # With a bit rate of 0 the quality (crf) decides alone. row-mt changes speed, not the result.
        "options": {"crf": "18", "b": "0", "deadline": "good", "cpu-used": "3", "row-mt": "1"},
        "container_options": {"fflags": "+bitexact"},  # tracks get a random number otherwise
    },
}
_ANIMATIONS = (".gif", ".webp")
ENDINGS = (*_CONTAINERS, *_ANIMATIONS, ".png")
_NUMBERED = re.compile(r"%0?(\d*)d")


def check_target(target: str | Path) -> Path:
    """Refuse a target that cannot be written, before anything heavy is loaded.

    Really creates and removes an empty file in the folder, or the nearest one above it: permission bits alone do not
    tell on every file system.

    Returns: the target.
    Raises:  RequestError for an unknown ending, a folder in the way, or a place where no file can be made.
    """
    path = Path(target)
    if not path.name:
        raise RequestError(f"output `{target}` names no file")
    ending = path.suffix.lower()
    if ending and ending not in ENDINGS:
        raise RequestError(
            f"output `{path}` has the ending `{path.suffix}`: use {', '.join(ENDINGS)}, or none for a folder of frames"
        )
    if _NUMBERED.search(path.name) and ending != ".png":
        raise RequestError(f"output `{path}`: numbered frames are written as `%03d.png` only")
    if not ending and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RequestError(
            f"output `{path}` exists and is no empty folder: name a new folder, or a file such as `x.mp4`"
        )
    return check_writable(path)


def check_writable(path: Path) -> Path:
    """Refuse a file, or a folder of frames, whose place takes no files; see ``check_target``. Raises: RequestError."""
    if path.suffix and path.is_dir():
        raise RequestError(f"output `{path}` is a folder: name a file in it")
    folder = path if path.is_dir() else next(p for p in path.absolute().parents if p.exists() or p.parent == p)
    try:
        if not folder.is_dir():
            raise NotADirectoryError(f"`{folder}` is not a folder")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise RequestError(f"output `{path}` cannot be written: {reason}", hint="name another with `-o`") from error
    return path


def check_sheet(target: str | Path) -> Path:
    """``check_target`` for a contact sheet, which is one .png file."""
    path = check_target(target)
    if path.suffix.lower() != ".png" or _NUMBERED.search(path.name):
        raise RequestError(f"a contact sheet is a picture: `{path}` must end in `.png`")
    return path


def write_video(video: Video | VideoStream, path: Path, sheet: Path | None = None) -> Path:
    """Write a clip and its recipe; on any failure nothing is left behind and an older file stays as it was.

    Args:    video: a stream's pieces are taken one by one, and let go when they are written.
             sheet: also write a contact sheet here, see ``write_sheet``.
    Returns: the path written.
    Raises:  RequestError for a target that cannot be written, or frames that are not [T, H, W, 3] uint8.
    """
    path = check_target(path)
    if sheet is not None:
        sheet = check_sheet(sheet)
    frames = _Frames(video)
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(frames):
        _write(frames, path)
    if sheet is not None:
        _write_sheet(frames.sheet(), sheet, frames.recipe)
    return path


def _write(frames: _Frames, path: Path) -> None:
    ending = path.suffix.lower()
    if frames.audio is not None and ending not in _CONTAINERS:
        log.warning("`%s` cannot hold sound: it is left out", path)
    if not ending:
        with beside(path, folder=True) as folder:
            _write_frames(frames, folder, _folder_pattern(frames.count))
    elif _NUMBERED.search(path.name):
        # Renamed one by one: the folder may hold other things.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".kandinsky-") as folder:
            for name in _write_frames(frames, Path(folder), path.name):
                (Path(folder) / name).replace(path.parent / name)
    else:
        with beside(path) as part:
            if ending in _CONTAINERS:
                _write_container(frames, part, ending)
                if frames.audio is not None:
                    _add_audio(part, frames)
            elif ending == ".png":
                _write_picture(frames, part)
            else:
                _write_animation(frames, part, ending)


def _add_audio(part: Path, frames: _Frames) -> None:
    from kandinsky.media import mux  # which needs this module

    assert frames.audio is not None
    mux.add_sound(mux.probe(part), frames.audio, part, recipe=frames.recipe, over=True)


def frame_files(path: Path, frames: int) -> list[Path]:
    """The files that ``write_video`` makes of a clip of so many frames, in the order they appear."""
    if not path.suffix:
        return [path / name for name in _frame_names(_folder_pattern(frames), frames)]
    if _NUMBERED.search(path.name):
        return [path.with_name(name) for name in _frame_names(path.name, frames)]
    return [path]


def write_sheet(video: Video, path: Path, columns: int = 8) -> Path:
    """Write a contact sheet of a clip as PNG, with the recipe. Raises: RequestError for another ending."""
    path = check_sheet(path)
    _write_sheet(contact_sheet(_checked(video.frames_THWC), columns), path, video.recipe)
    return path


def read_video(path: str | Path) -> Video:
    """Read a clip: mp4, webm and whatever else the decoder knows, gif, webp, a picture, or a folder of frames.

    The recipe, the seed and (where the format has none of its own) the frame rate come from the file's metadata;
    the seed is 0 and the recipe empty where there is none.

    Raises: RequestError for a file that is absent or holds no frames.
    """
    import av
    import numpy as np

    path = Path(path)
    if not path.exists():
        raise RequestError(f"`{path}` does not exist")
    try:
        recipe = recipes.read(path)
    except RequestError:
        recipe = {}
    fps = float(recipe.get("fps", 24.0))
    try:
        if path.is_dir():
            frames = [_rgb(p) for p in sorted(path.glob("*.png"))]
        elif path.suffix.lower() in (*_ANIMATIONS, ".png"):
            frames, fps = _read_animation(path, fps)
        else:
            frames, fps = _read_container(path, fps)
    except (OSError, av.FFmpegError) as error:
        raise RequestError(f"`{path}` cannot be read as a video: {error}") from error
    if not frames:
        raise RequestError(f"`{path}` holds no frames")
    return Video(np.stack(frames), fps=fps, seed=int(recipe.get("seed", 0)), recipe=recipe)


class _Frames:
    """A clip's frames one by one, [H, W, 3], each piece checked; those of a contact sheet are kept."""

    def __init__(self, video: Video | VideoStream) -> None:
        if isinstance(video, VideoStream):
            self.count, self._pieces = video.num_frames, video.pieces
        else:
            self.count, self._pieces = len(_checked(video.frames_THWC)), iter([video.frames_THWC])
        self.fps, self.recipe = video.fps, video.recipe
        self.audio = video.audio if isinstance(video, Video) else None
        self._chosen, self._kept = set(chosen_frames(self.count)), list[Any]()
        self._frames = self._taken()

    def __iter__(self) -> _Frames:
        return self

    def __next__(self) -> np.ndarray:
        return next(self._frames)

    def sheet(self) -> Image:
        """The contact sheet, when all frames have been taken."""
        import numpy as np

        return contact_sheet(np.stack(self._kept))

    def close(self) -> None:
        """Let go of what makes the frames."""
        self._frames.close()
        if isinstance(self._pieces, Generator):
            self._pieces.close()

    def _taken(self) -> Generator[np.ndarray]:
        number = 0
        for piece in self._pieces:
            for picture in _checked(piece):
                if number in self._chosen:
                    self._kept.append(picture.copy())  # a view would keep its whole piece
                number += 1
                yield picture
            del piece, picture  # not while the next is made
        if number != self.count:
            raise RequestError(f"the clip has {number} frames, not {self.count} as announced")


def _checked(frames_THWC: np.ndarray) -> np.ndarray:
    import numpy as np

    shape: tuple[int, ...] = getattr(frames_THWC, "shape", ())
    if len(shape) != 4 or shape[-1] != 3 or 0 in shape or frames_THWC.dtype != np.uint8:
        kind = getattr(frames_THWC, "dtype", type(frames_THWC).__name__)
        raise RequestError(f"frames must be [T, H, W, 3] of uint8, not {list(shape)} of {kind}")
    return frames_THWC


@contextlib.contextmanager
def beside(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """A temporary file (or folder) in the target's folder, renamed on success and removed on any failure."""
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        if folder:
            part.mkdir()
        yield part
        part.replace(path)
    except BaseException:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)
        raise


def _write_container(frames: _Frames, part: Path, ending: str) -> None:
    import av
    import numpy as np
    from av.video.reformatter import ColorRange, Colorspace

    kind = _CONTAINERS[ending]
    with av.open(str(part), "w", options=kind["container_options"]) as container:
        if frames.recipe:
            container.metadata["comment"] = recipes.to_text(frames.recipe)
        first_HWC = next(frames).copy()  # a view would keep its whole piece
        H, W, _ = first_HWC.shape
        if H % 2 or W % 2:
            log.warning("%dx%d has an odd side: the last row or column is written twice", W, H)
        rate = Fraction(frames.fps).limit_denominator(1001)
        stream = container.add_stream(kind["codec"], rate=rate, options=kind["options"])
        stream.height, stream.width = H + H % 2, W + W % 2
        stream.pix_fmt = "yuv420p"
        # Said in the file, so that every player turns the colours back the way they were made.
        context = stream.codec_context
        context.colorspace = Colorspace.ITU709
        context.color_primaries = 1
        context.color_trc = 1
        context.color_range = ColorRange.MPEG
        for picture_HWC in itertools.chain([first_HWC], frames):
            even_HWC = np.pad(picture_HWC, ((0, H % 2), (0, W % 2), (0, 0)), mode="edge")
            frame = av.VideoFrame.from_ndarray(even_HWC, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _write_animation(frames: _Frames, part: Path, ending: str) -> None:
    from PIL import Image

    pictures = [Image.fromarray(picture) for picture in frames]
    unit_ms = 10 if ending == ".gif" else 1
    # The formats count in whole units; rounding the times and not the steps keeps the length of the whole.
    times = [round(i * 1000 / frames.fps / unit_ms) * unit_ms for i in range(len(pictures) + 1)]
    durations = [max(unit_ms, b - a) for a, b in itertools.pairwise(times)]
    text = recipes.to_text(frames.recipe) if frames.recipe else ""
    if ending == ".gif":
        extra: dict[str, Any] = {"comment": text.encode("ascii"), "disposal": 1, "optimize": False}
    else:
        exif = Image.Exif()
        if text:
            exif[recipes.EXIF_IMAGE_DESCRIPTION] = text
        extra = {"exif": exif.tobytes(), "quality": 92, "method": 4}
    first, *rest = pictures
    first.save(part, save_all=True, append_images=rest, duration=durations, loop=0, **extra)


def _write_frames(frames: _Frames, folder: Path, pattern: str) -> list[str]:
    from PIL import Image

    names = _frame_names(pattern, frames.count)
    for name, picture in zip(names, frames, strict=True):
        _write_png(Image.fromarray(picture), folder / name, frames.recipe)
    return names


def _write_picture(frames: _Frames, part: Path) -> None:
    """A still as it is, a clip as its contact sheet."""
    from PIL import Image

    if frames.count > 1:
        for _ in frames:
            pass
        _write_png(frames.sheet(), part, frames.recipe)
    else:
        (picture,) = frames
        _write_png(Image.fromarray(picture), part, frames.recipe)


def _write_sheet(sheet: Image, path: Path, recipe: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with beside(path) as part:
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


def _png_text(recipe: dict[str, Any]) -> PngInfo | None:
    from PIL.PngImagePlugin import PngInfo

    if not recipe:
        return None
    info = PngInfo()
    info.add_text(recipes.PNG_KEY, recipes.to_text(recipe))
    return info


def _read_container(path: Path, fps: float) -> tuple[list[np.ndarray], float]:
    import av

    with av.open(str(path)) as container:
        if not container.streams.video:
            return [], fps
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        rate = stream.average_rate or stream.guessed_rate
    return frames, float(rate) if rate else fps


def _read_animation(path: Path, fps: float) -> tuple[list[np.ndarray], float]:
    """Frames at an even rate. Writers join equal neighbours into one longer frame; here they are parted again."""
    import numpy as np
    from PIL import Image, ImageSequence

    with Image.open(path) as image:
        pictures, durations = [], []
        for picture in ImageSequence.Iterator(image):
            pictures.append(np.asarray(picture.convert("RGB")))
            durations.append(float(picture.info.get("duration", 0) or 0))
    total_ms = sum(durations)
    if total_ms <= 0:  # a picture, or an animation that says nothing of time
        return pictures, fps
    if not _has_rate(path):
        if max(durations) - min(durations) <= 10:  # one unit of GIF: all the same but for rounding
            return pictures, 1000 * len(pictures) / total_ms
        fps = 1000 / min(d for d in durations if d > 0)
    ends = np.cumsum(durations) * fps / 1000
    starts = np.concatenate([[0.0], ends[:-1]])
    copies = np.maximum(1, np.round(ends).astype(int) - np.round(starts).astype(int))
    return [picture for picture, n in zip(pictures, copies, strict=True) for _ in range(n)], fps


def _has_rate(path: Path) -> bool:
    try:
        return "fps" in recipes.read(path)
    except RequestError:
        return False


def _rgb(path: Path) -> np.ndarray:
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
