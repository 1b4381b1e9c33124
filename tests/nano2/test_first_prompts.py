"""What people type first: every word is shown, named, or refused, and none shows something else."""

from __future__ import annotations

from pathlib import Path

import pytest

import kandinsky
from kandinsky.families.nano.joined_emoji import sex_of, stand_ins
from kandinsky.families.nano.reader import SceneReader
from kandinsky.families.nano.scenes import CORNERS, WHITE
from kandinsky.families.nano.unknown import EXAMPLES, refused
from kandinsky.lab.nano.captions import COLOURS
from kandinsky.lab.nano2.catalogue import catalogue
from kandinsky.lab.nano2.neighbours import listed, meant_first

READER = SceneReader.of(Path(kandinsky.__file__).parent / "assets" / "nano2-t2v" / "words.json.xz")


def shown(text: str) -> list[str]:
    """Names of the subjects."""
    scene = READER.read(text).scene
    return [] if scene is None else [catalogue()[s.concept or 0].en for s in scene.subjects]


def ignored(text: str) -> tuple[str, ...]:
    return READER.read(text).ignored


def colours(text: str) -> list[str]:
    scene = READER.read(text).scene
    assert scene is not None
    return [COLOURS[colour].en for colour in scene.colours if colour is not None]


# -- words that mean something else than their emoji -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("a family", "people hugging"),
        ("family", "people hugging"),
        ("семья", "обнимающиеся люди"),
        ("a face shakes", "person"),
        ("лицо трясется", "взрослый"),
        ("a pirate", "pirate flag"),
        ("a mountain", "volcano"),
        ("school", "student"),
        ("an animal", "cat"),
        ("a dentist", "woman health worker"),
        ("крылья", "самолет"),
        ("космос", "ракета"),
        ("a scary monster", "dragon"),
        ("a mob running", "woman running"),
        ("a leaf falls down", "deciduous tree"),
    ],
)
def test_a_word_that_means_something_else_is_refused_with_what_is_near(text: str, near: str) -> None:
    assert shown(text) == []
    assert near in READER.nearest(text, language=int(not text.isascii()))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("cry", "crying face"),
        ("love", "red heart"),
        ("a couple", "couple with heart"),
        ("русалка", "mermaid"),
        ("a truck", "delivery truck"),
        ("a vehicle", "automobile"),
        ("virus", "microbe"),
        ("goodbye", "waving hand"),
        ("спать", "sleeping face"),
        ("страх", "fearful face"),
        ("нло", "flying saucer"),
        ("a scared face", "fearful face"),
        ("злое лицо", "angry face"),
        ("чёрный кот", "black cat"),
    ],
)
def test_a_word_that_several_share_is_what_a_person_means(text: str, name: str) -> None:
    assert shown(text) == [name] and ignored(text) == ()


@pytest.mark.parametrize("word", ["like", "one", "what", "long", "between", "sign", "как", "один", "очень", "медленно"])
def test_words_without_a_picture_show_nothing(word: str) -> None:
    assert shown(word) == [] and shown(f"{word} panda") == ["panda"]


def test_no_dropped_word_names_a_thing() -> None:
    dropped = listed("unlike") | listed("abstract")
    named = {word for word in dropped if (found := READER.find_spans(word)[0]) and found[0][0].role == "synonym"}
    assert len(dropped) > 1000 and not dropped & set(meant_first())
    assert len(named) < 40, sorted(named)  # other forms of words that stay


# -- joined emoji ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names", "tone", "instead"),
    [
        ("👩\u200d🚀", ["astronaut"], 0, ()),
        ("👩🏿\u200d🚀", ["astronaut"], 5, ()),
        ("👨🏽\u200d⚕️", ["woman health worker"], 3, (("👨\u200d⚕", "woman health worker"),)),
        ("🧑\u200d🍳", ["man cook"], 0, ()),
        ("👩\u200d💻", ["technologist"], 0, ()),
        ("👩🏾\u200d🏫 на синем фоне", ["teacher"], 4, ()),
        ("🏃🏽\u200d♂️", ["woman running"], 3, (("🏃\u200d♂", "woman running"),)),
        ("👨\u200d👩\u200d👧", ["man walking", "woman"], 0, (("👨\u200d👩\u200d👧", "man walking, woman"),)),
        ("👩\u200d❤️\u200d👨", ["couple with heart"], 0, ()),
        ("👩\u200d🦽", ["woman"], 0, (("👩\u200d🦽", "woman"),)),
        ("🐦\u200d🔥", ["bird"], 0, (("🐦\u200d🔥", "bird"),)),
        ("🏴\u200d☠️", ["pirate flag"], 0, ()),
    ],
)
def test_joined_emoji_show_what_is_known_of_them(
    text: str, names: list[str], tone: int, instead: tuple[tuple[str, str], ...]
) -> None:
    understood = READER.read(text)
    assert understood.scene is not None and shown(text) == names
    assert understood.scene.subjects[0].tone == tone
    assert understood.instead == instead and understood.ignored == ()


def test_stand_ins_go_from_the_most_alike_to_parts() -> None:
    assert next(stand_ins("👩\u200d🚀")) == ("🧑\u200d🚀",)
    assert list(stand_ins("🐦\u200d🔥"))[-1] == ("🔥",)
    assert (sex_of("👩\u200d🚀"), sex_of("🏃\u200d♂"), sex_of("👨\u200d👩\u200d👧"), sex_of("🐼")) == ("♀", "♂", "", "")


# -- adjectives and their nouns ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a dog in a blue hat", ("blue", "hat")),
        ("собака в синей шляпе", ("синей", "шляпе")),
        ("a cat on a red sofa", ("red", "sofa")),
        ("кот на красном диване", ("красном", "диване")),
        ("a panda in a big blorp", ("big", "blorp")),
        ("a panda for 3 seconds", ("for", "3", "seconds")),
    ],
)
def test_an_adjective_belongs_to_its_noun(text: str, words: tuple[str, ...]) -> None:
    scene = READER.read(text).scene
    assert scene is not None and ignored(text) == words
    assert colours(text) == ["white"] and scene.size is None and len(scene.subjects) == 1


@pytest.mark.parametrize(
    ("text", "colour", "words"),
    [
        ("a dog on blue", "blue", ()),
        ("a dog on a bright blue background", "blue", ("bright",)),
        ("a panda in blue light", "blue", ("light",)),
        ("an akula or shark in blue water", "blue", ("akula", "or", "water")),
        ("кот на зелёной земле", "green", ()),
        ("кот на зелёной траве", "green", ("траве",)),
        ("a cat in red boots on a green background", "green", ("red", "boots")),
        ("a panda with a red balloon on yellow", "yellow", ("red",)),
        ("a cat on purple gradient background", "purple", ("gradient",)),
    ],
)
def test_the_colour_of_what_stands_behind_is_the_backgrounds(text: str, colour: str, words: tuple[str, ...]) -> None:
    assert colours(text) == [colour] and ignored(text) == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a panda on a background of stars", ("background", "stars")),
        ("a panda with stars in the background", ("stars", "in the background")),
        ("панда на фоне звёзд", ("фоне", "звезд")),
        ("a panda on the floor", ("floor",)),
    ],
)
def test_a_background_that_cannot_be_drawn_is_named(text: str, words: tuple[str, ...]) -> None:
    assert shown(text) == ["panda"] and ignored(text) == words


# -- counts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count", "instead"),
    [
        ("five pandas", 3, (("five", "three"),)),
        ("4 pandas", 3, (("4", "three"),)),
        ("100 pandas", 3, (("100", "three"),)),
        ("many pandas", 3, (("many", "three"),)),
        ("много панд", 3, (("много", "три"),)),
        ("четыре панды", 3, (("четыре", "три"),)),
        ("several pandas", 3, ()),
        ("несколько панд", 3, ()),
        ("пара панд", 2, ()),
        ("panda panda panda", 3, ()),
        ("a panda and another panda", 2, ()),
        ("большая панда и маленькая панда", 2, ()),
        ("one panda", 1, ()),
    ],
)
def test_three_are_the_most_and_a_higher_count_is_named(
    text: str, count: int, instead: tuple[tuple[str, str], ...]
) -> None:
    assert shown(text) == ["panda"] * count and READER.read(text).instead == instead


@pytest.mark.parametrize(
    ("text", "names", "instead"),
    [
        ("две кошки и собака", ["cat", "dog"], (("две", "по одному"),)),
        ("a dog and three cats", ["dog", "cat"], (("three", "one of each"),)),
    ],
)
def test_of_two_kinds_one_each_is_shown(text: str, names: list[str], instead: tuple[tuple[str, str], ...]) -> None:
    assert shown(text) == names and READER.read(text).instead == instead and ignored(text) == ()


@pytest.mark.parametrize(
    ("text", "name"),
    [("пара кошек", "cat"), ("пять звёзд", "star"), ("десять яблок", "red apple"), ("семь уток", "duck")],
)
def test_russian_genitives_of_several_are_read(text: str, name: str) -> None:
    assert set(shown(text)) == {name}


# -- motions, places, doings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "motion"),
    [
        ("вращающаяся панда", "spins"),
        ("вращающийся кот на синем фоне", "spins"),
        ("прыгающую лису", "jumps"),
        ("растущий гриб", "grows"),
        ("появляющееся привидение", "fades in"),
        ("an owl jumped", "jumps"),
        ("a shrinking mushroom", "shrinks"),
        ("a cat falls down", "moves down"),
        ("машина едет вправо", "moves right"),
        ("птица медленно летит влево", "moves left"),
        ("a bird flies to the right", "moves right"),
        ("a fox running left", "moves left"),
        ("a car from left to right", "moves right"),
    ],
)
def test_motions_are_read_in_all_forms(text: str, motion: str) -> None:
    scene = READER.read(text).scene
    assert scene is not None and scene.motion == motion and len(scene.subjects) == 1 and ignored(text) == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a robot dances", ("dances",)),
        ("робот танцует", ("танцует",)),
        ("кот исчезает", ("исчезает",)),
        ("a cat fades out", ("fades", "out")),
        ("машина едет", ("едет",)),
        ("кот зевает", ("зевает",)),
        ("робот машет рукой", ("машет рукой",)),
        ("smiling face shakes", ("shakes",)),
        ("a snowman with snow falling", ("falling",)),
    ],
)
def test_what_is_not_drawn_of_a_doing_is_named(text: str, words: tuple[str, ...]) -> None:
    scene = READER.read(text).scene
    assert scene is not None and scene.motion is None and ignored(text) == words


@pytest.mark.parametrize(
    ("text", "corner"),
    [
        ("a cat in the top left corner", "top left"),
        ("кот в левом верхнем углу", "top left"),
        ("a small cat in the bottom right corner", "bottom right"),
        ("кот справа внизу", "bottom right"),
        ("a cat in the upper right corner on blue", "top right"),
    ],
)
def test_corners_are_places(text: str, corner: str) -> None:
    scene = READER.read(text).scene
    assert scene is not None and ignored(text) == () and scene.place is None
    assert (scene.subjects[0].x, scene.subjects[0].y) == CORNERS[corner][:2]
    assert ignored("a cat and a dog in the top left corner") == ("in the top left corner",)


# -- parts and garments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names", "words"),
    [
        ("a monkey with big ears", ["monkey"], ("big", "ears")),
        ("a cat in sunglasses", ["cat"], ("sunglasses",)),
        ("a woman with a red dress", ["woman"], ("red", "dress")),
        ("кот в очках", ["cat"], ("очках",)),
        ("обезьяна с большими ушами", ["monkey"], ("большими", "ушами")),
        ("smiling face with sunglasses", ["smiling face with sunglasses"], ()),
        ("a cat and sunglasses", ["cat", "sunglasses"], ()),
        ("sunglasses", ["sunglasses"], ()),
        ("a dog with a bone", ["dog", "bone"], ()),
    ],
)
def test_a_part_or_garment_of_a_subject_is_no_second_subject(
    text: str, names: list[str], words: tuple[str, ...]
) -> None:
    scene = READER.read(text).scene
    assert shown(text) == names and ignored(text) == words
    assert scene is not None and scene.colours[0] == WHITE


@pytest.mark.parametrize(("text", "name"), [("псу", "dog"), ("уши", "ear"), ("ушами", "ear"), ("ухом", "ear")])
def test_rare_forms_of_russian_names_are_read(text: str, name: str) -> None:
    assert shown(text) == [name]


@pytest.mark.parametrize(("text", "language"), [("blorp", 0), ("ъъъъ", 1)])
def test_refusals_give_examples_in_the_language_of_the_prompt(text: str, language: int) -> None:
    message = str(refused(READER, text, READER.read(text)))
    assert all(f"`{name}`" in message for name in EXAMPLES[language])
    assert all(shown(name) for name in EXAMPLES[language])
