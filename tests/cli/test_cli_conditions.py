"""Known frames and videos to change on the command line: `--known`, `--last-image`, `--video` and what says how."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import kandinsky
from kandinsky.media.video import read_video

Call = Callable[..., "Done"]  # noqa: F821
QUICK = ("--steps", "2", "--guidance", "1", "--seed", "3", "--device", "cpu")


@pytest.fixture
def files(tiny: Path) -> Path:
    """A clip of nine frames at nano's rate and size, an image, and a mask."""
    y, x = np.mgrid[0:96, 0:96]
    frames = [np.stack([x + 4 * t, y, x + y - t], axis=-1) for t in range(9)]
    kandinsky.Video(np.stack(frames).astype(np.uint8), 12.0).save("a.mp4")
    Image.fromarray(frames[8].astype(np.uint8)).save("end.png")
    Image.fromarray(((x > 40) * 255).astype(np.uint8)).save("mask.png")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("small.png")
    return tiny


def test_known_frames_are_repeated_from_what_the_file_says(files: Path, call: Call) -> None:
    done = call("generate", "a cat", "--known", "a.mp4[0:5]@0", "--last-image", "end.png", "--resample", "1",
                "--seconds", "1", *QUICK)  # fmt: skip
    assert done.code == 0, done.err
    first = read_video(done.lines[-1])
    assert [(one["file"], one["at"]) for one in first.recipe["conditions"]] == [("a.mp4", 0), ("end.png", "end")]
    command = shlex.split(call("show", done.lines[-1]).lines[-1])
    assert command[command.index("--known") + 1] == "a.mp4[0:5]@0"
    again = call(*command[1:], "-o", "again.mp4")
    assert again.code == 0, again.err
    assert np.array_equal(read_video("again.mp4").frames, first.frames)


def test_a_video_is_changed_by_the_default_model_if_it_is_said_how(files: Path, call: Call) -> None:
    done = call("generate", "a cat", "--video", "a.mp4", "--mask", "mask.png", "--span", "1:9", *QUICK, "--json")
    assert done.code == 0, done.err
    recipe = json.loads(done.lines[-1])["recipe"]
    assert recipe["model"] == "nano-t2v" and recipe["frames"] == 9  # the source's length
    assert recipe["conditions"][0]["span"] == "1:9" and recipe["conditions"][0]["mask"] == "mask.png"


def test_prompt_files_name_conditions(files: Path, call: Call) -> None:
    rows = [
        {"prompt": "a cat", "conditions": ["end.png@end"], "seconds": 0.7, "output": "one.mp4"},
        {"prompt": "a cat", "video": "a.mp4", "strength": 0.5, "output": "two.mp4"},
        {"prompt": "a cat", "conditions": ["gone.png"], "output": "three.mp4"},
    ]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = call("generate", "--prompts", "rows.jsonl", *QUICK, "--store", "off")
    assert done.code != 0 and "`gone.png` does not exist" in done.err
    assert read_video("one.mp4").recipe["conditions"][0]["at"] == "end"
    assert read_video("two.mp4").recipe["conditions"][0]["strength"] == 0.5


def test_what_cannot_be_is_one_line(files: Path, call: Call) -> None:
    for words, message in (
        (("--known", "gone.png@0"), "`gone.png` does not exist"),
        (("--known", "end.png@99"), "the result has frames 0 to 24"),
        (("--known", "end.png@0", "--image", "end.png"), "`end.png` and `end.png` are both to be known at frame 0"),
        (("--known", "a.mp4[20:30]@0"), "use a part between 0 and 9"),
        (("--known", "@0"), "`@0` does not exist"),
        (("-m", "nano-t2v", "--video", "a.mp4"), "was not told how: give `--strength 0.6`, `--mask FILE`"),
        (("--video", "a.mp4", "--strength", "2"), "above 0, up to 1"),
        (("--video", "a.mp4", "--mask", "small.png"), "small.png` is 8x8"),
        (("--video", "a.mp4", "--strength", "0.5", "--seconds", "2"), "has 9 frames at 12 a second and the result 25"),
        (("--strength", "0.5"), "give `--video FILE`"),
        (("--resample", "3"), "`--resample 3`"),
        (("-m", "nano-v2a", "--video", "a.mp4", "--known", "end.png"), "takes no --known"),
        (("-m", "kandinsky5-lite-t2i", "--last-image", "end.png"), "takes no known frames"),
    ):
        done = call("generate", "a cat", *words, *(("--seed", "1") if "nano-v2a" not in words else ()))
        assert done.code == 2 and message in done.err, (words, done.err)
        assert sum(line.startswith("error:") for line in done.err.splitlines()) == 1


def test_a_default_model_that_takes_no_such_conditions_gives_way_to_the_one_it_names(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kandinsky.Video(np.zeros((25, 96, 96, 3), np.uint8), 12.0, 0).save("a.mp4")
    Image.new("RGB", (96, 96)).save("p.png")
    for words in (
        ("--known", "a.mp4[-9:]@0"),
        ("--last-image", "p.png"),
        ("--video", "a.mp4", "--strength", "0.6"),
        ("--control", "a.mp4"),
        ("--video", "a.mp4", "--upscale", "2"),
    ):
        done = call("generate", "a panda", *words, "--plan")
        assert done.code == 0 and "nano-t2v" in done.err, (words, done.err)
        refused = call("generate", "a panda", *words, "-m", "nano2-t2v", "--plan")
        assert refused.code == 2 and "`nano-t2v`" in refused.err, (words, refused.err)
        assert "which makes 96x96" in done.err
    for words in (("a panda", "--image", "p.png"), ("jumps", "--image", "p.png"), ("--image", "p.png")):
        done = call("generate", *words, "--plan")
        assert done.code == 0 and "note: `nano2-i2v` is used, since it begins with an image" in done.err, done.err
    done = call("generate", "a panda", "--image", "p.png", "-m", "nano2-t2v", "--plan")
    assert done.code == 0 and "note:" not in done.err
    for words in (("--last-image", "p.png"), ("--control", "a.mp4"), ("--known", "p.png@1s")):
        done = call("generate", "a panda", "--image", "p.png", *words, "--plan")
        assert done.code == 0 and "note: `nano-i2v` is used, which makes 96x96, since `nano2-i2v`" in done.err, done.err
        assert done.lines[0].split() == ["model", "nano-i2v"]
    for words in ((), ("--image", "p.png")):  # another model's clip would be another one, and no larger
        done = call("generate", "a panda", *words, "--upscale", "2", "--plan")
        assert done.code == 2 and "give the finished clip as `--video FILE` to `nano-" in done.err, done.err
    rows = [{"prompt": "a cat"}, {"prompt": "a cat", "conditions": ["p.png@end"]}]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert "nano-t2v" in call("generate", "--prompts", "rows.jsonl", "--plan").err
