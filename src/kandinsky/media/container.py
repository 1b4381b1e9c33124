"""FFmpeg containers (mp4, webm, matroska, wav, …): opening, writing and inspecting them.

Names are names: a colon in one never means a protocol. Only the given file is read: playlists and scripts that name
other files are refused. Any error in FFmpeg becomes a ``RequestError``.

Legend: H W rows and columns, C channels.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky.errors import KandinskyError, RequestError
from kandinsky.files import not_writable

if TYPE_CHECKING:
    import av
    import numpy as np
    from av.container import InputContainer, OutputContainer

log = logging.getLogger(__name__)

# ending → FFmpeg's name of the container
FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".wav": "wav", ".flac": "flac"}
_FASTSTART = {"movflags": "+faststart"}  # the index in front: a file plays while it loads
_BITEXACT = {"fflags": "+bitexact"}  # tracks get a random number otherwise
_OPTIONS = {".mp4": _FASTSTART, ".mov": _FASTSTART, ".mkv": _BITEXACT, ".webm": _BITEXACT}
# Readers that open other files or addresses, run scripts, or take any text for a video.
_REFUSED_READERS = frozenset(
    {"concat", "concatf", "dash", "hls", "image2", "imf", "rtp", "rtsp", "sap", "sdp", "webm_dash_manifest"}
    | {"avisynth", "lavfi", "svg_pipe", "tty", "vapoursynth"}
)
_ATTACHED_PICTURE = 1024  # FFmpeg's AV_DISPOSITION_ATTACHED_PIC: the cover of a song
_DEFAULT = 1  # AV_DISPOSITION_DEFAULT


@dataclass(frozen=True, slots=True)
class Encoder:
    """How frames are encoded for a container.

    Attributes:
        codec: FFmpeg's name of the encoder.
        options: Its options.
    """

    codec: str
    options: Mapping[str, str]


_H264 = Encoder(
    "libx264",
    # Visually lossless: the frames are small, and generating them is what costs.
    # Without macroblock trees: x264's AVX-512 code for them reads uninitialised memory (build 165): the same
    # frames gave a different file each time. The price: bits are distributed over time less well.
    {"crf": "14", "preset": "medium", "x264-params": "mbtree=0"},
)
ENCODERS = {
    ".mp4": _H264,
    ".mov": _H264,
    ".mkv": _H264,
    # With a bit rate of 0 the quality (crf) decides alone. row-mt changes speed, not the result.
    ".webm": Encoder(
        "libvpx-vp9", {"crf": "18", "b": "0", "deadline": "good", "cpu-used": "3", "row-mt": "1"}
    ),
}  # fmt: skip


@contextmanager
def reading(path: str | Path, what: str = "video") -> Iterator[InputContainer]:
    """Open a file to read it.

    Args:
        path: The file.
        what: What it is to the user, for messages.

    Yields:
        The open container.

    Raises:
        RequestError: It cannot be read, even if that shows only later, in the block.
    """
    import av

    options = {"format_whitelist": _readers(), "fflags": "+genpts"}
    try:
        with av.open(_url(path), options=options, metadata_errors="replace") as container:
            yield container
    except KandinskyError:
        raise
    except (OSError, ValueError, av.FFmpegError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"{what} `{path}` cannot be read: {reason}") from error


@contextmanager
def writing(part: Path, target: Path, *, comment: str | None = None) -> Iterator[OutputContainer]:
    """Open a file to write a container of the target's type into it.

    Args:
        part: The file that is written, see ``files.replacing``.
        target: The final file: its ending decides, and messages name it.
        comment: Text for the container's comment.

    Yields:
        The open container.

    Raises:
        RequestError: It cannot be written, or this container cannot hold what the block adds.
    """
    import av

    ending = target.suffix.lower()
    try:
        with av.open(_url(part), "w", format=FORMATS[ending], options=_OPTIONS.get(ending, {})) as container:
            if comment:
                container.metadata["comment"] = comment
            yield container
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise not_writable(target, error) from error
        raise RequestError(f"`{target}` cannot be written: {error.strerror or error}") from error


def best_video(container: InputContainer, path: str | Path) -> av.VideoStream:
    """The video stream that FFmpeg chooses by default: the one marked as default, then the largest, then the first.

    Raises:
        RequestError: There is none, or its codec is not supported.
    """
    streams = [s for s in container.streams.video if not s.disposition & _ATTACHED_PICTURE]
    if not streams:
        cover = " but a cover image" if container.streams.video else ""
        raise RequestError(f"video `{path}` has no video stream{cover}: give a file with moving images")
    known = [s for s in streams if s.codec_context is not None]
    if not known:
        raise RequestError(f"video `{path}`: its codec is not supported here, convert it to .mp4 first")
    # the weights of FFmpeg's own choice
    return max(known, key=lambda s: s.width * s.height + 5_000_000 * bool(s.disposition & _DEFAULT))


def codec_of(stream: av.VideoStream | av.AudioStream) -> str:
    """The codec of a stream; its decoder may have another name: `libdav1d` for AV1, `mp3float` for MP3."""
    return str(stream.codec_context.codec.canonical_name)


def has_timestamps(container: InputContainer) -> bool:
    """Whether the format stores the time of each frame; a raw stream (.h264, .m4v) does not."""
    from av.format import Flags

    return not Flags(container.format.flags) & Flags.no_timestamps


def encode(
    frames: Iterable[np.ndarray],
    container: OutputContainer,
    ending: str,
    fps: float,
    *,
    sample_aspect: Fraction | None = None,
    times_s: Sequence[float] | None = None,
) -> None:
    """Encode frames as the container's only video stream, in BT.709 colours that the file declares.

    Args:
        frames: uint8 RGB [H, W, 3], at least one; an odd side gets its last row or column twice.
        container: Result of ``writing``.
        ending: The target's ending.
        fps: Frames per second; the average if ``times_s`` is given.
        sample_aspect: Width of a pixel for a height of 1, if pixels are not square.
        times_s: When each frame is shown, and last when the clip ends; None for a constant rate.
    """
    import av
    import numpy as np
    from av.video.reformatter import ColorRange, Colorspace

    encoder, frames = ENCODERS[ending], iter(frames)
    first_HWC = next(frames).copy()  # a view would keep its whole piece alive
    H, W, _ = first_HWC.shape
    if H % 2 or W % 2:
        log.warning("%dx%d has an odd side: the last row or column is written twice", W, H)
    options = dict(encoder.options)
    if times_s is not None and encoder is _H264:
        options["bf"] = "0"  # frames in order of time: then the last packet's duration is the last frame's
    stream: Any = container.add_stream(encoder.codec, rate=Fraction(fps).limit_denominator(1001), options=options)
    stream.height, stream.width = H + H % 2, W + W % 2
    stream.pix_fmt = "yuv420p"
    # Stored in the file, so that every player converts the colours back the way they were encoded.
    context = stream.codec_context
    context.colorspace = Colorspace.ITU709
    context.color_primaries = 1
    context.color_trc = 1
    context.color_range = ColorRange.MPEG
    if sample_aspect not in (None, 1):
        context.sample_aspect_ratio = sample_aspect
    stamps = list[int]()  # in ms, rising
    for moment in times_s or ():
        stamps.append(max(round(moment * 1000), stamps[-1] + 1 if stamps else 0))
    lasting = {begin: end - begin for begin, end in itertools.pairwise(stamps)}
    if stamps:
        context.time_base = Fraction(1, 1000)

    def send(frame: av.VideoFrame | None) -> None:
        for packet in stream.encode(frame):
            if stamps and packet.pts is not None:
                ms = packet.time_base * 1000
                packet.duration = round(lasting[round(packet.pts * ms)] / ms)
            container.mux(packet)

    for number, frame_HWC in enumerate(itertools.chain([first_HWC], frames)):
        even_HWC = np.pad(frame_HWC, ((0, H % 2), (0, W % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(even_HWC, format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
        if stamps:
            frame.pts, frame.time_base = stamps[number], context.time_base
        send(frame)
    send(None)


def _url(path: str | Path) -> str:
    """A path as FFmpeg accepts it without looking for a protocol in it."""
    return f"file:{path}"


@functools.cache
def _readers() -> str:
    import av

    return ",".join(sorted(av.formats_available - _REFUSED_READERS))
