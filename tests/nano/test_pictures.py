"""Fetching, decoding and compositing nano's pictures, with packages made on the spot and a stand-in npm client."""

from __future__ import annotations

import io
import os
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kandinsky.errors import BackendError, RequestError
from kandinsky.lab.nano import emoji as nano


def animated_webp(colour: tuple[int, int, int], frames: int = 6, side: int = 64) -> bytes:
    """A disc that wanders to the right over transparency."""
    pictures = []
    for t in range(frames):
        y, x = np.mgrid[:side, :side]
        inside = (x - 16 - 4 * t) ** 2 + (y - side / 2) ** 2 < 144
        rgba = np.zeros((side, side, 4), np.uint8)
        rgba[inside] = (*colour, 255)
        pictures.append(Image.fromarray(rgba, "RGBA"))
    out = io.BytesIO()
    pictures[0].save(out, "WEBP", save_all=True, append_images=pictures[1:], duration=42, lossless=True)
    return out.getvalue()


NPM = """#!{python}
import io, pathlib, sys, tarfile
spec, target = sys.argv[2], pathlib.Path(sys.argv[sys.argv.index("--pack-destination") + 1])
if "{fail}" and "{fail}" in spec:
    print("npm error 404 no such package", file=sys.stderr); sys.exit(1)
name = spec.strip("@").replace("/", "-").replace("@", "-") + ".tgz"
with tarfile.open(target / name, "w:gz") as tar:
    def add(path, data):
        info = tarfile.TarInfo("package/" + path); info.size = len(data); tar.addfile(info, io.BytesIO(data))
    add("package.json", b"{{}}")
    if "anim" in spec:
        add("assets/1f436.webp", pathlib.Path(r"{moving}").read_bytes())
        add("assets/1f436-1f3fb.webp", pathlib.Path(r"{moving}").read_bytes())
    else:
        add("en/data.json", b"[]"); add("ru/data.json", b"[]"); add("LICENSE", b"MIT"); add("de/data.json", b"[]")
print(name)
"""


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, fail: str = "") -> None:
    moving = folder / "moving.webp"
    moving.write_bytes(animated_webp((200, 30, 30)))
    client = folder / "bin" / "npm"
    client.parent.mkdir()
    client.write_text(NPM.format(python=sys.executable, moving=moving, fail=fail))
    client.chmod(client.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(client.parent), prepend=os.pathsep)


def test_build_fetches_decodes_and_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch)
    cache = tmp_path / "cache"
    target = nano.build(cache=cache)
    clips = nano.Clips(cache)
    assert clips.files == [f"anim-{i}/assets/1f436.webp" for i in (1, 2, 3, 4)]  # no skin tones
    assert clips.rgba_NTHWC.shape == (4, 25, 128, 128, 4)
    assert not (cache / "packages/emojibase/de").exists()
    assert clips.motion[0] > 0
    # six frames at 24 a second are three at 12, repeated
    assert np.array_equal(clips.rgba_NTHWC[0, 0], clips.rgba_NTHWC[0, 3])
    assert not np.array_equal(clips.rgba_NTHWC[0, 0], clips.rgba_NTHWC[0, 1])
    before = target.stat().st_mtime_ns
    assert nano.build(cache=cache) == target
    assert target.stat().st_mtime_ns == before


def test_a_failing_client_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, fail="emojibase")
    with pytest.raises(BackendError, match=r"emojibase-data@17\.0\.0.*404"):
        nano.fetch(tmp_path / "cache")
    assert not (tmp_path / "cache/packages/emojibase").exists()


def test_no_client_and_no_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendError, match="npm"):
        nano.fetch(tmp_path / "cache")
    with pytest.raises(RequestError, match="kandinsky data nano"):
        nano.Clips(tmp_path)


def square() -> np.ndarray:
    """Two frames with an opaque white square in the middle half."""
    rgba = np.zeros((2, 128, 128, 4), np.uint8)
    rgba[:, 32:96, 32:96] = 255
    return rgba


def centre_and_size(frame: np.ndarray) -> tuple[float, float, int]:
    rows, columns = np.nonzero(frame[..., 1] > 128)
    return float(columns.mean()), float(rows.mean()), len(rows)


def test_a_plain_scene_fills_with_the_background() -> None:
    out = nano.composite(square(), nano.Scene((200, 10, 30)), side=64)
    assert out.shape == (2, 64, 64, 3)
    assert (out[0, 0, 0] == (200, 10, 30)).all()
    assert (out[0, 32, 32] == 255).all()


def test_words_move_the_subject_as_they_say() -> None:
    plain = nano.composite(square(), nano.Scene((200, 10, 30)), side=64)
    x, y, area = centre_and_size(plain[0])
    for position, (right, down) in nano.POSITIONS.items():
        made = nano.composite(square(), nano.Scene((200, 10, 30), position=position), side=64)
        x2, y2, _ = centre_and_size(made[0])
        assert abs(x2 - x - right * 64) < 1.5
        assert abs(y2 - y - down * 64) < 1.5
    small = nano.composite(square(), nano.Scene((200, 10, 30), scale="small"), side=64)
    large = nano.composite(square(), nano.Scene((200, 10, 30), scale="large"), side=64)
    assert centre_and_size(small[0])[2] < area < centre_and_size(large[0])[2]
    first, last = (
        centre_and_size(f) for f in nano.composite(square(), nano.Scene((9, 9, 9), camera="zoom in"), side=64)
    )
    assert first[2] < last[2]
    first, last = (
        centre_and_size(f) for f in nano.composite(square(), nano.Scene((9, 9, 9), camera="pan left"), side=64)
    )
    assert first[0] < last[0]  # the camera turns left, the subject drifts right
