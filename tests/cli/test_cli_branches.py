"""Branches on the command line: `--control`, `--reference`, `--branch`, and what `show` says of a file."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import kandinsky
from kandinsky import catalogue
from kandinsky.media.video import read_video
from kandinsky.train import branch
from kandinsky.train.branch import BranchSettings
from tiny import family

Call = Callable[..., "Done"]  # noqa: F821
QUICK = ("--steps", "1", "--guidance", "1", "--seed", "3", "--device", "cpu")


@pytest.fixture
def files(tiny: Path) -> Path:
    """A clip of five frames at nano's rate and size, an image, and branches of nano with random weights."""
    x = np.mgrid[0:96, 0:96][1]
    frames = [np.stack([np.where(x + 4 * t > 48, 220, 20)] * 3, axis=-1) for t in range(5)]
    kandinsky.Video(np.stack(frames).astype(np.uint8), 12.0).save("a.mp4")
    Image.fromarray(frames[0].astype(np.uint8)).save("a.png")
    card = catalogue.find("nano-t2v")
    for kind in ("control", "reference"):
        settings = BranchSettings(kind=kind, blocks=1, width=32, first=5)
        module = family.randomise(branch.built(settings, card), scale=0.1)
        weights = {f"branch.{name}": tensor for name, tensor in module.state_dict().items()}
        branch.write(weights, settings, card, Path.cwd())
    return tiny


def test_a_result_is_made_again_from_what_its_file_says(files: Path, call: Call) -> None:
    done = call("generate", "a cat", "--control", "a.mp4", "--control-strength", "0.5", "--control-steps", "0:1",
                "--reference", "a.png", "--branch", "control.safetensors", "--branch", "reference.safetensors",
                *QUICK)  # fmt: skip
    assert done.code == 0, done.err
    first = read_video(done.lines[-1])
    assert len(first) == 5  # the control's length
    assert [one["strength"] for one in first.recipe["conditions"]] == [0.5, 1.0]
    command = shlex.split(call("show", done.lines[-1]).lines[-1])
    again = call(*command[1:], "-o", "again.mp4")
    assert again.code == 0, again.err
    assert np.array_equal(read_video("again.mp4").frames, first.frames)


def test_show_says_what_a_branch_is_and_what_a_model_accepts(files: Path, call: Call) -> None:
    told = json.loads(call("show", "control.safetensors", "--json").lines[-1])["branch"]
    assert (told["branch"], told["signal"], told["model"]) == ("control", "edges", "nano-t2v")
    assert "reference" in call("show", "reference.safetensors").out
    accepts = call("show", "nano-t2v").out
    assert "control" in accepts and "by a control branch" in accepts


def test_prompt_files_and_faults(files: Path, call: Call) -> None:
    rows = [
        {"prompt": "a cat", "conditions": [{"control": "a.mp4", "branch": "control.safetensors"}], "output": "one.mp4"},
        {
            "prompt": "a cat",
            "conditions": [{"control": "a.mp4", "branch": "reference.safetensors"}],
            "output": "two.mp4",
        },
    ]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = call("generate", "--prompts", "rows.jsonl", *QUICK, "--store", "off")
    assert done.code != 0 and Path("one.mp4").is_file() and not Path("two.mp4").exists()
    for words, expected in (
        (("--control", "a.mp4", "--branch", "a.png"), "`a.png` is cut off"),
        (("--control-strength", "0.5"), "`--control-strength` says how a control is followed"),
        (("--control-strength", "0.5"), "give `--control FILE`"),
        (("--control", "a.mp4", "--control-steps", "2:1"), "--control-steps `2:1` is no share of the steps"),
        (("--control", "a.mp4", "--branch", "reference.safetensors"), "is told a reference"),
    ):
        done = call("generate", "a cat", *words, *QUICK)
        assert done.code == 2 and expected in done.err and done.err.strip().count("\n") <= 1, done.err


def test_a_plan_counts_branches(files: Path, call: Call) -> None:
    plain, told = (
        call("plan", "nano-t2v", "--json"),
        call("plan", "nano-t2v", "--branch", "control.safetensors", "--json"),
    )
    assert told.code == 0, told.err
    assert json.loads(told.out)["times"]["dit"] > json.loads(plain.out)["times"]["dit"]
    shown = call("generate", "a cat", "--control", "a.mp4", "--branch", "control.safetensors", "--plan")
    assert "with a control branch of" in shown.out, shown.out
