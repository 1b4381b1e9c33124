"""Reading prompts by rules: nothing is dropped in silence, and what captions say is read back."""

from __future__ import annotations

import random

import numpy as np
import pytest

from kandinsky.families.nano.reader import SceneReader, Understood
from kandinsky.families.nano.scenes import Scene, plain_scene
from kandinsky.families.nano.spelling import stem
from kandinsky.lab.nano.captions import COLOURS
from kandinsky.lab.nano2.catalogue import catalogue
from kandinsky.lab.nano2.describe import describe
from kandinsky.lab.nano2.random_scenes import draw_scene
from kandinsky.lab.nano2.word_list import read, scene_words


def names(understood: Understood) -> list[str]:
    assert understood.scene is not None
    return [catalogue()[s.concept or 0].en for s in understood.scene.subjects]


@pytest.mark.parametrize(
    ("text", "subjects", "fields"),
    [
        ("A tiny owl near the top, on pink", ["owl"], {"size": "small", "place": "top"}),
        ("an owl above a fox", ["owl", "fox"], {"arrangement": "one above the other"}),
        ("an owl under a fox", ["fox", "owl"], {"arrangement": "one above the other"}),
        ("the crab is to the right of the lobster", ["lobster", "crab"], {"arrangement": "side by side"}),
        ("краб справа от омара", ["lobster", "crab"], {"arrangement": "side by side"}),
        ("две совы", ["owl", "owl"], {"arrangement": "side by side"}),
        ("3 bananas", ["banana"] * 3, {"arrangement": "three in a row"}),
        ("осьминог крутится", ["octopus"], {"motion": "spins"}),
        ("two owls spin", ["owl", "owl"], {"motion": "spins"}),
        ("an owl and a fox jump", ["owl", "fox"], {"motion": "jumps"}),
        ("три совы вращаются", ["owl"] * 3, {"motion": "spins"}),
        ("большая акула внизу", ["shark"], {"size": "large", "place": "bottom"}),
        ("a kite goes up, zoom out", ["kite"], {"motion": "moves up", "camera": "zoom out"}),
    ],
)
def test_prompts_no_test_listed(text: str, subjects: list[str], fields: dict[str, str]) -> None:
    understood = read(text)
    assert names(understood) == subjects and not understood.ignored
    assert {name: getattr(understood.scene, name) for name in fields} == fields


def test_two_backgrounds() -> None:
    scene = read("a turtle, blue sky and brown ground").scene
    assert scene is not None and scene.backdrop == "ground"
    assert [COLOURS[c or 0].en for c in scene.colours] == ["blue", "brown"]
    assert read("a turtle on brown ground under a blue sky").scene == scene
    halves = read("черепаха, фон: синий слева, красный справа").scene
    assert halves is not None and (halves.backdrop, halves.place) == ("halves", "middle")


@pytest.mark.parametrize(
    ("text", "ignored"),
    [
        ("a purple owl", ("purple",)),
        ("an owl without a fox", ("without", "fox")),
        ("a brumbly owl on red", ("brumbly",)),
        ("сова поёт блюз", ("поет", "блюз")),
    ],
)
def test_what_cannot_be_shown_is_named(text: str, ignored: tuple[str, ...]) -> None:
    understood = read(text)
    assert names(understood) == ["owl"] and understood.ignored == ignored


@pytest.mark.parametrize("text", ["", "zxcvb", "no owl", "бюрократия", "on a red background"])
def test_without_a_subject_there_is_no_scene(text: str) -> None:
    assert read(text).scene is None


def test_what_is_not_said_is_open() -> None:
    assert read("an owl").left_open == ("backdrop", "colour", "second colour", "place", "size")
    assert read("a small owl in the middle on red").left_open == ()


@pytest.mark.parametrize("lang", ["en", "ru"])
def test_labels_of_all_concepts_are_read(lang: str) -> None:
    wrong = [e.en for i, e in enumerate(catalogue()) if read(e.label(lang)).scene != plain_scene(i, 9)]  # type: ignore[arg-type]
    assert len(wrong) <= 12, wrong


@pytest.mark.parametrize("lang", ["en", "ru"])
def test_captions_are_read_back(lang: str) -> None:
    """Motion, camera, count and colours of what ``describe`` says of random scenes."""
    rng = np.random.default_rng(1)
    right = 0
    for seed in range(300):
        scene = draw_scene(rng, concepts=len(catalogue()))
        caption = describe(scene, lang=lang, rng=random.Random(seed))  # type: ignore[arg-type]
        got = read(caption.text).scene
        right += got is not None and same(got, scene, caption.left_open)
    assert right >= 0.95 * 300


def same(a: Scene, b: Scene, left_open: tuple[str, ...]) -> bool:
    colours = "colour" in left_open or a.colours == b.colours
    concepts = [s.concept for s in a.subjects] == [s.concept for s in b.subjects]
    return concepts and colours and (a.motion, a.camera, a.arrangement) == (b.motion, b.camera, b.arrangement)


def test_stems_of_forms_meet() -> None:
    assert len({stem(w) for w in ("синем", "синий", "синяя", "синего")}) == 1
    assert stem("penguins") == stem("penguin") and stem("glass") == "glass"


@pytest.mark.parametrize(
    ("prompt", "shown", "ignored"),
    [
        ("mindblown", "exploding head", ()),
        ("a cute puppy", "dog face", ("cute",)),
        ("party", "partying face", ()),
        ("любовь", "heart", ()),
        ("a puppy and a geek", "dog face", ()),
        ("a happy panda", "panda", ("happy",)),
        ("a dragon flies", "dragon", ("flies",)),
        ("two flies", "fly", ()),
        ("панда спит", "panda", ("спит",)),
        ("a kitty waves", "cat face", ()),
        ("waves", "water wave", ()),
        ("солнышко", "sun with face", ()),
        ("сердечко", "red heart", ()),
        ("собачка и котик", "dog", ()),
    ],
)
def test_everyday_words_mean_what_most_lists_say(prompt: str, shown: str, ignored: tuple[str, ...]) -> None:
    understood = read(prompt)
    assert understood.scene is not None
    names = [catalogue()[s.concept or 0].en for s in understood.scene.subjects]
    assert shown in names[0] and understood.ignored == ignored
    assert len(names) == (2 if any(word in prompt.split() for word in ("and", "и", "two")) else 1)


def test_synonyms_together_are_one_thing_and_the_last_of_equals_wins() -> None:
    table = scene_words() | {"phrases": [["synonym", "3,5", "glad"], ["synonym", "5,7", "kitten"], ["and", "", "and"]]}
    reader = SceneReader(table)

    def subjects(text: str) -> list[int | None]:
        scene = reader.read(text).scene
        return [] if scene is None else [s.concept for s in scene.subjects]

    assert subjects("glad kitten") == [5] and subjects("kitten") == [5] and subjects("glad") == [3]
    assert subjects("glad and kitten") == [3, 5]
    reader = SceneReader(table | {"phrases": [["synonym", "3", "glad"], ["synonym", "7", "kitten"]]})
    assert subjects("glad kitten") == [7] and reader.read("glad kitten").ignored == ("glad",)
