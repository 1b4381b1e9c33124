"""Copies of clips that hold their streams and nothing else: no recipe, no tags, no dates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kandinsky.errors import RequestError

# a file that names others, as playlists do, is opened by no format of these
OPTIONS = {"format_whitelist": "mov,matroska,avi", "protocol_whitelist": "file"}


def copy_streams(source: Path, target: Path, form: str | None = None) -> None:
    """Copy the first video and the first sound stream, packet by packet, into a new container without metadata.

    Args:
        source: An mp4, mov, webm, mkv or avi file.
        target: The new file.
        form: Its container in FFmpeg's words; default: by its ending.

    Raises:
        av.FFmpegError: The source cannot be read, or its container cannot be written.
    """
    import av

    with (
        av.open(f"file:{source}", options=OPTIONS, metadata_errors="replace") as given,
        av.open(f"file:{target}", "w", format=form) as made,
    ):
        streams = [*given.streams.video[:1], *given.streams.audio[:1]]
        copies: dict[int, Any] = {one.index: made.add_stream_from_template(one, opaque=True) for one in streams}
        for packet in given.demux(streams):
            if packet.dts is not None:
                packet.stream = copies[packet.stream.index]
                made.mux(packet)


def copy_bare(source: Path, target: Path) -> None:
    """Copy a clip without whatever its file says about it.

    Args:
        source: A clip: a video file, or an animated GIF or WebP.
        target: The new file, of the same ending.

    Raises:
        RequestError: The file cannot be read.
    """
    import av

    try:
        ending = source.suffix.lower()
        if ending in (".gif", ".webp"):
            target.write_bytes((_gif if ending == ".gif" else _webp)(source.read_bytes()))
        else:
            copy_streams(source, target)
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise RequestError(f"clip `{source}` cannot be read: it is damaged, or no {source.suffix} file") from error


def _webp(data: bytes) -> bytes:
    """The file without EXIF and XMP (RIFF: chunks of four letters, a length and an even number of bytes)."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        raise ValueError("no WebP")
    kept, at = bytearray(), 12
    while at + 8 <= len(data):
        end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        end += end % 2
        name, chunk = data[at : at + 4], bytearray(data[at:end])
        if name == b"VP8X":
            chunk[8] &= ~0x0C  # the header's word that there is EXIF (8) or XMP (4)
        if name not in (b"EXIF", b"XMP "):
            kept += chunk
        at = end
    return b"RIFF" + (len(kept) + 4).to_bytes(4, "little") + b"WEBP" + bytes(kept)


def _gif(data: bytes) -> bytes:
    """The file without comments, plain texts and extensions of programs other than the one that tells to repeat."""
    if data[:3] != b"GIF":
        raise ValueError("no GIF")
    at = 13 + _colours(data[10])
    kept = bytearray(data[:at])
    while data[at] != 0x3B:
        start = at
        if data[at] == 0x2C:  # a picture: its place, its colours, the size of its codes, its blocks
            at = _after_blocks(data, at + 11 + _colours(data[at + 9]))
            kept += data[start:at]
        elif data[at] == 0x21:
            label, at = data[at + 1], _after_blocks(data, at + 2)
            if label == 0xF9 or (label == 0xFF and data[start + 3 : start + 14] == b"NETSCAPE2.0"):
                kept += data[start:at]
        else:
            raise ValueError("no GIF")
    return bytes(kept) + b";"


def _colours(flags: int) -> int:
    """Bytes of a table of colours."""
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _after_blocks(data: bytes, at: int) -> int:
    while data[at]:
        at += data[at] + 1
    return at + 1
