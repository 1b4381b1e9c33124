"""The weights that ship: they show what is asked for, in both languages, and the same again from their recipe."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import kandinsky
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.families.nano.text_encoder import NanoTextEncoder
from kandinsky.lab.nano import captions
from kandinsky.lab.nano import measure as nano
from kandinsky.lab.nano.concepts import load_concepts
from kandinsky.model.values import Request

ASSETS = Path(kandinsky.__file__).parent / "assets" / "nano-t2v"
PROMPTS = {
    "panda": "a panda on a blue background",
    "панда": "панда на синем фоне",
    "tractor": "a tractor on a blue background",
    "трактор": "трактор на синем фоне",
    "pink": "a snowman on a pink background",
    "red": "a snowman on a red background",
}


@pytest.fixture(scope="module")
def pipe() -> GenerationPipeline:
    return kandinsky.load("nano-t2v")


@pytest.fixture(scope="module")
def clips(pipe: GenerationPipeline) -> dict[str, np.ndarray]:
    asked = [pipe.resolve(Request("nano-t2v", text, seed=3, steps=12)) for text in PROMPTS.values()]
    return {name: video.frames for name, video in zip(PROMPTS, pipe.run_batch(asked), strict=True)}


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float((nano.shrink(a) - nano.shrink(b)).pow(2).mean())


@pytest.mark.slow
def test_clips_have_the_promised_form(clips: dict[str, np.ndarray]) -> None:
    for clip in clips.values():
        assert clip.shape == (25, 96, 96, 3)
        assert clip.dtype == np.uint8


@pytest.mark.slow
def test_both_languages_mean_the_same_and_words_differ(clips: dict[str, np.ndarray]) -> None:
    for english, russian, other in (("panda", "панда", "tractor"), ("tractor", "трактор", "panda")):
        assert 5 * distance(clips[english], clips[russian]) < distance(clips[english], clips[other])


@pytest.mark.parametrize(
    ("text", "concept"),
    [
        ("панда", "panda"),
        ("две панды", "panda"),
        ("медведь на красном фоне", "bear"),
        ("собаки", "dog"),
        ("черная кошка", "black cat"),
        ("трактор едет", "tractor"),
        ("a cat", "cat"),
        ("bears on a green background", "bear"),
        ("a rocket flies", "rocket"),
        ("снеговик", "snowman"),
        ("лягушка", "frog"),
        ("a happy robot", "robot"),
    ],
)
def test_plain_names_are_read_in_sentences_and_forms(pipe: GenerationPipeline, text: str, concept: str) -> None:
    with pipe.placement.hold("text") as encoder:
        assert isinstance(encoder, NanoTextEncoder)
        ids, mask, _ = encoder.tokenize([text])
        with torch.no_grad():
            chosen = int(encoder.network.read(ids, mask).logits["concept"].argmax())
    assert load_concepts()[chosen].en == concept


def test_backgrounds_are_as_asked(clips: dict[str, np.ndarray]) -> None:
    names = [colour.en for colour in captions.COLOURS]
    assert [names[nano.background_colour(clips[name])] for name in ("panda", "трактор", "pink", "red")] == [
        "blue",
        "blue",
        "pink",
        "red",
    ]


def test_things_move(clips: dict[str, np.ndarray]) -> None:
    assert nano.motion(clips["panda"]) > 0.3


def test_a_still_and_a_clip_are_both_legal(pipe: GenerationPipeline) -> None:
    still = pipe("a snowman", seconds=0, steps=8, seed=1)
    assert still.frames.shape == (1, 96, 96, 3)


def test_a_batch_equals_single_runs(pipe: GenerationPipeline) -> None:
    asked = [
        pipe.resolve(Request("nano-t2v", text, seed=seed, steps=3, seconds=1))
        for seed, text in enumerate(("a panda", "трактор на красном фоне"))
    ]
    together = pipe.run_batch(asked)
    for one, video in zip(asked, together, strict=True):
        alone = pipe.run(one).frames.astype(int)
        assert np.abs(alone - video.frames.astype(int)).max() <= 2


@pytest.mark.slow
def test_the_recipe_in_the_file_makes_the_same_frames(tmp_path: Path) -> None:
    def kandinsky_command(*words: str) -> str:
        done = subprocess.run([sys.executable, "-m", "kandinsky", *words], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = kandinsky_command("generate", "a fox on a green background", "--steps", "4", "--seconds", "1", "--json")
    result = json.loads(first.splitlines()[-1])
    shown = json.loads(kandinsky_command("show", result["path"], "--json"))
    assert shown["recipe"]["seed"] == result["recipe"]["seed"]
    words = shown["command"].split(" generate ", 1)[1]
    for name in ("once.mp4", "again.mp4"):
        kandinsky_command("generate", "-o", name, "--quiet", *shlex.split(words))
    assert (tmp_path / "once.mp4").read_bytes() == (tmp_path / "again.mp4").read_bytes()


def test_package_size_and_card() -> None:
    weights = sum(path.stat().st_size for path in (*ASSETS.glob("*.safetensors"), ASSETS / "tokenizer.json.xz"))
    assert weights <= 25_000_000  # of which the two branches have 0.64
    card = (ASSETS / "MODEL_CARD.md").read_text(encoding="utf-8")
    for heading in ("Data", "Licence", "Recipe", "Quality", "Limits"):
        assert f"## {heading}" in card
    for picture in ("contact_sheet.webp", "loss_dit.png"):
        assert (ASSETS / picture).is_file() and picture in card
