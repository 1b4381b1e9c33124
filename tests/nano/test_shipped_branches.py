"""The branches that nano-t2v ships: small, used without being named, and followed better than the model alone does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kandinsky
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.lab.nano.branches import edge_score
from kandinsky.media import recipe as recipes

ASSETS = Path(kandinsky.__file__).parent / "assets" / "nano-t2v"
SIDE = 96
OPTIONS: dict[str, Any] = {"steps": 12, "progress": False}


@pytest.fixture(scope="module")
def pipe() -> GenerationPipeline:
    return kandinsky.load("nano-t2v", device="cpu")


def drawn(left: float, rgb: tuple[int, int, int] = (220, 60, 40)) -> np.ndarray:
    """A disc with a hole on white, which is no emoji, [H, W, 3]."""
    y, x = np.mgrid[:SIDE, :SIDE]
    away = np.hypot(x - left, y - 48)
    image = np.full((SIDE, SIDE, 3), 255, np.uint8)
    image[(away < 34) & (away > 14)] = rgb
    return image


def test_both_are_small() -> None:
    sizes = [(ASSETS / f"{kind}.safetensors").stat().st_size for kind in ("control", "reference")]
    assert sum(sizes) < 700_000


def test_a_control_needs_no_file_and_recipes_name_none(pipe: GenerationPipeline, tmp_path: Path) -> None:
    made = pipe("an emoji on a white background", control=drawn(48), seconds=0, steps=1, seed=1, progress=False)
    (one,) = made.recipe["conditions"]
    assert one["control"] and "branch" not in one and len(one["branch_sha256"]) == 64
    assert "--control CONTROL" in recipes.command(made.recipe) and "--branch" not in recipes.command(made.recipe)
    animated = kandinsky.load("nano-i2v", device="cpu")
    shown = animated("", image=drawn(48), reference=drawn(48), seconds=0.4, steps=1, progress=False)
    assert shown.frames.shape == (5, SIDE, SIDE, 3)


@pytest.mark.slow
def test_edges_are_followed_better_than_without(pipe: GenerationPipeline) -> None:
    """A bar that moves to the right, which is no emoji, and a panda that no word names."""
    bars = np.full((25, SIDE, SIDE, 3), 255, np.uint8)
    for t in range(25):
        bars[t, 8:88, 10 + t : 36 + t] = (220, 60, 40)
    panda = pipe("a panda on a red background", seed=1, seconds=2, **OPTIONS)
    told: tuple[tuple[kandinsky.Video, str], ...] = ((kandinsky.Video(bars, 12.0), "white"), (panda, "red"))
    for clip, colour in told:
        alone, followed = (
            edge_score(
                pipe(f"an emoji on a {colour} background", seed=2, seconds=2, control=given, **OPTIONS).frames,
                clip.frames,
            )
            for given in (None, clip)
        )
        assert followed > alone + 0.15, (alone, followed)


@pytest.mark.slow
def test_what_a_reference_shows_is_shown(pipe: GenerationPipeline) -> None:
    """The middle of the result has the colour that the reference has there, for colours of no emoji that it names."""
    prompt = "an emoji on a white background"
    alone = pipe(prompt, seed=3, seconds=0, **OPTIONS).frames[0]
    for rgb in ((40, 70, 220), (40, 160, 60)):
        image = drawn(48, rgb)
        shown = pipe(prompt, seed=3, seconds=0, reference=image, **OPTIONS).frames[0]
        off = [float(((one.astype(float) - image) ** 2).mean()) for one in (shown, alone)]
        assert off[0] < 0.6 * off[1], (rgb, off)
