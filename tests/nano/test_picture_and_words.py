"""Beside a picture, Nano's words leave to it what they do not say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import kandinsky
from kandinsky import catalogue
from kandinsky.families.nano.known_words import KnownWords
from kandinsky.families.nano.picture import seen
from kandinsky.families.nano.text_encoder import NanoTextEncoder
from kandinsky.lab.nano.captions import COLOURS
from kandinsky.model.values import TextEmbeddings

ASSETS = Path(kandinsky.__file__).parent / "assets" / "nano-t2v"
SUBJECT = (128, 64, 32)


@pytest.fixture(scope="module")
def encoder() -> NanoTextEncoder:
    files = (ASSETS / "text.safetensors", ASSETS / "tokenizer.json.xz")
    return NanoTextEncoder.from_files(*files, catalogue.find("nano-t2v").text.params, ASSETS / "words.json")


def picture(colour: tuple[int, int, int], box: tuple[float, float, float, float] | None = (0.06, 0.06, 0.94, 0.94)):
    image = Image.new("RGB", (96, 96), colour)
    if box:
        ImageDraw.Draw(image).ellipse([round(96 * side) for side in box], fill=SUBJECT)
    return image


def equal(a: TextEmbeddings, b: TextEmbeddings) -> bool:
    return torch.allclose(a.tokens_BLC, b.tokens_BLC, atol=1e-3) and torch.allclose(a.pooled_BC, b.pooled_BC, atol=1e-3)


@pytest.mark.parametrize("number", range(len(COLOURS)))
def test_the_background_is_the_nearest_colour(number: int) -> None:
    near = tuple(min(255, max(0, value + shift)) for value, shift in zip(COLOURS[number].rgb, (9, -8, 7), strict=True))
    colours = KnownWords.read(ASSETS / "words.json").colours
    assert seen(np.asarray(picture(near)), colours)["background"] == number


@pytest.mark.parametrize(
    ("box", "size", "position"),
    [
        ((0.06, 0.06, 0.94, 0.94), 0, 0),
        ((0.26, 0.26, 0.74, 0.74), 1, 0),
        ((-0.1, -0.1, 1.1, 1.1), 2, 0),
        ((-0.14, 0.06, 0.74, 0.94), 0, 1),
        ((0.26, 0.06, 1.14, 0.94), 0, 2),
        ((0.26, 0.06, 0.74, 0.54), 1, 3),
        ((0.26, 0.46, 0.74, 0.94), 1, 4),
    ],
)
def test_size_and_place_are_seen(box: tuple[float, float, float, float], size: int, position: int) -> None:
    found = seen(np.asarray(picture((40, 75, 205), box)), ())
    assert found == {"size": size, "position": position}


def test_a_plain_picture_tells_its_colour_alone() -> None:
    assert seen(np.asarray(picture((250, 150, 195), None)), [c.rgb for c in COLOURS]) == {"background": 7}


@pytest.mark.parametrize(
    ("prompt", "box", "meant"),
    [
        ("a panda moves", (0.06, 0.06, 0.94, 0.94), "a panda on a blue background"),
        ("панда движется", (0.06, 0.06, 0.94, 0.94), "панда на синем фоне"),
        ("a panda", (0.06, 0.26, 0.54, 0.74), "a small panda on the left on a blue background"),
        ("a panda on a red background", (0.06, 0.06, 0.94, 0.94), "a panda on a red background"),
        ("a panda on the right", (0.06, 0.06, 0.94, 0.94), "a panda on the right on a blue background"),
        ("it waves", (0.06, 0.06, 0.94, 0.94), ""),
        ("zqx", (0.06, 0.06, 0.94, 0.94), ""),
        ("", (0.06, 0.06, 0.94, 0.94), ""),
    ],
)
def test_the_picture_decides_what_words_leave_open(
    encoder: NanoTextEncoder, prompt: str, box: tuple[float, float, float, float], meant: str
) -> None:
    shown = picture((45, 70, 200), box)
    assert equal(encoder.encode_with_images([prompt], [shown]), encoder.encode([meant]))


def test_neighbours_change_nothing(encoder: NanoTextEncoder) -> None:
    asked = [("a panda", picture((45, 70, 200))), ("zqx", picture((250, 218, 60))), ("a cat waves", picture(SUBJECT))]
    together = encoder.encode_with_images(*map(list, zip(*asked, strict=True)))
    for row, (prompt, image) in enumerate(asked):
        alone = encoder.encode_with_images([prompt], [image])
        assert torch.allclose(together.tokens_BLC[row], alone.tokens_BLC[0], atol=1e-5)


@pytest.mark.parametrize(
    ("prompt", "alone", "beside"),
    [
        ("the camera zooms in on a red background", (), ("zooms", "red")),
        ("it waves", (), ()),
        ("a panda, the camera zooms in", (), ()),
        ("a flurble panda", ("flurble",), ("flurble",)),
    ],
)
def test_words_that_the_picture_outweighs_are_named(
    encoder: NanoTextEncoder, prompt: str, alone: tuple[str, ...], beside: tuple[str, ...]
) -> None:
    assert encoder.unused(prompt, beside_image=True) == beside
    assert encoder.unused(prompt) == alone
