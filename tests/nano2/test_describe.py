"""Captions of scenes: they say what the scene shows, and know what they leave open."""

from __future__ import annotations

import random

import numpy as np
import pytest

from kandinsky.families.nano.scene_words import ROLES
from kandinsky.families.nano.scenes import ARRANGEMENTS, Scene, Subject
from kandinsky.lab.nano.captions import COLOURS
from kandinsky.lab.nano2.catalogue import catalogue
from kandinsky.lab.nano2.describe import describe, genitives, plural, with_article
from kandinsky.lab.nano2.random_scenes import draw_scene


def number(en: str) -> int:
    return next(i for i, c in enumerate(catalogue()) if c.en == en)


def several(names: list[str], arrangement: str) -> Scene:
    at = ARRANGEMENTS[arrangement]
    subjects = tuple(Subject(number(n), *place) for n, place in zip(names, at, strict=True))
    return Scene(subjects, arrangement=arrangement)


def texts(scene: Scene, lang: str, count: int = 60) -> set[str]:
    return {describe(scene, lang=lang, rng=random.Random(i)).text.lower() for i in range(count)}  # type: ignore[arg-type]


def test_left_and_right_are_never_exchanged() -> None:
    scene = several(["cat", "dog"], "side by side")
    for text in texts(scene, "en"):
        assert "cat" in text and "dog" in text
        for words in ("dog left of", "dog to the left", "cat to the right", "dog on the left"):
            assert words not in text
    russian = texts(scene, "ru")
    assert any("слева от собаки" in t for t in russian) and any("справа от кошки" in t for t in russian)
    assert not any("собака слева" in t or "слева собака" in t for t in russian)


def test_counts_agree_with_their_noun() -> None:
    assert any("два пингвина" in t for t in texts(several(["penguin"] * 2, "side by side"), "ru"))
    assert any("две лошади" in t for t in texts(several(["horse"] * 2, "side by side"), "ru"))
    assert any("три розы" in t for t in texts(several(["rose"] * 3, "three in a row"), "ru"))
    assert any("three wolves" in t or "3 wolves" in t for t in texts(several(["wolf"] * 3, "three in a row"), "en"))


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("butterfly", "butterflies"),
        ("man in tuxedo", "men in tuxedo"),
        ("fox", "foxes"),
        ("monkey", "monkeys"),
        ("eyes", "eyes"),
    ],
)
def test_plurals(one: str, many: str) -> None:
    assert plural(one) == many


def test_articles() -> None:
    names = ["owl", "cat", "unicorn", "Santa Claus", "eyes", "octopus"]
    assert [with_article(n) for n in names] == ["an owl", "a cat", "a unicorn", "Santa Claus", "eyes", "an octopus"]


@pytest.mark.parametrize("lang", ["en", "ru"])
def test_what_is_said_and_what_is_left_open(lang: str) -> None:
    rng = np.random.default_rng(0)
    for seed in range(300):
        scene = draw_scene(rng, concepts=len(catalogue()))
        caption = describe(scene, lang=lang, rng=random.Random(seed))  # type: ignore[arg-type]
        assert caption.text and "None" not in caption.text and set(caption.left_open) <= set(ROLES)
        colour = COLOURS[scene.colours[0]]
        names = (colour.en,) if lang == "en" else (colour.ru, colour.ru_name)
        if "colour" not in caption.left_open:
            assert any(name in caption.text.lower() for name in names)


def test_genitives_belong_to_concepts() -> None:
    known = {c.hexcode for c in catalogue()}
    assert set(genitives()) <= known and len(genitives()) > 400
    assert {gender for _, gender in genitives().values()} == {"m", "f", "n"}
