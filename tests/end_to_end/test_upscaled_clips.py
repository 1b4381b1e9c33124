"""Clips made larger in a second stage, with the real classes at tiny size: Kandinsky 5 (two layouts, i2v), 4, Nano."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import kandinsky
from kandinsky import Video, catalogue
from kandinsky.diffusion.schedule import flow_times
from kandinsky.diffusion.tiles import Tiles, starts
from kandinsky.engine import enlarge
from kandinsky.engine.build import build
from kandinsky.engine.options import RunOptions
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.engine.plan import plan_resolved
from kandinsky.engine.request import resolve
from kandinsky.errors import RequestError
from kandinsky.media import recipe as recipes
from kandinsky.model.values import Request
from tiny import kandinsky4

PROMPT = "a cat in a red hat"
KINDS = ("t2v", "diffusers", "i2v", "k4")
LONGEST = 17  # frames
OPTIONS: dict[str, Any] = {"steps": 2, "seed": 7, "progress": False}


@pytest.fixture(scope="module")
def pipes(folder_of: Callable[[str, str], Path], tmp_path_factory) -> dict[str, GenerationPipeline]:
    """One of each network; none makes more than 17 frames of 64x64 at once."""
    where = {"t2v": ("t2v", "official"), "diffusers": ("t2v", "diffusers"), "i2v": ("i2v", "official")}
    made = {kind: kandinsky.load(folder_of(*place), device="cpu") for kind, place in where.items()}
    folder = kandinsky4.write(tmp_path_factory.mktemp("k4") / "all")
    card = catalogue.read(folder / "cards" / "tiny.toml")
    made["k4"] = GenerationPipeline(build(card, RunOptions(device="cpu"), root=folder / "weights"))
    for pipe in made.values():
        longest = LONGEST / pipe.card.clip.fps
        clip = dataclasses.replace(
            pipe.card.clip, sizes=("64x64",), default_size="64x64", max_seconds=longest, seconds=longest, overlap=None
        )
        classes = {name: dataclasses.replace(c, area=64 * 64, multiple=16) for name, c in pipe.card.classes.items()}
        pipe.card = dataclasses.replace(pipe.card, clip=clip, classes=classes)
    return made


def pattern(frames: int, side: int = 64) -> np.ndarray:
    y, x = np.mgrid[0:side, 0:side] / 20
    waves = [np.stack([np.sin(x + t / 4), np.cos(y - t / 5), np.sin(x * y)], -1) for t in range(frames)]
    return (127.5 + 120 * np.stack(waves)).astype(np.uint8)


def asked(pipe: GenerationPipeline, frames: int, **changes: Any) -> dict[str, Any]:
    image = {"image": pattern(1)[0]} if pipe.card.does.image == "required" else {}
    return {"seconds": frames / pipe.card.clip.fps, **image, **OPTIONS, **changes}


@given(st.integers(1, 300), st.integers(1, 96), st.data())
@settings(max_examples=60)
def test_tiles_cover_an_axis_evenly(size: int, tile: int, data: st.DataObject) -> None:
    tile = min(tile, size)
    overlap = data.draw(st.integers(0, tile - 1))
    begins = starts(size, tile, overlap)
    assert begins[0] == 0 and begins[-1] == size - tile
    assert all(0 < b - a <= tile - overlap for a, b in itertools.pairwise(begins))
    assert begins[1:] == () or max(np.diff(begins)) - min(np.diff(begins)) <= 1


@given(st.integers(8, 40), st.integers(8, 40), st.integers(3, 12), st.integers(3, 12))
@settings(max_examples=30, deadline=None)
def test_tiles_that_agree_are_the_whole(rows: int, columns: int, height: int, width: int) -> None:
    tiles = Tiles.over(rows, columns, tile=(height, width), overlap=(height // 3, width // 3))
    x = torch.randn(1, 2, rows, columns, 3, generator=torch.Generator().manual_seed(rows * columns))
    parts = [tiles.cut(x, place) for place in tiles.places]
    assert all(part.shape[2:4] == (tiles.height, tiles.width) for part in parts)
    torch.testing.assert_close(tiles.blended(parts), x, rtol=1e-5, atol=1e-5)
    # where tiles differ, what is blended lies between them and has no step as large as theirs
    steps = [torch.full_like(part, float(number % 2)) for number, part in enumerate(parts)]
    out = tiles.blended(steps)
    assert float(out.min()) >= 0 and float(out.max()) <= 1
    mask = torch.ones(1, 2, 1, 1, 1, dtype=torch.bool)
    assert tiles.cut(mask, tiles.places[-1]).shape == mask.shape


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_is_made_larger(pipes, kind: str) -> None:
    pipe = pipes[kind]
    steps: list[tuple[int, int]] = []
    options = asked(pipe, 9)
    small = pipe(PROMPT, **options)
    large = pipe(
        PROMPT, upscale="112x96", upscale_strength=0.9,
        on_step=lambda step, total, preview: steps.append((step, total)), **options,
    )  # fmt: skip
    assert large.frames.shape == (9, 96, 112, 3) and len(small) == 9
    assert large.recipe["upscale"] == "112x96" and large.recipe["width"] == 64
    assert steps == sorted(steps) and steps[-1][0] == steps[-1][1] == len(steps)
    again = pipe(PROMPT, upscale="112x96", upscale_strength=0.9, **options)
    assert np.array_equal(again.frames, large.frames)
    other = pipe(PROMPT, upscale="112x96", upscale_strength=0.9, **(options | {"seed": 8}))
    assert not np.array_equal(other.frames, large.frames)
    command = recipes.command(large.recipe)
    assert "--upscale 112x96 --upscale-strength 0.9" in command and "--size 64x64" in command


def test_one_tile_is_the_source_with_strength(pipes) -> None:
    """What a second stage does of one tile is what `strength` does of the fitted clip, but for the noise."""
    pipe = pipes["t2v"]
    clip = Video(pattern(9), pipe.card.clip.fps)
    seen: list[torch.Tensor] = []
    begin = enlarge.SmallClip.begin

    def watched(self, window):
        seen.append(begin(self, window))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(enlarge.SmallClip, "begin", watched)
        made = pipe(PROMPT, video=clip, upscale="64x96", **OPTIONS)
    assert made.frames.shape == (9, 96, 64, 3)
    fitted = np.stack(
        [np.asarray(Image.fromarray(one).resize((96, 96), Image.Resampling.BICUBIC)) for one in clip.frames]
    )
    with torch.no_grad(), pipe.placement.hold("vae") as vae:
        whole = vae.encode(torch.from_numpy(fitted[:, :, 16:80])[None].float() / 127.5 - 1)
    assert seen[0].shape == whole.shape == (1, 3, 12, 8, whole.shape[-1])


@pytest.mark.parametrize("kind", ["t2v", "i2v"])
def test_a_long_clip_is_made_larger_window_by_window_and_goes_on(pipes, kind: str, tmp_path: Path) -> None:
    pipe = pipes[kind]
    options = asked(pipe, 33, upscale=1.5)
    whole = pipe(PROMPT, keep_latent=tmp_path / "kept", **options)
    assert whole.frames.shape == (33, 96, 96, 3)
    files = sorted(one.name for one in (tmp_path / "kept").iterdir())
    count = len([name for name in files if "-large" in name])
    assert count > 1 and len(files) == 2 * count
    # the last two windows of the second stage are lost, and one of the first
    for name in (*[name for name in files if "-large" in name][-2:], "00001.latent.safetensors"):
        (tmp_path / "kept" / name).unlink()
    steps: list[int] = []
    again = pipe(PROMPT, keep_latent=tmp_path / "kept", on_step=lambda step, *_: steps.append(step), **options)
    assert np.array_equal(again.frames, whole.frames) and 0 < len(steps) < 2 * count * 2


def test_a_video_of_any_length_is_made_larger_as_it_is(pipes) -> None:
    pipe = pipes["t2v"]
    clip = Video(pattern(25), pipe.card.clip.fps)
    made = pipe(PROMPT, video=clip, upscale=2, upscale_strength=0.01, **OPTIONS)
    assert made.frames.shape == (25, 128, 128, 3)
    assert "video" in made.recipe and recipes.command(made.recipe)
    with pytest.raises(RequestError, match="in one stage: leave `image=…` out"):
        pipe(PROMPT, video=clip, upscale=2, image=pattern(1)[0], **OPTIONS)
    with pytest.raises(RequestError, match="has 25 frames at 24 a second"):
        pipe(PROMPT, video=clip, upscale=2, seconds=5, **OPTIONS)


def test_a_batch_is_made_larger_one_by_one(pipes) -> None:
    pipe = pipes["t2v"]
    options = asked(pipe, 5, upscale="96x96")
    both = pipe([PROMPT, "a dog"], **(options | {"seed": [7, 9]}))
    alone = pipe(PROMPT, **options)
    assert [len(one) for one in both] == [5, 5] and both[1].frames.shape[1:3] == (96, 96)
    assert np.abs(both[0].frames.astype(int) - alone.frames).max() <= 2


def test_what_cannot_be_made_larger_is_refused(pipes) -> None:
    pipe = pipes["t2v"]
    for values, words in [
        ({"upscale": "100x96"}, "use multiples of 8 up to 2048, such as `96x96`"),
        ({"upscale": "4096x4096"}, "use multiples of 8 up to 2048, such as `2048x2048`"),
        ({"upscale": "large"}, "is no size: use WIDTHxHEIGHT"),
        ({"upscale": 1}, "use a factor above 1, up to 8"),
        ({"upscale": 99}, "use a factor above 1, up to 8"),
        ({"upscale": "64x64"}, "is not larger than 64x64"),
        ({"upscale": "128x32"}, "is not larger than 64x64"),
        ({"upscale": 2, "upscale_strength": 0.0}, "use a number above 0, up to 1"),
        ({"upscale_strength": 0.5}, "none was asked for: give `upscale=2`"),
    ]:
        with pytest.raises(RequestError, match=words) as caught:
            pipe.resolve(Request(pipe.card.id, PROMPT, **values))
        assert "\n" not in str(caught.value)
    for name in ("kandinsky-video-1.1", "kandinsky3.0-inpaint", "kandinsky5-lite-i2i"):
        card = catalogue.find(name)
        with pytest.raises(RequestError, match="larger in a second stage"):
            catalogue.plan(card.id, upscale=2)


def test_the_plan_counts_tiles_and_their_steps() -> None:
    plain = catalogue.plan("nano-t2v", seconds=2, steps=10)
    large = catalogue.plan("nano-t2v", seconds=2, steps=10, upscale="240x168", upscale_strength=0.9)
    assert (large.size, large.tile, large.tiles) == ("240x168", "96x96", 3 * 2)
    taken = len([t for t in flow_times(10, 5.0)[:-1] if t <= 0.9])
    assert large.passes == plain.passes + 2 * 6 * taken
    assert large.times["dit"] == pytest.approx(plain.times["dit"] * (1 + 6 * taken / 10), rel=0.01)
    assert large.times["vae"] > plain.times["vae"]
    job = resolve(
        Request("nano-t2v", PROMPT, video=Video(pattern(25, 96), 12.0), upscale=2), catalogue.find("nano-t2v")
    )
    assert plan_resolved(job).passes < large.passes  # no first stage
    full = catalogue.plan("kandinsky5-lite-t2v-sft-5s", upscale="1920x1080", memory="24GB")
    base = catalogue.plan("kandinsky5-lite-t2v-sft-5s", width=768, height=512, memory="24GB")
    assert (full.size, full.tile, full.tiles, base.tiles) == ("1920x1080", "768x512", 9, 0)
    assert full.seconds > 2 * base.seconds
