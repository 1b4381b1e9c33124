"""Films get sound: the picture stays bit for bit, and what cannot be done is one clear line."""

import struct
from pathlib import Path

import av
import numpy as np
import pytest

from kandinsky.errors import RequestError
from kandinsky.media import mux
from kandinsky.media.audio import read_audio, write_audio
from kandinsky.media.clip_frames import spread, whole_seconds
from kandinsky.media.video import write_video
from kandinsky.model.values import Audio, Video

SHARED = Path(__file__).parents[3] / "shared"
FILM = SHARED / "media" / "kandinsky4_v2a_input.mp4"
AAC_FRAME_S = 1024 / 44100


def tone(seconds: float = 3.0, channels: int = 1, rate: int = 44100) -> Audio:
    wave = 9000 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)
    return Audio(np.repeat(wave.astype(np.int16)[:, None], channels, axis=1), rate)


def clip(path: Path, *, frames: int = 10, size: tuple[int, int] = (48, 64), fps: float = 8) -> Path:
    rng = np.random.default_rng(1)
    pictures = np.repeat(np.repeat(rng.integers(0, 255, (frames, 4, 4, 3), np.uint8), 12, 1), 16, 2)
    return write_video(Video(np.ascontiguousarray(pictures[:, : size[0], : size[1]]), fps=fps, seed=0), path)


def packets(path: Path) -> list[tuple[bytes, float]]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [(bytes(p), round(float(p.pts * p.time_base), 2)) for p in container.demux(stream) if p.size]


def lengths(path: Path) -> dict[str, float]:
    """Seconds of each stream, from its packets."""
    found = {}
    with av.open(str(path)) as container:
        for packet in container.demux():
            if packet.size:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                found[packet.stream.type] = max(found.get(packet.stream.type, 0.0), end)
    return found


def test_short_clips_are_refused_by_the_official_rule() -> None:
    assert spread(3, 5) == [0, 0, 1, 1, 2]
    with pytest.raises(RequestError, match="too short"):
        whole_seconds(7, 8.0, 12)
    with pytest.raises(RequestError, match="at least one frame"):
        spread(0, 4)


@pytest.mark.skipif(not FILM.is_file(), reason="the shared clip is not beside this checkout")
def test_a_real_film_with_sound_gets_other_sound(tmp_path: Path) -> None:
    before = FILM.read_bytes()
    film = mux.probe(FILM)
    assert film.has_audio and len(film.times_s) == 49 and film.fps == pytest.approx(8.28)
    made = mux.copy_with_audio(film, tone(), tmp_path / "out.mp4")
    assert packets(made) == packets(FILM) and FILM.read_bytes() == before
    with av.open(str(made)) as container:
        assert [s.type for s in container.streams] == ["video", "audio"]
    made_s = lengths(made)
    assert abs(made_s["audio"] - film.seconds) <= AAC_FRAME_S
    heard = read_audio(made).samples_SC[:, 0].astype(float)
    assert heard[44100 : 2 * 44100].std() > 5000 and heard[4 * 44100 :].std() < 50, "then silence"
    assert mux.frames_at(film, [0, 0, 48]).shape == (3, 384, 672, 3)


@pytest.mark.parametrize(("ending", "codec"), [(".mp4", "aac"), (".mkv", "aac"), (".webm", "opus")])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_format(ending: str, codec: str, channels: int, tmp_path: Path) -> None:
    source = clip(tmp_path / ("in.webm" if ending == ".webm" else "in.mp4"), size=(45, 63))
    film = mux.probe(source)
    made = mux.copy_with_audio(film, tone(9, channels), tmp_path / f"out{ending}", recipe={"kandinsky": "x", "fps": 8})
    assert packets(made) == packets(source)
    with av.open(str(made)) as container:
        sound = container.streams.audio[0]
        assert sound.codec_context.name == codec and sound.channels == channels
    assert lengths(made)["audio"] == pytest.approx(film.seconds, abs=0.03)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([source.name, made.name])


def test_a_turned_film_stays_turned(tmp_path: Path) -> None:
    source = clip(tmp_path / "in.mp4")
    upright = mux.frames_at(mux.probe(source), [0])[0]
    data = bytearray(source.read_bytes())
    place = data.index(b"tkhd") + 4 + 40  # the matrix of a track header, version 0
    one = 0x10000
    data[place : place + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, upright.shape[0] * one, 0, 0x40000000)
    source.write_bytes(data)
    film = mux.probe(source)
    turned = mux.frames_at(film, [0])[0]
    assert turned.shape == (64, 48, 3) and np.array_equal(turned, np.rot90(upright, -1))
    made = mux.copy_with_audio(film, tone(), tmp_path / "out.mp4")
    assert np.array_equal(mux.frames_at(mux.probe(made), [0])[0], turned) and packets(made) == packets(source)


def test_bad_films_are_one_line_each(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no film")
    (tmp_path / "empty.mp4").touch()
    sound = write_audio(tone(0.1), tmp_path / "sound.wav")
    whole = clip(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[:300])
    for path, words in (
        (tmp_path / "none.mp4", "does not exist"),
        (tmp_path, "is not a file"),
        (tmp_path / "text.mp4", "cannot be read"),
        (tmp_path / "empty.mp4", "cannot be read"),
        (tmp_path / "cut.mp4", "cannot be read|no video stream"),
        (sound, "no video stream"),
    ):
        with pytest.raises(RequestError, match=words) as error:
            mux.probe(path)
        assert "\n" not in str(error.value)


def test_targets_are_checked_and_the_film_is_never_its_own(tmp_path: Path) -> None:
    source = clip(tmp_path / "in.mp4")
    film, before = mux.probe(source), source.read_bytes()
    (tmp_path / "file").touch()
    (tmp_path / "link.mp4").symlink_to(source)
    for target, words in (
        (source, "is the video itself"),
        (tmp_path / "link.mp4", "is the video itself"),
        (tmp_path / "out.gif", "with sound, use"),
        (tmp_path / "out.webm", "h264 video does not go into .webm as it is: use .mp4, .mov or .mkv"),
        (tmp_path / "file" / "out.mp4", "cannot be written"),
    ):
        with pytest.raises(RequestError, match=words):
            mux.copy_with_audio(film, tone(), target)
    assert source.read_bytes() == before and not list(tmp_path.glob(".*"))
