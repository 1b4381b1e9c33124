"""The first Nano by the second's measures: scenes as it was trained to show them, and one command for both."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kandinsky.errors import RequestError
from kandinsky.families.nano.scenes import CAMERAS, Scene, Subject, plain_scene
from kandinsky.lab.nano import captions, emoji
from kandinsky.lab.nano.as_scenes import GROUPS, drawn
from kandinsky.lab.nano.concepts import load_concepts
from kandinsky.lab.nano.evaluate import evaluate, table
from kandinsky.lab.nano.measure import NanoJudge
from kandinsky.lab.nano2.measures import OTHERS, Reference, clip_figures, scene_groups

BLUE = 5
ENTRIES = load_concepts()[:5]


class Bars:
    """Stand-ins for the real clips: in each a bar of its own height that moves."""

    def __init__(self, count: int) -> None:
        rows, columns = np.mgrid[:128, :128]
        shown = np.zeros((5, 25, 128, 128, 4), np.uint8)
        for number in range(5):
            for t in range(25):
                inside = (abs(rows - 64) < 10 + 8 * number) & (columns > 40 + t) & (columns < 60 + t)
                shown[number, t][inside] = (40 * number, 200 - 30 * number, 90, 255)
        self.rgba_NTHWC = [shown[number % 5] for number in range(count)]

    def row(self, file: str) -> int:
        return [entry.file for entry in load_concepts()].index(file)


@pytest.fixture(scope="module")
def reference() -> Reference:
    judge = NanoJudge(Bars(5), ENTRIES, side=48)  # type: ignore[arg-type]  # has what the judge asks of clips
    return Reference(drawn(judge), len(ENTRIES), are_real=True, side=48)


@pytest.mark.parametrize("kind", [kind for kind in GROUPS["text-to-video"] if kind in OTHERS])
def test_a_scene_shown_as_it_was_trained_is_as_told(reference: Reference, kind: str) -> None:
    for scene in scene_groups(12, 8, concepts=len(ENTRIES))[kind]:
        others = OTHERS[kind](scene)
        told = [reference.is_as_told(kind, reference.clip(one), scene) for one in others]
        assert told == [True] + [False] * (len(others) - 1)


def test_what_it_was_trained_to_show_is_what_is_drawn(reference: Reference) -> None:
    judge = NanoJudge(Bars(5), ENTRIES, side=48)  # type: ignore[arg-type]
    plain = plain_scene(2, BLUE)
    assert np.array_equal(reference.clip(plain), judge.real(2, BLUE))
    rgb = captions.COLOURS[BLUE].rgb
    for told, scene in (
        (emoji.Scene(rgb, position="left"), replace(plain, place="left")),
        (emoji.Scene(rgb, scale="small"), replace(plain, size="small")),
        *((emoji.Scene(rgb, camera=one), replace(plain, camera=one)) for one in CAMERAS),
    ):
        assert np.array_equal(reference.clip(scene), emoji.composite(judge.rgba[2], told, side=48)), told
    with pytest.raises(ValueError, match="unpack"):
        reference.clip(Scene((Subject(1), Subject(2))))


def test_a_concept_is_told_from_all_that_it_knows(reference: Reference) -> None:
    scenes = [plain_scene(number, BLUE) for number in range(5)]
    right = [reference.clip(scene) for scene in scenes]
    figures = clip_figures("plain", right, scenes, reference)
    assert figures["as_told"] == figures["colour"] == 1 and figures["candidates"] == 5 and figures["psnr_db"] == 99
    wrong = clip_figures("plain", right[1:] + right[:1], scenes, reference)
    assert wrong["as_told"] == 0 and wrong["psnr_db"] < 30


@pytest.mark.slow
def test_one_command_measures_fidelity_of_either_nano(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emoji, "open_clips", lambda cache: Bars(len(load_concepts())))
    seen: list[tuple[int, int]] = []
    result = evaluate(
        "nano-t2v", prompts=2, groups=["plain", "sizes"], steps=1, guidance=1.0,
        on_batch=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert list(result["groups"]) == ["plain", "sizes"] and seen == [(2, 4), (4, 4)]
    assert result["settings"]["steps"] == 1 and result["settings"]["guidance"] == 1
    for row in result["groups"].values():
        assert row["clips"] == 2 and 0 < row["psnr_db"] < 99 and row["floor_db"] > row["psnr_db"], row
    told = table(result)
    assert "| autoencoder alone, dB |" in told and "the farthest: " in told and "seconds_cold" not in result
    mixed = evaluate("nano-t2v", prompts=1, groups=["en label", "places"], steps=1)
    assert "psnr_db" in mixed["groups"]["places"] and "retrieval_1" in mixed["groups"]["en label"]
    assert table(mixed).count("| group |") == 2
    with pytest.raises(RequestError, match=r"use `plain`, .*`words`, `en label`"):
        evaluate("nano-t2v", groups=["tones"])
