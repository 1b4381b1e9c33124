"""What prompts mean that no caption says: emoji, negation, doings, words misspelt, and words near in meaning."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

import kandinsky
from kandinsky.families.nano.reader import SceneReader, Understood
from kandinsky.families.nano.spelling import likeness, words_of
from kandinsky.lab.nano2.catalogue import catalogue
from kandinsky.lab.nano2.neighbours import Likeness, Nouns, by_hand, meant_first, neighbours, russian, unlike
from kandinsky.lab.nano2.word_list import reader, scene_words
from kandinsky.weights.untrusted import read_table

SHIPPED = Path(kandinsky.__file__).parent / "assets" / "nano2-t2v" / "words.json.xz"


def names(understood: Understood) -> list[str]:
    assert understood.scene is not None
    return [catalogue()[s.concept].en if s.concept is not None else "something" for s in understood.scene.subjects]


def read(text: str) -> Understood:
    return reader().read(text)


def test_the_list_that_ships_is_the_one_the_command_writes() -> None:
    assert read_table(SHIPPED) == json.loads(json.dumps(scene_words()))
    assert SHIPPED.stat().st_size < 110_000


# -- negation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown", "ignored"),
    [
        ("an owl without a crown or glasses", ["owl"], ("without", "crown", "or", "glasses")),
        ("a fox without a red hat on a blue background", ["fox"], ("without", "red", "hat")),
        ("a lion without whiskers on a green background", ["lion"], ("without", "whiskers")),
        ("a castle without towers spins", ["castle"], ("without", "towers")),
        ("not a whale but a shark", ["shark"], ("not", "whale", "but")),
        ("a whale instead of a shark", ["whale"], ("instead of", "shark")),
        ("an owl that does not jump", ["owl"], ("does", "not", "jump")),
        ("сова без короны и лев", ["owl", "lion"], ("без", "короны")),
        ("лиса без красной шляпы на синем фоне", ["fox"], ("без", "красной", "шляпы")),
        ("не кит, а акула", ["shark"], ("не", "кит", "а")),
        ("лев не прыгает", ["lion"], ("не", "прыгает")),
        ("замок без окон вращается", ["castle"], ("без", "окон")),
    ],
)
def test_what_is_left_out_is_not_shown_and_named(text: str, shown: list[str], ignored: tuple[str, ...]) -> None:
    understood = read(text)
    assert names(understood) == shown and understood.ignored == ignored
    assert understood.scene is not None
    if "blue" in text or "синем" in text:
        assert understood.scene.colours[0] == 5
    if "spins" in text or "вращается" in text:
        assert understood.scene.motion == "spins"


@pytest.mark.parametrize("text", ["no owl", "without owls", "нет совы", "совы нет", "никаких сов", "no owls or foxes"])
def test_a_prompt_that_only_leaves_out_shows_nothing_and_says_so(text: str) -> None:
    understood = read(text)
    assert understood.scene is None and understood.negated


# -- emoji ------------------------------------------------------------------------------------------------------------


def test_every_emoji_of_the_catalogue_is_read_as_it_is_sent() -> None:
    wrong = []
    for entry in catalogue():
        text = "".join(chr(int(code, 16)) for code in entry.hexcode.split("-"))
        for spelt in (text, text.replace("\ufe0f", ""), text + "\ufe0f", f"a {text} on blue"):
            if names(read(spelt)) != [entry.en]:
                wrong.append((entry.en, spelt))
    assert not wrong


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("🦊🦉", ["fox", "owl"]),
        ("🦊🦊", ["fox", "fox"]),
        ("🦊 🦊 🦊", ["fox"] * 3),
        ("👋🏿", ["waving hand"]),
        ("🧙🏽\u200d♂️", ["man mage"]),
        ("🧙", ["man mage"]),
        ("🦊 прыгает", ["fox"]),
        ("сова и 🦊", ["owl", "fox"]),
    ],
)
def test_emoji_are_words(text: str, shown: list[str]) -> None:
    understood = read(text)
    assert names(understood) == shown and not understood.ignored


def test_emoji_beyond_the_third_and_unknown_ones_are_named() -> None:
    assert read("🦊🦊🦊🦊").ignored == ("🦊",) and names(read("🦊🦊🦊🦊")) == ["fox"] * 3
    assert read("🍝").scene is None and "pizza" in reader().nearest("🍝")
    assert words_of("a 🦊, b") == ["a", "🦊", "b"]


# -- doings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown", "ignored"),
    [
        ("an owl drums", ["owl"], ("drums",)),
        ("a lion fishes", ["lion"], ("fishes",)),
        ("a fox watches a rocket", ["fox", "rocket"], ("watches",)),
        ("a small fox happily ducks", ["fox"], ("happily", "ducks")),
        ("two lions drum", ["lion", "lion"], ("drum",)),
        ("an owl and a fox watch the volcano", ["owl", "fox"], ("watch", "volcano")),
        ("a fox wants to fish", ["fox"], ("wants", "fish")),
        ("she watches", ["woman"], ("watches",)),
        ("he runs", ["man walking"], ("runs",)),
        ("she dances", ["woman dancing"], ()),
        ("он танцует", ["man dancing"], ()),
        ("a panda bears a gift", ["panda", "wrapped gift"], ("bears",)),
        ("a panda bear", ["panda"], ()),
        ("an apple tree", ["deciduous tree"], ("apple",)),
        ("two dragon eggs", ["egg", "egg"], ("dragon",)),
        ("лев дома", ["lion"], ("дома",)),
        ("два дома", ["house", "house"], ()),
        ("a lion sleeping on a sofa", ["lion"], ("sleeping", "sofa")),
        ("a snail crawls slowly left", ["snail"], ()),
    ],
)
def test_what_somebody_does_is_no_second_thing(text: str, shown: list[str], ignored: tuple[str, ...]) -> None:
    understood = read(text)
    assert names(understood) == shown and understood.ignored == ignored


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a drum and a watch", ["drum", "watch"]),
        ("a fox, ducks", ["fox", "duck"]),
        ("happy foxes", ["fox"]),
        ("foxes and bears", ["fox", "bear"]),
        ("кошка собака", ["cat", "dog"]),
        ("цветок и звёзды", ["tulip", "star"]),
        ("my fox and your owl", ["fox", "owl"]),
        ("лев на левой стороне", ["lion"]),
    ],
)
def test_things_stay_things(text: str, shown: list[str]) -> None:
    assert names(read(text)) == shown


# -- neighbours -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("a pengiun", "penguin"),
        ("elefant", "elephant"),
        ("an octopuss", "octopus"),
        ("buterfly", "butterfly"),
        ("жырафф", "giraffe"),
        ("крокадил", "crocodile"),
        ("слонн", "elephant"),
        ("a gryphon", "dragon"),
        ("spagetti", "pizza"),
        ("a hyena", "dog"),
        ("a cello", "violin"),
        ("sofas", "chair"),
        ("a submarine", "ship"),
        ("a saxophone", "trumpet"),
        ("an oak", "deciduous tree"),
        ("воробей", "bird"),
        ("рояль", "guitar"),
        ("спагетти", "pizza"),
        ("подводная лодка", "ship"),
        ("диван", "chair"),
        ("дуб", "deciduous tree"),
    ],
)
def test_the_nearest_are_near_in_spelling_or_in_meaning(text: str, near: str) -> None:
    assert read(text).scene is None or text == "подводная лодка"
    found = reader().nearest(text)
    assert near in found and len(set(found)) == 3


@pytest.mark.parametrize("text", ["zxcvb", "democracy", "ыфвапр", "qwertz uiop", "on red"])
def test_nothing_is_near_to_what_is_like_nothing(text: str) -> None:
    assert reader().nearest(text) == []


@pytest.mark.parametrize("word", ["cape", "cage", "towel", "needle", "swamp", "cleaner"])
def test_words_of_their_own_are_no_misspelt_names(word: str) -> None:
    """Beside "cake", "tower", "noodle", "stamp" …"""
    assert not {"birthday cake", "envelope"} & set(reader().nearest(word)[:1])


def test_likeness_counts_exchanged_letters_half_and_a_common_beginning() -> None:
    assert likeness("panda", "panda") == 1 and likeness("", "") == 0
    assert likeness("pnada", "panda") > likeness("panba", "pinda") and likeness("pandx", "panda") > likeness(
        "pxnda", "panda"
    )
    assert likeness("cat", "car") == 0 and likeness("banda", "panda") == 0


def test_lists_made_by_hand_name_what_there_is() -> None:
    assert all(word in by_hand() or reader().names_something(word) for word in russian().values())
    assert len(by_hand()) > 500
    assert all(0 <= number < len(catalogue()) for numbers in by_hand().values() for number in numbers)
    assert not unlike() & set(meant_first())


def test_synonyms_that_mislead_are_left_out_and_others_mean_the_usual_thing() -> None:
    assert read("a river").scene is None and "water wave" in reader().nearest("a river")
    assert read("река").scene is None and "water wave" in reader().nearest("река")
    assert names(read("a wizard")) == ["man mage"] and names(read("happy birthday")) == ["birthday cake"]


def test_what_describes_a_stranger_is_no_thing() -> None:
    """An old lighthouse is no old man, and its neighbours are those of a lighthouse."""
    assert read("an old lighthouse").scene is None and "house" in reader().nearest("an old lighthouse")
    assert names(read("a happy birthday message")) == ["birthday cake"]


WORDNET = """  1 licence
00000001 03 n 01 entity 0 001 ~ 00000002 n 0000 | all
00000002 05 n 01 animal 0 001 @ 00000001 n 0000 | lives
00000003 05 n 01 bird 0 001 @ 00000002 n 0000 | flies
00000004 05 n 01 owl 0 001 @ 00000003 n 0000 | at night
00000005 05 n 02 nightjar 0 goatsucker 0 001 @ 00000003 n 0000 | at night
00000006 05 n 01 fox 0 001 @ 00000002 n 0000 | red
00000007 06 n 01 thing 0 001 @ 00000001 n 0000 | made
00000008 06 n 01 house 0 001 @ 00000007 n 0000 | made
00000009 06 n 01 roof 0 002 @ 00000007 n 0000 #p 00000008 n 0000 | above
00000010 09 n 01 idea 0 001 @ 00000001 n 0000 | thought
"""


def test_neighbours_by_the_noun_above_both_and_wholes_for_parts(tmp_path: Path) -> None:
    lines = WORDNET.splitlines()[1:]
    lemmas = {
        word: line.split()[0] for line in lines for word in line.split()[4:7:2] if word.isalpha() and len(word) > 2
    }
    (tmp_path / "data.noun").write_text(WORDNET)
    (tmp_path / "index.noun").write_text("".join(f"{word} n 1 0 1 0 {at}  \n" for word, at in lemmas.items()))
    labels = [entry.en for entry in catalogue()]
    own = {"owl": "00000004", "bird": "00000003", "fox": "00000006", "house": "00000008"}
    concepts = [[own[label]] if label in own else [] for label in labels]
    likeness = Likeness(Nouns(tmp_path), concepts)
    found = [labels[number] for number in likeness.nearest("nightjar")]
    assert found[0] == "bird" and found[1] == "owl"
    assert [labels[n] for n in likeness.nearest("roof")][:1] == ["house"] and likeness.nearest("idea") == []
    for lang in ("en", "ru"):
        (tmp_path / lang).mkdir()
        entry = {"hexcode": "1F9A9", "emoji": "🦩", "label": "nightjar" if lang == "en" else "козодой", "group": 3}
        (tmp_path / lang / "data.json").write_text(json.dumps([{**entry, "hexcode": "1FFFF"}]))
    (tmp_path / "common").write_text("nightjar\nidea\nNightjar's\n")
    pairs, alike = neighbours(tmp_path, tmp_path / "common", tmp_path, {"river"}.__contains__)
    words = {word for _, together in pairs for word in together.split("|")}
    assert {"sofa", "диван"} <= words and not {"river", "idea"} & words and len(alike) == len(catalogue())


def test_no_text_makes_the_reader_fail() -> None:
    rng = random.Random(3)
    known = [name for entry in catalogue() for name in (entry.en, entry.ru)]
    pieces = [
        *known,
        "no",
        "без",
        "not",
        "or",
        "two",
        "три",
        "🦊",
        "🧙🏽\u200d♂️",
        ",",
        "\u200d",
        "'",
        "-",
        "a",
        "red",
        "left of",
    ]
    for _ in range(1500):
        text = " ".join(rng.choice(pieces) for _ in range(rng.randrange(8)))
        text += "".join(
            chr(rng.choice((rng.randrange(32, 0x500), rng.randrange(0x2000, 0x2C00), rng.randrange(0x1F000, 0x1FB00))))
            for _ in range(rng.randrange(6))
        )
        understood = reader().read(text)
        assert isinstance(reader().nearest(text[:60]), list)
        assert understood.scene is None or 1 <= len(understood.scene.subjects) <= 3


def test_a_list_without_neighbours_still_reads() -> None:
    table = {
        name: value for name, value in scene_words().items() if name not in ("near", "alike", "real", "emoji", "verbs")
    }
    old = SceneReader(table)
    assert old.read("a fox").scene is not None and old.nearest("a pengiun")[0] == "penguin"


def test_what_tells_ground_from_sky_is_no_unused_word() -> None:
    understood = read("a cat on green ground under a blue sky")
    assert understood.ignored == () and understood.scene is not None and understood.scene.backdrop == "ground"
    assert read("a cat left of a blorp").ignored == ("left of", "blorp")
