"""Any clip's frame rate raised, by the library and by the command, with tiny networks in the official files."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import kandinsky
from kandinsky.cli.main import main
from kandinsky.engine.interpolation import Raise, fitted_size, nearest_frames
from kandinsky.errors import RequestError
from kandinsky.families.kandinsky_video1 import interpolation
from kandinsky.media.audio import frames_of, read_audio, write_audio
from kandinsky.media.mux import InputVideo, frames_at, keep_audio, probe, read_input
from kandinsky.media.video import read_video, write_video
from kandinsky.model.values import Audio, Video
from tiny import unets as tiny

MODEL = "kandinsky-video-1.1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("gaps") / "all")


@pytest.fixture(autouse=True)
def tiny_cards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KANDINSKY_CARDS", str(folder / "cards"))
    monkeypatch.setenv("KANDINSKY_WEIGHTS", str(folder / "weights"))


def interpolate(*given: Any, **settings: Any) -> Video:
    return interpolation.interpolate(*given, **settings).gather()


def clip(frames: int = 3, height: int = 70, width: int = 60) -> Video:
    made = np.random.default_rng(0).integers(0, 255, (frames, height, width, 3), dtype=np.uint8)
    return Video(made, fps=6.0, seed=0)


@pytest.mark.slow
def test_a_clip_gains_three_frames_a_gap() -> None:
    pipe = kandinsky.load(MODEL, device="cpu", only=("interpolation", "vae", "image_vae"))
    made = interpolate(pipe, clip(), Raise(steps=2))
    assert made.frames.shape == (12, 70, 60, 3)
    assert made.fps == 24.0
    # the same length: the last frame stays as long as it did; and nothing but the networks in use were read
    assert len(made.frames) / made.fps == 3 / 6
    assert all(np.array_equal(made.frames[8], frame) for frame in made.frames[9:])
    assert not np.array_equal(made.frames[7], made.frames[8])
    assert set(pipe.placement._built) == {"interpolation", "vae", "image_vae"}
    assert np.array_equal(made.frames, interpolate(pipe, clip(), Raise(steps=2)).frames)
    assert not np.array_equal(made.frames, interpolate(pipe, clip(), Raise(steps=2, seed=1)).frames)
    assert len(interpolate(pipe, clip(2), Raise(factor=16, steps=1)).frames) == 32


@pytest.mark.slow
def test_other_rates_keep_the_frames_nearest_in_time() -> None:
    assert nearest_frames([0, 0.25, 0.5, 0.75], 1.0, 4) == [0, 1, 2, 3]
    assert nearest_frames([0, 0.25, 0.5, 0.75], 1.0, 2) == [0, 2]
    # frames that come at uneven times are shown at their times
    assert nearest_frames([0, 0.1, 0.9], 1.2, 10) == [0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2]
    pipe = kandinsky.load(MODEL, device="cpu", only=("interpolation", "vae", "image_vae"))
    whole = interpolate(pipe, clip(2), Raise(steps=1))
    half, ten = (interpolate(pipe, clip(2), Raise(steps=1, **how)) for how in ({"factor": 2}, {"fps": 10.0}))
    assert half.fps == 12.0 and np.array_equal(half.frames, whole.frames[::2])
    assert ten.fps == 10.0 and len(ten.frames) == round(10 * 2 / 6)


@pytest.mark.slow
def test_long_clips_are_filled_in_parts_that_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = kandinsky.load(MODEL, device="cpu", only=("interpolation", "vae", "image_vae"))
    seen = []
    monkeypatch.setattr(interpolation, "GAPS_AT_ONCE", 2)
    made = interpolate(pipe, clip(6), Raise(steps=1), on_step=lambda step, total, _: seen.append((step, total)))
    assert len(made.frames) == 24 and seen == [(1, 3), (2, 3), (3, 3)]
    assert interpolation._parts(5) == [(0, 1), (1, 3), (3, 5)]


def film(target: Path, times_ms: list[int], *, rotation: int = 0, sound: str | None = "aac") -> Path:
    """A film whose frames come at these times and grow brighter, with a second of sound."""
    with av.open(str(target), "w") as made:
        picture = made.add_stream("mpeg4" if target.suffix == ".mp4" else "libvpx", rate=25)
        picture.width, picture.height, picture.pix_fmt = 96, 64, "yuv420p"
        picture.codec_context.time_base = Fraction(1, 1000)
        track = made.add_stream(sound, rate=48000, layout="stereo") if sound else None
        for i, ms in enumerate(times_ms):
            pixels = np.full((64, 96, 3), 20 * i, np.uint8)
            pixels[:16, :16] = 255  # above on the left
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = ms, Fraction(1, 1000)
            made.mux(picture.encode(frame))
        made.mux(picture.encode(None))
        if track is not None:
            wave = (np.sin(np.arange(48000) / 20) * 9000).astype(np.int16)
            for frame in frames_of(Audio(np.stack([wave, wave], axis=1), 48000), packed=False, size=960):
                made.mux(track.encode(frame))
            made.mux(track.encode(None))
    return target


def raised(source: Path, target: Path, *options: str) -> InputVideo:
    assert main(["interpolate", str(source), "-o", str(target), "--steps", "1", "--device", "cpu", "-q", *options]) == 0
    return probe(target)


@pytest.mark.slow
def test_sound_and_length_are_kept(tmp_path: Path) -> None:
    source = film(tmp_path / "in.mp4", [0, 200, 400, 600, 800])
    given, made = probe(source), raised(source, tmp_path / "out.mp4")
    assert len(made.times_s) == 20
    assert made.seconds == pytest.approx(given.seconds, abs=0.05)
    # the very packets
    assert np.array_equal(read_audio(tmp_path / "out.mp4").samples_SC, read_audio(source).samples_SC)
    assert read_video(tmp_path / "out.mp4").recipe["interpolated"]["factor"] == 4
    # sound that the new format does not take is encoded anew
    webm = raised(source, tmp_path / "out.webm", "--fps", "10")
    assert webm.has_audio and len(webm.times_s) == round(10 * given.seconds)
    sound = read_audio(tmp_path / "out.webm")
    assert abs(len(sound.samples_SC) / sound.rate - webm.seconds) < 0.1 and np.abs(sound.samples_SC).max() > 4000
    assert read_video(tmp_path / "out.webm").recipe["model"] == MODEL


def test_sound_is_left_out_where_there_is_no_place_for_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = film(tmp_path / "in.mp4", [0, 400])
    assert (
        main(["interpolate", str(source), "-o", str(tmp_path / "x.gif"), "--steps", "1", "--device", "cpu", "-q"]) == 0
    )
    assert "the audio of" in caplog.text and "is left out" in caplog.text


@pytest.mark.slow
def test_uneven_times_become_even(tmp_path: Path) -> None:
    """Frames at 0, 100 and 900 ms: a player that shows them evenly would be wrong by 350 ms."""
    source = film(tmp_path / "in.mp4", [0, 100, 900], sound=None)
    made = raised(source, tmp_path / "out.mp4", "--fps", "10")
    assert made.seconds == pytest.approx(probe(source).seconds, abs=0.06)
    gaps = np.diff(made.times_s)
    assert np.allclose(gaps, 0.1, atol=0.002)


@pytest.mark.slow
def test_a_film_that_is_turned_comes_out_upright(tmp_path: Path) -> None:
    source = film(tmp_path / "in.mp4", [0, 400], sound=None)
    data = bytearray(source.read_bytes())
    place = data.index(b"tkhd") + 4 + 40  # the matrix of a track header, version 0
    one = 0x10000
    data[place : place + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 64 * one, 0, 0x40000000)
    source.write_bytes(data)
    assert read_input(probe(source)).frames.shape == (2, 96, 64, 3)
    made = raised(source, tmp_path / "out.mp4", "--factor", "2")
    assert read_input(made).frames.shape == (4, 96, 64, 3)


def test_the_shared_example(tmp_path: Path) -> None:
    source = Path(__file__).parents[3] / "shared" / "media" / "kandinsky4_v2a_input.mp4"
    if not source.is_file():
        pytest.skip("the shared folder is not beside this checkout")
    small = tmp_path / "in.mp4"
    given = probe(source)
    pictures = frames_at(given, range(3))[:, ::8, ::8]
    write_video(Video(pictures, fps=given.fps, seed=0), small)
    keep_audio(given, small)
    made = raised(small, tmp_path / "out.mp4")
    assert len(made.times_s) == 12 and made.has_audio
    assert np.array_equal(read_audio(tmp_path / "out.mp4").samples_SC, read_audio(source).samples_SC)


@pytest.mark.slow
def test_the_prompt_is_told_where_the_model_listens() -> None:
    pipe = kandinsky.load(MODEL, device="cpu", text_cache=False)
    silent, told = (interpolate(pipe, clip(2), Raise(steps=2, prompt=text)).frames for text in ("", "a cat"))
    assert not np.array_equal(silent, told)


def test_the_command(tmp_path: Path) -> None:
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    write_video(clip(3, 64, 64), source)
    assert main(["interpolate", str(source), "-o", str(target), "--steps", "1", "--device", "cpu", "-q"]) == 0
    made = read_video(target)
    assert made.frames.shape == (12, 64, 64, 3)
    assert made.recipe["interpolated"]["factor"] == 4


@pytest.mark.parametrize(
    ("settings", "frames", "said"),
    [
        (Raise(factor=3), 3, "factor `3`"),
        (Raise(fps=6.0), 3, "`6` frames a second are not possible for a clip of 6: use more than that, up to 96"),
        (Raise(fps=97.0), 3, "`97` frames a second"),
        (Raise(steps=0), 3, "steps `0`"),
        (Raise(guidance=-1.0), 3, "guidance `-1"),
        (Raise(guidance=1e30), 3, "guidance `1e.30`"),
        (Raise(seed=2**63), 3, "seed"),
        (Raise(), 1, "no gaps"),
    ],
)
def test_what_cannot_be_done_is_refused(settings: Raise, frames: int, said: str) -> None:
    pipe = kandinsky.load(MODEL, device="cpu")
    with pytest.raises(RequestError, match=said):
        interpolate(pipe, clip(frames), settings)
    assert pipe.placement._built == {}


def test_sizes_are_brought_to_the_network_and_back() -> None:
    assert fitted_size(640, 384, 64) == (640, 384)
    assert fitted_size(500, 20, 64) == (512, 64)


def test_bad_input_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["interpolate", str(tmp_path / "none.mp4"), "-o", str(tmp_path / "x.mp4")]) == 2
    assert "does not exist" in capsys.readouterr().err
    write_video(clip(3, 64, 64), tmp_path / "in.mp4")
    assert main(["interpolate", str(tmp_path / "in.mp4"), "-o", str(tmp_path / "x.mp4"), "-m", "nano-t2v"]) == 2
    assert "has no interpolation network" in capsys.readouterr().err
    (tmp_path / "words.mp4").write_text("words")
    write_audio(Audio(np.zeros((4800, 1), np.int16), 48000), tmp_path / "sound.wav")
    for source, target, more, said in (
        ("words.mp4", "x.mp4", [], "cannot be read"),
        ("sound.wav", "x.mp4", [], "has no video stream"),
        ("in.mp4", "in.mp4", [], "is the video itself"),
        ("in.mp4", "x.avi", [], "has the ending `.avi`"),
        ("in.mp4", "x.mp4", ["--fps", "3"], "`3` frames a second are not possible"),
        ("in.mp4", "x.mp4", ["--fps", "30", "--factor", "4"], "choose one"),
    ):
        assert main(["interpolate", str(tmp_path / source), "-o", str(tmp_path / target), *more]) == 2
        assert said in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "sound.wav", "words.mp4"]


@pytest.mark.slow
def test_the_recipe_of_a_clip_of_key_frames_says_how_to_repeat_it(tmp_path: Path) -> None:
    target = tmp_path / "cat.mp4"
    words = ["generate", "a cat", "-m", MODEL, "--size", "64x64", "--steps", "1", "--seed", "3", "--device", "cpu"]
    assert main([*words, "--fps", "medium", "--motion", "high", "-o", str(target), "-q"]) == 0
    made = read_video(target)
    assert len(made.frames) == 13
    from kandinsky.media import recipe

    said = recipe.command(made.recipe)
    assert "--fps medium" in said
    assert "--motion high" in said
    assert "--seconds" not in said
