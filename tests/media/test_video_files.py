"""Clips written and read again: frames, rate, size, recipe; targets refused; nothing left behind."""

import math
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from kandinsky.errors import RequestError
from kandinsky.media import recipe as recipes
from kandinsky.media import video as media
from kandinsky.media.sheet import GAP_PX, contact_sheet
from kandinsky.model.values import Video, VideoStream

RECIPE = {
    "kandinsky": "0.1.0",
    "model": "nano-t2v",
    "revision": "package",
    "prompt": 'a "panda" waves, it\'s $HOME; панда машет – 🐼 ' + "long " * 200,
    "negative_prompt": "",
    "seed": 2**63 - 1,
    "width": 64,
    "height": 48,
    "seconds": 2.0,
    "frames": 25,
    "fps": 12.0,
    "steps": 25,
    "guidance": 3.5,
    "shift": 3.0,
    "versions": {"torch": "2.13.0+cpu"},
}


def smooth_clip(frames: int = 25, height: int = 48, width: int = 64) -> np.ndarray:
    """Moving colours without sharp edges: what is lost to them is the codec's fault, not the chroma grid's."""
    t, y, x = np.meshgrid(*(np.arange(n) for n in (frames, height, width)), indexing="ij")
    waves = (np.sin((x + 2 * t) / 11), np.cos((y - t) / 13), np.sin((x + y + t) / 17))
    return np.stack([(128 + 90 * wave).astype(np.uint8) for wave in waves], axis=-1)


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def clip(frames: np.ndarray | None = None, fps: float = 12.0) -> Video:
    return Video(smooth_clip() if frames is None else frames, fps=fps, seed=RECIPE["seed"], recipe=RECIPE)


@pytest.mark.parametrize(
    ("name", "least_db"), [("a.mp4", 36), ("a.webm", 36), ("a.webp", 36), ("a.gif", 27), ("frames", math.inf)]
)
def test_round_trip(tmp_path: Path, name: str, least_db: float) -> None:
    path = clip().save(tmp_path / "new" / name)
    assert path == tmp_path / "new" / name
    assert [entry.name for entry in path.parent.iterdir()] == [name]
    read = media.read_video(path)
    assert read.frames.shape == smooth_clip().shape and read.frames.dtype == np.uint8
    assert read.fps == 12.0
    assert psnr(read.frames, smooth_clip()) >= least_db
    assert read.recipe == RECIPE and recipes.read(path) == RECIPE
    assert read.seed == RECIPE["seed"]


@pytest.mark.parametrize("name", ["a.mp4", "a.webm"])
@pytest.mark.parametrize("fps", [8.0, 24.0, 23.976, 29.97])
def test_frame_rates(tmp_path: Path, name: str, fps: float) -> None:
    Video(smooth_clip(7), fps=fps, seed=0).save(tmp_path / name)
    read = media.read_video(tmp_path / name)
    assert len(read.frames) == 7 and read.fps == pytest.approx(fps, rel=1e-3)
    assert read.recipe == {} and read.seed == 0


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.webp"])
@pytest.mark.parametrize("colour", [(200, 30, 40), (20, 60, 230), (40, 200, 90), (255, 255, 255), (0, 0, 0)])
def test_plain_colours_keep_their_hue(tmp_path: Path, name: str, colour: tuple[int, int, int]) -> None:
    frames = np.zeros((3, 32, 32, 3), np.uint8) + np.array(colour, np.uint8)
    frames[1:, :2, :2] = 128  # so that no writer joins the frames into one
    Video(frames, fps=8.0, seed=0).save(tmp_path / name)
    centre = media.read_video(tmp_path / name).frames[:, 8:24, 8:24].reshape(-1, 3).mean(axis=0)
    assert np.abs(centre - colour).max() <= 4


def test_mp4_is_what_every_player_takes(tmp_path: Path) -> None:
    path = clip().save(tmp_path / "a.mp4")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.frames == 25 and stream.average_rate == 12
        assert float(stream.duration * stream.time_base) == pytest.approx(25 / 12, abs=1e-3)
    data = path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat"), "+faststart puts the index in front"
    with av.open(str(clip().save(tmp_path / "a.webm"))) as container:
        assert container.streams.video[0].codec_context.name == "vp9"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc fills fresh memory on request")
@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm"])
def test_the_same_frames_give_the_same_file_whatever_memory_held(tmp_path: Path, name: str) -> None:
    """Encoders that read memory nobody wrote show in processes whose fresh memory is filled differently."""
    rng = np.random.default_rng(0)
    y, x = (axis[..., None] for axis in np.mgrid[:96, :96])
    still = np.where((x - 48) ** 2 + (y - 40) ** 2 < 700, 128 + 90 * np.sin(x / 5) * np.cos(y / 7), [40, 75, 205])
    moving = [np.roll(still, int(20 * np.sin(i / 4)), axis=1) + rng.normal(0, 2, (96, 96, 3)) for i in range(25)]
    np.save(tmp_path / "frames.npy", np.clip(moving, 0, 255).astype(np.uint8))
    code = (
        "import sys, numpy as np; from kandinsky.media.video import Video, read_video;"
        "path = Video(np.load(sys.argv[1]), 12, 0).save(sys.argv[2]);"
        "sys.stdout.buffer.write(read_video(path).frames_THWC.tobytes())"
    )
    made = [
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "frames.npy"), str(tmp_path / name)],
            env=os.environ | {"MALLOC_PERTURB_": filling},
            capture_output=True,
            check=True,
        ).stdout
        for filling in ("1", "66", "201")
    ]
    assert made[0] == made[1] == made[2]


def test_equal_frames_stay_as_many(tmp_path: Path) -> None:
    """GIF and WebP writers join equal neighbours; reading parts them again."""
    frames = smooth_clip(5)[[0, 0, 0, 1, 2, 2, 3, 4]]
    for name in ("a.gif", "a.webp", "a.mp4"):
        clip(frames).save(tmp_path / name)
        read = media.read_video(tmp_path / name)
        assert len(read.frames) == 8, name
        assert psnr(read.frames, frames) > 27


def test_animations_without_a_recipe_keep_their_rate(tmp_path: Path) -> None:
    for name, tolerance in (("a.gif", 0.05), ("a.webp", 0.02)):
        Video(smooth_clip(24), fps=24.0, seed=0).save(tmp_path / name)
        read = media.read_video(tmp_path / name)
        assert len(read.frames) == 24 and read.fps == pytest.approx(24, rel=tolerance)


@pytest.mark.parametrize("name", ["a.mp4", "a.webm"])
def test_odd_sides_are_filled_and_said(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    frames = smooth_clip(3, height=47, width=63)
    Video(frames, fps=8.0, seed=0).save(tmp_path / name)
    read = media.read_video(tmp_path / name)
    assert read.frames.shape == (3, 48, 64, 3)
    assert psnr(read.frames[:, :47, :63], frames) > 34
    assert "63x47 has an odd side" in caplog.text


def test_numbered_frames(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    clip(smooth_clip(3)).save(tmp_path / "f%03d.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f000.png", "f001.png", "f002.png", "kept.txt"]
    assert np.array_equal(picture(tmp_path / "f002.png"), smooth_clip(3)[2])
    assert recipes.read(tmp_path / "f001.png") == RECIPE


def test_png_is_a_sheet_and_a_still_is_itself(tmp_path: Path) -> None:
    clip().save(tmp_path / "sheet.png")
    assert picture(tmp_path / "sheet.png").shape == (48, 8 * (64 + GAP_PX) - GAP_PX, 3)
    assert recipes.read(tmp_path / "sheet.png") == RECIPE
    clip(smooth_clip(1)).save(tmp_path / "still.png")
    read = media.read_video(tmp_path / "still.png")
    assert np.array_equal(read.frames, smooth_clip(1)) and read.recipe == RECIPE


def test_sheet_shows_first_and_last_frame() -> None:
    frames = smooth_clip(25)
    sheet = np.asarray(contact_sheet(frames, columns=5))
    assert np.array_equal(sheet[:, :64], frames[0]) and np.array_equal(sheet[:, -64:], frames[-1])
    assert contact_sheet(frames[:3], columns=8).width == 3 * (64 + GAP_PX) - GAP_PX
    assert contact_sheet(frames, columns=1).width == 64
    with pytest.raises(RequestError, match="at least 1 column"):
        contact_sheet(frames, columns=0)
    with pytest.raises(RequestError, match=r"must end in `\.png`"):
        media.check_sheet("sheet.mp4")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("a.avi", "has the ending `.avi`: use .mp4"),
        ("a.mp4.txt", "has the ending `.txt`"),
        ("a%03d.mp4", "`%03d.png` only"),
        ("folder.mp4", "is a folder"),
        ("a.mp4/", "ends in a slash as a folder does, and in `.mp4` as a file does"),
        ("file/a.mp4", "cannot be written"),
        ("file/deep/er/a.mp4", "cannot be written"),
        ("full", "is not an empty folder"),
        ("a%d%d.png", "`%03d.png` only"),
        ("x" * 252 + ".mp4", "the name is too long"),
        ("to-full.mp4", "a device or a pipe"),
        ("file", "is not an empty folder"),
    ],
)
def test_targets_that_are_refused(tmp_path: Path, target: str, said: str) -> None:
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "to-full.mp4").symlink_to("/dev/full")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RequestError) as caught:
        media.check_target(f"{tmp_path}/{target}")  # as typed: a path forgets a slash at its end
    assert said in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(RequestError):
        clip().save(f"{tmp_path}/{target}")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_place_without_permission_is_refused() -> None:
    for target in ("/proc/no/such/place.mp4", "/nope/../proc/1/x.mp4", "/dev/full", "a\0.mp4", "\ud800.mp4"):
        with pytest.raises(RequestError):
            media.check_target(target)
    with pytest.raises(RequestError, match="standard output"):
        media.check_target("-")


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "a.webp", "a.png", "f%03d.png"])
def test_a_link_stays_and_what_it_points_to_is_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "far").mkdir()
    link = tmp_path / name.replace("%03d", "001")
    link.symlink_to(Path("far") / "old")
    (tmp_path / "far" / "old").write_text("old")
    clip(smooth_clip(3)).save(tmp_path / name)
    assert link.is_symlink() and recipes.read(link) == RECIPE
    assert [p.name for p in (tmp_path / "far").iterdir()] == ["old"]


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "a.webp", "a.png", "frames", "f%03d.png"])
def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path: Path, name: str) -> None:
    """Played by a limit on the size of files, in a process of its own."""
    if "." in name and "%" not in name:
        (tmp_path / name).write_bytes(b"old")
    noise = np.random.default_rng(0).integers(0, 256, (12, 96, 96, 3), np.uint8)
    np.save(tmp_path / "noise.npy", noise)
    code = (
        "import sys, resource, numpy as np; from kandinsky.model.values import Video\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
        "from kandinsky.errors import RequestError\n"
        "try: Video(np.load(sys.argv[1]), 12, 0).save(sys.argv[2])\n"
        "except RequestError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "noise.npy"), str(tmp_path / name)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "cannot be written: the file is larger than allowed here" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    left = {path.name for path in tmp_path.iterdir()} - {"noise.npy"}
    assert left <= {name} and all((tmp_path / one).read_bytes() == b"old" for one in left)


@pytest.mark.parametrize("fps", [0, -1.0, float("nan"), float("inf"), 1e-9, 1e6, "24", None])
def test_rates_that_are_none_are_refused(tmp_path: Path, fps: float) -> None:
    for name in ("a.mp4", "a.gif"):
        with pytest.raises(RequestError, match=r"frames a second: use 0\.001 to 1000|`fps` must be a (finite )?number"):
            Video(smooth_clip(3), fps=fps, seed=0).save(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "unit_ms"), [("a.gif", 10), ("a.webp", 1)])
@pytest.mark.parametrize("fps", [0.5, 7, 11.9, 12, 15.3, 23.976, 24, 29.97, 30, 48, 60, 90, 100, 144, 240])
def test_times_of_animations_do_not_drift(tmp_path: Path, name: str, unit_ms: int, fps: float) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), np.uint8)
    Video(frames, fps=fps, seed=0).save(tmp_path / name)
    with Image.open(tmp_path / name) as image:
        times = [0.0]
        for number in range(image.n_frames):
            image.seek(number)
            image.load()
            times.append(times[-1] + image.info["duration"])
    assert abs(times[-1] - 60_000 / fps) <= unit_ms / 2 + 1e-6
    if len(times) == 61:
        assert max(abs(at - i * 1000 / fps) for i, at in enumerate(times)) <= unit_ms / 2 + 1e-6
    else:
        assert fps > 1000 / unit_ms, "frames are left out only where the format cannot tell them apart"
    read = media.read_video(tmp_path / name)
    assert len(read.frames) / read.fps == pytest.approx(times[-1] / 1000, rel=1e-6)


def test_an_animation_of_uneven_times_keeps_them(tmp_path: Path) -> None:
    images = [Image.fromarray(frame) for frame in smooth_clip(4)]
    durations = [40, 120, 200, 40]
    images[0].save(tmp_path / "a.webp", save_all=True, append_images=images[1:], duration=durations, lossless=True)
    read = media.read_video(tmp_path / "a.webp")
    assert read.fps == 25 and [
        int(np.argmin([np.abs(f - one.astype(int)).sum() for one in smooth_clip(4)])) for f in read.frames.astype(int)
    ] == [0, 1, 1, 1, 2, 2, 2, 2, 2, 3]
    images[0].save(tmp_path / "b.gif", save_all=True, append_images=images[1:], duration=[20, 600_000, 20, 600_000])
    assert len(media.read_video(tmp_path / "b.gif").frames) == 4, "no memory for ten minutes of copies"


def test_a_folder_of_frames_of_different_sizes_is_refused(tmp_path: Path) -> None:
    for number, side in enumerate((8, 8, 9)):
        Image.new("RGBA", (side, 8), (255, 0, 0, 0)).save(tmp_path / f"{number}.png")
    with pytest.raises(RequestError, match="different sizes"):
        media.read_video(tmp_path)
    (tmp_path / "2.png").unlink()
    assert (media.read_video(tmp_path).frames == 255).all(), "transparency stands on white"


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "a.webp", "a.png", "frames", "f%03d.png"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted at the last moment, when all bytes are written."""
    old = tmp_path / name
    if old.suffix and "%" not in name:
        old.write_bytes(b"old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        clip(smooth_clip(3)).save(old)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ([name] if old.exists() else [])
    assert not old.exists() or old.read_bytes() == b"old"


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((2, 8, 8, 4), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
    ],
)
def test_frames_of_another_kind_are_refused(tmp_path: Path, frames: np.ndarray) -> None:
    with pytest.raises(RequestError, match=r"frames must be \[T, H, W, 3\] of uint8"):
        Video(frames, fps=8.0, seed=0).save(tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())


def test_reading_what_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"not a video")
    (tmp_path / "empty").mkdir()
    for name in ("a.mp4", "absent.mp4", "empty"):
        with pytest.raises(RequestError, match=name):
            media.read_video(tmp_path / name)


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "a.webp", "a.png", "frames", "f%03d.png"])
def test_a_stream_is_written_as_the_whole_clip(tmp_path: Path, name: str) -> None:
    whole, streamed = tmp_path / "whole", tmp_path / "streamed"
    clip().save(whole / name)
    media.write_sheet(clip(), whole / "sheet.png")
    pieces = iter(np.split(smooth_clip(), [5, 9, 24]))
    stream = VideoStream(pieces, 25, fps=12.0, seed=RECIPE["seed"], recipe=RECIPE)
    assert media.write_video(stream, streamed / name, streamed / "sheet.png") == streamed / name
    files = sorted(path.relative_to(whole) for path in whole.rglob("*.*"))
    assert files == sorted(path.relative_to(streamed) for path in streamed.rglob("*.*"))
    for file in files:
        assert (streamed / file).read_bytes() == (whole / file).read_bytes()


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.png", "frames", "f%03d.png"])
def test_what_is_written_of_a_stream_is_let_go(tmp_path: Path, name: str) -> None:
    """So memory does not grow with the clip: when a piece is made, at most the one before it is still there."""
    made: list[weakref.ref[np.ndarray]] = []

    def pieces() -> Iterator[np.ndarray]:
        for part in np.split(smooth_clip(48), 12):
            assert sum(piece() is not None for piece in made) <= 1
            piece = part.copy()
            made.append(weakref.ref(piece))
            yield piece
            del piece

    VideoStream(pieces(), 48, fps=12.0, seed=0).save(tmp_path / name)
    assert len(made) == 12 and not any(piece() is not None for piece in made)


def test_a_stream_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    closed = []

    def pieces(count: int) -> Iterator[np.ndarray]:
        try:
            yield from np.split(smooth_clip(count), count)
            if count == 3:
                raise MemoryError
        finally:
            closed.append(count)

    with pytest.raises(MemoryError):
        VideoStream(pieces(3), 5, fps=12.0, seed=0).save(tmp_path / "a.mp4")
    with pytest.raises(RequestError, match="4 frames, not 5 as announced"):
        VideoStream(pieces(4), 5, fps=12.0, seed=0).save(tmp_path / "a.mp4")
    with pytest.raises(FileNotFoundError), pytest.MonkeyPatch.context() as broken:
        broken.setattr(av, "open", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError))
        VideoStream(source := pieces(5), 5, fps=12.0, seed=0).save(tmp_path / "a.mp4")
    assert source.gi_frame is None, "what makes the frames is told to stop, and frees its memory"
    assert closed == [3, 4] and not list(tmp_path.iterdir())


def test_gathering_a_stream() -> None:
    video = VideoStream(iter(np.split(smooth_clip(), 5)), 25, fps=12.0, seed=3, recipe=RECIPE).gather()
    assert np.array_equal(video.frames, smooth_clip())
    assert (video.fps, video.seed, video.recipe) == (12.0, 3, RECIPE)
