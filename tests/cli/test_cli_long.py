"""Long clips on the command line: prompts by time, loops, plans, and a run that goes on after it was interrupted."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kandinsky.engine import long
from kandinsky.engine.latent_names import windows_path
from kandinsky.media.video import read_video

Call = Callable[..., "Done"]  # noqa: F821
QUICK = ("--steps", "1", "--guidance", "1", "--device", "cpu")


def test_a_long_clip_is_repeated_from_what_the_file_says(tiny: Path, call: Call) -> None:
    done = call("generate", "a panda", "-m", "nano-t2v", "--prompt-at", "1.4s a cat", "--fade", "0.5", "--overlap", "8",
                "--seconds", "3", "--loop", "--seed", "3", *QUICK, "-o", "long.mp4")  # fmt: skip
    assert done.code == 0, done.err
    assert "3 windows of up to 2 s, which share 0.667 s" in done.err and not windows_path(Path("long.mp4")).exists()
    first = read_video("long.mp4")
    assert len(first) == 37 and first.recipe["prompt_at"] == [{"prompt": "a cat", "at": "1.4s"}]
    command = shlex.split(call("show", "long.mp4").lines[-1])
    again = call(*command[1:], "-o", "again.mp4")
    assert again.code == 0, again.err
    assert np.array_equal(read_video("again.mp4").frames, first.frames)


def test_an_interrupted_clip_goes_on_with_its_seed(tiny: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = long.write_latent, list[Path]()

    def once(path: Path, *given: object) -> Path:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        return write(path, *given)

    words = ("generate", "a panda", "--seconds", "5", *QUICK, "-o", "long.mp4")
    monkeypatch.setattr(long, "write_latent", once)
    stopped = call(*words)
    folder = windows_path(Path("long.mp4"))
    assert stopped.code != 0 and "the same request with seed" in stopped.err and not Path("long.mp4").exists()
    assert (
        sorted(folder.iterdir()) == sorted(path.relative_to(path.parents[1]) for path in written) or len(written) == 2
    )
    monkeypatch.setattr(long, "write_latent", write)
    kept = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(kept) == 2
    assert call(*words).code == 0 and not folder.exists()
    made = read_video("long.mp4")
    assert call(*words[:-1], "whole.mp4", "--seed", str(made.seed)).code == 0
    assert np.array_equal(read_video("whole.mp4").frames, made.frames)


def test_windows_of_another_clip_give_no_seed(tiny: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    write = long.write_latent

    def once(path: Path, *given: object) -> Path:
        if path.name.startswith("00001"):
            raise KeyboardInterrupt
        return write(path, *given)

    monkeypatch.setattr(long, "write_latent", once)
    words = ("--seconds", "3", *QUICK, "-o", "long.mp4")
    assert call("generate", "a panda", "--seed", "11", *words).code != 0
    monkeypatch.setattr(long, "write_latent", write)
    other = call("generate", "a cat", *words)
    assert other.code == 0 and "are of another clip" in other.err, other.err
    assert read_video("long.mp4").seed != 11 and not windows_path(Path("long.mp4")).exists()


def test_a_larger_clip_is_repeated_and_leaves_no_windows(tiny: Path, call: Call) -> None:
    large = ("generate", "a panda", "-m", "nano-t2v", "--upscale", "144x120")
    done = call(*large, "--seconds", "3", "--seed", "3", *QUICK, "-o", "x.mp4")
    assert done.code == 0 and not windows_path(Path("x.mp4")).exists(), done.err
    first = read_video("x.mp4")
    assert first.frames.shape == (37, 120, 144, 3)
    command = shlex.split(call("show", "x.mp4").lines[-1])
    assert call(*command[1:], "-o", "again.mp4").code == 0
    assert np.array_equal(read_video("again.mp4").frames, first.frames)
    done = call("generate", "a panda", "--video", "x.mp4", "--upscale", "2", "--seconds", "0.4", *QUICK, "-o", "y.mp4")
    assert done.code == 0 and read_video("y.mp4").frames.shape[1:3] == (240, 288), done.err
    rows = [{"upscale": 2, "output": "a.png"}, {"upscale": "112x104", "output": "b.png"}]
    Path("rows.jsonl").write_text("".join(json.dumps({"prompt": "a cat", "seconds": 0, **row}) + "\n" for row in rows))
    done = call("generate", "-m", "nano-t2v", "--prompts", "rows.jsonl", *QUICK, "--store", "off")
    assert done.code == 0, done.err
    for name, size in (("a.png", (192, 192)), ("b.png", (112, 104))):
        with Image.open(name) as image:
            assert image.size == size
    plan = call("plan", "nano-t2v", "--upscale", "192x192")
    assert "a second stage makes 96x96 larger, in 9 tiles of 96x96, from time 0.4 on" in plan.out, plan.out
    done = call("generate", "a panda", "-m", "nano-t2v", "--upscale", "huge", *QUICK)
    assert done.code == 2 and "upscale `huge` is no size" in done.err


def test_a_plan_says_how_many_windows(tiny: Path, call: Call) -> None:
    done = call("plan", "nano-t2v", "--seconds", "60", "--overlap", "1s")
    assert done.code == 0 and "windows    45, neighbours share 1 s; memory is that of one" in done.out, done.out
    plan = json.loads(call("generate", "a panda", "--seconds", "60", "--plan", "--json").out)
    assert plan["windows"] == 30 and plan["frames"] == 721 and plan["overlap_seconds"] == 0.666667


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--seconds", "5", "--prompt-at", "cat"), "is no prompt with a time: use `5s a cat`"),
        (("--seconds", "5", "--prompt-at", "6s a cat"), "outside of a clip of 5 s"),
        (("--seconds", "5", "--overlap", "3s", *QUICK), "leaves nothing to make in a window of 2 s"),
        (("--seconds", "1", "--overlap", "0.5s"), "are made as a whole: leave it out"),
        (
            (
                "--seconds",
                "3601",
            ),
            "use 0 to 3600",
        ),
        (("-m", "kandinsky5-lite-t2i", "--loop"), "makes images: leave `--loop` out"),
    ],
)
def test_what_cannot_be_is_one_line(tiny: Path, call: Call, words: tuple[str, ...], message: str) -> None:
    done = call("generate", "a panda", *words)
    assert done.code == 2 and message in done.err, done.err


def test_prompt_files_name_prompts_by_time(tiny: Path, call: Call) -> None:
    row = {"prompt": "a panda", "prompt_at": [["a cat", 1.4]], "seconds": 2.5, "seed": 1, "output": "one.mp4"}
    Path("rows.jsonl").write_text(json.dumps(row))
    done = call("generate", "--prompts", "rows.jsonl", *QUICK, "--store", "off")
    assert done.code == 0, done.err
    assert read_video("one.mp4").recipe["prompt_at"] == [{"prompt": "a cat", "at": 1.4}]
