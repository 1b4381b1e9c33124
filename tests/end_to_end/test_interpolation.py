"""Any clip's frame rate raised, by the library and by the command, with tiny networks in the official files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import kandinsky
from kandinsky.cli.main import main
from kandinsky.errors import RequestError
from kandinsky.media.video import read_video, write_video
from kandinsky.pipelines.interpolation import Raise, fitted_size, interpolate
from kandinsky.types import Video
from tiny import unets as tiny

MODEL = "kandinsky-video-1.1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("gaps") / "all")


@pytest.fixture(autouse=True)
def tiny_cards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KANDINSKY_CARDS", str(folder / "cards"))
    monkeypatch.setenv("KANDINSKY_WEIGHTS", str(folder / "weights"))


def clip(frames: int = 3, height: int = 70, width: int = 60) -> Video:
    made = np.random.default_rng(0).integers(0, 255, (frames, height, width, 3), dtype=np.uint8)
    return Video(made, fps=6.0, seed=0)


def test_a_clip_gains_three_frames_a_gap() -> None:
    pipe = kandinsky.load(MODEL, device="cpu", only=("interpolation", "vae", "image_vae"))
    made = interpolate(pipe, clip(), Raise(steps=2))
    assert made.frames.shape == (9, 70, 60, 3)
    assert made.fps == 24.0
    # the same length, and nothing but the networks in use were read
    assert (len(made.frames) - 1) / made.fps == (3 - 1) / 6
    assert set(pipe.placement._built) == {"interpolation", "vae", "image_vae"}
    assert np.array_equal(made.frames, interpolate(pipe, clip(), Raise(steps=2)).frames)
    assert not np.array_equal(made.frames, interpolate(pipe, clip(), Raise(steps=2, seed=1)).frames)
    assert len(interpolate(pipe, clip(2), Raise(factor=16, steps=1)).frames) == 17


def test_the_prompt_is_told_where_the_model_listens() -> None:
    pipe = kandinsky.load(MODEL, device="cpu", text_cache=False)
    silent, told = (interpolate(pipe, clip(2), Raise(steps=2, prompt=text)).frames for text in ("", "a cat"))
    assert not np.array_equal(silent, told)


def test_the_command(tmp_path: Path) -> None:
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    write_video(clip(3, 64, 64), source)
    assert main(["interpolate", str(source), "-o", str(target), "--steps", "1", "--device", "cpu", "-q"]) == 0
    made = read_video(target)
    assert made.frames.shape == (9, 64, 64, 3)
    assert made.recipe["interpolated"]["factor"] == 4


@pytest.mark.parametrize(
    ("settings", "frames", "said"),
    [
        (Raise(factor=3), 3, "factor `3`"),
        (Raise(steps=0), 3, "steps `0`"),
        (Raise(guidance=-1.0), 3, "guidance `-1.0`"),
        (Raise(), 1, "no gaps"),
    ],
)
def test_what_cannot_be_done_is_refused(settings: Raise, frames: int, said: str) -> None:
    pipe = kandinsky.load(MODEL, device="cpu")
    with pytest.raises(RequestError, match=said):
        interpolate(pipe, clip(frames), settings)
    assert pipe.placement._built == {}


def test_sizes_are_brought_to_the_network_and_back() -> None:
    assert fitted_size(640, 384, 64) == (640, 384)
    assert fitted_size(500, 20, 64) == (512, 64)


def test_bad_input_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["interpolate", str(tmp_path / "none.mp4"), "-o", str(tmp_path / "x.mp4")]) == 2
    assert "does not exist" in capsys.readouterr().err
    write_video(clip(3, 64, 64), tmp_path / "in.mp4")
    assert main(["interpolate", str(tmp_path / "in.mp4"), "-o", str(tmp_path / "x.mp4"), "-m", "nano-t2v"]) == 2
    assert "has no interpolation network" in capsys.readouterr().err


def test_the_recipe_of_a_clip_of_key_frames_says_how_to_repeat_it(tmp_path: Path) -> None:
    target = tmp_path / "cat.mp4"
    words = ["generate", "a cat", "-m", MODEL, "--size", "64x64", "--steps", "1", "--seed", "3", "--device", "cpu"]
    assert main([*words, "--fps", "medium", "--motion", "high", "-o", str(target), "-q"]) == 0
    made = read_video(target)
    assert len(made.frames) == 13
    from kandinsky.media import recipe

    said = recipe.command(made.recipe)
    assert "--fps medium" in said
    assert "--motion high" in said
    assert "--seconds" not in said
