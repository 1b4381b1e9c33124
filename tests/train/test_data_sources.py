"""Sources of training clips: what is found in folders, tables, lists and shards, and what of them is refused."""

from __future__ import annotations

import csv
import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import kandinsky
from kandinsky.errors import RequestError
from kandinsky.train.data.captions import Caption
from kandinsky.train.data.clips import Bucket, Cutting, cut
from kandinsky.train.data.sources import find, frames

fuzz = settings(max_examples=60)


def still(path: Path, size: tuple[int, int] = (40, 30), seed: int = 0) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path.read_bytes()


def packed(path: Path, files: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_a_folder_gives_captions_in_languages_and_lengths(tmp_path: Path) -> None:
    for name in ("b.png", "a.v2.png", ".hidden.png"):
        still(tmp_path / name)
    for name, text in {
        "b.txt": "plain", "b.ru.txt": "по-русски", "b.short.en.txt": "short", "a.v2.txt": "two", "a.v2.en.txt": "three",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text, encoding="utf-8")
    first, second = find(tmp_path)
    assert (first.name, first.captions) == ("a.v2.png", (Caption("two"), Caption("three", "en")))
    assert second.captions == (Caption("plain"), Caption("short", "en", "short"), Caption("по-русски", "ru"))


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_table_gives_captions_by_column_and_row(tmp_path: Path, ending: str) -> None:
    still(tmp_path / "clips" / "a.png")
    still(tmp_path / "b.png")
    rows = [
        {"file_name": "clips/a.png", "caption_en": "one, two", "caption_ru": "раз", "score": "3"},
        {"file_name": "b.png", "caption_en": "b", "caption_ru": "", "score": ""},
        {"file_name": "clips/a.png", "caption_en": "another", "caption_ru": "", "score": ""},
    ]
    if ending == "jsonl":
        text = "\ufeff" + "\n\n".join(json.dumps(row) for row in rows)
    else:
        stream = io.StringIO()
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        text = stream.getvalue()
    path = tmp_path / f"metadata.{ending}"
    path.write_text(text, encoding="utf-8")
    for source in (find(tmp_path), find(path)):
        a, b = source
        assert a.captions == (Caption("one, two", "en"), Caption("раз", "ru"), Caption("another", "en"))
        assert (b.name, b.captions) == ("b.png", (Caption("b", "en"),))


def test_a_list_names_files_with_captions_beside_them(tmp_path: Path) -> None:
    still(tmp_path / "x" / "a[1].png")
    (tmp_path / "x" / "a[1].txt").write_text("one")
    (tmp_path / "x" / "a[1].ru.txt").write_text("раз")
    (tmp_path / "x" / "a1.txt").write_text("another's")
    names = tmp_path / "train.txt"
    names.write_text("# mine\nx/a[1].png\r\n\n")
    (only,) = find(names)
    assert only.captions == (Caption("one"), Caption("раз", "ru"))


def test_shards_give_what_the_files_in_them_give(tmp_path: Path) -> None:
    data = still(tmp_path / "a.png")
    clip = tmp_path / "clip.mp4"
    kandinsky.Video(np.random.default_rng(1).integers(0, 255, (9, 32, 48, 3), np.uint8), fps=12.0, seed=0).save(clip)
    shards = tmp_path / "shards"
    shards.mkdir()
    packed(
        shards / "t-00.tar",
        [
            ("000.png", data), ("000.txt", b"one"), ("000.ru.txt", "раз".encode()), ("000.cls", b"7"),
            ("sub/001.mp4", clip.read_bytes()), ("sub/001.json", b'{"caption": "two", "text_ru": ["a", "b"], "n": 1}'),
        ],
    )  # fmt: skip
    packed(shards / "t-01.tar", [("000.txt", b"again"), ("000.png", data)])
    source = find(shards)
    assert [one.name for one in source] == ["t-00.tar/000.png", "t-00.tar/sub/001.mp4", "t-01.tar/000.png"]
    assert source[0].captions == (Caption("one"), Caption("раз", "ru"))
    assert source[1].captions == (Caption("two"), Caption("a", "ru"), Caption("b", "ru"))
    assert [one.name for one in find(shards / "t-{00..01}.tar")] == [one.name for one in source]
    assert [one.name for one in find(shards / "t-01.tar")] == ["t-01.tar/000.png"]
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "clip.txt").write_text("two")
    for inside, outside in zip(source, find(tmp_path), strict=False):
        size = {"width": 32, "height": 16, "fps": 12.0, "step": 4, "most": 9}
        assert np.array_equal(frames(inside, **size), frames(outside, **size))  # type: ignore[arg-type]
        assert inside.digest() != outside.digest()


def test_nothing_of_a_hostile_shard_leaves_it(tmp_path: Path) -> None:
    data = still(tmp_path / "a.png")
    outside = tmp_path / "secret.txt"
    outside.write_text("secret")
    path = tmp_path / "s" / "x.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for name in ("../up.png", "/root.png", "a/../b.png", "c\\d.png", "ok.png"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, kind in (("ok.txt", tarfile.SYMTYPE), ("ok.ru.txt", tarfile.LNKTYPE), ("dev.png", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(outside)
            tar.addfile(info)
    before = sorted(tmp_path.rglob("*"))
    source = find(path, captions="optional", faults="skip")
    assert [(one.name, one.captions) for one in source] == [("x.tar/ok.png", ())]
    assert len(source.faults) == 4 and all("plain relative path" in fault.reason for fault in source.faults)
    assert cut(source[0], Cutting((Bucket(8, 8),), 12.0, 4, (1,))).shape == (1, 8, 8, 3)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(RequestError, match=r"plain relative path.*\(and 4 more faults\)"):
        find(path)


REFUSED: list[tuple[str, Callable[[Path], object], str]] = [
    ("no such source", lambda p: p / "absent", "does not exist"),
    ("an empty folder", lambda p: (p / "e").mkdir() or p / "e", "holds no images or videos"),
    ("a file of another kind", lambda p: (p / "a.doc").write_text("x") and p / "a.doc", "neither a folder nor"),
    ("no caption", lambda p: still(p / "f" / "a.png") and p / "f", r"has no caption: write it into `a.txt`"),
    ("a table without rows", lambda p: (p / "m.jsonl").write_text("\n") and p / "m.jsonl", "has no rows"),
    ("a table that is a list", lambda p: (p / "m.jsonl").write_text("[1]\n") and p / "m.jsonl", "line 1 is not a JSON"),
    ("broken JSON", lambda p: (p / "m.jsonl").write_text("{\n") and p / "m.jsonl", "line 1 is not valid JSON"),
    ("deep JSON", lambda p: (p / "m.jsonl").write_text("[" * 100_000) and p / "m.jsonl", "nested too deep"),
    ("no file column", lambda p: (p / "m.csv").write_text("caption\nx\n") and p / "m.csv", "`file_name` among them"),
    ("a column twice", lambda p: (p / "m.csv").write_text("file,file\n") and p / "m.csv", "each once"),
    ("too many cells", lambda p: (p / "m.csv").write_text("file,text\na,b,c\n") and p / "m.csv", "3 cells for 2"),
    ("a way out", lambda p: (p / "m.csv").write_text("file,text\n../a.png,b\n") and p / "m.csv", "line 2: .*plain rel"),
    ("an absolute name", lambda p: (p / "m.csv").write_text("file,text\n/etc/a.png,b\n") and p / "m.csv", "plain rel"),
    ("an absent file", lambda p: (p / "m.csv").write_text("file,text\na.png,b\n") and p / "m.csv", "No such file"),
    ("no file name", lambda p: (p / "m.jsonl").write_text('{"file": 3}') and p / "m.jsonl", "`3` is no file name"),
    ("a list of nothing", lambda p: (p / "l.txt").write_text("# a\n") and p / "l.txt", "names no files"),
    ("a list's way out", lambda p: (p / "l.txt").write_text("a\n../b\n") and p / "l.txt", "line 1"),
    ("no tar", lambda p: (p / "x.tar").write_bytes(b"x" * 2000) and p / "x.tar", "is damaged"),
    ("an absent tar", lambda p: p / "x.tar", "cannot be read: No such file"),
    ("an empty tar", lambda p: packed(p / "x.tar", []), "holds no images or videos that can be used"),
    ("a packed tar", lambda p: p / "x.tar.gz", "unpack it"),
    ("a range that falls", lambda p: p / "x-{9..1}.tar", "range must rise"),
    ("a caption not UTF-8", lambda p: packed(p / "x.tar", [("a.png", b"x"), ("a.txt", b"\xff")]), "is not UTF-8"),
    ("a caption of numbers", lambda p: packed(p / "x.tar", [("a.png", b""), ("a.json", b'{"text": 3}')]), "is no text"),
    ("two clips of a name", lambda p: packed(p / "x.tar", [("a.png", b""), ("a.mp4", b"")]), "2 clips"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_cannot_be_used_is_named_in_one_line(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    path = make(tmp_path)
    with pytest.raises(RequestError, match=message) as failure:
        find(path)
    assert "\n" not in str(failure.value)


def test_faulty_examples_are_skipped_and_told_where_that_is_wanted(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        still(tmp_path / name)
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "d.txt").write_text("alone")
    source = find(tmp_path, faults="skip")
    assert [one.name for one in source] == ["a.png"]
    assert [fault.name for fault in source.faults] == ["d.txt", "b.png", "c.png"]
    assert [one.name for one in find(tmp_path, faults="skip", captions="optional")] == ["a.png", "c.png"]
    with pytest.raises(RequestError, match="`faults` must be"):
        find(tmp_path, faults="ignore")  # type: ignore[arg-type]


def test_a_shard_that_is_cut_gives_what_it_has_whole(tmp_path: Path) -> None:
    data = still(tmp_path / "a.png")
    files = [(f"{i}.{ending}", data if ending == "png" else b"x") for i in range(4) for ending in ("txt", "png")]
    whole = packed(tmp_path / "x.tar", files).read_bytes()
    for length in range(1536, len(whole), 777):
        (tmp_path / "x.tar").write_bytes(whole[:length])
        try:
            source = find(tmp_path / "x.tar", faults="skip")
        except RequestError as error:
            assert "\n" not in str(error)
            continue
        for example in source:
            with example.opened() as path:
                assert path.read_bytes() == data
                assert path.suffix == ".png"
        assert not path.exists()  # the copy is gone


@fuzz
@given(st.binary(max_size=600), st.sampled_from(["jsonl", "csv", "txt", "tar"]))
def test_any_bytes_are_a_source_or_one_line(tmp_path_factory: pytest.TempPathFactory, data: bytes, ending: str) -> None:
    path = tmp_path_factory.mktemp("fuzz") / f"m.{ending}"
    path.write_bytes(data)
    with pytest.raises(RequestError) as failure:
        find(path)
    assert "\n" not in str(failure.value)


@fuzz
@given(st.integers(0, 2**32), st.sampled_from(["jsonl", "csv", "tar"]))
def test_damaged_sources_fail_in_one_line_or_not_at_all(
    tmp_path_factory: pytest.TempPathFactory, seed: int, ending: str
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    data = still(folder / "a.png", (4, 4))
    path = folder / f"m.{ending}"
    if ending == "tar":
        packed(path, [("a.png", data), ("a.txt", b"x"), ("b.json", b'{"caption": "y"}'), ("b.png", data)])
    else:
        row = {"file_name": "a.png", "caption": "x"}
        path.write_text(json.dumps(row) if ending == "jsonl" else "file_name,caption\na.png,x\n")
    damaged, rng = bytearray(path.read_bytes()), random.Random(seed)
    for _ in range(rng.randint(1, 6)):
        damaged[rng.randrange(min(len(damaged), 3072))] = rng.randrange(256)
    path.write_bytes(damaged)
    try:
        for example in find(path, captions="optional", faults="skip"):
            example.digest()
            with example.opened():
                pass
    except RequestError as error:
        assert "\n" not in str(error)


# -- cutting -----------------------------------------------------------------------------------------------------------


def test_a_file_gets_the_bucket_that_shows_most_of_it() -> None:
    buckets = [Bucket.parse(text) for text in ("512x512", "768x512", "512x768", "256x256", "1024x1024")]
    cutting = Cutting(tuple(buckets), 24.0, 4, (121,))

    def chosen(width: int, height: int) -> str:
        return str(cutting.bucket_for(width, height, "x"))

    assert chosen(1920, 1080) == "1024x1024"
    assert chosen(900, 600) == "768x512" and chosen(600, 900) == "512x768"
    assert chosen(700, 600) == "512x512" and chosen(2000, 300) == "256x256"
    assert chosen(255, 4000) == "None"


def test_some_of_the_large_clips_go_to_smaller_buckets() -> None:
    cutting = Cutting((Bucket(64, 64, 0.25), Bucket(32, 32)), 24.0, 4, (121,))
    found = [str(cutting.bucket_for(100, 100, f"{i}.mp4")) for i in range(2000)]
    assert found == [str(cutting.bucket_for(100, 100, f"{i}.mp4")) for i in range(2000)]
    assert abs(found.count("64x64") / 2000 - 0.25) < 0.05 and found.count("None") == 0
    alone = Cutting((Bucket(64, 64, 0.5),), 24.0, 4, (121,))
    assert 800 < sum(alone.bucket_for(64, 64, f"{i}") is None for i in range(2000)) < 1200


@pytest.mark.parametrize("size", ["512", "512x", "512x512:", "512x512:0", "512x512:1.5", "512x512:nan", "0x5", ""])
def test_sizes_that_are_none_are_refused(size: str) -> None:
    with pytest.raises(RequestError):
        Bucket.parse(size)


@given(st.floats(0, 100), st.lists(st.integers(0, 30), min_size=1, max_size=4, unique=True))
def test_clips_are_as_long_as_the_file_allows(last_s: float, steps: list[int]) -> None:
    lengths = tuple(sorted(1 + 4 * n for n in steps))
    cutting = Cutting((Bucket(8, 8),), 12.0, 4, lengths)
    count = cutting.count_for(last_s)
    if count is None:
        assert len(lengths) > 1 and last_s < (lengths[0] - 1) / 12
    else:
        assert (count - 1) / 12 <= last_s + 1e-5 and (count - 1) % 4 == 0
        assert count <= lengths[0] if len(lengths) == 1 else count in lengths


def test_moments_are_those_the_model_would_show(tmp_path: Path) -> None:
    """Frame n of a grey ramp at 30 a second is shown at n/30; at 12 a second frames 0, 2 or 3, 5, … are nearest."""
    ramp = np.repeat(np.arange(40, dtype=np.uint8)[:, None, None, None] * 6, 16, axis=1).repeat(16, 2).repeat(3, 3)
    kandinsky.Video(np.ascontiguousarray(ramp), fps=30.0, seed=0).save(tmp_path / "a.mp4")
    (tmp_path / "a.txt").write_text("ramp")
    made = cut(find(tmp_path)[0], Cutting((Bucket(16, 16),), 12.0, 4, (100,)))
    assert len(made) == 13  # (39 / 30 s) · 12 = 15.6 frames after the first, on the grid of 4
    shown = np.rint(made.mean(axis=(1, 2, 3)) / 6)
    assert all(abs(shown[n] / 30 - n / 12) <= 0.5 / 30 + 1e-3 for n in range(13))
    with pytest.raises(RequestError, match="16x16 pixels and covers no size, of which 32x16"):
        cut(find(tmp_path)[0], Cutting((Bucket(32, 16), Bucket(16, 64)), 12.0, 4, (9,)))
    with pytest.raises(RequestError, match=r"shortest clip needs 4\.00 s"):
        cut(find(tmp_path)[0], Cutting((Bucket(16, 16),), 12.0, 4, (49, 97)))
