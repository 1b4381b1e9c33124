"""Films of other people: their frames read, their picture kept bit for bit while sound is added.

The video stream is copied packet by packet, never decoded and encoded again; sound becomes AAC in `.mp4`, `.mov` and
`.mkv` and Opus in `.webm`. Files are written beside their target and renamed, and a film is never its own target.

Legend: N frames, H W rows and columns of the upright picture.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky.errors import RequestError
from kandinsky.media.audio import fit_length, frames_of, read_audio
from kandinsky.media.video import beside, check_writable
from kandinsky.model.values import Audio, Video

if TYPE_CHECKING:
    import numpy as np

# ending → codec of the sound, and its rate where the codec allows few
SOUND_CODECS: dict[str, tuple[str, int | None]] = {
    ".mp4": ("aac", None),
    ".mov": ("aac", None),
    ".mkv": ("aac", None),
    ".webm": ("libopus", 48000),
}
# ending → codecs of sound that its container takes as they are
SOUND_AS_IT_IS = {".mp4": ("aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"), ".webm": ("opus", "vorbis")}
BIT_RATE = 192_000
WEBM_PICTURES = ("vp8", "vp9", "av1")
SECONDS_AT_ONCE = Fraction(1, 4)  # of sound, between packets of the picture


@dataclass(frozen=True, slots=True)
class Film:
    """What is known of a film without decoding it.

    times_s: when each frame is shown, rising, from 0.   seconds: until the last one has been shown.
    codec:   of the picture.   has_sound: whether there is a track of sound.
    """

    path: Path
    times_s: tuple[float, ...]
    seconds: float
    codec: str
    has_sound: bool

    @property
    def fps(self) -> float:
        """Frames a second, on average."""
        return len(self.times_s) / self.seconds


def probe(path: str | Path) -> Film:
    """Look at a film: every packet's time, and no picture.

    Raises: RequestError for a file that is not there, cannot be read, has no video stream, or no length.
    """
    path = Path(path)
    if not path.is_file():
        raise RequestError(f"video `{path}` is no file" if path.exists() else f"video `{path}` is not there")
    with _opened(path) as (container, stream):
        if container.format.name.endswith("_pipe"):  # the reader of single pictures
            raise RequestError(f"video `{path}` is a still picture of 0 seconds: give one that lasts")
        base = stream.time_base
        shown = sorted((p.pts, p.duration or 0) for p in container.demux(stream) if p.pts is not None and p.size)
        codec, rate = stream.codec_context.name, stream.average_rate or stream.guessed_rate
        has_sound = bool(container.streams.audio)
    if not shown:
        raise RequestError(f"video `{path}` holds no frames")
    last, duration = shown[-1]
    if not duration and len(shown) > 1:  # some containers do not say how long the last one stays
        duration = 1 / (rate * base) if rate else 0
    seconds = float((last - shown[0][0] + duration) * base)
    if not seconds > 0:
        raise RequestError(f"video `{path}` has a length of 0 seconds: give one that lasts")
    return Film(path, tuple(float((pts - shown[0][0]) * base) for pts, _ in shown), seconds, codec, has_sound)


def frames_at(film: Film, wanted: Sequence[int]) -> np.ndarray:
    """Frames by number, in the order wanted, upright, [N, H, W, 3] uint8; a number may come more than once.

    Raises: RequestError where the film cannot be decoded that far.
    """
    (frames,) = frames_of_windows(film, [wanted])
    return frames


def frames_of_windows(film: Film, windows: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
    """``frames_at`` for windows one after another, each as soon as it is complete.

    The film is decoded once, and no more frames are held than windows share; the first window begins first.
    """
    import numpy as np

    waiting = [list(numbers) for numbers in windows]
    held: dict[int, np.ndarray] = {}
    with _opened(film.path) as (container, stream):
        for number, frame in enumerate(container.decode(stream)):
            if not waiting:
                return
            if any(number in numbers for numbers in waiting):
                picture = frame.to_ndarray(format="rgb24")
                # counter-clockwise, as the file's matrix says it is to be turned
                held[number] = np.rot90(picture, frame.rotation // 90) if frame.rotation else picture
            while waiting and number >= max(waiting[0]):
                yield np.ascontiguousarray(np.stack([held[wanted] for wanted in waiting.pop(0)]))
                held = {n: kept for n, kept in held.items() if any(n in numbers for numbers in waiting)}
    if waiting:
        missing = min(set(waiting[0]) - set(held))
        raise RequestError(f"video `{film.path}` breaks off: its frame {missing} cannot be decoded")


def read_film(film: Film) -> Video:
    """All frames, upright, at their average rate, with the recipe of a film that this library made.

    Raises: RequestError where the film cannot be decoded to its end.
    """
    recipe = _recipe(film.path)
    frames = frames_at(film, range(len(film.times_s)))
    return Video(frames, fps=film.fps, seed=int(recipe.get("seed", 0)), recipe=recipe)


def check_film_target(target: str | Path, film: Film, *, over: bool = False) -> Path:
    """Refuse a film with sound that cannot be written, before anything heavy is loaded. Raises: RequestError.

    over: the target may be the film itself.
    """
    path = Path(target)
    ending = path.suffix.lower()
    if ending not in SOUND_CODECS:
        raise RequestError(f"output `{path}` has the ending `{path.suffix}`: with sound, use {', '.join(SOUND_CODECS)}")
    if not over and path.exists() and path.samefile(film.path):
        raise RequestError(f"output `{path}` is the video itself: name another file")
    if ending == ".webm" and film.codec not in WEBM_PICTURES:
        raise RequestError(f"output `{path}`: a {film.codec} picture does not go into .webm as it is: use .mp4 or .mkv")
    return check_writable(path)


def add_sound(
    film: Film, audio: Audio, target: str | Path, *, recipe: dict[str, Any] | None = None, over: bool = False
) -> Path:
    """A film's picture, bit for bit, with this sound for as long as it lasts; returns the path written.

    Sound that the film has is left out. The new sound is cut, or followed by silence, to the film's length.
    over: the target may be the film itself, which is then replaced when all is written.
    Raises: RequestError as ``check_film_target``, and for a picture that the target's format cannot carry; the film is
            only read, and nothing half-written stays.
    """
    import av

    from kandinsky.media import recipe as recipes

    path = check_film_target(target, film, over=over)
    codec, only_rate = SOUND_CODECS[path.suffix.lower()]
    samples = fit_length(audio.samples_SC, round(film.seconds * audio.rate))
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"movflags": "+faststart"} if path.suffix.lower() in (".mp4", ".mov") else {}
    with _opened(film.path) as (source, picture), beside(path) as part:
        try:
            with av.open(str(part), "w", options=options) as made:
                if recipe:
                    made.metadata["comment"] = recipes.to_text(recipe)
                copied = made.add_stream_from_template(picture)
                track: Any = made.add_stream(codec, rate=only_rate or audio.rate, layout=audio.layout)
                track.bit_rate = BIT_RATE
                _write(made, source, (picture, copied), track, Audio(samples, audio.rate))
        except (ValueError, av.FFmpegError) as error:
            raise RequestError(f"video `{film.path}` cannot be copied to `{path}`: {error}") from error
    return path


def keep_sound(source: Film, path: Path) -> None:
    """Put a film's sound under another picture of the same length, in the picture's own file.

    All tracks are copied bit for bit where the file's format takes them; else the first is encoded anew.
    Raises: RequestError for sound that cannot be read; the file is then as it was.
    """
    import av

    with _opened(source.path) as (given, given_picture), _opened(path) as (shown, picture):
        tracks = given.streams.audio
        takes = SOUND_AS_IT_IS.get(path.suffix.lower(), ())
        if all(track.codec_context.name in takes for track in tracks):
            shift = (picture.start_time or 0) * picture.time_base - (
                (given_picture.start_time or 0) * given_picture.time_base
            )
            options = {"movflags": "+faststart"} if path.suffix.lower() == ".mp4" else {}
            try:
                with beside(path) as part, av.open(str(part), "w", options=options) as made:
                    made.metadata.update(shown.metadata)
                    copied = {one: made.add_stream_from_template(one) for one in (picture, *tracks)}
                    sides = (_packets(shown, [picture], Fraction(0)), _packets(given, tracks, shift))
                    for _, packet in heapq.merge(*sides, key=lambda entry: entry[0]):
                        packet.stream = copied[packet.stream]
                        made.mux(packet)
            except (ValueError, av.FFmpegError) as error:
                raise RequestError(f"the sound of `{source.path}` cannot be copied: {error}") from error
            return
    add_sound(probe(path), read_audio(source.path), path, recipe=_recipe(path), over=True)


def _recipe(path: Path) -> dict[str, Any]:
    from kandinsky.media import recipe as recipes

    try:
        return recipes.read(path)
    except RequestError:
        return {}


def _packets(container: Any, streams: Sequence[Any], shift: Fraction) -> Iterator[tuple[Fraction, Any]]:
    """Packets with the time they are to be decoded at, in s; later by ``shift``."""
    for packet in container.demux(streams):
        if packet.dts is None:  # the demuxer's sign for the end
            continue
        later = round(shift / packet.time_base)
        packet.dts += later
        if packet.pts is not None:
            packet.pts += later
        yield packet.dts * packet.time_base, packet


def _write(made: Any, source: Any, pictures: tuple[Any, Any], track: Any, audio: Audio) -> None:
    """Both streams, side by side in time."""
    picture, copied = pictures
    begin = round(float((picture.start_time or 0) * picture.time_base) * audio.rate)
    frames = frames_of(audio, packed=False, size=max(1, int(audio.rate * SECONDS_AT_ONCE)), begin=begin)
    waiting = next(frames, None)
    for packet in source.demux(picture):
        if packet.dts is None:  # the demuxer's sign for the end
            continue
        while waiting is not None and waiting.time <= float(packet.dts * packet.time_base):
            made.mux(track.encode(waiting))
            waiting = next(frames, None)
        packet.stream = copied
        made.mux(packet)
    while waiting is not None:
        made.mux(track.encode(waiting))
        waiting = next(frames, None)
    made.mux(track.encode(None))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """A file and its video stream. Raises: RequestError, also for faults met while it is open."""
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise RequestError(f"video `{path}` has no video stream: give a film")
            yield container, container.streams.video[0]
    except (OSError, av.FFmpegError) as error:
        raise RequestError(f"video `{path}` cannot be read: {error.strerror or error}") from error
