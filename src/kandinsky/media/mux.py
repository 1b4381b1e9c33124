"""Input videos: probed, their frames read, and copied with other audio.

The video stream is copied packet by packet, never decoded and encoded again; audio becomes AAC in `.mp4`, `.mov` and
`.mkv` and Opus in `.webm`. An animated image has no stream that those could hold, so its frames are encoded. Files are
written beside their target and renamed, and a video is never its own target.

Legend: N frames, H W rows and columns of the upright frame, S samples of audio.
"""

from __future__ import annotations

import heapq
import io
import itertools
import logging
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky.errors import RequestError
from kandinsky.files import check_writable, replacing
from kandinsky.media import animation, container
from kandinsky.media import recipe as recipes
from kandinsky.media.audio import fit_length, frames_of, read_audio
from kandinsky.model.values import Audio, Video

if TYPE_CHECKING:
    import av
    import numpy as np
    from av.container import InputContainer, OutputContainer

log = logging.getLogger(__name__)

# ending → codec of the sound, and its rate where the codec allows few
AUDIO_CODECS: dict[str, tuple[str, int | None]] = {
    ".mp4": ("aac", None),
    ".mov": ("aac", None),
    ".mkv": ("aac", None),
    ".webm": ("libopus", 48000),
}
# ending → codecs of sound that players expect in it, which are copied as they are
COPIED_AUDIO = {".mp4": ("aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"), ".webm": ("opus", "vorbis")}
BIT_RATE = 192_000
SECONDS_AT_ONCE = Fraction(1, 4)  # of audio, between packets of video
FAR = 48  # frames that are decoded for nothing rather than passed over by a search for a key frame
_TRIAL_PACKETS = 32
_Lazy = Callable[[], "np.ndarray"]


@dataclass(frozen=True, slots=True)
class InputVideo:
    """What is known of an input video before it is used.

    Attributes:
        path: The file.
        times_s: When each frame is shown, in seconds, increasing from 0.
        seconds: Duration until the end of the last frame.
        fps: Frames per second; the average if their times are uneven.
        codec: Codec of the video stream.
        has_audio: Whether there is a readable audio track.
        sample_aspect: Width of a pixel for a height of 1, upright.
        is_animation: Whether it is an animated image.
        timestamps: The frames' times in the file's own units.
    """

    path: Path
    times_s: tuple[float, ...] = field(repr=False)
    seconds: float
    fps: float
    codec: str
    has_audio: bool = False
    sample_aspect: Fraction = Fraction(1)
    is_animation: bool = False
    timestamps: tuple[int, ...] = field(default=(), repr=False)


def probe(path: str | Path, *, on_packet: Callable[[], object] = lambda: None) -> InputVideo:
    """Inspect a video: the time of every packet, and the first frame.

    Args:
        path: The file.
        on_packet: Called for each packet of the video: a long file takes minutes to go through.

    Returns:
        What is known of the video.

    Raises:
        RequestError: The file does not exist or cannot be read, has no video stream, no timestamps or no length, or is
            a still image.
    """
    path = Path(path)
    if not path.is_file():
        raise RequestError(f"video `{path}` is not a file" if path.exists() else f"video `{path}` does not exist")
    if (kind := animation.image_format(path)) is not None:
        return _probe_animation(path, kind)
    with container.reading(path) as file:
        if file.format.name.endswith("_pipe"):
            raise _still(path)
        stream = container.best_video(file, path)
        base = stream.time_base or Fraction(1)
        packets, first = list[tuple[int | None, int]](), None
        for packet in file.demux(stream):
            on_packet()
            if packet.size:
                packets.append((None if packet.is_discard else packet.pts, packet.duration or 0))
            if first is None:
                first = next(_frames_of_packet(packet), None)
        if not packets:
            raise RequestError(f"video `{path}` holds no frames")
        if not container.has_timestamps(file) or all(stamp is None for stamp, _ in packets):
            raise RequestError(
                f"video `{path}` has no timestamps, so its frame rate is unknown: put it into a container first, for "
                "example with `ffmpeg -framerate 24 -i FILE -c copy FILE.mp4`"
            )
        if first is None:
            raise RequestError(f"video `{path}`: none of its frames can be decoded as {container.codec_of(stream)}")
        shown = {stamp: duration for stamp, duration in packets if stamp is not None}
        rate = stream.average_rate or stream.guessed_rate
        timestamps = tuple(sorted(shown))
        seconds = _length(timestamps, shown, rate, base) if timestamps else 0.0
        if not seconds > 0:
            raise RequestError(f"video `{path}` has a length of 0 seconds: give one that lasts")
        times_s = tuple(float((stamp - timestamps[0]) * base) for stamp in timestamps)
        aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or Fraction(1)
        return InputVideo(
            path,
            times_s,
            seconds,
            _fps(times_s, seconds, rate, base),
            container.codec_of(stream),
            has_audio=any(audio.codec_context is not None for audio in file.streams.audio),
            sample_aspect=1 / aspect
            if aspect > 0 and _turns_sideways(first)
            else aspect
            if aspect > 0
            else Fraction(1),
            timestamps=timestamps,
        )


def frames_at(video: InputVideo, wanted: Sequence[int]) -> np.ndarray:
    """Read frames by number.

    Args:
        video: The video.
        wanted: Frame numbers, in any order; a number may repeat.

    Returns:
        The frames in that order, upright, [N, H, W, 3] uint8.

    Raises:
        RequestError: None of the video's frames can be decoded.
    """
    (frames,) = frames_of_windows(video, [wanted])
    return frames


def frames_of_windows(video: InputVideo, windows: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
    """Read frames for several windows, each as soon as it is complete.

    The video is decoded once, from the key frame before the first that is asked for, and no more frames are held than
    windows share; the first window begins first. A frame that cannot be decoded is replaced with the one before it,
    with a note in the log.

    Args:
        video: The video.
        windows: Frame numbers of each window.

    Yields:
        The frames of a window, upright, [N, H, W, 3] uint8.

    Raises:
        RequestError: None of the video's frames can be decoded, or there is no frame of some number.
    """
    import numpy as np

    waiting = deque(list(numbers) for numbers in windows)
    uses = Counter(number for numbers in waiting for number in set(numbers))  # windows that still need a frame
    held: dict[int, np.ndarray] = {}
    lost, last = 0, max(waiting[0], default=-1) if waiting else -1
    first = min(uses, default=0)
    for number, frame, is_lost in _without_gaps(video, first if first >= FAR else 0):
        if not waiting:
            break
        lost += is_lost
        if uses[number]:
            held[number] = frame()
        while waiting and number >= last:
            numbers = waiting.popleft()
            yield np.ascontiguousarray(np.stack([held[wanted] for wanted in numbers]))
            for wanted in set(numbers):
                uses[wanted] -= 1
                if not uses[wanted]:
                    del held[wanted]
            last = max(waiting[0], default=-1) if waiting else -1
    if waiting:
        raise RequestError(f"video `{video.path}` has no frame {last}: it has {len(video.times_s)}")
    if lost:
        log.warning("`%s`: %d frames cannot be decoded, the ones before them are shown instead", video.path, lost)


def read_input(video: InputVideo) -> Video:
    """Read all frames, upright, at their average rate, with the recipe if this library made the video.

    Raises:
        RequestError: None of them can be decoded.
    """
    recipe = recipes.read_if_any(video.path)
    frames = frames_at(video, range(len(video.times_s)))
    return Video(frames, fps=video.fps, seed=recipe.get("seed", 0), recipe=dict(recipe))


def check_copy_target(target: str | Path, video: InputVideo, *, over: bool = False) -> Path:
    """Refuse a copy with other audio that cannot be written, before anything heavy is loaded.

    Actually begins such a copy in memory, since only the writer knows for sure what a container can hold.

    Args:
        target: The file to write.
        video: The video.
        over: Whether the target may be the video itself.

    Returns:
        The target.

    Raises:
        RequestError: The ending is not that of a container with audio, the container cannot hold the video's codec (one
            that can is named), or the file cannot be written.
    """
    path = Path(target)
    ending = path.suffix.lower()
    if ending not in AUDIO_CODECS:
        raise RequestError(f"output `{path}` ends in `{path.suffix}`: with sound, use {', '.join(AUDIO_CODECS)}")
    if not over and path.exists() and path.samefile(video.path):
        raise RequestError(f"output `{path}` is the video itself: name another file")
    check_writable(path)
    if not _can_hold(video, ending):
        others = [other for other in AUDIO_CODECS if other != ending and _can_hold(video, other)]
        use = (
            f"use {' or '.join(filter(None, [', '.join(others[:-1]), others[-1]]))}"
            if others
            else "convert the video to .mp4 first"
        )
        raise RequestError(f"output `{path}`: {video.codec} video does not go into {ending} as it is: {use}")
    return path


def copy_with_audio(
    video: InputVideo, audio: Audio, target: str | Path, *, recipe: dict[str, Any] | None = None, over: bool = False
) -> Path:
    """Write a copy of a video, its stream bit for bit, with this audio for as long as it lasts.

    The video's own audio is dropped. The new audio is cut or padded with silence to the video's length. The video
    itself is only read.

    Args:
        video: The video; frames of an animated image are encoded.
        audio: The audio.
        target: The file to write.
        recipe: Recipe to store in the file.
        over: Whether the target may be the video itself, which is then replaced when everything is written.

    Returns:
        The path written.

    Raises:
        RequestError: The target is not suitable, as in ``check_copy_target``. No partial file is left behind.
    """
    path = check_copy_target(target, video, over=over)
    comment = recipes.to_text(recipe) if recipe else None
    sound = Audio(fit_length(audio.samples_SC, round(video.seconds * audio.rate)), audio.rate)
    with replacing(path) as part:
        if video.is_animation:
            with container.writing(part, path) as made:
                times_s = (*video.times_s, video.seconds)
                shown = (frame for frame, _ in animation.frames_of(video.path))
                container.encode(shown, made, path.suffix.lower(), video.fps, times_s=times_s)
            # not every container says how long the last frame lasts
            copy_with_audio(replace(probe(part), seconds=video.seconds), sound, part, recipe=recipe, over=True)
        else:
            with container.reading(video.path) as source, container.writing(part, path, comment=comment) as made:
                _copy_with_sound(video, source, made, path.suffix.lower(), sound)
    return path


def keep_audio(source: InputVideo, path: Path) -> None:
    """Add a video's audio to a file with other frames of the same length.

    All tracks are copied bit for bit if the file's format allows it; else the first is encoded again.

    Args:
        source: The video with the audio.
        path: The file with the other frames.

    Raises:
        RequestError: The audio cannot be read; the file is then left as it was.
    """
    with container.reading(source.path) as given, container.reading(path) as shown:
        tracks = [track for track in given.streams.audio if track.codec_context is not None]
        takes = COPIED_AUDIO.get(path.suffix.lower(), ())
        if all(container.codec_of(track) in takes for track in tracks):
            theirs, ours = container.best_video(given, source.path), container.best_video(shown, path)
            shift = _start_s(ours) - _start_s(theirs)
            with replacing(path) as part, container.writing(part, path) as made:
                made.metadata.update(shown.metadata)
                copied = {one: made.add_stream_from_template(one, opaque=True) for one in (ours, *tracks)}
                sides = (_packets(shown, [ours], Fraction(0)), _packets(given, tracks, shift))
                for _, packet in heapq.merge(*sides, key=lambda entry: entry[0]):
                    packet.stream = copied[packet.stream]
                    made.mux(packet)
            return
    copy_with_audio(probe(path), read_audio(source.path), path, recipe=dict(recipes.read_if_any(path)), over=True)


def decode_times(packets: Sequence[tuple[int | None, int | None]]) -> list[tuple[int, int]]:
    """When each packet is shown and when it must be decoded, complete and in an order that containers accept.

    Args:
        packets: What the file says of each, in its order: presentation time, decoding time.

    Returns:
        The same if nothing is missing and decoding times increase and are not after presentation. Else presentation
        times stay, and the decoding times are those times sorted and moved ahead as far as the order requires.
    """
    given = [(pts, dts) for pts, dts in packets if pts is not None and dts is not None and dts <= pts]
    if len(given) == len(packets) and all(a < b for (_, a), (_, b) in itertools.pairwise(given)):
        return given
    shown = list[int]()
    for pts, dts in packets:
        known = pts if pts is not None else dts
        shown.append(known if known is not None else (max(shown) + 1 if shown else 0))
    in_order = sorted(shown)
    step = max(1, min((b - a for a, b in itertools.pairwise(in_order) if b > a), default=1))
    # a packet comes at most this many places before its frame
    places = {stamp: place for place, stamp in reversed(list(enumerate(in_order)))}
    ahead = max((i - places[stamp] for i, stamp in enumerate(shown)), default=0)
    times = [in_order[0] - (ahead - i) * step for i in range(ahead)] + in_order[: len(in_order) - ahead]
    for i in range(1, len(times)):  # equal times, in damaged files
        times[i] = max(times[i], times[i - 1] + 1)
    return [(max(stamp, time), time) for stamp, time in zip(shown, times, strict=True)]


def _probe_animation(path: Path, kind: str) -> InputVideo:
    if not animation.is_animated(path):
        raise _still(path)
    durations_ms = animation.timed([duration for _, duration in animation.frames_of(path)])
    rate = recipes.read_if_any(path).get("fps", 24.0)
    ends_ms = list(itertools.accumulate(ms or 1000 / rate for ms in durations_ms))
    return InputVideo(
        path,
        (0.0, *(ms / 1000 for ms in ends_ms[:-1])),
        ends_ms[-1] / 1000,
        1000 * len(ends_ms) / ends_ms[-1],
        "apng" if kind == "PNG" else kind.lower(),
        is_animation=True,
    )


def _still(path: Path) -> RequestError:
    return RequestError(f"video `{path}` is a still image of 0 seconds: give one that lasts")


def _length(timestamps: Sequence[int], durations: dict[int, int], rate: Fraction | None, base: Fraction) -> float:
    """Seconds from the first frame to the end of the last one."""
    last = durations[timestamps[-1]]
    if not last and len(timestamps) > 1:  # some containers do not say how long the last one lasts
        last = round(1 / (rate * base)) if rate else timestamps[-1] - timestamps[-2]
    return float((timestamps[-1] - timestamps[0] + last) * base)


def _fps(times_s: Sequence[float], seconds: float, rate: Fraction | None, base: Fraction) -> float:
    """The rate that the file states if its frames come at that rate up to rounding; else their average."""
    if rate and all(abs(time - i / rate) <= 1.01 * base for i, time in enumerate(times_s)):
        return float(rate)
    return len(times_s) / seconds


def _without_gaps(video: InputVideo, first: int = 0) -> Iterator[tuple[int, _Lazy, bool]]:
    """Number of every frame from one on, its pixels on request, and whether another frame stands in for it."""
    due, before = first, None
    for number, frame in _animated(video) if video.is_animation else _decoded_from(video, first):
        if number < due:
            before = frame
        for lost in range(due, number):
            yield lost, before or frame, True
        if number >= due:
            yield number, frame, False
            due, before = number + 1, frame
    if before is None:
        raise RequestError(f"video `{video.path}`: none of its frames can be decoded as {video.codec}")
    for lost in range(due, len(video.times_s)):
        yield lost, before, True


def _animated(video: InputVideo) -> Iterator[tuple[int, _Lazy]]:
    for number, (frame, _) in enumerate(animation.frames_of(video.path)):
        yield number, lambda frame=frame: frame  # type: ignore[misc]


def _decoded_from(video: InputVideo, first: int) -> Iterator[tuple[int, _Lazy]]:
    """``_decoded``, from the key frame before a frame; from the beginning where the file's index leads beyond it."""
    frames = _decoded(video, first)
    found = next(frames, None)
    if first and (found is None or found[0] > first):
        frames = _decoded(video)
        found = next(frames, None)
    if found is not None:
        yield found
        yield from frames


def _decoded(video: InputVideo, first: int = 0) -> Iterator[tuple[int, _Lazy]]:
    """Frames as they are decoded, each with its number, derived from its time."""
    with container.reading(video.path) as file:
        stream = container.best_video(file, video.path)
        if first:
            file.seek(video.timestamps[first], stream=stream)
        size: tuple[int, int] | None = None
        due = 0
        for packet in file.demux(stream):
            for frame in _frames_of_packet(packet):
                size = size or (frame.width, frame.height)
                number = due if frame.pts is None else max(0, bisect_right(video.timestamps, frame.pts) - 1)
                due = number + 1
                yield number, lambda frame=frame, size=size: _upright(frame, size)  # type: ignore[misc]


def _frames_of_packet(packet: av.Packet[Any]) -> Iterator[av.VideoFrame]:
    """The frames decoded from a packet; none from a damaged one."""
    import av

    try:
        yield from packet.decode()
    except (av.error.InvalidDataError, av.error.PatchWelcomeError, av.error.BugError):
        log.debug("a packet at %s cannot be decoded", packet.pts, exc_info=True)


def _upright(frame: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
    """A frame in RGB, in the first frame's size, rotated and mirrored as the file says, transparency on white."""
    import numpy as np

    if (frame.width, frame.height) != size:
        frame = frame.reformat(width=size[0], height=size[1])
    if any(component.is_alpha for component in frame.format.components):
        rgba = frame.to_ndarray(format="rgba")
        colour, alpha = rgba[..., :3].astype(np.uint16), rgba[..., 3:].astype(np.uint16)
        rgb = ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    else:
        rgb = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    return turned(rgb, frame)


def turned(rgb_HWC: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """Pixels of a frame, of any size, rotated and mirrored as the file says."""
    rgb = rgb_HWC
    (a, b), (c, d) = _matrix(frame)
    if _turns_sideways(frame):
        rgb, right, down = rgb.transpose(1, 0, 2), c, b
    else:
        right, down = a, d
    return rgb[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1]


def _turns_sideways(frame: av.VideoFrame) -> bool:
    (a, b), (c, d) = _matrix(frame)
    return abs(b) + abs(c) > abs(a) + abs(d)


def _matrix(frame: av.VideoFrame) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where the file's matrix moves a step to the right, and a step down: (right, down) of each."""
    import numpy as np

    found: Any = frame.side_data.get("DISPLAYMATRIX")
    if found is None:
        return (1, 0), (0, 1)
    a, b, _, c, d = np.frombuffer(found, np.int32)[:5].tolist()
    return (a, b), (c, d)


def _can_hold(video: InputVideo, ending: str) -> bool:
    """Whether a container can hold this video, tested by copying its first packets into memory."""
    import av

    if video.is_animation:
        return True
    silence = Audio(_silence(48000), 48000)
    with container.reading(video.path) as source:
        try:
            with av.open(io.BytesIO(), "w", format=container.FORMATS[ending]) as made:
                _copy_with_sound(video, source, made, ending, silence, most=_TRIAL_PACKETS)
        except (ValueError, av.FFmpegError):
            log.debug("`%s` does not go into %s", video.path, ending, exc_info=True)
            return False
    return True


def _silence(samples: int) -> np.ndarray:
    import numpy as np

    return np.zeros((samples, 1), np.int16)


def _copy_with_sound(
    video: InputVideo,
    source: InputContainer,
    made: OutputContainer,
    ending: str,
    audio: Audio,
    *,
    most: int | None = None,
) -> None:
    """Copy both streams, interleaved in time; at most ``most`` packets of the video."""
    stream = container.best_video(source, video.path)
    copied = made.add_stream_from_template(stream, opaque=True)
    _keep_aspect(stream, copied, video, ending)
    codec, only_rate = AUDIO_CODECS[ending]
    track: Any = made.add_stream(codec, rate=only_rate or audio.rate, layout=audio.layout)
    track.bit_rate = BIT_RATE
    begin = round(float(_start_s(stream)) * audio.rate)
    frames = frames_of(audio, packed=False, size=max(1, int(audio.rate * SECONDS_AT_ONCE)), begin=begin)
    waiting = next(frames, None)
    packets = itertools.islice((packet for packet in source.demux(stream) if packet.size), most)
    for packet, (pts, dts) in zip(packets, _times(video, most), strict=False):
        packet.pts, packet.dts = pts, dts
        while waiting is not None and waiting.time <= float(dts * packet.time_base):
            made.mux(track.encode(waiting))
            waiting = next(frames, None)
        packet.stream = copied
        made.mux(packet)
    while waiting is not None:
        made.mux(track.encode(waiting))
        waiting = next(frames, None)
    made.mux(track.encode(None))


def _keep_aspect(stream: av.VideoStream, copied: Any, video: InputVideo, ending: str) -> None:
    """Store the pixel aspect ratio in a copy if the source has it in its container and not in the packets."""
    aspect = stream.sample_aspect_ratio or 1
    if aspect == 1 or stream.codec_context.sample_aspect_ratio:
        return
    copied.codec_context.sample_aspect_ratio = aspect
    if ending in (".mkv", ".webm"):  # their writer takes it from a field that PyAV does not expose
        log.warning("`%s` has pixels of %s, which its copy as %s does not say: use .mp4", video.path, aspect, ending)


def _times(video: InputVideo, most: int | None) -> list[tuple[int, int]]:
    """Times of a video's packets, read ahead, since a missing time follows from later ones."""
    with container.reading(video.path) as file:
        packets = (p for p in file.demux(container.best_video(file, video.path)) if p.size)
        return decode_times([(p.pts, p.dts) for p in itertools.islice(packets, most)])


def _packets(file: InputContainer, streams: Sequence[Any], shift: Fraction) -> Iterator[tuple[Fraction, Any]]:
    """Packets with their decoding times, in s, delayed by ``shift``."""
    for packet in file.demux(streams):
        if not packet.size:  # the end
            continue
        time = packet.dts if packet.dts is not None else packet.pts
        if time is None:
            continue
        later = round(shift / packet.time_base)
        packet.dts = time + later
        if packet.pts is not None:
            packet.pts += later
        yield packet.dts * packet.time_base, packet


def _start_s(stream: Any) -> Fraction:
    out: Fraction = (stream.start_time or 0) * stream.time_base
    return out
