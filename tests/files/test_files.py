"""Files are whole or absent, links stay links, leftovers of killed processes go, names from elsewhere stay inside."""

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kandinsky import files
from kandinsky.errors import RequestError
from kandinsky.files import check_writable, inside, replacing, sweep

NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="start times are read from /proc")
NAMES = ["a.mp4", "no ending", "cat: part 1.mp4", "-", "x" * 255, "я" * 127, "🐼" * 60 + ".webm", "a." + "b" * 250]


def write(path: Path, text: str = "new") -> None:
    with replacing(path) as part:
        part.write_text(text)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The nearest to a full disk that needs no rights: the system refuses to write on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_any_legal_name_is_written_beside_and_renamed(tmp_path: Path, name: str) -> None:
    target = check_writable(tmp_path / "new" / name)
    for text in ("one", "two"):
        with replacing(target) as part:
            part.write_text(text)
            assert part.parent == target.parent and part.name.startswith(".") and ".part-" in part.name
            assert not target.exists() or target.read_text() == "one"
        assert target.read_text() == text and list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, FileNotFoundError])
def test_a_failure_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, folder: bool, error: type[BaseException]
) -> None:
    target = tmp_path / "x.mp4"
    if not folder:
        target.write_text("old")
    with pytest.raises(error), replacing(target, folder=folder) as part:
        (part / "0000.png" if folder else part).write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == ([] if folder else [target])
    assert folder or target.read_text() == "old"


def test_a_folder_takes_the_place_of_an_empty_one_only(tmp_path: Path) -> None:
    for _ in range(2):
        with replacing(tmp_path / "frames", folder=True) as part:
            (part / "0.png").write_text("a")
        assert [p.name for p in (tmp_path / "frames").iterdir()] == ["0.png"]
        (tmp_path / "frames" / "0.png").unlink()
    (tmp_path / "frames" / "mine").write_text("kept")
    with pytest.raises(RequestError, match="a folder that is not empty"), replacing(tmp_path / "frames", folder=True):
        pass
    assert [p.name for p in tmp_path.rglob("*")] == ["frames", "mine"]


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    links = {name: tmp_path / f"{name}.mp4" for name in ("existing", "dangling", "chained")}
    (tmp_path / "far" / "existing.mp4").write_text("old")
    links["existing"].symlink_to("far/existing.mp4")
    links["dangling"].symlink_to(tmp_path / "far" / "absent.mp4")
    links["chained"].symlink_to("existing.mp4")
    for name, link in links.items():
        write(check_writable(link), name)
        assert link.is_symlink() and link.read_text() == name
    assert sorted(p.name for p in (tmp_path / "far").iterdir()) == ["absent.mp4", "existing.mp4"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x" * 256, "the name is too long"),
        ("new/" + "я" * 128 + "/a.mp4", "the name is too long"),
        ("/".join(["deep"] * 1000) + "/a.mp4", "the name is too long"),
        ("file/a.mp4", "not a folder"),
        ("loop", "loop"),
        ("loop/a.mp4", "loop"),
        ("pipe", "a device or a pipe"),
        ("to-full.mp4", "a device or a pipe"),
        ("nul\0.mp4", "NUL"),
        ("\ud800.mp4", "lone surrogate"),
    ],
)
def test_what_cannot_be_written_is_refused_before_and_then(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "to-full.mp4").symlink_to("/dev/full")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.rglob("*"))
    for attempt in (check_writable, write):
        with pytest.raises(RequestError, match=said) as caught:
            attempt(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert sorted(p for p in tmp_path.rglob("*") if p.name != "new") == before


def test_a_folder_in_the_way_and_devices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is a folder"):
        write(tmp_path)
    for device in ("/dev/full", "/dev/null"):
        with pytest.raises(RequestError, match="device"):
            check_writable(device)
        with pytest.raises(RequestError, match="device"):
            write(Path(device))
    with pytest.raises(RequestError, match="cannot be written"):
        check_writable("/nope/../proc/1/x.mp4")  # `..` of a folder that is not there
    assert not Path("/nope").exists()


def test_a_full_disk_is_one_line_whichever_library_writes(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 96000), np.int16)
    with largest_file(20_000):
        with pytest.raises(RequestError, match=r"a\.bin` cannot be written: the file is larger") as caught:
            write(tmp_path / "a.bin", "x" * 100_000)
        assert "\n" not in str(caught.value)
        with (
            pytest.raises(RequestError, match=r"a\.wav` cannot be written"),
            replacing(tmp_path / "a.wav") as part,
            av.open(f"file:{part}", "w", format="wav") as container,
        ):
            stream = container.add_stream("pcm_s16le", rate=48000, layout="mono")
            frame = av.AudioFrame.from_ndarray(noise, format="s16", layout="mono")
            frame.sample_rate = 48000
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(RequestError, match="the disk is full") as caught, replacing(tmp_path / "b"):
        raise full
    assert caught.value.hint and caught.value.__cause__ is full
    assert list(tmp_path.iterdir()) == []


def test_errors_of_other_files_are_not_taken_for_ours(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a"):
        (tmp_path / "source").read_bytes()
    with pytest.raises(RequestError, match="a` cannot be written: a part of its path"), replacing(tmp_path / "a") as p:
        p.write_text("x")
        (p / "deeper").write_text("x")


def test_several_files_come_together_or_not_at_all(tmp_path: Path) -> None:
    for name in ("b.png", "mine.png"):
        (tmp_path / name).write_text("old")
    (tmp_path / "c.png").symlink_to("far.png")
    names = ["a.png", "b.png", "c.png"]
    with pytest.raises(ValueError), files.replacing_many(tmp_path, names) as folder:
        (folder / "a.png").write_text("new")
        raise ValueError
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.png", "c.png", "mine.png"]
    with files.replacing_many(tmp_path, names) as folder:
        for name in names:
            (folder / name).write_text("new")
        assert (tmp_path / "b.png").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png", "c.png", "far.png", "mine.png"]
    assert (tmp_path / "c.png").is_symlink() and (tmp_path / "far.png").read_text() == "new"
    assert (tmp_path / "mine.png").read_text() == "old"


@NEEDS_PROC
def test_leftovers_of_killed_processes_go_and_others_stay(tmp_path: Path) -> None:
    code = (
        "import sys, time; from kandinsky.files import replacing\n"
        "with replacing(sys.argv[1], folder=True) as a, replacing(sys.argv[2]) as b:\n"
        "    (a / 'x').write_text('x'); b.write_text('y'); print(flush=True); time.sleep(60)"
    )
    target = tmp_path / ("long" * 60 + ".safetensors")
    writer = subprocess.Popen([sys.executable, "-c", code, tmp_path / "f", target], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    with writer.stdout:
        writer.stdout.readline()
        parts = list(tmp_path.iterdir())
        assert len(parts) == 2 and sweep(tmp_path) == [], "its process runs"
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    foreign = tmp_path / ".a.mp4.part-999999-5-00000000-0.mp4"  # of another machine
    reused = tmp_path / f".a.mp4.part-{os.getpid()}-1-{files.host()}-0.mp4"  # its number is now another process's
    own = tmp_path / f".a.mp4.part-{os.getpid()}-{files.started_at(os.getpid())}-{files.host()}-9.mp4"
    similar = tmp_path / f"a.part-999999-5-{files.host()}-0.mp4"  # a person's own file
    for path in (foreign, reused, own, similar):
        path.write_text("x")
    write(tmp_path / "b.mp4")
    assert sorted(tmp_path.iterdir()) == sorted([foreign, own, similar, tmp_path / "b.mp4"])


def test_two_writers_of_one_target_do_not_meet(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as one, replacing(tmp_path / "a") as two:
        assert one != two
        one.write_text("one")
        two.write_text("two")
    assert (tmp_path / "a").read_text() == "one" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["a", "a/b.mp4", "a/b/", "a..b/..c", "я: 1", "~", "a b\n"])
def test_plain_relative_names_are_joined(tmp_path: Path, name: str) -> None:
    assert inside(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "/", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/.", "a//", "//host/x"),
        *("C:x", "c:\\x", "a\\..\\b", "\\\\host\\x", "a\0b", "a\ud800", "link/x", "link", None, 3, Path("a")),
    ],
)
def test_other_names_are_refused(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to("..")
    with pytest.raises(RequestError):
        inside(root, name)


def test_links_that_stay_inside_are_followed(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "x").write_text("x")
    (tmp_path / "a").symlink_to("blobs/x")
    assert inside(tmp_path, "a").read_text() == "x"


@given(st.text(st.sampled_from("ab./\\:\0~ \ud800é"), max_size=12))
@settings(max_examples=400)
def test_nothing_ever_leads_out(name: str) -> None:
    try:
        path = inside("/root/of/all", name)
    except RequestError:
        return
    assert Path(os.path.normpath(path)).is_relative_to("/root/of/all") and path != Path("/root/of/all")
