"""Kandinsky Video 1.0, 1.1 and Kandinsky 3 from a prompt to frames: real classes at tiny size, the official files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import kandinsky
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.errors import RequestError, WeightsError
from kandinsky.families.kandinsky_video1 import keyframes as stages
from tiny import unets as tiny

PROMPT = "a cat in a red hat"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("unets") / "all")


@pytest.fixture(autouse=True)
def tiny_cards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KANDINSKY_CARDS", str(folder / "cards"))


def load(folder: Path, model: str, **options: object) -> GenerationPipeline:
    return kandinsky.load(model, weights=folder / "weights", device="cpu", text_cache=False, **options)  # type: ignore


@pytest.mark.parametrize("model", ["kandinsky3.0", "kandinsky3.1-flash"])
def test_an_image_from_text(folder: Path, model: str) -> None:
    pipe = load(folder, model)
    steps = None if model.endswith("flash") else 3
    image = pipe(PROMPT, size="128x64", steps=steps, seed=3)
    assert image.frames.shape == (1, 64, 128, 3)
    assert np.array_equal(image.frames, pipe(PROMPT, size="128x64", steps=steps, seed=3).frames)
    assert not np.array_equal(image.frames, pipe(PROMPT, size="128x64", steps=steps, seed=4).frames)
    assert not np.array_equal(image.frames, pipe("a snow cat", size="128x64", steps=steps, seed=3).frames)


@pytest.mark.parametrize(
    ("model", "first"),
    [("kandinsky-video-1.0", False), pytest.param("kandinsky-video-1.1", True, marks=pytest.mark.slow)],
)
@pytest.mark.slow
def test_a_clip_from_text(folder: Path, model: str, first: bool) -> None:
    pipe = load(folder, model)
    seen: list[tuple[int, int]] = []
    slow = pipe(PROMPT, steps=3, seed=3)
    video = pipe(PROMPT, steps=3, fps="medium", seed=3, on_step=lambda step, total, _: seen.append((step, total)))
    assert len(slow.frames) == 4
    assert video.frames.shape == (13, 64, 64, 3)
    assert len(pipe(PROMPT, steps=1, fps="high", seed=3).frames) == 49
    total = 3 * (2 if first else 1) + 3
    assert seen == [(i + 1, total) for i in range(total)]
    assert video.recipe["rate"] == "medium"
    # the key frames of a seed are the same at every rate, up to the pieces the decoder takes them in
    context, job = pipe.context, pipe.resolve(kandinsky.Request(model, PROMPT, steps=3, seed=3))
    text, nothing = stages.encode(context, job)
    made = stages.KeyframesMade((job,), text=text, negative=nothing)
    made = pipe.drive(stages.FirstFrame()(context, made), None)
    key = pipe.drive(stages.sample_keyframes(context, job, text, nothing, made.first), None)
    filled = pipe.drive(stages.fill_gaps_of(context, job, key, text, nothing), None)
    assert torch.equal(filled[:, ::4], key)
    assert not torch.allclose(filled[:, 1], key[:, 0])


@pytest.mark.slow
def test_a_clip_from_a_picture_with_motion(folder: Path) -> None:
    pipe = load(folder, "kandinsky-video-1.1")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 90, 3), dtype=np.uint8))
    runs = {
        motion: pipe(PROMPT, image=picture, size="64x64", steps=2, seed=3, motion=motion).frames
        for motion in (None, "medium", "high")
    }
    assert runs[None].shape == (4, 64, 64, 3)
    # the default is a name of the table, and means medium
    assert np.array_equal(runs[None], runs["medium"])
    assert not np.array_equal(runs[None], runs["high"])
    made = pipe(PROMPT, size="64x64", steps=2, seed=3)
    assert not np.array_equal(runs[None], made.frames)
    # a picture smaller than the clip fills it: no black border
    resolved = pipe.resolve(kandinsky.Request(pipe.card.id, PROMPT, image=picture, width=64, height=64))
    assert resolved.image is not None
    assert resolved.image.pixels().size == (64, 64)


@pytest.mark.parametrize("model", ["kandinsky-video-1.0", pytest.param("kandinsky-video-1.1", marks=pytest.mark.slow)])
def test_a_negative_prompt_counts(folder: Path, model: str) -> None:
    pipe = load(folder, model)
    plain, against = (pipe(PROMPT, steps=2, seed=3, negative_prompt=text).frames for text in (None, "snow"))
    assert not np.array_equal(plain, against)


@pytest.mark.slow
def test_only_networks_in_use_are_read(folder: Path) -> None:
    pipe = load(folder, "kandinsky-video-1.0")
    pipe(PROMPT, steps=2, seed=3)
    assert "interpolation" not in pipe.placement._built
    pipe(PROMPT, steps=2, seed=3, fps="medium")
    assert "interpolation" in pipe.placement._built


@pytest.mark.slow
@pytest.mark.parametrize("offload", ["block", "module"])
def test_placement_changes_nothing(folder: Path, offload: str) -> None:
    plain = load(folder, "kandinsky-video-1.1")(PROMPT, steps=2, seed=3, fps="medium")
    moved = load(folder, "kandinsky-video-1.1", offload=offload)(PROMPT, steps=2, seed=3, fps="medium")
    assert np.array_equal(plain.frames, moved.frames)


def test_a_kept_latent_gives_the_same_frames(folder: Path, tmp_path: Path) -> None:
    pipe = load(folder, "kandinsky-video-1.1")
    video = pipe(PROMPT, steps=2, seed=3, keep_latent=tmp_path / "kept.safetensors")
    assert np.array_equal(video.frames, pipe.finish(tmp_path / "kept.safetensors").frames)


@pytest.mark.parametrize(
    ("model", "changes", "said"),
    [
        ("kandinsky-video-1.0", {"fps": "fast"}, "fps `fast` is not supported .* use `low`, `medium` or `high`"),
        ("kandinsky-video-1.0", {"motion": "high"}, "takes no motion"),
        ("kandinsky-video-1.1", {"motion": "wild"}, "motion `wild` .* `normal`, `high` or `extreme`"),
        ("kandinsky-video-1.0", {"size": "100x64"}, "size `100x64` .* multiples of 64"),
        ("kandinsky-video-1.0", {"seconds": 2}, "length of .* is fixed"),
        ("kandinsky-video-1.0", {"steps": 1001}, "1001"),
        (
            "kandinsky-video-1.0",
            {"interpolation_guidance": -1},
            "interpolation guidance `-1` is out of range: use 0 to 100",
        ),
        ("kandinsky-video-1.0", {"image": "cat.png"}, "takes no image"),
        ("kandinsky3.0", {"fps": "low"}, "makes no keyframes"),
        ("kandinsky3.1-flash", {"steps": 20}, "steps `20`"),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_read(
    folder: Path, model: str, changes: dict[str, object], said: str
) -> None:
    pipe = load(folder, model)
    with pytest.raises(RequestError, match=said):
        pipe(PROMPT, seed=1, **changes)  # type: ignore[arg-type]
    assert pipe.placement._built == {}


def test_one_step_runs(folder: Path) -> None:
    """The official code has no table of variances for it."""
    assert len(load(folder, "kandinsky-video-1.0")(PROMPT, steps=1, seed=3).frames) == 4


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_latents_are_decoded(folder: Path, count: int) -> None:
    """The official code cuts them into no pieces at all."""
    latents = torch.randn(1, count, 8, 8, 4, generator=torch.Generator().manual_seed(count))
    assert load(folder, "kandinsky-video-1.1").decode(latents).shape == (1, count, 64, 64, 3)


@pytest.mark.parametrize("bits", ["int8", pytest.param("nf4", marks=pytest.mark.slow)])
def test_a_text_encoder_in_few_bits(folder: Path, bits: str) -> None:
    request = {"image": Image.new("RGB", (64, 64), (90, 20, 30)), "size": "64x64", "steps": 1, "seed": 3}
    exact = load(folder, "kandinsky-video-1.1")(PROMPT, **request)
    small = load(folder, "kandinsky-video-1.1", quantize={"text": bits}, offload="block")(PROMPT, **request)
    assert small.recipe["quantize"] == {"text": bits}
    assert not np.array_equal(exact.frames, small.frames)


def test_a_plan_counts_what_a_clip_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KANDINSKY_CARDS")  # at full size
    low, high, small = (
        kandinsky.plan("kandinsky-video-1.1", memory="80GB", **how)
        for how in ({}, {"fps": "high"}, {"fps": "high", "quantize": "text=nf4"})
    )
    assert "interpolation" not in low.components and high.frames > low.frames
    assert high.placements["none"] - low.placements["none"] >= high.components["interpolation"].weights
    assert small.components["text"].weights < 0.3 * high.components["text"].weights
    assert high.placements["block"] < high.placements["module"] < high.placements["none"]


def test_a_file_of_another_network_names_the_tensor(folder: Path, tmp_path: Path) -> None:
    for file in (folder / "weights").iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "kandinsky_video.pt").unlink()
    (tmp_path / "kandinsky_video.pt").symlink_to(folder / "weights" / "kandinsky3.pt")
    with pytest.raises(WeightsError, match=r"tensor `to_temporal_embed\.1\.weight` is missing"):
        kandinsky.load("kandinsky-video-1.0", weights=tmp_path, device="cpu")


def test_a_lora_that_is_not_there_is_said_before_weights_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"LoRA `nowhere\.safetensors` is not there"):
        kandinsky.load("kandinsky3.1-flash", weights=tmp_path, device="cpu", lora="nowhere.safetensors")


@pytest.mark.parametrize("model", ["kandinsky3.0", "kandinsky-video-1.1"])
def test_a_step_cache_is_refused_before_anything_is_read(folder: Path, model: str) -> None:
    pipe = load(folder, model)
    with pytest.raises(RequestError, match="supports no step cache"):
        pipe(PROMPT, cache="taylor")
    assert pipe.placement._built == {}
    with pytest.raises(RequestError, match="supports no step cache"):
        load(folder, model, cache="first-block")
