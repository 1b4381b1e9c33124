"""Optical flow and the camera's motion in it, against motions that are known."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from kandinsky.curate.flow import camera_of, flow_between
from kandinsky.curate.measures import View, camera, dynamics, structure
from tiny.raw_videos import scene

W, H = 256, 144


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Texture of several scales, larger than a frame."""
    rng = np.random.default_rng(0)
    whole = np.zeros((400, 600))
    for cells in (12, 40, 120):
        part = rng.integers(0, 256, (cells * 2 // 3, cells), dtype=np.uint8)
        whole += np.asarray(Image.fromarray(part).resize((600, 400), Image.Resampling.BICUBIC), float)
    return whole / whole.max()


def shown(picture: np.ndarray, *, x: float = 0, y: float = 0, zoom: float = 1.0, roll: float = 0.0) -> np.ndarray:
    """A frame of the picture, as a camera sees it whose picture moves by x and y pixels, grows and turns."""
    c, s = np.cos(roll) / zoom, np.sin(roll) / zoom
    cx, cy = W / 2, H / 2
    matrix = (c, s, 300 - c * (cx + x) - s * (cy + y), -s, c, 200 + s * (cx + x) - c * (cy + y))
    image = Image.fromarray(picture.astype(np.float32), "F")
    return np.array(image.transform((W, H), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR))


@pytest.mark.parametrize(("x", "y"), [(0, 0), (3, -2), (11.5, 4.25), (-30, 17), (45, 0)])
def test_shifts_are_found_below_a_pixel(picture: np.ndarray, x: float, y: float) -> None:
    found = camera_of(flow_between(shown(picture), shown(picture, x=x, y=y)))
    assert (found.pan, found.tilt) == (pytest.approx(x, abs=0.3), pytest.approx(y, abs=0.3))
    assert abs(found.zoom) < 0.01 and abs(found.roll) < 0.01 and found.share > 0.7


@pytest.mark.parametrize(("zoom", "roll"), [(1.1, 0.0), (0.93, 0.0), (1.0, 0.06), (1.05, -0.04)])
def test_zoom_and_roll_are_found(picture: np.ndarray, zoom: float, roll: float) -> None:
    found = camera_of(flow_between(shown(picture), shown(picture, zoom=zoom, roll=roll)))
    assert found.zoom == pytest.approx(zoom * np.cos(roll) - 1, abs=0.012)
    assert found.roll == pytest.approx(roll, abs=0.012)


def test_an_object_does_not_pull_the_camera_along(picture: np.ndarray) -> None:
    one, other = shown(picture), shown(picture, x=4)
    rng = np.random.default_rng(1)
    patch = np.kron(rng.random((12, 18)), np.ones((4, 4)))
    one[40:88, 60:132], other[40:88, 72:144] = patch, patch
    found = camera_of(flow_between(one, other))
    assert found.pan == pytest.approx(4, abs=0.4) and abs(found.tilt) < 0.3
    assert found.apart > 4 * camera_of(flow_between(shown(picture), shown(picture, x=4))).apart


def test_what_has_no_texture_has_no_flow() -> None:
    grey = np.full((H, W), 0.5)
    noise = grey + np.random.default_rng(0).normal(0, 0.004, grey.shape)
    assert flow_between(grey, noise).mean == 0 and camera_of(flow_between(grey, noise)).share == 0
    assert flow_between(grey[:6, :5], noise[:6, :5]).shift_hw2.shape == (1, 1, 2)  # of any size


def view(frames: np.ndarray, fps: float = 2.0) -> View:
    return View.of(frames, (np.arange(len(frames)) / fps).tolist(), {})


def test_measures_of_a_pan_and_of_a_still() -> None:
    moving = view(scene(1, 37, pan=1.5)[::6])  # six frames at 12 a second: half a second
    told = camera(moving)
    diagonal = np.hypot(96, 64)
    assert told["pan"] == pytest.approx(-1.5 * 12 / diagonal, rel=0.15) and abs(told["tilt"] or 0) < 0.02
    assert told["camera_motion"] == pytest.approx(abs(told["pan"] or 0), rel=0.1)
    still = view(np.repeat(scene(1, 1), 6, axis=0))
    assert dynamics(still)["dynamicity"] == 0 and (camera(still)["camera_motion"] or 0) < 1e-9
    slow = view(scene(1, 37, pan=0.3)[::6])
    values = [float(dynamics(one)["dynamicity"] or 0) for one in (still, slow, moving)]
    assert values == sorted(values) and 0.5 < values[2] < 1 and structure(still)["structural_change"] == 0
    assert dynamics(view(scene(1, 1))) == {"dynamicity": 0.0, "object_motion": 0.0}
