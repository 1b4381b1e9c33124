"""Nano's small world: its rules, what is seen of them, and actions that are told chunk by chunk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import kandinsky
from kandinsky import Play
from kandinsky.engine import timeline
from kandinsky.errors import RequestError
from kandinsky.families.nano.world import STEP
from kandinsky.families.parts.condition_channels import coordinate_channels
from kandinsky.jobs.live import Prompter
from kandinsky.lab.nano.measure_world import done, judged, seen, stands
from kandinsky.lab.nano.streams import TEMPORAL, State, World, drawn_actions, placed

if TYPE_CHECKING:
    from kandinsky.engine.pipeline import GenerationPipeline


def disc() -> np.ndarray:
    """A red disc that fills most of its picture, premultiplied RGBA, one frame."""
    rows, columns = np.mgrid[:112, :112]
    inside = (rows - 55.5) ** 2 + (columns - 55.5) ** 2 < 50**2
    rgba = np.zeros((112, 112, 4), np.uint8)
    rgba[inside] = (200, 30, 30, 255)
    return rgba


def clip(actions: list[str]) -> np.ndarray:
    places = World().places(actions)
    return placed(np.stack([disc()] * len(places)), (255, 255, 255), places)


def test_the_rules_are_seen_in_what_they_make() -> None:
    scripts = [drawn_actions(np.random.default_rng(seed), 18) for seed in range(4)]
    figures = judged([(script, clip(script)) for script in scripts], World())
    assert figures.as_told > 0.9 and figures.chunks == 4 * 18
    still = judged([(script, clip(["stay"] * 18)) for script in scripts], World())
    assert still.stay == 1.0 and still.as_told < 0.6 and max(still.left, still.right, still.jump, still.grow) == 0.0
    turned = [["left" if one == "right" else "right" if one == "left" else one for one in script] for script in scripts]
    wrong = judged([(script, clip(other)) for script, other in zip(scripts, turned, strict=True)], World())
    assert wrong.left + wrong.right < 0.5 and wrong.jump > 0.9


def test_walls_and_the_air_have_ends() -> None:
    world = World()
    steps = ["right"] * 4 + ["jump", "jump", "left", "grow", "grow", "stay"]
    assert done(steps, world) == ["right", "right", "stay", "stay", "jump", "stay", "left", "grow", "stay", "stay"]
    states = world.states(steps)
    assert [one.column for one in states[:6]] == [0, 1, 2, 2, 2, 2] and states[7] == State(1, 0, 0)
    assert [one.air for one in states[5:8]] == [1, 0, 0] and [one.grown for one in states[8:]] == [1, 1, 0]
    places = world.places(steps)
    assert len(places) == 1 + TEMPORAL * 10 and places[-1].scale == pytest.approx(world.scale)
    assert places[2].x == pytest.approx(STEP / 2) and places[TEMPORAL * 5].y == pytest.approx(-STEP)
    before = stands(clip(["stay"])[-1])
    assert max(abs(before.x), abs(before.y)) < 0.01
    assert seen(before, [before] * TEMPORAL, world) == "stay"


def test_a_coordinate_that_is_shifted_is_that_of_what_is_shown() -> None:
    latent = torch.zeros(2, 1, 12, 12, 48)
    plain = coordinate_channels(latent)
    moved = coordinate_channels(latent, torch.tensor([[0.0, 0.0], [STEP, -STEP]]))
    assert torch.allclose(moved[0], plain[0], atol=1e-4)
    # two columns to the right and two rows up, as far as the borders
    assert torch.allclose(moved[1, :, :10, 2:], plain[1, :, 2:, :10], atol=1e-4)
    assert torch.allclose(moved[1, :, 11, 0], plain[1, :, 11, 0], atol=1e-4)


def test_a_key_that_is_struck_counts_for_one_chunk_and_a_held_one_until_it_is_let_go() -> None:
    prompter = Prompter("a panda", 12.0, ("stay", "left", "jump"))
    prompter.act("jump")
    prompter.act(None)
    first, second = prompter(0.0), prompter(0.5)
    assert (first, second) == (Play("a panda", "jump"), Play("a panda", "stay"))
    prompter.act("left")
    assert [prompter(1.0), prompter(1.5)] == [Play("a panda", "left")] * 2
    prompter.act(None)
    assert prompter(2.0) == Play("a panda", "stay")
    assert prompter.timeline == [
        (0, Play("a panda", "jump")), (6, Play("a panda", "stay")), (12, Play("a panda", "left")),
        (24, Play("a panda", "stay")),
    ]  # fmt: skip
    assert Prompter("a panda", 12.0)(0.0) == "a panda"


def test_a_timeline_keeps_actions() -> None:
    line = timeline.Timeline(((0, "a panda"), (6, Play("a panda", "left"))), 0, 12)
    recipe: dict[str, Any] = line.to_recipe([np.zeros((12, 4, 4, 3), np.uint8)]) | {"seed": 1}
    assert timeline.read(recipe) == line and line.at(7) == Play("a panda", "left")
    recipe["timeline"][1]["action"] = 3
    with pytest.raises(RequestError, match="has action `3`: give text"):
        timeline.read(recipe)


@pytest.fixture(scope="module")
def pipe() -> GenerationPipeline:
    return kandinsky.load("nano-world", device="cpu", dtype="float32")


def played(pipe: GenerationPipeline, script: list[str], prompt: str = "a panda") -> list[Any]:
    actions = iter(script)

    def shows(at: float) -> Play | None:
        action = next(actions, None)
        return None if action is None else Play(prompt, action)

    return list(pipe.stream(shows, seed=4))


def test_actions_hold_for_their_chunk_alone_and_a_script_gives_the_same_again(pipe: GenerationPipeline) -> None:
    one, again = played(pipe, ["stay", "left", "stay"]), played(pipe, ["stay", "left", "jump"])
    assert [piece.recipe["action"] for piece in again] == ["stay", "left", "jump"]
    for number in range(2):
        assert np.array_equal(one[number].frames, again[number].frames)
    assert not np.array_equal(one[2].frames, again[2].frames)
    plain = list(pipe.stream("a panda", seconds=5 / 12, seed=4))
    assert np.array_equal(plain[0].frames, one[0].frames)
    assert not np.array_equal(plain[1].frames, one[1].frames)
    # the whole clip is the beginning of the stream
    whole = pipe("a panda", seconds=5 / 12, seed=4, progress=False)
    assert np.array_equal(whole.frames, np.concatenate([piece.frames for piece in plain]))


def test_a_played_clip_is_replayed_to_the_bit(pipe: GenerationPipeline) -> None:
    pieces = played(pipe, ["stay", "right", "right", "jump"])
    frames = np.concatenate([piece.frames for piece in pieces])
    shows = [(round(p.recipe["start"] * 12), Play("a panda", p.recipe["action"])) for p in pieces]
    line = timeline.Timeline(tuple(shows), 2, 9)
    recipe = pieces[-1].recipe | line.to_recipe([frames[2:11]])
    clip = pipe.replay(recipe)
    assert timeline.digest(clip.pieces) == recipe["frames_sha256"]


def test_what_no_world_knows_is_refused(pipe: GenerationPipeline) -> None:
    with pytest.raises(RequestError, match="`nano-world` knows no action `fly`: use stay, left, right, jump, grow"):
        played(pipe, ["fly"])
    plain: Any = kandinsky.load("nano-live", device="cpu")
    with pytest.raises(RequestError, match="`nano-live` knows no action `left`: its card has no"):
        list(plain.stream(Play("a panda", "left"), seconds=0.1))
