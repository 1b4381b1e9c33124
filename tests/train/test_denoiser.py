"""The recipe kind `denoiser`: targets of every sampler, the data folder, and a shipped model trained a little."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import kandinsky
from kandinsky.diffusion.samplers import SAMPLERS
from kandinsky.errors import RequestError
from kandinsky.train.data import sources as captioned
from kandinsky.train.data.encode import encode
from kandinsky.train.recipe import run_recipe


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("t", [0.2, 0.7])
def test_from_the_target_follows_the_clean_latent(name: str, t: float) -> None:
    rules, shift = SAMPLERS[name], 3.0
    generator = torch.Generator().manual_seed(1)
    clean, noise = torch.randn(2, 1, 3, 2, 2, 4, generator=generator)
    time = torch.tensor(t)
    noising = rules.noising(shift)
    x, target = noising.noised(clean, noise, time), rules.target(clean, noise, time, shift)
    is_straight = rules.predicts == "velocity"
    found = x - t * target if is_straight else noising.clean(x, target, time)  # type: ignore[attr-defined]
    torch.testing.assert_close(found, clean, atol=1e-4, rtol=1e-3)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 70, 3), dtype=np.uint8)).save(folder / "still.png")
    clip = rng.integers(0, 255, (14, 32, 48, 3), dtype=np.uint8)
    kandinsky.Video(clip, fps=24.0, seed=0).save(folder / "clip.mp4")
    for name in ("still", "clip"):
        (folder / f"{name}.txt").write_text(f"\ufeffa {name}\n", encoding="utf-8")
    return folder


def test_examples_are_found_and_cut_to_the_models_grid(data: Path) -> None:
    clip, still = captioned.find(str(data))
    assert (clip.caption, still.caption) == ("a clip", "a still")
    size = {"width": 96, "height": 64, "fps": 12.0, "step": 4}
    assert captioned.frames(still, most=25, **size).shape == (1, 64, 96, 3)  # type: ignore[arg-type]
    assert captioned.frames(clip, most=25, **size).shape == (5, 64, 96, 3)  # type: ignore[arg-type]  # of 7 at 12 a second
    assert captioned.frames(clip, most=1, **size).shape == (1, 64, 96, 3)  # type: ignore[arg-type]
    before = captioned.fingerprint([clip, still])
    (data / "still.txt").write_text("another")
    assert captioned.fingerprint(captioned.find(str(data))) != before


def test_a_folder_that_is_not_whole_is_refused(data: Path, tmp_path: Path) -> None:
    for folder, message in ((tmp_path / "absent", "does not exist"), (tmp_path, "holds no images")):
        with pytest.raises(RequestError, match=message):
            captioned.find(str(folder))
    for contents, message in (
        (b"", "is empty"),
        (b"\xff\xfe", "UTF-8"),
        (b"a" * 70_000, "longer"),
        (None, "no caption"),
    ):
        path = data / "still.txt"
        path.unlink() if contents is None else path.write_bytes(contents)
        with pytest.raises(RequestError, match=message):
            captioned.find(str(data))
    (data / "still.png").unlink()
    (data / "still.txt").write_text("alone")
    with pytest.raises(RequestError, match="belongs to no"):
        captioned.find(str(data))


def test_a_shipped_model_is_trained_with_given_frames(data: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"kind: denoiser\nmodel: nano-i2v\nout: {tmp_path / 'run'}\n"
        f"data: {{source: {data}, batch: 2, seconds: 0.4}}\nloop: {{steps: 2, lr: 1e-4, log_every: 1, bf16: false}}\n"
    )
    assert run_recipe(recipe).name == "dit.safetensors"
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 2 and all(0 < loss < 10 for loss in losses)
    (data / "still.txt").write_text("another caption")
    with pytest.raises(RequestError, match="`data files` was"):
        run_recipe(recipe)
    recipe.write_text(recipe.read_text().replace("nano-i2v", "nano-v2a"))
    with pytest.raises(RequestError, match="cannot be trained by a recipe of this kind"):
        run_recipe(recipe)


def test_an_unreadable_video_of_a_raw_folder_is_skipped_counted_and_named(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, held in (("none", b"no video" * 99), ("empty", b"")):
        (data / f"{name}.mp4").write_bytes(held)
        (data / f"{name}.txt").write_text("a clip")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"kind: denoiser\nmodel: nano-t2v\nout: {tmp_path / 'run'}\n"
        f"data: {{source: {data}, seconds: 0}}\nloop: {{steps: 1, lr: 1e-4, log_every: 1, bf16: false}}\n"
    )
    run_recipe(recipe)
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 1
    told = [one for one in caplog.messages if "left out" in one]
    assert len(told) == 2 and all(any(f"{name}.mp4" in one for one in told) for name in ("none", "empty"))
    assert "2 of 4 examples cannot be used" in caplog.messages


@pytest.mark.slow
def test_an_encoded_data_set_is_trained_as_its_source(data: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)  # nothing is enlarged when it is encoded
    Image.fromarray(rng.integers(0, 255, (96, 96, 3), dtype=np.uint8)).save(data / "still.png")
    kandinsky.Video(rng.integers(0, 255, (14, 96, 96, 3), dtype=np.uint8), fps=24.0, seed=0).save(data / "clip.mp4")
    (data / "clip.txt").rename(data / "clip.en.txt")
    (data / "clip.ru.txt").write_text("клип")
    encoded = encode(data, "nano-i2v", tmp_path / "encoded", seconds=[0.4]).folder
    losses = {}
    for name, source, more in (
        ("files", data, ""),
        ("encoded", encoded, ""),
        ("workers", encoded, ", workers: 1"),
        ("tasks", encoded, ", tasks: {text-to-image: 1, image-to-video: 1}"),
    ):
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(
            f"kind: denoiser\nmodel: nano-i2v\nout: {tmp_path / name}\n"
            f"data: {{source: {source}, batch: 2, seconds: 0.4{more}}}\n"
            "loop: {steps: 4, lr: 1e-4, log_every: 1, bf16: false, accumulate: 2}\n"
        )
        run_recipe(recipe)
        log = (tmp_path / name / "log.jsonl").read_text().splitlines()
        losses[name] = [json.loads(line)["loss"] for line in log]
    assert losses["files"] == pytest.approx(losses["encoded"], rel=1e-4) and losses["encoded"] == losses["workers"]
    assert losses["tasks"] != losses["encoded"]
    few = tmp_path / "few.yaml"
    few.write_text((tmp_path / "encoded.yaml").read_text().replace("batch: 2", "batch: 1"))
    with pytest.raises(RequestError, match=r"`loop\.accumulate` is 2, and a batch has 1 clip:"):
        run_recipe(few, out=tmp_path / "few")
    few.write_text((tmp_path / "encoded.yaml").read_text().replace("seconds: 0.4", "seconds: 0.8"))
    with pytest.raises(
        RequestError, match=r"`data\.seconds` is 0\.8, which are \d+ frames, and the data set was encoded"
    ):
        run_recipe(few, out=tmp_path / "few")
    few.write_text((tmp_path / "encoded.yaml").read_text().replace("nano-i2v", "kandinsky4-t2v"))
    with pytest.raises(RequestError):
        run_recipe(few, out=tmp_path / "few")
