"""Files from anywhere: right data or one clear error, never anything else, whatever their bytes are.

The cases are drawn from a fixed seed; what became of them is counted and printed (`pytest -s`).
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kandinsky.errors import KandinskyError, RequestError
from kandinsky.media import audio, mux
from kandinsky.media import recipe as recipes
from kandinsky.media.image import open_image
from kandinsky.media.video import read_video
from kandinsky.model.values import Video
from media import made

RECIPE = {"kandinsky": "0.1.0", "model": "m", "prompt": "a panda", "seed": 1, "fps": 12.0}
MUTATIONS = 14  # of each file
counts: Counter[str] = Counter()


@pytest.fixture(scope="module", autouse=True)
def told() -> Iterator[None]:
    yield
    print(f"\nhostile files: {dict(counts)}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One file of every kind that is read."""
    folder = tmp_path_factory.mktemp("whole")
    clip = Video(made.frames(6), fps=12, seed=0, recipe=RECIPE, audio=made.tone(0.5))
    files = [clip.save(folder / name) for name in ("a.mp4", "a.webm", "a.gif", "a.webp", "a.png")]
    for name, codec, sound in (
        ("b.mkv", "libx264", "aac"),
        ("b.avi", "mpeg4", "libmp3lame"),
        ("b.ts", "libx264", "aac"),
        ("b.mov", "png", None),
        ("b.flv", "flv", None),
    ):
        files.append(
            made.video(
                folder / name, codec, shown=made.frames(6), pix_fmt="rgb24" if codec == "png" else None, sound=sound
            )
        )
    images = [Image.fromarray(frame) for frame in made.frames(3)]
    images[0].save(folder / "c.png", save_all=True, append_images=images[1:], duration=100)
    for name in ("d.jpg", "d.tif", "d.bmp", "d.ppm", "d.ico"):
        images[0].save(folder / name)
    files += [folder / name for name in ("c.png", "d.jpg", "d.tif", "d.bmp", "d.ppm", "d.ico")]
    return [
        *files,
        audio.write_audio(made.tone(0.3), folder / "e.wav"),
        audio.write_audio(made.tone(0.3), folder / "e.flac"),
    ]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Bytes that a broken disk, a stopped download or a person made of a file."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 30))):
        at = rng.randrange(len(changed))
        match rng.randrange(7):
            case 0:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at : at + rng.randrange(1, 9)] = rng.randbytes(rng.randrange(1, 9))
            case 2:
                del changed[at : at + rng.randrange(1, 200)]
            case 3:
                changed[at:at] = changed[max(0, at - 50) : at]
            case 4:
                changed[at : at + 4] = rng.choice(
                    (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\x80\0\0\0")
                )
            case 5:
                at = rng.randrange(min(len(changed), 400))  # where headers are
                changed[at] = rng.randrange(256)
            case 6 if len(changed) > 40:
                del changed[rng.randrange(20, len(changed)) :]
        if not changed:
            break
    return bytes(changed)


def attempt(work: Callable[[], object], what: str) -> object:
    counts["tried"] += 1
    try:
        result = work()
    except KandinskyError as error:
        counts["refused"] += 1
        assert "\n" not in str(error).strip() and len(str(error)) < 1000, what
        return None
    counts["accepted"] += 1
    return result


def check_video(video: object) -> None:
    if isinstance(video, Video):
        assert video.frames.ndim == 4 and video.frames.shape[-1] == 3 and video.frames.dtype == np.uint8
        assert 0 < video.fps < 1e6 and len(video.frames) >= 1


def test_damaged_files_of_every_kind(whole: list[Path], tmp_path: Path) -> None:
    rng = random.Random(20261129)
    before = counts.copy()
    for source in whole:
        data = source.read_bytes()
        for number in range(MUTATIONS):
            path = tmp_path / f"x{source.suffix}"
            path.write_bytes(mutated(data, rng) if number else data)
            what = f"{source.name}, mutation {number}"
            attempt(lambda path=path: recipes.read(path), what)
            check_video(attempt(lambda path=path: read_video(path), what))
            if source.suffix in (".png", ".jpg", ".tif", ".bmp", ".ppm", ".ico", ".gif", ".webp"):
                picture = attempt(lambda path=path: open_image(path), what)
                assert picture is None or np.asarray(picture.image).ndim == 3
            film = attempt(lambda path=path: mux.probe(path), what)
            if film is not None and number % 3 == 0:
                target = tmp_path / "out.mkv"
                copy = attempt(lambda film=film, target=target: mux.copy_with_audio(film, made.tone(0.2), target), what)
                assert copy is None or mux.probe(copy).times_s
            if source.suffix not in (".png", ".jpg", ".tif", ".bmp", ".ppm", ".ico", ".gif", ".webp"):
                attempt(lambda path=path: audio.read_audio(path), what)
            assert not [one for one in tmp_path.iterdir() if one.name.startswith(".")], what
    here = counts - before
    # else what is drawn damages nothing, or everything; measured: 676 and 364
    assert here["refused"] > 300 and here["accepted"] > 200, here


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.sampled_from("a1 \x1b\n\0\ud800é🐼/$'"), max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(("file", "source", "scale", "a")), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*recipes.Recipe.__annotations__, "other"]), JSON, max_size=6))
@settings(max_examples=250)
def test_recipes_of_any_shape(values: dict[str, object]) -> None:
    text = json.dumps({"kandinsky": "0", "model": "m", "prompt": "p"} | values)
    recipe = attempt(lambda: recipes.from_text(text), text)
    if recipe is not None:
        command = attempt(lambda: recipes.command(recipe), text)
        assert command is None or (
            command.startswith(("kandinsky generate ", "kandinsky interpolate ", "kandinsky live "))
            and len(command.splitlines()) == 1
        )
        assert recipes.from_text(recipes.to_text(recipe)) == recipe


@given(
    st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16", "I;16B"]),
    st.integers(1, 9),
    st.integers(1, 9),
    st.randoms(use_true_random=False),
)
@settings(max_examples=200)
def test_images_of_any_mode_and_numbers(mode: str, width: int, height: int, rng: random.Random) -> None:
    size = len(Image.new(mode, (width, height)).tobytes())
    image = Image.frombytes(mode, (width, height), rng.randbytes(size))
    picture = attempt(lambda: open_image(image), mode)
    assert picture is not None or mode in ("I", "F")
    if picture is not None:
        shown = np.asarray(picture.image)
        assert shown.shape == (height, width, 3) and shown.dtype == np.uint8


@pytest.mark.parametrize(
    "junk", [b"", b"\0", b"RIFF\0\0\0\0WEBP", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0" * 9]
)
def test_files_that_only_begin(junk: bytes, tmp_path: Path) -> None:
    for suffix in (".mp4", ".gif", ".png", ".webp", ".jpg", ""):
        path = tmp_path / f"x{suffix}"
        path.write_bytes(junk)
        for work in (read_video, mux.probe, open_image, recipes.read):
            with pytest.raises(RequestError):
                work(path)
