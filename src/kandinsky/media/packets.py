"""Frames as a viewer is sent them, one packet each: as JPEG, or as H.264 or VP9, whose frames build on those before.

A coded stream has no B frames and no look-ahead, so each frame is a packet at once. H.264 is Annex B with its parameter
sets before each key frame (ISO/IEC 14496-10), which WebCodecs takes without a description.
Legend: T frames; H W rows and columns.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, Protocol, get_args

import numpy as np

from kandinsky.errors import BackendError

log = logging.getLogger(__name__)
Format = Literal["jpeg", "h264", "vp9"]
FORMATS: tuple[Format, ...] = get_args(Format)
JPEG: Format = "jpeg"
QUALITY = 85
KEY_S = 10.0  # a key frame at least so often, for whoever comes in between
_START = b"\x00\x00\x01"  # of a unit of Annex B
_PARAMETERS = 7  # type of the unit that names profile and level
# Largest picture of a level of VP9, in pixels (its Annex A), by the level's number in codec strings
_LEVELS = {10: 36_864, 11: 73_728, 20: 122_880, 21: 245_760, 30: 552_960, 31: 983_040, 40: 2_228_224, 50: 8_912_896}


@dataclass(frozen=True, slots=True)
class _Coder:
    """An encoder of FFmpeg and its options."""

    name: str
    options: Mapping[str, str]


_CODERS: Mapping[str, _Coder] = {
    # Without macroblock trees for the reason that `media/container.py` gives
    "h264": _Coder(
        "libx264",
        {
            "preset": "veryfast",
            "tune": "zerolatency",
            "profile": "baseline",
            "crf": "18",
            "forced-idr": "1",
            "x264-params": "mbtree=0:annexb=1:repeat-headers=1",
        },
    ),
    "vp9": _Coder("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0", "crf": "20", "b": "0"}),
}


@dataclass(frozen=True, slots=True)
class Packet:
    """One frame.

    Attributes:
        data: Its bytes.
        is_key: Whether it needs none of those before it.
    """

    data: bytes
    is_key: bool = True


class Packer(Protocol):
    """Turns frames into packets."""

    @property
    def format(self) -> Format:
        """One of ``FORMATS``."""
        ...

    @property
    def codec(self) -> str:
        """As WebCodecs names it, once frames were packed; empty for JPEG."""
        ...

    def pack(self, frames_THWC: np.ndarray, *, key: bool = False) -> list[Packet]:
        """Pack the next frames, uint8 RGB.

        Args:
            frames_THWC: The frames.
            key: Whether the first of them is to need none before it.

        Raises:
            BackendError: The encoder fails.
        """
        ...


class Jpegs:
    """Each frame by itself."""

    format: Format = JPEG
    codec = ""

    def pack(self, frames_THWC: np.ndarray, *, key: bool = False) -> list[Packet]:
        from PIL import Image

        made = []
        for frame_HWC in frames_THWC:
            with io.BytesIO() as file:
                Image.fromarray(frame_HWC).save(file, "JPEG", quality=QUALITY)
                made.append(Packet(file.getvalue()))
        return made


class Coded:
    """A coded stream.

    Args:
        format: `h264` or `vp9`.
        width: Of the frames; even.
        height: Of the frames; even.
        fps: Frames a second.

    Raises:
        BackendError: This machine's FFmpeg has no such encoder, or it does not take the size.
    """

    def __init__(self, format: Format, width: int, height: int, fps: float) -> None:
        import av
        from av.video.reformatter import ColorRange, Colorspace

        self.format: Format = format
        self.codec = ""
        self._count = 0
        coder = _CODERS[format]
        if width % 2 or height % 2:
            raise BackendError(f"{width}x{height} has an odd side, which {format} does not take")
        try:
            made: Any = av.CodecContext.create(coder.name, "w")
            made.width, made.height, made.pix_fmt = width, height, "yuv420p"
            made.framerate = Fraction(fps).limit_denominator(1001)
            made.time_base = 1 / made.framerate
            made.gop_size, made.max_b_frames, made.thread_count = max(1, round(KEY_S * fps)), 0, 1
            made.colorspace, made.color_range = Colorspace.ITU709, ColorRange.MPEG
            made.color_primaries = made.color_trc = 1
            made.options = dict(coder.options)
            made.open()
        except (ValueError, OSError, av.FFmpegError) as error:  # also a name that is not known
            raise BackendError(f"{format} cannot be encoded here: {error}") from error
        self._context = made

    def pack(self, frames_THWC: np.ndarray, *, key: bool = False) -> list[Packet]:
        import av
        from av.video.frame import PictureType
        from av.video.reformatter import ColorRange, Colorspace

        made = []
        for place, frame_HWC in enumerate(frames_THWC):
            frame: Any = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
            frame.pts, frame.time_base = self._count, self._context.time_base
            if key and place == 0:
                frame.pict_type = PictureType.I
            try:
                packets = self._context.encode(frame)
            except (ValueError, OSError, av.FFmpegError) as error:
                raise BackendError(f"{self.format} cannot be encoded: {error}") from error
            if len(packets) != 1:  # an encoder that waits for more cannot be shown live
                raise BackendError(f"{self.format}: {len(packets)} packets of one frame")
            self._count += 1
            made.append(Packet(bytes(packets[0]), bool(packets[0].is_keyframe)))
        if not self.codec and made:
            self.codec = _h264(made[0].data) if self.format == "h264" else self._vp9()
        return made

    def _vp9(self) -> str:
        """Profile 0 of the smallest level that holds the picture, 8 bits."""
        size = self._context.width * self._context.height
        level = next((level for level, most in _LEVELS.items() if size <= most), 62)
        return f"vp09.00.{level:02}.08"


def packer(wanted: Sequence[str], width: int, height: int, fps: float) -> Packer:
    """The packer of the first format that this machine can encode; JPEG where there is none.

    Args:
        wanted: Names of formats, the best first.
        width: Of the frames.
        height: Of the frames.
        fps: Frames a second.
    """
    for name in wanted:
        if name == JPEG:
            break
        if name in _CODERS:
            try:
                return Coded(name, width, height, fps)  # type: ignore[arg-type]
            except BackendError as error:
                log.warning("%s", error)
    return Jpegs()


def _h264(packet: bytes) -> str:
    """The codec string of a stream of Annex B, from the parameter set in its first packet (RFC 6381)."""
    place = packet.find(_START)
    while place >= 0:
        unit = packet[place + len(_START) :]
        if unit and unit[0] & 31 == _PARAMETERS:
            return f"avc1.{unit[1:4].hex().upper()}"
        place = packet.find(_START, place + len(_START))
    raise BackendError("h264: the first packet has no parameter set")
