"""What stands on one colour is put on white, and nothing else is changed."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from kandinsky.catalogue import find
from kandinsky.engine.request import resolve
from kandinsky.media.grounds import ground_of, on_white
from kandinsky.model.values import Request


def disc(ground: tuple[int, int, int], inside: tuple[int, int, int] = (220, 30, 40), side: int = 96) -> np.ndarray:
    """A disc with a soft edge and a hole, in which the ground's colour is seen; uint8."""
    y, x = np.mgrid[0:side, 0:side] - (side - 1) / 2
    away = np.hypot(x, y)
    alpha = (np.clip(30 - away, 0, 1) * np.clip(away - 8, 0, 1))[..., None]
    mixed: np.ndarray = (alpha * np.array(inside) + (1 - alpha) * np.array(ground)).round().astype(np.uint8)
    return mixed


@pytest.mark.parametrize("ground", [(40, 75, 205), (10, 10, 10), (255, 210, 60), (200, 200, 200)])
def test_a_drawing_on_a_colour_is_as_it_is_on_white(ground: tuple[int, int, int]) -> None:
    found, wanted = on_white(disc(ground)), disc((255, 255, 255))
    assert found is not None and found.dtype == np.uint8
    outside = np.hypot(*np.mgrid[-47.5:48, -47.5:48]) > 12
    off = np.abs(found.astype(int) - wanted).max(-1)[outside]
    assert (off > 12).mean() < 0.04 and off.mean() < 3  # a thin edge keeps some of the ground
    assert np.array_equal(found[46:50, 46:50], disc(ground)[46:50, 46:50])  # a hole is no ground: it may be an eye


def test_white_stays_and_a_photograph_has_no_ground() -> None:
    white = disc((250, 252, 255))
    assert on_white(white) is white
    assert on_white(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)) is None
    halves = np.zeros((32, 32, 3), np.uint8)
    halves[:, 16:] = 200
    assert on_white(halves) is None


def test_the_models_own_branch_sees_references_on_white(caplog: pytest.LogCaptureFixture) -> None:
    card = find("nano-t2v")

    def seen(image: np.ndarray) -> np.ndarray:
        job = resolve(Request("nano-t2v", "an emoji", reference=image), card)
        frames: np.ndarray = job.conditions[0].data.frames_THWC[0]  # type: ignore[union-attr]
        return frames

    with caplog.at_level(logging.WARNING):  # which the command line prints
        assert seen(disc((40, 75, 205)))[:10].min() >= 250
    assert "is put on white" in caplog.text and "is a clip" not in caplog.text
    noise = np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8)
    assert np.array_equal(seen(noise), noise) and "has no plain ground" in caplog.text
    assert find("nano-i2v").references_on == "white" and not find("kandinsky5-lite-t2v-sft-5s").references_on


def test_of_a_clip_as_a_reference_the_first_frame_is_used_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    frames = np.stack([disc((255, 255, 255), inside) for inside in ((220, 30, 40), (20, 30, 240))])
    job = resolve(Request("nano-t2v", "an emoji", reference=frames), find("nano-t2v"))
    assert np.array_equal(job.conditions[0].data.frames_THWC, frames[:1])  # type: ignore[union-attr]
    assert "a reference one image: its first frame is used" in caplog.text


@pytest.mark.parametrize("side", [96, 192])
def test_a_ground_that_changes_slowly_is_one_and_a_thing_of_its_colour_in_the_subject_is_none(side: int) -> None:
    """Paper lighter above than below, with the grain of a camera; the subject has a window of its colour."""
    shade = np.linspace(235, 190, side)[:, None, None] * np.ones((side, side, 3))
    image = shade + np.random.default_rng(0).normal(0, 2, shade.shape)
    low, high = side // 3, 2 * side // 3
    image[low:high, low:high] = (40, 80, 200)
    image[low + 6 : low + 16, low + 6 : low + 16] = shade[low + 6 : low + 16, low + 6 : low + 16]
    ground = ground_of(image.clip(0, 255).round().astype(np.uint8))
    assert ground is not None
    assert np.abs(ground.colour_HWC - shade).max() < 5
    assert ground.alpha_HW[low:high, low:high].min() > 0.95 and ground.alpha_HW[: low - 2].max() < 0.2
