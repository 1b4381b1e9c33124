"""Tones of skin: which words ask for one and of whom, how it travels, and what it does to a portrait."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from kandinsky.families.nano.draft import drafted
from kandinsky.families.nano.geometry import PACKED, Packed, packed
from kandinsky.families.nano.linear import LinearPatches
from kandinsky.families.nano.portraits import PortraitDecoder
from kandinsky.families.nano.scenes import Scene, Subject, plain_scene
from kandinsky.families.nano.tone_words import apart
from kandinsky.families.nano.tones import ToneMap
from kandinsky.lab.nano2 import tones as fitting
from kandinsky.lab.nano2.catalogue import catalogue, toned, toned_file
from kandinsky.lab.nano2.describe import describe
from kandinsky.lab.nano2.random_scenes import draw_scene
from kandinsky.lab.nano2.render import render
from kandinsky.lab.nano2.word_list import read, reader

# -- words ------------------------------------------------------------------------------------------------------------


def shown(text: str) -> list[tuple[str, int]]:
    scene = read(text).scene
    return [] if scene is None else [(catalogue()[s.concept or 0].en, s.tone) for s in scene.subjects]


@pytest.mark.parametrize(
    ("text", "subjects"),
    [
        ("a waving hand, medium skin tone", [("waving hand", 3)]),
        ("waving hand: medium-light skin tone", [("waving hand", 2)]),
        ("a dark-skinned woman", [("woman", 5)]),
        ("A fair skinned old woman jumps on a blue background", [("old woman", 1)]),
        ("a boy with brown skin on brown", [("boy", 4)]),
        ("two waving hands, dark skin tone", [("waving hand", 5), ("waving hand", 5)]),
        ("a light-skinned girl and a dark-skinned boy", [("girl", 1), ("boy", 5)]),
        ("a girl with light skin left of a boy", [("girl", 1), ("boy", 0)]),
        ("a girl left of a boy with light skin", [("girl", 0), ("boy", 1)]),
        ("a dark-skinned boy right of a panda", [("panda", 0), ("boy", 5)]),
        ("женщина, светлая кожа", [("woman", 2)]),
        ("женщина со смуглой кожей прыгает", [("woman", 3)]),
        ("машет рукой: очень тёмный тон кожи", [("waving hand", 5)]),
        ("светлокожая девочка и темнокожий мальчик", [("girl", 2), ("boy", 4)]),
        ("👋🏽", [("waving hand", 3)]),
        ("👋", [("waving hand", 0)]),
        ("👩🏿‍⚕️ on blue", [("woman health worker", 5)]),
        ("👋🏻👩🏿", [("waving hand", 1), ("woman", 5)]),
    ],
)
def test_tones_are_read(text: str, subjects: list[tuple[str, int]]) -> None:
    assert shown(text) == subjects and not read(text).ignored


@pytest.mark.parametrize(
    ("text", "ignored"),
    [
        ("a panda with dark skin", ("dark skin",)),
        ("панда, тёмная кожа", ("темная кожа",)),
        ("🐼🏿", ("🏿",)),
        ("a woman, dark skin, light skin", ("light skin",)),
        ("a panda and a woman, pale owls", ("pale", "owls")),
    ],
)
def test_a_tone_that_changes_nothing_is_named(text: str, ignored: tuple[str, ...]) -> None:
    assert read(text).ignored == ignored


def test_emoji_are_words_without_what_only_changes_their_look() -> None:
    assert apart("👩🏽‍⚕️!").split() == ["👩‍⚕", "🏽", "!"] and apart("❤️").split() == ["❤"] and apart("a cat") == "a cat"
    assert read("🧿 and a cat").ignored == ("🧿",)


def test_captions_of_toned_scenes_are_read_back() -> None:
    rng, seen = np.random.default_rng(2), 0
    for seed in range(400):
        scene = draw_scene(rng, concepts=len(catalogue()), tones=True)
        if any(s.tone for s in scene.subjects):
            for lang in ("en", "ru"):
                text = describe(scene, lang=lang, rng=random.Random(seed)).text  # type: ignore[arg-type]
                assert shown(text) == [(catalogue()[s.concept or 0].en, s.tone) for s in scene.subjects], text
            seen += 1
    assert seen > 20


def test_tones_change_nothing_else_of_a_training_scene() -> None:
    for seed in range(60):
        plain, other = (draw_scene(np.random.default_rng(seed), concepts=200, tones=t) for t in (False, True))
        assert replace(other, subjects=tuple(replace(s, tone=0) for s in other.subjects)) == plain


def test_the_list_of_concepts_says_which_have_tones() -> None:
    assert len(toned()) == 111
    found = {names[0]: names[2:] for names in reader().found()}
    assert found["panda"] == () and "🏽" in found["waving hand"][0]


def test_names_of_toned_files() -> None:
    files = {"1f44b-1f3fd", "1f469-1f3fd-200d-2695-fe0f", "270c-1f3fd"}
    for plain in ("1f44b", "1f469-200d-2695-fe0f", "270c-fe0f"):
        assert toned_file(plain, 3, files) in files and toned_file(plain, 2, files) is None


# -- numbers ----------------------------------------------------------------------------------------------------------


def test_tones_travel_with_their_subjects() -> None:
    scene = Scene((Subject(86, 0.3, tone=4), Subject(114, 0.7), Subject(115, tone=1)), arrangement="three in a row")
    row = packed([scene])[0]
    found = Packed.of(row)
    assert found is not None and found.tones == (4, 0, 1) and len(row) == PACKED
    assert torch.equal(found.row(), row)
    two = Packed.of(packed([Scene(scene.subjects[:2], arrangement="side by side")])[0])
    assert two is not None and two.tones == (4, 0)


# -- pictures ---------------------------------------------------------------------------------------------------------


def knows_all_as(kind: int) -> ToneMap:
    """Takes every pixel for one kind; skin becomes its red channel times the tone's tenth, hair a fifth of grey."""
    made = ToneMap()
    made.kind_bias.copy_(torch.nn.functional.one_hot(torch.tensor(kind), 3) * 60.0 - 30)
    for tone in range(5):
        made.maps[0, tone, :, 1] = (tone + 1) / 10
        made.maps[1, tone, :, 0] = 0.2
    return made


def test_before_it_is_fitted_nothing_changes() -> None:
    image = torch.rand(2, 4, 16, 16)
    image[:, :3] *= image[:, 3:]
    made = ToneMap()(image, [1, 5])
    assert made.shape == (2, 2, 4, 16, 16) and torch.allclose(made, image[:, None].expand_as(made), atol=1e-6)


def test_skin_hair_and_the_rest_have_their_own_colours() -> None:
    image = torch.cat([torch.tensor([0.8, 0.4, 0.2]), torch.ones(1)]).view(1, 4, 1, 1).repeat(1, 1, 8, 8) * 0.5
    skin, hair, rest = (knows_all_as(kind)(image, [1, 5])[0] for kind in range(3))
    assert torch.allclose(skin[0, :3], torch.tensor(0.04)) and torch.allclose(skin[1, :3], torch.tensor(0.2))
    assert torch.allclose(hair[:, :3], torch.tensor(0.1)) and torch.allclose(rest[1], image[0])
    assert all(torch.equal(made[:, 3:], image[:, 3:].expand(2, 1, 8, 8)) for made in (skin, hair, rest))


def test_only_the_subject_that_has_a_tone_is_drawn_in_it() -> None:
    torch.manual_seed(0)
    decoder, linear = PortraitDecoder(8), LinearPatches()
    decoder.tones = knows_all_as(0)
    for basis in (decoder.pixels, decoder.moves, decoder.places):
        basis.normal_(std=0.3)
    for part in (linear.still, linear.moving):
        part.basis.copy_(torch.linalg.qr(torch.randn(part.basis.shape).T)[0].T)
    codes = torch.randn(1, 1, 8).expand(1, 3 * 36, 8)

    def drawn(*tones: int) -> torch.Tensor:
        subjects = tuple(Subject(86, x, size=0.4, tone=tone) for x, tone in zip((0.25, 0.75), tones, strict=True))
        scene = Scene(subjects, arrangement="side by side")
        latent = drafted(decoder, linear, codes, packed([scene]), frames=1, rows=12)
        return linear.unpatchify(linear.still.decode(latent[:, 0])[:, None])[0, 0]

    plain, left, right = drawn(0, 0), drawn(2, 0), drawn(0, 2)
    half = plain.shape[1] // 2
    assert torch.equal(plain[:, half:], left[:, half:]) and not torch.allclose(plain[:, :half], left[:, :half])
    assert torch.equal(plain[:, :half], right[:, :half]) and not torch.allclose(plain[:, half:], right[:, half:])


def test_training_shows_the_real_toned_clip() -> None:
    class Toned:
        def toned(self, concept: int, tone: int, *, count: int = 25) -> torch.Tensor:
            return torch.full((count, 4, 8, 8), tone / 5).index_fill(1, torch.tensor([3]), 1)

    scene = plain_scene(86, 9)
    scene = Scene((Subject(86, size=1.0, tone=2),), colours=scene.colours)
    clip = render(scene, Toned(), side=16, shown=2)  # type: ignore[arg-type]
    assert torch.allclose(clip[:, 4:12, 4:12], torch.tensor(2 * 0.4 - 1), atol=1e-4)


def test_a_fit_tells_skin_from_hair_by_place_and_leaves_the_rest() -> None:
    """Skin and hair of one yellow, hair always above: what was not fitted is recoloured rightly."""
    torch.manual_seed(0)
    side, count, frames = 48, 6, len(fitting.SHOWN)
    real = torch.zeros(count, 6, frames, 4, side, side)
    for n in range(count):
        shade = 0.75 + 0.25 * torch.rand(side, side)
        for s in range(6):
            real[n, s, :, 3] = 1
            real[n, s, :, 2] = 0.9  # blue, as it is in every tone
            hair, skin = slice(8 + n, 20), slice(20, 40)
            for rows, colour in (
                (hair, (0.1 * s, 0.05 * s, 0.05)),
                (skin, (0.9 - 0.1 * s, 0.8 - 0.1 * s, 0.7 - 0.1 * s)),
            ):
                colour = (1.0, 0.7, 0.2) if s == 0 else colour
                real[n, s, :, :3, rows, 8:40] = torch.tensor(colour)[:, None, None] * shade[rows, 8:40]
    clips = real.mul(255).round().byte()
    pairs = fitting.Pairs(tuple(range(count)), clips, clips[:, 0])
    made = fitting.fit(pairs, chosen=[0, 1, 2, 3, 4], steps=150)
    told = fitting.figures(made, pairs, [5])
    assert min(told["recoloured"]) > 24 and max(told["left yellow"]) < 18, told
    image = clips[5, 0, :1].float() / 255
    assert float((made(image, [5])[0, 0, :, 42:] - image[0, :, 42:]).abs().max()) < 0.05
    assert fitting.sheet(made, pairs, [5]).size[1] == side
