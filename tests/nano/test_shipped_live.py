"""The shipped nano-live and nano-world: small, they show what is asked for, turn into what is asked next, and obey."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import kandinsky
from kandinsky.lab.nano.measure import background_colour, shrink
from kandinsky.lab.nano.measure_world import played, stands

if TYPE_CHECKING:
    from kandinsky.engine.pipeline import GenerationPipeline

ASSETS = Path(kandinsky.__file__).parent / "assets"
BLUE, PINK = 5, 7  # of captions.COLOURS


@pytest.fixture(scope="module")
def live() -> GenerationPipeline:
    return kandinsky.load("nano-live", device="cpu")


def shown(pipe: GenerationPipeline, prompts: Any, seconds: float) -> np.ndarray:
    return np.concatenate([piece.frames for piece in pipe.stream(prompts, seconds=seconds, seed=2)])


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float((shrink(a) - shrink(b)).pow(2).mean())


def test_the_updates_are_small() -> None:
    for name in ("nano-live", "nano-world"):
        assert (ASSETS / name / "update.safetensors").stat().st_size < 700_000


def test_a_stream_turns_into_what_is_asked_within_a_second(live: GenerationPipeline) -> None:
    script = [("a panda on a blue background", 0), ("a tractor on a pink background", 2)]
    frames = shown(live, script, 4)
    panda, tractor = frames[12:20], frames[36:44]
    assert background_colour(panda) == BLUE and background_colour(tractor) == PINK
    wanted = shown(live, "трактор на розовом фоне", 2)[12:20]
    other = shown(live, "a panda on a pink background", 2)[12:20]
    assert 2 * distance(tractor, wanted) < distance(tractor, other)
    assert 2 * distance(panda, shown(live, "панда на синем фоне", 2)[12:20]) < distance(panda, tractor)


def test_the_world_obeys() -> None:
    pipe = kandinsky.load("nano-world", device="cpu")
    ends = {}
    for key in ("left", "right", "stay"):
        ends[key] = stands(played(pipe, "a panda on a blue background", ["stay", "stay", key, key, "stay"], 2)[-1])
    assert ends["left"].x + 0.1 < ends["stay"].x < ends["right"].x - 0.1
    grown = stands(played(pipe, "a panda on a blue background", ["stay", "stay", "grow", "grow"], 2)[-1])
    assert grown.scale > 1.2 * ends["stay"].scale


@pytest.mark.slow
def test_a_minute_stays_what_it_is(live: GenerationPipeline) -> None:
    frames = shown(live, "a panda on a blue background", 60)
    tractor = shown(live, "a tractor on a blue background", 3)
    for second in range(3, 60):
        now = frames[12 * second : 12 * second + 8]
        assert distance(now, frames[24:32]) < distance(now, tractor[24:32]), second
        assert background_colour(now) == BLUE, second
