"""Results as Python sees them: sequences of frames, arrays, one line of text, players in a notebook."""

import base64
import io
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kandinsky.errors import RequestError
from kandinsky.media import notebook
from kandinsky.media.video import read_video
from kandinsky.model.values import Audio, Soundtrack, Video, VideoStream

RNG = np.random.default_rng(5)
RATE = 8000


def clip(frames: int = 10, fps: float = 5.0, size: tuple[int, int] = (16, 24), sound: bool = False) -> Video:
    audio = Audio(np.arange(round(frames / fps * RATE), dtype=np.int16)[:, None], RATE) if sound else None
    pixels = RNG.integers(0, 255, (frames, *size, 3), np.uint8)
    return Video(pixels, fps, 7, {"model": "nano-t2v", "prompt": "a dot\x1b[2J", "width": size[1]}, audio)


def test_a_clip_is_a_sequence_of_frames() -> None:
    video = clip()
    assert len(video) == 10 and len(list(video)) == 10
    assert (video[3] == video.frames[3]).all() and (video[-1] == video.frames[9]).all()
    with pytest.raises(IndexError):
        video[10]
    assert (np.asarray(video) == video.frames).all() and np.asarray(video) is video.frames
    assert np.array(video) is not video.frames and np.asarray(video, np.float32).dtype == np.float32
    assert np.stack([video, video]).shape == (2, 10, 16, 24, 3)


@pytest.mark.parametrize(
    ("part", "frames", "fps"),
    [(slice(2, 5), [2, 3, 4], 5.0), (slice(None, None, 2), [0, 2, 4, 6, 8], 2.5), (slice(None, 2), [0, 1], 5.0),
     (slice(None, None, -1), list(range(9, -1, -1)), 5.0), (slice(-3, None), [7, 8, 9], 5.0)],
)  # fmt: skip
def test_a_part_of_a_clip_is_a_clip_with_its_sound(part: slice, frames: list[int], fps: float) -> None:
    video = clip(sound=True)
    cut = video[part]
    assert isinstance(cut, Video) and (cut.frames == video.frames[frames]).all() and cut.fps == fps
    assert cut.seed == 7 and cut.recipe["slice"] == [range(10)[part].start, range(10)[part].stop, range(10)[part].step]
    assert cut.audio is not None and video.audio is not None
    samples = np.asarray(cut.audio)[:, 0]
    begin = min(frames) / video.fps * RATE
    assert min(samples) == begin and abs(cut.audio.seconds - cut.seconds) <= 1 / video.fps
    assert (np.diff(samples.astype(int)) == (1 if frames[0] < frames[1] else -1)).all()


def test_an_empty_part_is_refused() -> None:
    with pytest.raises(RequestError, match="no frames are left of 10"):
        clip()[5:5]


def test_equality_does_not_blow_up() -> None:
    video, sound = clip(sound=True), clip(sound=True).audio
    assert video == Video(video.frames.copy(), 5.0, 7, dict(video.recipe), video.audio)
    assert video != clip(sound=True) and video != video[:9] and video != 5 and (video == None) is False  # noqa: E711
    assert sound == Audio(np.array(sound), RATE) and sound != Audio(np.array(sound), RATE + 1)
    assert video in [video] and [video].index(video) == 0


def test_one_line_says_what_it_is() -> None:
    video = clip(sound=True)
    assert repr(video) == (
        "Video(10 frames, 2.00 s at 5 fps, 24x16, seed 7, nano-t2v, with sound, mono, 'a dot\\x1b[2J')"
    )
    assert repr(clip(1)[:1]).startswith("Video(1 frame, 24x16, seed 7")
    assert repr(video.audio) == "Audio(2.00 s, mono, 8000 Hz)"
    stream = VideoStream(iter([video.frames]), 10, 5.0, 7, video.recipe)
    assert repr(stream).startswith("VideoStream(10 frames, 2.00 s at 5 fps")
    assert len(list(stream)) == 10
    assert repr(Soundtrack(video.audio or Audio(np.zeros((1, 1), np.int16), 1), 3, {}, video)) == (
        "Soundtrack(Audio(2.00 s, mono, 8000 Hz) for a clip, seed 3)"
    )


def data_of(page: str, kind: str) -> bytes:
    (found,) = re.findall(rf'src="data:{kind};base64,([^"]+)"', page)
    return base64.b64decode(found)


def test_a_clip_plays_in_a_notebook(tmp_path: Path) -> None:
    video = clip(sound=True)
    page = video._repr_html_()
    (tmp_path / "x.mp4").write_bytes(data_of(page, "video/mp4"))
    assert len(read_video(tmp_path / "x.mp4")) == 10
    assert "\x1b" not in page and "autoplay" not in page and "autoplay" in clip()._repr_html_()


def test_a_still_is_an_image_in_a_notebook() -> None:
    still = clip(1)
    shown = Image.open(io.BytesIO(data_of(still._repr_html_(), "image/png")))
    assert (np.asarray(shown) == still.frames[0]).all()


def test_sound_plays_in_a_notebook() -> None:
    sound = clip(sound=True).audio
    assert sound is not None and data_of(sound._repr_html_(), "audio/wav").startswith(b"RIFF")
    track = Soundtrack(sound, 1, {}, clip())
    assert data_of(track._repr_html_(), "video/mp4")


def test_what_is_large_is_shown_smaller(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(notebook, "MOST_PIXELS", 10 * 8 * 12)
    (tmp_path / "x.mp4").write_bytes(data_of(clip()._repr_html_(), "video/mp4"))
    assert read_video(tmp_path / "x.mp4")[0].shape == (8, 12, 3)
    monkeypatch.setattr(notebook, "LARGEST", 100)
    page = clip(sound=True)._repr_html_()
    assert "too long to play here" in page and data_of(page, "image/png")
    sound = clip(sound=True).audio
    assert sound is not None and "too long" in sound._repr_html_()


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), "8", None, Fraction(0), True])
def test_a_rate_that_is_none_is_refused(fps: object) -> None:
    with pytest.raises(RequestError, match="`fps` must be a"):
        Video(np.zeros((1, 8, 8, 3), np.uint8), fps)  # type: ignore[arg-type]


@pytest.mark.parametrize("fps", [8, 12.5, np.float32(8), np.int64(8), Fraction(25, 2)])
def test_numbers_of_other_libraries_are_numbers(fps: float) -> None:
    assert type(Video(np.zeros((1, 8, 8, 3), np.uint8), fps).fps) in (int, float)


@pytest.mark.parametrize(
    ("samples", "rate"),
    [(np.zeros(5, np.int16), 8000), (np.zeros((5, 1)), 8000), ([[1]], 8000), (np.zeros((5, 1), np.int16), 0),
     (np.zeros((5, 1), np.int16), 8000.5)],
)  # fmt: skip
def test_sound_of_another_kind_is_refused(samples: object, rate: object) -> None:
    with pytest.raises(RequestError):
        Audio(samples, rate)  # type: ignore[arg-type]
