"""What a file is: size, length, rate, codec; whether it can be read, and whether its name tells the truth."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from pathlib import Path

from kandinsky.curate.footage import small_frames
from kandinsky.curate.ingest import example_of
from kandinsky.curate.stages import Row, Rows, Stage, check_lasting, reason
from kandinsky.curate.tables import clock
from kandinsky.curate.watch import beat
from kandinsky.media import animation, container
from kandinsky.media.mux import frames_at, probe

# ending → words of FFmpeg's name of the container, one of which must be there
_CONTAINERS = {
    ".mp4": ("mp4",),
    ".m4v": ("mp4",),
    ".mov": ("mov",),
    ".mkv": ("matroska",),
    ".webm": ("webm",),
    ".avi": ("avi",),
    ".gif": ("gif",),
    ".webp": ("webp",),
    ".png": ("png",),
}


def stage() -> Stage:
    """The stage that opens every file and decodes its first frame."""
    columns = {
        "status": "string", "process_start": "time", "process_node": "string", "width": "int32", "height": "int32",
        "duration": "string", "fps": "double", "duration_s": "double", "frames": "int64", "container": "string",
        "video_codec": "string", "has_audio": "bool", "sample_aspect": "double", "fault": "string",
    }  # fmt: skip
    return Stage("probe", "2", ("key", "file", "offset", "bytes"), columns, run)


def run(batch: Rows) -> Rows:
    """Rows of files to rows of what they are; `status` is `ready` or `failed`, `fault` says why or what is odd."""
    return [_probed(row) for row in batch]


def _probed(row: Row) -> Row:
    begun: Row = {"process_start": datetime.now(UTC), "process_node": platform.node()}
    example = example_of(row)
    try:
        with example.decoded() as path:
            video = probe(path, on_packet=beat)
            _, first = next(small_frames(video, 1 << 20, {0}), (0, None))
            height, width = (frames_at(video, [0])[0] if first is None else first).shape[:2]
            kind = _container(path)
    except Exception as error:  # whatever a poisoned file makes a decoder do, the others are done
        check_lasting(error)
        return dict.fromkeys(stage().gives) | begun | {"status": "failed", "fault": reason(error)}
    expected = _CONTAINERS.get(example.ending, ())
    is_odd = bool(expected) and not any(word in kind.split(",") for word in expected)
    return begun | {
        "status": "ready",
        "width": width,
        "height": height,
        "duration": clock(video.seconds),
        "fps": video.fps,
        "duration_s": video.seconds,
        "frames": len(video.times_s),
        "container": kind,
        "video_codec": video.codec,
        "has_audio": video.has_audio,
        "sample_aspect": float(video.sample_aspect),
        "fault": f"wrong container: the name ends in {example.ending}, the file is {kind}" if is_odd else None,
    }


def _container(path: Path) -> str:
    if (kind := animation.image_format(path)) is not None:
        return kind.lower()
    with container.reading(path) as file:
        return str(file.format.name)
