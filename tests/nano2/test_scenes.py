"""Scenes of the second Nano: the numbers, the drawing and what the network is told of them agree."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scenes_for_tests import DrawnSources

from kandinsky.families.nano.draft import draw
from kandinsky.families.nano.geometry import (
    CANVAS,
    CHANNELS,
    OCTAVES,
    Packed,
    condition_channels,
    latent_track,
    own_frame,
    packed,
    subject_channels,
)
from kandinsky.families.nano.scenes import BACKDROPS, CAMERAS, MOTIONS, RGB, Scene, Subject, track
from kandinsky.lab.nano.captions import COLOURS, held_colours
from kandinsky.lab.nano.concepts import load_concepts
from kandinsky.lab.nano2.catalogue import catalogue
from kandinsky.lab.nano2.random_scenes import draw_scene
from kandinsky.lab.nano2.render import render

BLACK = next(i for i, c in enumerate(COLOURS) if c.en == "black")
WAVES = 4 * OCTAVES


def latent_of(scene: Scene) -> torch.Tensor:
    """The numbers of a scene's latent frames."""
    return latent_track(torch.from_numpy(track(scene)).float())


def centre_of_light(frame_HWC: torch.Tensor) -> tuple[float, float]:
    """Where the bright pixels lie, as shares of the side, right and down."""
    light = (frame_HWC.mean(-1) + 1 - 2 * 15 / 255).clamp_min(0)
    light = light * (light > 0.5)
    at = (torch.arange(len(light)) + 0.5) / len(light)
    return float((light.sum(0) * at).sum() / light.sum()), float((light.sum(1) * at).sum() / light.sum())


def test_the_first_concepts_keep_their_numbers() -> None:
    entries = catalogue()
    assert entries[:396] == load_concepts()
    assert len({e.file for e in entries}) == len(entries) >= 500
    assert all(e.en and e.ru for e in entries)


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("camera", [None, *CAMERAS])
def test_what_is_drawn_stands_where_the_track_says(motion: str, camera: str | None) -> None:
    scene = Scene((Subject(0, 0.45, 0.52, 0.5),), colours=(BLACK, None), motion=motion, camera=camera)
    video, path = render(scene, DrawnSources(), side=96), track(scene)  # type: ignore[arg-type]
    for t in (2, 9, 17, 24):
        x, y, size, _, opacity = path[0, t]
        half = size / 4 * math.sqrt(2)
        if not (half < x < 1 - half and half < y < 1 - half) or opacity < 0.6:
            continue  # partly outside, or too faint to be found
        assert centre_of_light(video[t]) == pytest.approx((x, y), abs=0.01)
        lit = float((video[t].mean(-1) > 0).float().mean())
        if opacity == 1:
            assert lit == pytest.approx((size / 2) ** 2, rel=0.25)


def test_motions_go_where_they_say() -> None:
    def ends(motion: str) -> np.ndarray:
        path = track(Scene((Subject(0),), motion=motion))[0]
        return path[-1] - path[0]

    assert ends("moves right")[0] > 0.4 and ends("moves left")[0] < -0.4
    assert ends("moves up")[1] < -0.4 and ends("moves down")[1] > 0.4
    assert ends("grows")[2] > 0.4 and ends("shrinks")[2] < -0.4
    assert ends("spins")[3] == pytest.approx(2 * math.pi)
    assert ends("fades in")[4] == pytest.approx(1)


def test_a_turn_is_clockwise() -> None:
    class Corner(DrawnSources):
        def frames(self, concept: int | None, row: int | None = None, *, count: int = 25) -> torch.Tensor:
            image = torch.zeros(1, 4, 160, 160)
            image[:, :, 60:100, 100:140] = 1  # to the right of the middle
            return image

    scene = Scene((Subject(0, size=0.8),), colours=(BLACK, None), motion="spins")
    x, y = centre_of_light(render(scene, Corner(), side=96)[6])  # type: ignore[arg-type]
    assert y > 0.6 and x == pytest.approx(0.5, abs=0.02)  # after a quarter it is below


def test_opacity_and_backgrounds_mix_exactly() -> None:
    scene = Scene((Subject(0),), colours=(2, None), motion="fades in")
    frame = render(scene, DrawnSources(), side=96)[8]  # type: ignore[arg-type]
    opacity = track(scene)[0, 8, 4]
    want = torch.tensor(COLOURS[2].rgb).div(127.5).sub(1).mul(1 - opacity) + opacity
    assert torch.allclose(frame[48, 48], want.float(), atol=1e-3)
    assert torch.allclose(frame[0, 0], torch.tensor(COLOURS[2].rgb).div(127.5).sub(1), atol=1e-3)


def test_two_part_backgrounds() -> None:
    def corner(backdrop: str, y: int, x: int) -> torch.Tensor:
        scene = Scene((Subject(0, size=0.2),), backdrop, colours=(0, 5))  # type: ignore[arg-type]
        return render(scene, DrawnSources(), side=64)[0, y, x]  # type: ignore[arg-type]

    red, blue = (torch.tensor(COLOURS[i].rgb).div(127.5).sub(1) for i in (0, 5))
    for backdrop, first, second in (("halves", (32, 2), (32, 61)), ("ground", (2, 32), (61, 32))):
        assert torch.allclose(corner(backdrop, *first), red, atol=1e-3)
        assert torch.allclose(corner(backdrop, *second), blue, atol=1e-3)
    assert torch.allclose((corner("gradient", 0, 0) + corner("gradient", 63, 0)) / 2, (red + blue) / 2, atol=1e-3)


def test_held_colours_are_never_drawn_behind_their_concept() -> None:
    rng = np.random.default_rng(3)
    kinds = set()
    for _ in range(600):
        scene = draw_scene(rng, concepts=len(catalogue()))
        kinds.add((scene.arrangement, scene.motion is not None, scene.camera is not None, scene.backdrop))
        if len({s.concept for s in scene.subjects}) == 1:
            held = held_colours(catalogue()[scene.subjects[0].concept or 0])
            assert not set(held).intersection(c for c in scene.colours if c is not None)
    assert len(kinds) > 8


def test_coordinates_are_the_subjects_own() -> None:
    """The same place on the subject has the same waves, wherever it stands, however large and turned it is."""

    def at(x: float, y: float, size: float, column: int) -> torch.Tensor:
        numbers = latent_of(Scene((Subject(0, x, y, size),)))
        channels = subject_channels(numbers, *own_frame(numbers[..., :5], 12, 12))
        return channels[0, 5, column, :WAVES]

    left = at((3 + 0.5) / 12, 5.5 / 12, 0.4, 4)  # one place to the right of the middle, at 0.4 of the side
    right = at((7 + 0.5) / 12, 5.5 / 12, 0.8, 9)  # two places to the right, twice as large
    assert torch.allclose(left, right, atol=1e-4)
    assert not torch.allclose(left, at((3 + 0.5) / 12, 5.5 / 12, 0.8, 4), atol=0.1)


def test_each_place_belongs_to_the_nearest_subject() -> None:
    scene = Scene((Subject(0, 0.25, 0.5, 0.4), Subject(1, 0.75, 0.5, 0.4)), arrangement="side by side")
    numbers = latent_of(scene)
    which = subject_channels(numbers, *own_frame(numbers, 12, 12))[..., WAVES : WAVES + 3]
    assert (which[:, :, :6, 0] == 1).all() and (which[:, :, 6:, 1] == 1).all()


def test_unknown_places_leave_the_canvas_alone() -> None:
    known = packed([None, Scene((Subject(0),))])
    channels = condition_channels(known, frames=4, rows=12, columns=12, channels=192)
    assert channels.shape == (2, 4, 12, 12, 193)
    assert torch.equal(channels[0, ..., :CANVAS], channels[1, ..., :CANVAS])
    assert not channels[0, ..., CANVAS:].any() and channels[1, ..., CANVAS:CHANNELS].any()
    assert not channels[..., CHANNELS:].any()


def test_a_scene_is_the_same_after_its_travel() -> None:
    scene = Scene((Subject(0, 0.3), Subject(1, 0.8)), "ground", (2, 5), motion="jumps")
    found = Packed.of(packed([scene])[0])
    assert found is not None and found.subjects == 2 and BACKDROPS[found.backdrop] == "ground"
    assert np.allclose(found.path_SF5.numpy(), track(scene), atol=1e-6)
    assert torch.allclose(found.colours_23, torch.tensor([COLOURS[2].rgb, COLOURS[5].rgb]) / 255)
    assert torch.equal(found.row(), packed([scene])[0]) and Packed.of(packed([None])[0]) is None


def test_the_colours_are_those_of_captions() -> None:
    assert tuple(colour.rgb for colour in COLOURS) == RGB


def test_a_draft_of_the_real_images_is_the_real_clip() -> None:
    scene = Scene((Subject(0, 0.4, 0.5, 0.6), Subject(2, 0.7)), "gradient", (2, 5), motion="spins")
    sources, known = DrawnSources(), Packed.of(packed([scene])[0])
    assert known is not None
    images = torch.stack([sources.frames(s.concept).expand(25, -1, -1, -1) for s in scene.subjects])
    real = render(scene, sources, side=96)  # type: ignore[arg-type]
    assert torch.allclose(draw(images, known, 96), real, atol=1e-4)
