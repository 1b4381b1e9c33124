"""`--image` on the command line: what is made of it, what is said, what is refused."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kandinsky.media.video import read_video

Call = Callable[..., "Done"]  # noqa: F821
QUICK = ("-m", "nano-i2v", "--steps", "1", "--guidance", "1", "--seconds", "0.4", "--seed", "3", "--device", "cpu")


@pytest.fixture
def photo(tiny: Path) -> Path:
    """A picture in the working folder."""
    y, x = np.mgrid[0:90, 0:120]
    file = Path("cat photo.png")
    Image.fromarray(np.stack([x, y, x + y], axis=-1).astype(np.uint8)).save(file)
    return file


def test_a_picture_begins_to_move_and_can_be_repeated(photo: Path, call: Call) -> None:
    done = call("generate", "a cat", "--image", str(photo), *QUICK)
    assert done.code == 0, done.err
    assert "image cat photo.png: 120x90, used as 96x96, resized and cropped" in done.err
    first = read_video(done.lines[-1])
    assert first.recipe["image"]["file"] == str(photo) and first.recipe["image"]["given"] == "120x90"
    shown = call("show", done.lines[-1])
    command = shlex.split(shown.lines[-1])
    assert command[command.index("--image") + 1] == str(photo)
    again = call(*command[1:], "-o", "again.mp4")
    assert again.code == 0, again.err
    assert np.array_equal(read_video("again.mp4").frames, first.frames)


def test_words_may_be_left_out_where_the_card_says_so(photo: Path, call: Call) -> None:
    done = call("generate", "--image", str(photo), *QUICK, "--json", "--quiet")
    assert done.code == 0 and done.err == ""
    result = json.loads(done.lines[-1])
    assert result["path"] == "cat-photo-3.mp4" and result["recipe"]["prompt"] == ""


def test_a_picture_of_the_right_size_is_not_talked_about(photo: Path, call: Call) -> None:
    Image.open(photo).resize((96, 96)).save("fits.png")
    done = call("generate", "a cat", "--image", "fits.png", *QUICK)
    assert done.code == 0 and "fits.png:" not in done.err


def test_bad_pictures_are_one_line(photo: Path, call: Call) -> None:
    Path("text.png").write_text("words")
    Path("cut.png").write_bytes(photo.read_bytes()[:200])
    for arguments, message in (
        (("a cat", "--image", "gone.png", *QUICK), "image `gone.png` does not exist"),
        (("a cat", "--image", "text.png", *QUICK), "image `text.png` is not an image"),
        (("a cat", "--image", "cut.png", *QUICK), "image `cut.png` is damaged"),
        (("a cat", *QUICK), "`nano-i2v` makes a video from an image, and none was given"),
        ((*QUICK,), "no prompt was given"),
        (("a cat", "-m", "nano-t2v", "--image", "gone.png"), "image `gone.png` does not exist"),
        (("a cat", "-m", "kandinsky5-lite-t2i", "--image", str(photo)), "makes an image from text alone"),
        (("a cat", "--image", str(photo), *QUICK, "--size", "64x64"), "size `64x64` is not supported"),
    ):
        done = call("generate", *arguments)
        assert done.code == 2 and done.out == "", done
        assert message in done.err and "Traceback" not in done.err
        assert len([line for line in done.err.splitlines() if line.startswith("error:")]) == 1
