"""`kandinsky live`: raw video of an autoregressive model, and what is refused."""

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import kandinsky
from kandinsky.engine import timeline
from kandinsky.errors import RequestError
from kandinsky.lab.nano.measure import background_colour
from kandinsky.lab.nano.measure_world import stands
from kandinsky.model.values import Video

BLUE, PINK = 5, 7  # of captions.COLOURS
Call = Callable[..., "Done"]  # noqa: F821


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are written in a folder of the test."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def live(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tiny model, made causal by a card."""
    folder = tmp_path / "causal"
    folder.mkdir()
    for card in Path(os.environ["KANDINSKY_CARDS"]).glob("*.toml"):
        text = card.read_text()
        (folder / card.name).write_text(text)
        if 'id = "tiny"' in text:
            own = text.replace('id = "tiny"', 'id = "live"').replace(
                "[sampling]", '[roll]\n[sampling]\nattention = { type = "causal", frames = 1, reach = 1 }'
            )
            (folder / "live.toml").write_text(own)
    monkeypatch.setenv("KANDINSKY_CARDS", str(folder))
    return "live"


def test_a_stream_becomes_raw_video(live: str, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    done = call("live", "a panda", "-m", live, "--seconds", "0.4", "--seed", "3", "--device", "cpu", "-o", "x.y4m")
    assert done.code == 0 and done.out.strip() == "x.y4m", done.err
    data = Path("x.y4m").read_bytes()
    assert data.startswith(b"YUV4MPEG2 W64 H64 F24:1") and data.count(b"FRAME\n") == 10
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n\xff\xfe a cat\na panda\n"), encoding="utf-8"))
    Path("y.y4m").write_bytes(b"a file of before")
    done = call("live", "-", "-m", live, "--seconds", "0.4", "--seed", "3", "--device", "cpu", "-o", "y.y4m", "-q")
    assert done.code == 0 and Path("y.y4m").read_bytes() == data
    assert done.err.splitlines() == [r"`\udcff\udcfe a cat` is not valid UTF-8: it is left out"], done.err
    assert set(call("live", "--list").out.split()) == {live, "nano-live", "nano-world"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-m", "nano-world", "--play", "right fly"), "`nano-world` knows no such action; use words of: stay, left"),
        (("-m", "nano-live", "--play", "right"), "it is no world that can be played"),
        (("-m", "nano-world", "--play", " "), "knows no such action"),
    ],
)
def test_actions_that_no_world_knows_are_refused(words: tuple[str, ...], message: str, call: Call) -> None:
    done = call("live", "a panda", *words, "-o", "x.y4m")
    assert done.code == 2 and message in done.err and len(done.err.splitlines()) <= 2, done.err


def test_a_world_is_played_by_a_script(call: Call) -> None:
    words = ("-m", "nano-world", "--seed", "3", "--device", "cpu", "-q")
    done = call("live", "a panda", *words, "--play", "stay right jump", "-o", "x.y4m")
    assert done.code == 0, done.err
    assert Path("x.y4m").read_bytes().count(b"FRAME\n") == 1 + 4 + 4
    assert call("live", "a panda", *words, "--play", "stay right grow", "-o", "y.y4m").code == 0
    frame = len(Path("x.y4m").read_bytes()) // 9
    assert Path("x.y4m").read_bytes()[: 5 * frame - 200] == Path("y.y4m").read_bytes()[: 5 * frame - 200]
    assert Path("x.y4m").read_bytes() != Path("y.y4m").read_bytes()


def shown(file: str) -> list[np.ndarray]:
    with av.open(file) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_another_prompt_while_a_world_is_played(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("-m", "nano-world", "--seed", "3", "--device", "cpu", "-q")
    later = ("--prompt-at", "0.7s a frog on a pink background")  # from the fourth chunk on, of frame 9
    told = ("stay right right stay stay", "stay right right stay left")
    for name, prompts, play in (("x", later, told[0]), ("y", later, told[1]), ("z", (), told[0])):
        done = call("live", "a panda on a blue background", *words, *prompts, "--play", play, "-o", f"{name}.y4m")
        assert done.code == 0, done.err
    clips = {name: shown(f"{name}.y4m") for name in "xyz"}
    assert np.array_equal(clips["x"][:13], clips["y"][:13]) and np.array_equal(clips["x"][:9], clips["z"][:9])
    frog, moved, panda = (stands(clips[name][-1]) for name in "xyz")
    assert background_colour(np.stack(clips["x"][-2:])) == PINK and background_colour(np.stack(clips["z"][-2:])) == BLUE
    assert frog.x > 0.2 < panda.x, (frog, panda)  # it is where the panda was led
    assert moved.x < frog.x - 0.05  # and can be led on
    # typed: lines of actions are done, others are prompts
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a panda\nstay right jump\n")))
    done = call("live", "-", *words, "--seconds", "0.75", "-o", "typed.y4m")
    assert done.code == 0, done.err
    assert call("live", "a panda", *words, "--play", "stay right jump", "-o", "played.y4m").code == 0
    assert Path("typed.y4m").read_bytes() == Path("played.y4m").read_bytes()
    done = call("live", "a panda", *words, "--seconds", "1", "--prompt-at", "2s a cat", "-o", "x.y4m")
    assert done.code == 2 and "at 2 s" in done.err and len(done.err.splitlines()) <= 2, done.err


def saved(model: str, **changed: Any) -> Path:
    """A clip as a live session saves it: frames 5 to 20 of a stream of two prompts."""
    pieces = list(kandinsky.load(model, device="cpu").stream([("a panda", 0), ("a cat", 0.35)], seconds=1, seed=3))
    begin = next(round(piece.recipe["start"] * piece.fps) for piece in pieces if piece.recipe["prompt"] == "a cat")
    frames = np.concatenate([piece.frames for piece in pieces])[5:21]
    line = timeline.Timeline(((0, "a panda"), (begin, "a cat")), 5, 16)
    recipe = pieces[-1].recipe | line.to_recipe([frames]) | changed
    return Video(frames, pieces[0].fps, 3, recipe).save("clip.mp4")


def test_a_saved_clip_is_made_again_from_its_file(live: str, call: Call) -> None:
    path = saved(live)
    done = call("live", "--replay", str(path), "--device", "cpu", "-o", "again.y4m")
    assert done.code == 0 and "\nbit for bit the saved frames" in done.err, done.err
    data = Path("again.y4m").read_bytes()
    assert data.count(b"FRAME\n") == 16
    assert (
        call("show", str(path)).out.splitlines()[-1].startswith("kandinsky live --replay clip.mp4 --output again.y4m")
    )
    path = saved(live, seed=4)
    done = call("live", "--replay", str(path), "--device", "cpu", "-o", "again.y4m")
    assert done.code == 0 and "not bit for bit" in done.err and Path("again.y4m").read_bytes() != data
    done = call("live", "a panda", "--replay", str(path), "-o", "again.y4m")
    assert done.code == 2 and "are those of the clip" in done.err


def test_raw_video_is_made_again_from_the_recipe_beside_it(live: str, call: Call) -> None:
    words = ("-m", live, "--seconds", "0.7", "--prompt-at", "0.35s a cat", "--seed", "3", "--device", "cpu")
    done = call("live", "a panda", *words, "-o", "x.y4m")
    assert done.code == 0, done.err
    beside = json.loads(Path("x.y4m.json").read_text(encoding="ascii"))
    assert [one["prompt"] for one in beside["timeline"]] == ["a panda", "a cat"] and "chunk" not in beside
    assert call("show", "x.y4m").out.splitlines()[-1].startswith("kandinsky live --replay x.y4m")
    done = call("live", "--replay", "x.y4m", "--device", "cpu", "-o", "again.y4m")
    assert done.code == 0 and "\nbit for bit the saved frames" in done.err, done.err
    assert Path("again.y4m").read_bytes() == Path("x.y4m").read_bytes()
    assert json.loads(Path("again.y4m.json").read_text(encoding="ascii")) == beside
    Path("x.y4m.json").unlink()
    done = call("live", "--replay", "x.y4m", "-o", "y.y4m")
    assert done.code == 2 and "raw video carries no recipe" in done.err and ".mp4" in done.err, done.err
    assert len(done.err.splitlines()) == 1 and not Path("y.y4m").exists()


def test_a_recipe_of_another_stream_does_not_stay_beside_raw_video(live: str, call: Call) -> None:
    words = ("-m", live, "--seconds", "0.2", "--device", "cpu", "-o", "x.y4m")
    for seed in ("3", "4"):
        assert call("live", "a panda", *words, "--seed", seed).code == 0
        assert json.loads(Path("x.y4m.json").read_text(encoding="ascii"))["seed"] == int(seed)


def test_a_stream_of_too_many_prompts_has_no_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "LONGEST", 200)
    record = timeline.Record()
    for number in range(5):
        record.take(Video(np.zeros((1, 4, 4, 3), np.uint8), 12.0, 0, {"prompt": f"a cat {number}", "seed": 0}))
        assert (record.recipe is None) == (number > 1)


def test_a_clip_without_a_timeline_is_not_made_again(live: str, call: Call) -> None:
    done = call(
        "generate", "a panda", "--seconds", "0", "--steps", "1", "--seed", "3", "--device", "cpu", "-o", "x.png"
    )
    assert done.code == 0, done.err
    done = call("live", "--replay", "x.png", "-o", "y.y4m")
    assert done.code == 2 and "has no timeline" in done.err, done.err


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"timeline": []}, "is empty or no list"),
        ({"timeline": [{"frame": 1, "prompt": "a cat"}]}, "entry 1"),
        ({"timeline": [{"frame": 0, "prompt": "a cat"}, {"frame": 0, "prompt": "a dog"}]}, "entry 2"),
        ({"timeline": [{"frame": 0, "prompt": 1}]}, "entry 1"),
        ({"first_frame": -1}, "`first_frame` is `-1`"),
        ({"frames": 0}, "`frames` is `0`"),
        ({"seed": None}, "`seed` is `None`"),
    ],
)
def test_a_damaged_timeline_is_named(changed: dict[str, Any], words: str) -> None:
    recipe = {"timeline": [{"frame": 0, "prompt": "a cat"}], "first_frame": 2, "frames": 3, "seed": 1}
    line = timeline.read(recipe)
    assert [line.at(frame) for frame in (0, 4, 5)] == ["a cat", "a cat", None]
    with pytest.raises(RequestError, match=words):
        timeline.read(recipe | changed)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "no prompt was given"),
        (("a panda", "-m", "tiny"), "cannot be streamed: use `nano-live`, `nano-world`, `live`"),
        (("a panda", "-o", "x.mp4"), "raw video, .y4m"),
        (("a panda", "--seconds", "-1", "-o", "x.y4m"), "must be a number above 0"),
        (("a panda", "--seconds", "nan", "-o", "x.y4m"), "must be a number above 0"),
        (("a panda", "--size", "64x65", "-o", "x.y4m"), "size `64x65` is not supported"),
        (("a panda", "--steps", "0", "-o", "x.y4m"), "steps `0` are not supported"),
        (("a panda",), "standard output is no terminal"),
        (("-", "-o", "x.y4m"), "standard input holds no prompt"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    live: str, call: Call, args: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    monkeypatch.setattr(kandinsky.catalogue, "load", None)
    done = call("live", *args)
    assert done.code == 2 and words in done.err, done.err
    assert not list(Path().iterdir())


def test_what_fails_late_leaves_files_as_they_were(live: str, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the file was found to be writable."""

    def broken(*_: Any, **__: Any) -> None:
        raise RequestError("no model today")

    monkeypatch.setattr(kandinsky.catalogue, "load", broken)
    Path("old.y4m").write_bytes(b"a file of before")
    for name in ("old.y4m", "new.y4m"):
        done = call("live", "a panda", "-m", live, "--seconds", "0.4", "--device", "cpu", "-o", name)
        assert done.code == 2 and "no model today" in done.err, done.err
    assert Path("old.y4m").read_bytes() == b"a file of before" and not Path("new.y4m").exists()
