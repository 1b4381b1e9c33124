"""Reading a prompt by rules: what is known in it becomes a scene, and everything else is named.

The rules know names of concepts in their usual forms, synonyms that one or several of them share, and the words for
places, sizes, motions, cameras, counts and backgrounds; the lists ship with the weights as `words.json`, which
`python -m kandinsky.lab.nano2.reader` writes. No word is dropped in silence. No torch.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from kandinsky.families.nano.scenes import ARRANGEMENTS, PLACES, SIZES, WHITE, Backdrop, Scene, Subject
from kandinsky.families.nano.tone_words import EMOJI, apart, tones_of
from kandinsky.weights.untrusted import read_table, reading

LONGEST = 8  # words of a phrase
READ = 12  # words of a prompt that are compared with names of concepts, where none is known
_WORD = rf"[\w'’-]+|{EMOJI}"
# the longer before the shorter
_RU_ENDINGS = (
    *("ами", "ями", "ого", "его", "ому", "ему", "ыми", "ими", "ой", "ей", "ою", "ею", "ом", "ем", "ов", "ев", "ах"),
    *("ях", "ам", "ям", "ая", "яя", "ое", "ее", "ый", "ий", "ые", "ие", "ую", "юю", "ых", "их"),
    *("а", "я", "о", "е", "ы", "и", "у", "ю", "ь", "й"),
)


def plain(text: str) -> str:
    """Lower case, NFC, «ё» as «е», single spaces: how names and prompts are compared."""
    return " ".join(unicodedata.normalize("NFC", text).lower().replace("ё", "е").split())


def stem(word: str) -> str:
    """A word without its ending, so that the forms of one word meet; English plurals and Russian cases."""
    if re.fullmatch(r"[а-я-]+", word):
        for ending in _RU_ENDINGS:
            if word.endswith(ending) and len(word) - len(ending) >= 3:
                return word[: -len(ending)]
        return word
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us")):
        return word[:-1]
    return word


def words_of(text: str) -> list[str]:
    """Words of a text in lower case, «ё» as «е»; an emoji is a word."""
    return re.findall(_WORD, plain(apart(text)))


def spelt(text: str) -> list[str]:
    """The same words as they were spelt, as far as they can be told."""
    found = re.findall(_WORD, unicodedata.normalize("NFC", apart(text)))
    return found if len(found) == len(words_of(text)) else words_of(text)


@dataclass(frozen=True, slots=True)
class Span:
    """Words that were understood: ``role`` and what they mean there; a subject's meaning is its number.

    A synonym's are the numbers of all that share it, until the whole prompt is read.
    """

    text: str
    role: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Understood:
    """What a prompt says.

    Args:
        scene: None where no subject is known.
        spans: What was understood, in order.
        ignored: Words that change nothing, because they are unknown or cannot be shown.
        left_open: Roles of ``scene_words.ROLES`` that the prompt does not speak of; the scene holds defaults there.
    """

    scene: Scene | None
    spans: tuple[Span, ...]
    ignored: tuple[str, ...]
    left_open: tuple[str, ...] = field(default=())


Lexicon = dict[tuple[str, ...], tuple[str, str]]


class SceneReader:
    """Reads prompts by a list of words.

    Args:
        table: The contents of `words.json`: `concepts`, names of each in English and Russian; `phrases`, triples of a
            role, a meaning and phrases for it, parted by bars, of which an earlier one wins; `silent`, words that need
            no answer, `general`, what concepts do by themselves, and `toned`, concepts whose skin can have tones.
    """

    def __init__(self, table: Mapping[str, Any]) -> None:
        self.names: tuple[tuple[str, ...], ...] = tuple(tuple(map(str, names)) for names in table["concepts"])
        self.silent = frozenset(table["silent"].split())
        self.general = frozenset(table["general"].split())
        self.toned = frozenset(map(int, table.get("toned", ())))
        self._exact: Lexicon = {}
        self._stems: Lexicon = {}
        self._motions: dict[tuple[str, ...], str] = {}
        for role, meaning, phrases in table["phrases"]:
            for phrase in phrases.split("|"):
                if words := words_of(phrase):
                    self._exact.setdefault(tuple(words), (role, meaning))
                    stems = tuple(stem(word) for word in words)
                    self._stems.setdefault(stems, (role, meaning))
                    if role == "motion":
                        self._motions.setdefault(stems, meaning)

    @classmethod
    def of(cls, path: Path) -> Self:
        """Read a `words.json`.

        Raises:
            WeightsError: The file is not valid.
        """
        table = read_table(path)
        with reading(path, "holds no list of words"):
            return cls(table)

    def find_spans(self, text: str) -> tuple[list[tuple[Span, int]], list[tuple[str, int]]]:
        """Known phrases, from left to right and the longest first, and all other words; each with its place."""
        words, at = words_of(text), 0
        spans: list[tuple[Span, int]] = []
        others: list[tuple[str, int]] = []
        while at < len(words):
            for length in range(min(LONGEST, len(words) - at), 0, -1):
                phrase = tuple(words[at : at + length])
                if found := self._exact.get(phrase) or self._stems.get(tuple(stem(word) for word in phrase)):
                    spans.append((Span(" ".join(phrase), *found), at))
                    at += length
                    break
            else:
                others.append((words[at], at))
                at += 1
        return spans, others

    def read(self, text: str) -> Understood:
        """Understand a prompt.

        A colour stands for the background, unless a name holds it ("red apple"). Right before a subject it is ignored:
        a subject cannot be dyed, and nobody asked for a background of that colour. Of more than two different subjects
        the first two are taken. Synonyms name a subject only where no name does, and "something" is a subject that is
        left open only where nothing else is one. Of two motions the first is shown, and the other is named as ignored;
        so it is with all that the scene has no room for.
        """
        spans, others = self.find_spans(text)
        ignored = [(word, at) for word, at in others if word not in self.silent and word not in self.general]
        kept: list[tuple[Span, int]] = []
        negated = False
        for span, at in spans:
            if span.role == "not":
                negated = True
                ignored.append((span.text, at))
                continue
            if negated:
                ignored.append((span.text, at))
                negated = False
                continue
            kept.append((span, at))
        named = any(span.role == "subject" for span, _ in kept)
        if named:  # beside a name, "crying" or "happy" is no second subject, and "jump" what "jumps" is
            begins = min(at for span, at in kept if span.role == "subject")
            kept = [(self._as_motion(span) if at > begins else span, at) for span, at in kept]
            ignored += [(s.text, at) for s, at in kept if s.role == "synonym" and s.text not in self.general]
            kept = [(span, at) for span, at in kept if span.role != "synonym"]
        else:  # "a kitty waves" is no wave
            if any(span.role == "synonym" and span.text not in self.general for span, _ in kept):
                kept = [(s, at) for s, at in kept if s.role != "synonym" or s.text not in self.general]
            kept, unmeant = _settled(kept)
            ignored += unmeant
        subjects = [(span, at) for span, at in kept if span.role == "subject"]
        colours = [(span, at) for span, at in kept if span.role == "colour"]
        dyes = {at for span, at in colours if any(at + len(span.text.split()) == place for _, place in subjects)}
        ignored += [(span.text, at) for span, at in colours if at in dyes]
        kept = [(span, at) for span, at in kept if at not in dyes]
        colours = [(span, at) for span, at in colours if at not in dyes]
        if len(colours) > 1:  # "red on the left, blue on the right" speaks of the background
            ends = {at + len(span.text.split()) for span, at in colours}
            parts = {"left": "halves", "right": "halves", "top": "sky", "bottom": "sky"}
            kept = [
                (replace(span, role="backdrop", meaning=parts.get(span.meaning, "plain")), at)
                if span.role == "place" and at in ends
                else (span, at)
                for span, at in kept
            ]
        numbers: list[int | None] = list(dict.fromkeys(int(span.meaning) for span, _ in subjects))
        if not numbers and any(span.role == "anything" for span, _ in kept):
            numbers = [None]
        ignored += [(span.text, at) for span, at in subjects if int(span.meaning) in numbers[2:]]
        kept = [(one, at) for one, at in kept if not (one.role == "subject" and int(one.meaning) in numbers[2:])]
        if not numbers:
            rest = tuple(word for word, _ in sorted(ignored, key=lambda item: item[1]))
            return Understood(None, tuple(span for span, _ in kept), rest)
        tones, unused = tones_of(kept, self.toned)
        ignored += [(span.text, at) for span, at in kept if at in unused]
        kept = [(span, at) for span, at in kept if at not in unused]
        scene, left_open = _scene(numbers[:2], [span for span, _ in kept], [int(span.meaning) for span, _ in colours])
        scene = replace(scene, subjects=tuple(replace(s, tone=tones.get(s.concept, 0)) for s in scene.subjects))
        ignored += [(span.text, at) for span, at in kept if not _is_shown(span, scene)]
        rest = tuple(word for word, _ in sorted(ignored, key=lambda item: item[1]))
        return Understood(scene, tuple(span for span, _ in kept if _is_shown(span, scene)), rest, left_open)

    def _as_motion(self, span: Span) -> Span:
        """A synonym that is also a form of a word for a motion, as that motion."""
        meaning = self._motions.get(tuple(stem(word) for word in words_of(span.text)))
        return replace(span, role="motion", meaning=meaning) if span.role == "synonym" and meaning else span

    def nearest(self, text: str, count: int = 3) -> list[str]:
        """English names of the concepts that are spelt most like a word of the text, in either language.

        Args:
            text: Its first words count.
            count: How many.
        """
        best: dict[int, float] = {}
        words = words_of(text)[:READ]
        for phrase, (role, meaning) in self._exact.items():
            if role not in ("subject", "synonym"):
                continue
            name, number, matcher = " ".join(phrase), int(meaning.split(",")[0]), difflib.SequenceMatcher()
            matcher.set_seq2(name)
            enough = sorted(best.values())[-count] if len(best) >= count else 0.0
            for word in words:
                matcher.set_seq1(word)
                if matcher.real_quick_ratio() > enough and matcher.quick_ratio() > enough:
                    best[number] = max(best.get(number, 0.0), matcher.ratio())
        found = sorted(best, key=lambda number: -best[number])
        return [self.names[number][0] for number in dict.fromkeys((*found, *range(count)))][:count]

    def found(self, text: str = "") -> list[tuple[str, ...]]:
        """Names of the concepts that a text speaks of, in their order; of all of them if it is empty.

        A third name says of those with tones of skin that they have them.
        """
        wanted = [stem(word) for word in words_of(text)]
        known: dict[int, set[str]] = {number: set() for number in range(len(self.names))}
        for phrase, (role, meaning) in self._stems.items():
            if role in ("subject", "synonym"):
                for number in meaning.split(","):
                    known[int(number)].update(phrase)
        return sorted(
            (*names, "tones of skin: 🏻 🏼 🏽 🏾 🏿") if number in self.toned else names
            for number, names in enumerate(self.names)
            if all(any(one.startswith(word) for one in known[number]) for word in wanted)
        )


def _settled(spans: list[tuple[Span, int]]) -> tuple[list[tuple[Span, int]], list[tuple[str, int]]]:
    """Synonyms as subjects, those between two words like "and" as one: the concept that most of them name.

    Returns:
        The spans, and the synonyms of something else.
    """
    ends = [at for span, at in spans if span.role in ("and", "relation")]
    votes: dict[int, Counter[str]] = {}
    for span, at in reversed(spans):
        if span.role == "synonym":
            votes.setdefault(sum(end < at for end in ends), Counter()).update(span.meaning.split(","))
    kept, others = [], []
    for span, at in spans:
        if span.role != "synonym":
            kept.append((span, at))
            continue
        found = votes[sum(end < at for end in ends)]
        meant = max(found, key=lambda number: found[number])  # of equals what is said last, as nouns are
        if meant in span.meaning.split(","):
            kept.append((replace(span, role="subject", meaning=meant), at))
        else:
            others.append((span.text, at))
    return kept, others


def _is_shown(span: Span, scene: Scene) -> bool:
    """Whether what was understood is part of a scene."""
    subjects = [subject.concept for subject in scene.subjects]
    same = len(set(subjects)) == 1
    match span.role:
        case "motion":
            return span.meaning == scene.motion
        case "camera":
            return span.meaning == scene.camera
        case "size":
            return span.meaning == scene.size
        case "count":
            return same and int(span.meaning) == len(subjects)
        case "relation":
            return not same
        case "colour":
            return int(span.meaning) in scene.colours
        case "anything":
            return subjects == [None] * len(subjects)
        case "place" if scene.arrangement == "one":
            return span.meaning == scene.place
        case "place":
            across = scene.arrangement == "side by side"
            return not same and span.meaning in (("left", "right") if across else ("top", "bottom"))
    return True


def _scene(numbers: list[int | None], spans: list[Span], colours: list[int]) -> tuple[Scene, tuple[str, ...]]:
    def first(role: str) -> str | None:
        return next((span.meaning for span in spans if span.role == role), None)

    backdrop: Backdrop = "plain"
    if len(colours) > 1:
        named = {span.meaning for span in spans if span.role == "backdrop"}
        backdrop = "gradient" if "gradient" in named else "ground"
        if "halves" in named and "gradient" not in named:
            backdrop = "halves"
        told = [span.meaning for span in spans if span.role in ("colour", "backdrop")]
        if backdrop == "ground" and "ground" in told[:2]:  # "on green ground under a blue sky"
            colours = colours[1::-1]
    pair = (colours[0] if colours else WHITE, colours[1] if len(colours) > 1 else None)
    motion, camera = first("motion"), first("camera")
    left_open = [] if colours else ["backdrop", "colour", "second colour"]
    count = int(first("count") or 1)
    if len(numbers) == 1 and count == 1:
        place, size = first("place"), first("size")
        x, y, side = PLACES[place or "middle"]
        if size is not None:
            side = SIZES[size] if place in (None, "middle") else side * (0.75 if size == "small" else 1.2)
        left_open += [role for role, said in (("place", place), ("size", size)) if said is None]
        subject = Subject(numbers[0], x, y, side)
        return Scene((subject,), backdrop, pair, "one", place or "middle", size, motion, camera), tuple(left_open)
    if len(numbers) == 1:
        arrangement = "side by side" if count == 2 else "three in a row"
        order = numbers * count
    else:
        relation = first("relation")
        places = [span.meaning for span in spans if span.role == "place"]
        upright = relation in ("above", "below") or (relation is None and places[:1] in (["top"], ["bottom"]))
        arrangement = "one above the other" if upright else "side by side"
        back = relation in ("right", "below") or (relation is None and places[:1] in (["right"], ["bottom"]))
        order = numbers[::-1] if back else numbers
    subjects = tuple(Subject(n, *at) for n, at in zip(order, ARRANGEMENTS[arrangement], strict=True))
    return Scene(subjects, backdrop, pair, arrangement, "middle", None, motion, camera), tuple(left_open)
