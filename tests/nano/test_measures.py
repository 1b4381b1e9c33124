"""The measures of nano: right on what is right, wrong on what is wrong."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from kandinsky.errors import RequestError
from kandinsky.lab.nano import captions
from kandinsky.lab.nano import measure as nano
from kandinsky.lab.nano import measure_image as nano_image
from kandinsky.lab.nano.captions import Prompt
from kandinsky.lab.nano.concepts import load_concepts
from kandinsky.lab.nano.emoji import Clips
from kandinsky.lab.nano.evaluate import evaluate, table

ENTRIES = load_concepts()[:5]


@pytest.fixture
def judge(tmp_path: Path) -> nano.NanoJudge:
    """Five made-up subjects: a disc of its own colour that wanders at its own speed."""
    clips = np.zeros((5, 25, 128, 128, 4), np.uint8)
    y, x = np.mgrid[:128, :128]
    for k in range(5):
        for t in range(25):
            inside = (x - 40 - k * t) ** 2 + (y - 64) ** 2 < (12 + 6 * k) ** 2
            clips[k, t][inside] = (50 * k, 250 - 50 * k, 128, 255)
    np.save(tmp_path / "clips-128x25.npy", clips)
    files = [entry.file for entry in ENTRIES]
    (tmp_path / "clips-128x25.json").write_text(json.dumps({"files": files, "motion": [1.0] * 5}))
    return nano.NanoJudge(Clips(tmp_path), ENTRIES, side=32)


def prompts(colour: int) -> list[Prompt]:
    return [Prompt(f"{i}", "en", i, colour, "label") for i in range(5)]


def test_real_clips_score_perfectly_and_shuffled_ones_do_not(judge: nano.NanoJudge) -> None:
    asked = prompts(colour=5)
    real = np.stack([judge.real(i, 5) for i in range(5)])
    right = judge.figures(real, asked)
    assert (right.retrieval_1, right.retrieval_5, right.colour, right.motion_ratio) == (1.0, 1.0, 1.0, 1.0)
    wrong = judge.figures(np.roll(real, 1, axis=0), asked)
    assert wrong.retrieval_1 == 0.0
    other = judge.figures(np.stack([judge.real(i, 0) for i in range(5)]), asked)
    assert other.colour == 0.0


def test_a_frozen_clip_has_no_motion(judge: nano.NanoJudge) -> None:
    real = np.stack([judge.real(i, 5) for i in range(5)])
    frozen = np.repeat(real[:, :1], 25, axis=1)
    assert judge.figures(frozen, prompts(5)).motion_ratio == 0.0


@pytest.mark.parametrize("colour", range(len(captions.COLOURS)))
def test_every_background_is_told_from_the_others(judge: nano.NanoJudge, colour: int) -> None:
    assert nano.background_colour(judge.real(0, colour)) == colour


def test_block_edges_are_seen() -> None:
    rng = np.random.default_rng(0)
    smooth = np.broadcast_to(rng.integers(0, 255, (2, 64, 64, 1)), (2, 64, 64, 3)).astype(np.uint8)
    blocky = np.kron(rng.integers(0, 255, (2, 8, 8, 1)), np.ones((1, 8, 8, 3))).astype(np.uint8)
    blocky = np.clip(blocky + rng.integers(0, 3, blocky.shape), 0, 255).astype(np.uint8)
    assert 0.9 < nano.block_edges(smooth) < 1.1
    assert nano.block_edges(blocky) > 10


def test_prompts_are_held_out() -> None:
    groups = nano.choose_prompts()
    entries = load_concepts()
    assert list(groups) == ["en label", "ru label", "en synonym", "ru synonym"]
    assert len(groups["en label"]) >= 300 and len(groups["ru label"]) >= 300
    for group in groups.values():
        for prompt in group:
            assert prompt.colour not in captions.TRAIN_COLOURS(entries[prompt.concept_index])
    thinned = nano.choose_prompts(7)
    assert all(len(group) == 7 for group in thinned.values())
    assert len({prompt.concept_index for prompt in thinned["en label"]}) == 7


def test_judging_counts_and_seeds(judge: nano.NanoJudge) -> None:
    seen: list[int] = []

    def generate(texts, seeds):  # type: ignore[no-untyped-def]
        seen.extend(seeds)
        return np.stack([judge.real(int(text), 5) for text in texts])

    figures = nano.judge_groups(judge, generate, {"en label": prompts(5)}, batch=2, seed=10)
    assert seen == [10, 11, 12, 13, 14]
    assert figures["en label"].retrieval_1 == 1.0
    result = {
        "groups": {name: asdict(one) for name, one in figures.items()},
        "autoencoder": dict.fromkeys(
            ("clips", "psnr_db", "psnr_worst_db", "block_edges_real", "block_edges_decoded"), 1.0
        ),
        "seconds_a_clip": 1.0,
        "seconds_cold": 5.0,
        "settings": {},
    }
    assert "| en label | 5 | 5 | 100.0% |" in table(result)


def test_clips_made_from_a_picture(judge: nano.NanoJudge) -> None:
    """The real clip is nearer to itself than its still; a still is not and does not move; noise loses the picture."""
    cases = [nano_image.ImageCase("", judge.real(number, 5)) for number in range(1, 4)]
    real = nano_image.image_figures([case.clip_THWC for case in cases], cases)
    assert real.clips == 3 and real.first_frame_db > 60 and real.nearer_than_still == 1 and real.motion_ratio == 1
    stills = [np.repeat(case.picture_HWC[None], len(case.clip_THWC), axis=0) for case in cases]
    still = nano_image.image_figures(stills, cases)
    assert still.first_frame_db > 60 and still.nearer_than_still == 0 and still.motion_ratio == 0
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, case.clip_THWC.shape, np.uint8) for case in cases]
    assert nano_image.image_figures(noise, cases).first_frame_db < 15

    seen: list[tuple[str, int]] = []

    def animate(pictures, texts, seeds):  # type: ignore[no-untyped-def]
        seen.extend(zip(texts, seeds, strict=True))
        return np.stack([np.repeat(picture[None], 25, axis=0) for picture in pictures])

    figures = nano_image.judge_images(animate, {"picture alone": cases}, batch=2, seed=4)
    assert seen == [("", 4), ("", 5), ("", 6)]
    result = {"groups": {name: asdict(one) for name, one in figures.items()}, "seconds_a_clip": 1.0, "settings": {}}
    assert "| picture alone | 3 | " in table(result)


@pytest.mark.parametrize("model", ["nano-world", "nano-v2a"])
def test_steps_are_refused_where_they_would_change_nothing(model: str) -> None:
    with pytest.raises(RequestError, match="its own steps and guidance"):
        evaluate(model, steps=2, guidance=3.0)


def test_only_models_with_measures() -> None:
    with pytest.raises(RequestError, match="nano-t2v"):
        evaluate("kandinsky5-lite-t2v-sft-5s")
