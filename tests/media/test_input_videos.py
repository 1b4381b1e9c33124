"""Videos of other people: copied whole, at their true times, upright, in every container that holds them."""

import itertools
import os
import random
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kandinsky.errors import RequestError
from kandinsky.media import audio, mux
from kandinsky.media import recipe as recipes
from kandinsky.media.image import open_image
from kandinsky.media.video import read_video, write_video
from kandinsky.model.values import Video
from media import made


@pytest.mark.parametrize("ending", [".mp4", ".webm"])
def test_frames_far_into_a_file_are_those_of_the_whole(tmp_path: Path, ending: str) -> None:
    """They are looked for by their time, and nothing before the key frame is decoded."""
    rng = np.random.default_rng(0)
    shown = rng.integers(0, 255, (1, 48, 64, 3)) * np.linspace(0.2, 1, 150)[:, None, None, None]
    path = write_video(Video(shown.astype(np.uint8), fps=24.0, seed=0), tmp_path / f"in{ending}")
    film = mux.probe(path)
    whole = mux.frames_at(film, range(150))
    for wanted in ([149], [60, 61, 75], [99, 48, 120]):
        assert np.array_equal(mux.frames_at(film, wanted), whole[wanted])


SAMPLES = Path(__file__).parents[3] / "shared" / "reference" / "faults"


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("b_frames", [1, 3, 7])
def test_packets_without_decoding_times_are_kept(tmp_path: Path, ending: str, b_frames: int) -> None:
    options = {"bf": str(b_frames), "b-adapt": "0", "b-pyramid": "normal"}
    source = made.video(tmp_path / "in.mkv", shown=made.frames(50), options=options)
    assert any(dts is None for _, dts in made.stamps(source)), "the sample has the fault"
    film = mux.probe(source)
    copy = mux.copy_with_audio(film, made.tone(), tmp_path / f"out{ending}")
    assert made.packets(copy) == made.packets(source) and len(made.packets(copy)) == 50
    times = [dts for _, dts in made.stamps(copy) if dts is not None]
    assert all(a < b for a, b in itertools.pairwise(times))
    given, back = mux.frames_at(film, range(50)), mux.frames_at(mux.probe(copy), range(50))
    assert np.array_equal(given, back)
    assert np.allclose(mux.probe(copy).times_s, film.times_s, atol=1e-3)


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the shared folder is not beside this checkout")
def test_the_samples_that_were_found(tmp_path: Path) -> None:
    for name, packets, endings in (
        ("bframes.mkv", 100, (".mp4", ".mov", ".mkv")),
        ("av1.mkv", 6, (".mp4", ".mkv", ".webm")),
        ("prores.mov", 24, (".mov", ".mkv")),
        ("anim.webp", 10, (".mp4", ".mov", ".mkv", ".webm")),
    ):
        film = mux.probe(SAMPLES / name)
        for ending in mux.AUDIO_CODECS:
            target = tmp_path / f"{name}{ending}"
            if ending not in endings:
                with pytest.raises(
                    RequestError, match=f"{film.codec} video does not go into {ending}.*use {endings[0]}"
                ):
                    mux.check_copy_target(target, film)
            else:
                assert len(made.packets(mux.copy_with_audio(film, made.tone(), target))) == packets
                assert mux.probe(target).seconds == pytest.approx(film.seconds, abs=0.01)


TIMES = st.lists(st.integers(-100, 1000), min_size=1, max_size=30, unique=True)


@given(TIMES, st.integers(0, 5), st.randoms(use_true_random=False), st.sampled_from(["none", "some", "all"]))
@settings(max_examples=300)
def test_decoding_times_are_completed_soundly(shown: list[int], reach: int, rng: random.Random, kept: str) -> None:
    """Whatever the order within a group of pictures: times of presentation stay, those of decoding rise below them."""
    in_order = sorted(shown)
    order = sorted(range(len(in_order)), key=lambda i: i + rng.randint(-reach, 0))
    packets = []
    for place, i in enumerate(order):
        dts = in_order[max(0, place - reach)] - (reach - place if place < reach else 0)
        packets.append((in_order[i], None if kept == "none" or (kept == "some" and rng.random() < 0.5) else dts))
    times = mux.decode_times(packets)
    assert [pts for pts, _ in times] == [pts for pts, _ in packets]
    assert all(dts <= pts for pts, dts in times)
    assert all(a[1] < b[1] for a, b in itertools.pairwise(times))
    assert mux.decode_times(times) == times


def test_decoding_times_of_damaged_files() -> None:
    for packets in ([(None, None)] * 3, [(5, 5), (5, 5), (5, None)], [(1, 9), (2, 3)], [(None, 4), (6, None)], []):
        times = mux.decode_times(packets)
        assert len(times) == len(packets) and all(dts <= pts for pts, dts in times)
        assert all(a[1] < b[1] for a, b in itertools.pairwise(times))


@pytest.mark.parametrize(
    ("codec", "file", "held"),
    [
        ("libsvtav1", "in.mkv", [".mp4", ".mkv", ".webm"]),
        ("libvpx", "in.webm", [".mkv", ".webm"]),
        ("libvpx-vp9", "in.webm", [".mp4", ".mkv", ".webm"]),
        ("libx265", "in.mp4", [".mp4", ".mov", ".mkv"]),
        ("mpeg4", "in.avi", [".mp4", ".mov", ".mkv"]),
        ("mjpeg", "in.mov", [".mp4", ".mov", ".mkv"]),
        ("wmv2", "in.wmv", []),
        ("flv", "in.flv", []),
        ("mpeg2video", "in.ts", [".mp4", ".mov", ".mkv"]),
        ("libx264", "in.ts", [".mp4", ".mov", ".mkv"]),
        ("prores_ks", "in.mov", [".mov", ".mkv"]),
        ("ffv1", "in.mkv", [".mkv"]),
    ],
)
def test_what_a_container_holds_is_known_before_the_work(
    tmp_path: Path, codec: str, file: str, held: list[str]
) -> None:
    """The question and the copy itself never disagree."""
    try:
        source = made.video(tmp_path / file, codec, shown=made.frames(30, 64, 64))
    except (av.FFmpegError, ValueError) as error:
        pytest.skip(f"this FFmpeg cannot encode {codec}: {error}")
    film = mux.probe(source)
    assert len(film.times_s) == 30
    for ending in mux.AUDIO_CODECS:
        target = tmp_path / f"out{ending}"
        try:
            mux.check_copy_target(target, film)
        except RequestError as error:
            use = "use .m" if held else "convert the video to .mp4 first"
            assert f"does not go into {ending} as it is: {use}" in str(error)
            if ending in held:
                pytest.xfail(f"this FFmpeg's {ending} takes no {codec}")
            assert not list(tmp_path.glob("out*"))
            with pytest.raises(RequestError, match="does not go into"):
                mux.copy_with_audio(film, made.tone(), target)
        else:
            mux.copy_with_audio(film, made.tone(), target)
            assert len(made.packets(target)) == len(made.packets(source)) == 30
            assert mux.probe(target).codec == film.codec
            target.unlink()


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_animated_images_are_clips(tmp_path: Path, name: str) -> None:
    durations = [100, 300, 50, 550]
    images = [Image.fromarray(frame) for frame in made.frames(4)]
    images[0].save(tmp_path / name, save_all=True, append_images=images[1:], duration=durations, loop=0)
    shutil.copy(tmp_path / name, tmp_path / "renamed.mp4")  # what it is decides, not its name
    for path in (tmp_path / name, tmp_path / "renamed.mp4"):
        film = mux.probe(path)
        assert film.is_animation and film.seconds == pytest.approx(1.0) and film.fps == pytest.approx(4)
        assert film.times_s == pytest.approx((0, 0.1, 0.4, 0.45))
    for ending in mux.AUDIO_CODECS:
        copy = mux.probe(mux.copy_with_audio(film, made.tone(), tmp_path / f"out{ending}"))
        assert copy.times_s == pytest.approx(film.times_s, abs=2e-3) and copy.has_audio
        assert copy.seconds == pytest.approx(1.0, abs=0.01) or ending in (".mkv", ".webm")  # which do not say it
        assert audio.read_audio(copy.path).seconds == pytest.approx(1.0, abs=0.05)
        shown, given = mux.frames_at(copy, range(4)), mux.frames_at(film, range(4))
        assert np.abs(shown.astype(int) - given).mean() < 6
    images[0].save(tmp_path / f"still-{name}")
    with pytest.raises(RequestError, match="is a still image"):
        mux.probe(tmp_path / f"still-{name}")


@pytest.mark.parametrize(
    ("default", "sizes", "best"),
    [
        (None, [(32, 32), (64, 96)], 1),
        (0, [(32, 32), (64, 96)], 0),
        (1, [(64, 96), (32, 32)], 1),
        (None, [(64, 96), (32, 32)], 0),
    ],
)
def test_of_two_video_tracks_the_best_is_taken(
    tmp_path: Path, default: int | None, sizes: list[tuple[int, int]], best: int
) -> None:
    one, two = (made.frames(6, *size) for size in sizes)
    source = made.video(tmp_path / "in.mkv", shown=one, more=two, default=default)
    film = mux.probe(source)
    assert mux.frames_at(film, [0]).shape[1:3] == sizes[best]
    copy = mux.copy_with_audio(film, made.tone(), tmp_path / "out.mp4")
    assert made.packets(copy) == made.packets(source, best)


def damage(path: Path, numbers: tuple[int, ...]) -> None:
    """Zeros in the place of these packets."""
    data, packets = bytearray(path.read_bytes()), made.packets(path)
    for number in numbers:
        place = data.index(packets[number])
        data[place : place + len(packets[number])] = bytes(len(packets[number]))
    path.write_bytes(data)


@pytest.mark.parametrize("numbers", [(4,), (0,), (9,), (0, 1, 5, 8, 9)])
def test_damaged_packets_are_copied_and_their_frames_stood_in_for(
    tmp_path: Path, numbers: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    source = made.video(tmp_path / "in.mov", "png", shown=made.frames(10), pix_fmt="rgb24")
    whole = mux.frames_at(mux.probe(source), range(10))
    damage(source, numbers)
    film = mux.probe(source)
    assert len(film.times_s) == 10
    shown = mux.frames_at(film, range(10))
    assert f"{len(numbers)} frames cannot be decoded, the ones before them are shown instead" in caplog.text
    stands, before = [], min(set(range(10)) - set(numbers))
    for number in range(10):
        before = before if number in numbers else number
        stands.append(before)
    assert np.array_equal(shown, whole[stands])
    windows = list(mux.frames_of_windows(film, [[0, 1, 2], [2, 4, 4], [8, 9]]))
    assert all(
        np.array_equal(a, whole[[stands[i] for i in b]])
        for a, b in zip(windows, ([0, 1, 2], [2, 4, 4], [8, 9]), strict=True)
    )
    copy = mux.copy_with_audio(film, made.tone(), tmp_path / "out.mov")
    assert made.packets(copy) == made.packets(source)
    damage(source, tuple({*range(10)} - {*numbers}))
    with pytest.raises(RequestError, match="none of its frames can be decoded as png"):
        mux.probe(source)


@pytest.mark.parametrize("number", [1, 7, 20])
def test_damage_in_predicted_frames_changes_no_time(tmp_path: Path, number: int) -> None:
    source = made.video(tmp_path / "in.mkv", shown=made.frames(30), options={"bf": "2"})
    damage(source, (number,))
    film = mux.probe(source)
    assert mux.frames_at(film, range(30)).shape == (30, 48, 64, 3)
    assert made.packets(mux.copy_with_audio(film, made.tone(), tmp_path / "out.mp4")) == made.packets(source)


@pytest.mark.parametrize(("codec", "name"), [("libx264", "in.h264"), ("mpeg2video", "in.m2v"), ("libx265", "in.hevc")])
def test_raw_streams_have_no_timestamps(tmp_path: Path, codec: str, name: str) -> None:
    source = made.video(tmp_path / name, codec, shown=made.frames(6, 64, 64))
    with pytest.raises(RequestError, match=r"has no timestamps.*container first"):
        mux.probe(source)


@pytest.mark.parametrize(
    "matrix", [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0), (-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0)]
)
def test_frames_are_upright_at_both_doors(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    source = made.video(tmp_path / "in.mp4", shown=made.frames(3))
    plain = read_video(source).frames
    made.turn(source, matrix)
    a, b, c, d = matrix
    x, y = np.meshgrid(np.arange(64), np.arange(48))
    right, down = a * x + c * y, b * x + d * y  # where each pixel goes
    wanted = np.zeros((3, np.ptp(down) + 1, np.ptp(right) + 1, 3), np.uint8)
    wanted[:, down - down.min(), right - right.min()] = plain[:, y, x]
    assert np.array_equal(read_video(source).frames, wanted)
    assert np.array_equal(mux.frames_at(mux.probe(source), range(3)), wanted)


@pytest.mark.parametrize("name", ["in.mp4", "in.mkv"])
@pytest.mark.parametrize("aspect", [Fraction(16, 11), Fraction(8, 9)])
def test_the_shape_of_pixels_is_known_and_kept(tmp_path: Path, name: str, aspect: Fraction) -> None:
    film = mux.probe(made.video(tmp_path / name, aspect=aspect))
    assert film.sample_aspect == pytest.approx(aspect, rel=1e-3)
    for ending in (".mp4", ".mkv"):
        copy = mux.copy_with_audio(film, made.tone(), tmp_path / f"out{ending}")
        assert mux.probe(copy).sample_aspect == pytest.approx(aspect, rel=1e-3)
    clip = read_video(tmp_path / name)
    write_video(clip, tmp_path / "made.mp4", sample_aspect=film.sample_aspect)
    assert mux.probe(tmp_path / "made.mp4").sample_aspect == pytest.approx(aspect, rel=0.01)
    for target in ("made.webm", "made.gif", "made.webp", "made%02d.png", "folder"):
        write_video(clip, tmp_path / target, sample_aspect=film.sample_aspect)
        shown = read_video(tmp_path / target.replace("%02d", "00")).frames
        width = round(64 * aspect) + (target == "made.webm" and round(64 * aspect) % 2)
        assert shown.shape[1:3] == (48, width), "formats that cannot say it get square pixels"
    if name == "in.mp4":
        turned = mux.probe(made.turn(tmp_path / name, (0, 1, -1, 0)))
        assert turned.sample_aspect == pytest.approx(1 / aspect, rel=1e-3)


def test_pixels_whose_shape_the_container_alone_says(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    film = mux.probe(made.video(tmp_path / "in.mp4", "libvpx-vp9", aspect=Fraction(16, 11)))
    assert film.sample_aspect == Fraction(16, 11)
    assert mux.probe(mux.copy_with_audio(film, made.tone(), tmp_path / "out.mp4")).sample_aspect == film.sample_aspect
    assert not caplog.text
    mux.copy_with_audio(film, made.tone(), tmp_path / "out.webm")
    assert "pixels of 16/11, which its copy as .webm does not say: use .mp4" in caplog.text


@pytest.mark.parametrize("name", ["in.mp4", "in.mkv", "in.webm"])
def test_uneven_times_give_the_true_average(tmp_path: Path, name: str) -> None:
    times = [0, 40, 80, 500, 540, 1500, 1540, 1960]
    codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
    film = mux.probe(made.video(tmp_path / name, codec, shown=made.frames(8), times_ms=times, rate=25))
    assert np.allclose(film.times_s, np.array(times) / 1000, atol=2e-3)
    assert film.fps == pytest.approx(8 / film.seconds) and 3.5 < film.fps < 4.1
    assert read_video(tmp_path / name).fps == film.fps


@pytest.mark.parametrize("fps", [24, 30, 25, 12])
@pytest.mark.parametrize("name", ["in.mp4", "in.mkv", "in.webm", "in.avi"])
def test_even_times_give_the_stated_rate(tmp_path: Path, name: str, fps: int) -> None:
    codec = {"in.webm": "libvpx", "in.avi": "mpeg4"}.get(name, "libx264")
    assert mux.probe(made.video(tmp_path / name, codec, shown=made.frames(9), rate=fps)).fps == fps


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_hidden_colours_of_transparent_animations_stay_hidden(tmp_path: Path, name: str) -> None:
    rgba = np.concatenate([made.frames(3), np.full((3, 48, 64, 1), 255, np.uint8)], axis=-1)
    rgba[:, :, 40:] = (255, 0, 0, 0)  # red, and not to be seen
    images = [Image.fromarray(one) for one in rgba]
    images[0].save(
        tmp_path / name,
        save_all=True,
        append_images=images[1:],
        duration=200,
        **({"lossless": True} if "webp" in name else {}),
    )
    for shown in (read_video(tmp_path / name).frames, mux.frames_at(mux.probe(tmp_path / name), range(3))):
        assert shown.shape == (3, 48, 64, 3) and (shown[:, :, 41:] == 255).all()


def test_hidden_colours_of_transparent_videos_stay_hidden(tmp_path: Path) -> None:
    rgba = np.concatenate([made.frames(3), np.full((3, 48, 64, 1), 255, np.uint8)], axis=-1)
    rgba[:, :, 40:] = (255, 0, 0, 0)
    source = made.video(tmp_path / "in.mov", "png", shown=rgba)
    shown = read_video(source).frames
    assert (shown[:, :, 40:] == 255).all() and np.array_equal(shown[:, :, :40], rgba[:, :, :40, :3])


def test_play_lists_and_scripts_read_no_other_files(tmp_path: Path) -> None:
    made.video(tmp_path / "secret.mp4")
    scripts = {
        "a.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nsecret.mp4\n#EXT-X-ENDLIST\n",
        "b.mp4": "ffconcat version 1.0\nfile secret.mp4\n",
        "c.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
        "d.txt": "words",
    }
    for name, text in scripts.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(RequestError, match="cannot be read") as caught:
            mux.probe(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cat: part 1", "http:", "pipe:1", "file:a", "a|b", "%d", "-x", "x" * 240, "я" * 110])
def test_any_legal_name_is_a_name(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    clip = Video(made.frames(3), fps=12, seed=0, recipe={"kandinsky": "0", "model": "m"}, audio=made.tone(0.25))
    for ending in (".mp4", ".webm", ".gif", ".webp", ".png"):
        if "%d" in name and ending != ".png":
            continue
        path = Path(f"{name}{ending}")
        write_video(clip, path)
        first = Path(str(path).replace("%d", "0"))
        assert len(read_video(first).frames) >= 1 and read_video(first).recipe["model"] == "m"
    path = audio.write_audio(made.tone(0.1), f"{name}.wav")
    assert audio.read_audio(path).seconds == pytest.approx(0.1)
    source = made.video(tmp_path / "in.mp4", sound="aac")
    copy = mux.copy_with_audio(mux.probe(source), made.tone(), f"{name}.mkv")
    mux.keep_audio(mux.probe(source), copy)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_sound_in_other_codecs_and_layouts_is_kept(tmp_path: Path) -> None:
    for codec, ending in (("libmp3lame", ".mp4"), ("aac", ".webm"), ("libopus", ".webm"), ("flac", ".mp4")):
        source = made.video(tmp_path / "in.mkv", sound=codec)
        target = write_video(Video(made.frames(24), fps=24, seed=0), tmp_path / f"out{ending}")
        mux.keep_audio(mux.probe(source), target)
        heard = audio.read_audio(target)
        assert heard.seconds == pytest.approx(1, abs=0.1) and np.abs(heard.samples_SC).max() > 4000
        assert len(made.packets(target)) == 24


def test_surround_sound_is_mixed_down(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "in.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="5.1")
        wave = np.repeat((9000 * np.sin(np.arange(8000) / 10)).astype(np.int16), 6)[None]
        frame = av.AudioFrame.from_ndarray(wave, format="s16", layout="5.1")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    heard = audio.read_audio(tmp_path / "in.wav")
    assert heard.samples_SC.shape == (8000, 2) and heard.layout == "stereo" and np.abs(heard.samples_SC).max() > 2000


def test_frames_shared_by_windows_are_held_as_long_as_one_needs_them(tmp_path: Path) -> None:
    source = tmp_path / "a.mp4"
    write_video(Video(made.frames(9), fps=8, seed=0), source)
    film = mux.probe(source)
    whole = mux.read_input(film).frames
    windows = [[0, 2, 2, 4], [3, 4, 4, 5], [4, 8], []]
    for found, numbers in zip(mux.frames_of_windows(film, windows[:3]), windows[:3], strict=True):
        assert np.array_equal(found, whole[numbers])
    with pytest.raises(RequestError, match="no frame 9"):
        list(mux.frames_of_windows(film, [[0], [9]]))


def test_devices_and_pipes_are_no_images(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in ("/dev/zero", tmp_path / "pipe.png", tmp_path):
        with pytest.raises(RequestError, match="is not a file"):
            open_image(path)


def test_hidden_files_are_no_frames(tmp_path: Path) -> None:
    write_video(Video(made.frames(3), fps=8, seed=0), tmp_path / "f%03d.png")
    (tmp_path / "._f000.png").write_bytes(b"of another system")
    (tmp_path / ".f000.png.part-1-0.png").mkdir()
    assert len(read_video(tmp_path).frames) == 3 and recipes.read_if_any(tmp_path) is not None
