"""Cutting the clips of one file: it is opened, walked through and decoded once for all its scenes.

A clip is cut without re-encoding where a key frame stands at both of its ends, and encoded anew otherwise. Its sound
is that of the same time, encoded anew, so that it begins with the picture to the sample. A file is written beside its
place and renamed.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kandinsky.curate.ingest import example_of
from kandinsky.curate.speeds import Speeds
from kandinsky.curate.stages import Row, Rows, Stage, check_lasting, reason
from kandinsky.curate.watch import beat
from kandinsky.errors import KandinskyError, RequestError
from kandinsky.files import replacing
from kandinsky.media import container
from kandinsky.media.mux import InputVideo, copy_with_audio, decode_times, frames_of_windows, probe
from kandinsky.model.values import Audio
from kandinsky.printing import escaped

log = logging.getLogger(__name__)
ENDING = ".mp4"
STAGE = Stage(
    "export",
    "3",
    (),
    {"clip_bytes": "int64", "how": "string", "clip_fault": "string", "sound_fault": "string"},
    lambda _: [],
    is_of_scenes=True,
)  # a file's scenes are cut together, see ``ClipWork``
_COPIED = ("h264", "hevc", "av1", "mpeg4")  # codecs that players expect in .mp4
_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)  # that AAC knows


@dataclass(frozen=True, slots=True)
class Span:
    """Frames from ``start`` to before ``end`` of a video, and the file that they are written to."""

    start: int
    end: int
    target: Path


@dataclass(frozen=True, slots=True)
class CutTask:
    """The scenes of a file that are to be cut.

    Attributes:
        row: Of the file.
        scenes: With `id`, `clip_lineage`, `start_frame`, `end_frame` and `duration`, in their order.
        folder: Where clips are written.
    """

    row: Row
    scenes: Rows
    folder: Path

    @property
    def name(self) -> str:
        """The file in words."""
        return f"clips of `{self.row['key']}`"


@dataclass(slots=True)
class Cut:
    """What became of a file's clips: rows of ``STAGE``."""

    rows: Rows = field(default_factory=list)
    speeds: Speeds = field(default_factory=Speeds)


class ClipWork:
    """Cuts the clips of files."""

    def __call__(self, task: CutTask) -> Cut:
        """Write the clips of a file.

        Raises:
            Exception: The disk or memory is full, or too many files are open; nothing is wrong with the file.
        """
        begun = time.perf_counter()
        spans = [
            Span(one["start_frame"], one["end_frame"], task.folder / f"{one['id']}{ENDING}") for one in task.scenes
        ]
        try:
            with example_of(task.row).decoded() as path:
                found, silent = cut_out(probe(path, on_packet=beat), spans)
        except Exception as error:  # whatever a poisoned file makes a decoder do, the others are done
            check_lasting(error)
            found, silent = [reason(error)] * len(spans), {}
        cut = Cut()
        for scene, span, how in zip(task.scenes, spans, found, strict=True):
            row = not_cut(scene, how)
            if how in ("copied", "encoded"):
                row |= {"clip_bytes": span.target.stat().st_size, "how": how, "clip_fault": None}
                row["sound_fault"] = silent.get(span.target)
            cut.rows.append(row)
        video_s = sum(scene["duration"] for scene in task.scenes)
        cut.speeds.add(STAGE.name, len(spans), video_s, time.perf_counter() - begun)
        return cut


def not_cut(scene: Row, why: str) -> Row:
    """The row of a scene of which there is no clip."""
    lineage = STAGE.lineage(scene["clip_lineage"])
    return {
        "key": scene["id"],
        "lineage": lineage,
        "clip_bytes": None,
        "how": None,
        "clip_fault": why,
        "sound_fault": None,
    }


def cut_out(video: InputVideo, spans: Sequence[Span]) -> tuple[list[str], dict[Path, str]]:
    """Write spans of a video to `.mp4` files.

    Args:
        video: The video.
        spans: In the order of their frames; they do not overlap.

    Returns:
        Of each span: `copied` where packets were copied, `encoded` where frames were encoded, else why there is none;
        and what is wrong with the sound of clips, by their file.

    Raises:
        RequestError: The video cannot be read.
    """
    found: dict[Path, str] = {}
    if not video.is_animation and video.codec in _COPIED:
        found |= dict.fromkeys(_copied(video, spans), "copied")
    left = [span for span in spans if span.target not in found]
    found |= _encoded(video, left)
    silent: dict[Path, str] = {}
    if video.has_audio and not video.is_animation:
        silent = _add_sound(video, [span for span in spans if found[span.target] in ("copied", "encoded")])
    return [found[span.target] for span in spans], silent


def _encoded(video: InputVideo, spans: Sequence[Span]) -> dict[Path, str]:
    """Decode a video once, and encode each span as its frames come."""
    found: dict[Path, str] = {}
    frames = _frames(video, [n for span in spans for n in range(span.start, span.end)])
    for number, span in enumerate(spans):
        times_s = [video.times_s[n] - video.times_s[span.start] for n in range(span.start, span.end)]
        last = video.times_s[span.end] if span.end < len(video.times_s) else video.seconds
        is_even = all(abs(time_s - n / video.fps) < 0.002 for n, time_s in enumerate(times_s))
        try:
            with replacing(span.target) as part, container.writing(part, span.target) as made:
                container.encode(
                    itertools.islice(frames, span.end - span.start),
                    made,
                    ENDING,
                    video.fps,
                    sample_aspect=video.sample_aspect,
                    times_s=None if is_even else [*times_s, last - video.times_s[span.start]],
                )
        except Exception as error:  # the frames behind it come from the same decoder
            check_lasting(error)
            return found | {one.target: reason(error) for one in spans[number:]}
        found[span.target] = "encoded"
    return found


def _frames(video: InputVideo, numbers: Sequence[int]) -> Iterator[np.ndarray]:
    for window in frames_of_windows(video, [[number] for number in numbers]) if numbers else ():
        beat()
        yield window[0]


def _copied(video: InputVideo, spans: Sequence[Span]) -> list[Path]:
    """Copy the packets of those spans that lie between two key frames; the files that were written."""
    with container.reading(video.path) as source:
        stream = container.best_video(source, video.path)
        packets = []
        for one in source.demux(stream):
            beat()
            if one.size:
                packets.append((one.pts, one.dts, one.is_keyframe))
    places = {pts: place for place, (pts, _, is_key) in reversed(list(enumerate(packets))) if is_key}
    parts: list[tuple[int, int, Span]] = []
    for span in spans:
        behind = video.timestamps[span.end] if span.end < len(video.timestamps) else None
        first, last = places.get(video.timestamps[span.start]), len(packets) if behind is None else places.get(behind)
        if first is None or last is None:
            continue
        inside = [pts for pts, _, _ in packets[first:last]]
        if len(inside) == span.end - span.start and set(inside) == set(video.timestamps[span.start : span.end]):
            parts.append((first, last, span))
    written = []
    with container.reading(video.path) as source:
        stream = container.best_video(source, video.path)
        left = enumerate(one for one in source.demux(stream) if one.size)
        for first, last, span in parts:
            stamps = decode_times([(pts, dts) for pts, dts, _ in packets[first:last]])
            begin = min(pts for pts, _ in stamps)
            try:
                with replacing(span.target) as part:
                    with container.writing(part, span.target) as made:
                        copy = made.add_stream_from_template(stream, opaque=True)
                        if stream.sample_aspect_ratio and not stream.codec_context.sample_aspect_ratio:
                            copy.codec_context.sample_aspect_ratio = stream.sample_aspect_ratio
                        for place, packet in left:
                            beat()
                            if place >= first:
                                pts, dts = stamps[place - first]
                                packet.pts, packet.dts, packet.stream = pts - begin, dts - begin, copy
                                made.mux(packet)
                            if place >= last - 1:
                                break
                    if len(probe(part).times_s) != span.end - span.start:
                        raise RequestError(f"`{escaped(span.target)}`: its packets alone do not make a clip")
            except KandinskyError as error:  # it is encoded instead
                check_lasting(error)
                log.debug("`%s` is not copied: %s", escaped(span.target), error)
                continue
            written.append(span.target)
    return written


def _add_sound(video: InputVideo, spans: Sequence[Span]) -> dict[Path, str]:
    """Add the sound of the same time to clips.

    Returns:
        What is wrong with the sound of clips; those whose sound cannot be read stay silent.
    """
    lost: list[int] = []
    sounds = sound_of(video, [(span.start, span.end) for span in spans], lost)
    wrong: dict[Path, str] = {}
    left = list(spans)
    try:
        for sound in sounds:
            beat()
            target = left[0].target
            if lost:
                wrong[target] = f"packets of its sound that cannot be decoded: {len(lost)}"
                lost.clear()
            copy_with_audio(probe(target), sound, target, over=True)
            left.pop(0)
    except Exception as error:  # the pictures are there
        check_lasting(error)
        log.warning("`%s`: its sound is left out of clips: %s", escaped(video.path), reason(error))
        return wrong | {span.target: f"its sound is left out: {reason(error)}" for span in left}
    return wrong


def sound_of(video: InputVideo, spans: Sequence[tuple[int, int]], lost: list[int]) -> Iterator[Audio]:
    """The sound of the first track that can be read, for spans of frames; it is decoded once.

    Args:
        video: The video.
        spans: First frame and the frame behind, in their order.
        lost: Gets the numbers of packets that cannot be decoded, as they come; there is silence in their place.

    Yields:
        Of each span, as long as it lasts; silence where the track has none.

    Raises:
        RequestError: The file cannot be read.
    """
    import av

    with container.reading(video.path) as file:
        shown = container.best_video(file, video.path)
        track = next(one for one in file.streams.audio if one.codec_context is not None)
        begin_s = float(video.timestamps[0] * (shown.time_base or 0))
        rate, channels = track.rate if track.rate in _RATES else 48000, min(2, track.layout.nb_channels)
        resampler = av.AudioResampler(format="s16", layout="mono" if channels == 1 else "stereo", rate=rate)
        edges = [_samples(video, span, rate) for span in spans]
        pieces = _pieces(file.demux(track), resampler, channels, begin_s, rate, lost)
        held: list[tuple[int, np.ndarray]] = []
        for first, last in edges:
            out = np.zeros((last - first, channels), np.int16)
            held = [(at, piece) for at, piece in held if at + len(piece) > first]
            while not held or held[-1][0] + len(held[-1][1]) < last:
                following = next(pieces, None)
                if following is None:
                    break
                if following[0] + len(following[1]) > first:
                    held.append(following)
            for at, piece in held:
                start, end = max(at, first), min(at + len(piece), last)
                if start < end:
                    out[start - first : end - first] = piece[start - at : end - at]
            yield Audio(out, rate)


def _samples(video: InputVideo, span: tuple[int, int], rate: int) -> tuple[int, int]:
    start, end = span
    behind = video.times_s[end] if end < len(video.times_s) else video.seconds
    return round(video.times_s[start] * rate), round(behind * rate)


def _pieces(
    packets: Any, resampler: Any, channels: int, begin_s: float, rate: int, lost: list[int]
) -> Iterator[tuple[int, np.ndarray]]:
    """Pieces of sound, each with the number of its first sample, counted from the first frame of the video."""
    import av

    at = None
    for number, packet in enumerate(packets):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            lost.append(number)
            continue
        beat()
        for frame in frames:
            told = None if frame.pts is None else round((float(frame.pts * frame.time_base) - begin_s) * rate)
            # times are rounded in many containers: what is nearly where the sound before it ends, follows it
            if at is None or (told is not None and abs(told - at) > rate // 50):
                at = told or 0
            for out in resampler.resample(frame):
                piece = out.to_ndarray().reshape(-1, channels)
                yield at, piece
                at += len(piece)
    if at is not None:  # what a change of the rate holds back
        for out in resampler.resample(None):
            yield at, out.to_ndarray().reshape(-1, channels)
