"""Reading a prompt by rules: what is known in it becomes a scene, and everything else is named.

The rules know names of concepts in their usual forms, synonyms that one or several of them share, and the words for
places, sizes, motions, cameras, counts and backgrounds; the lists ship with the weights as `words.json.xz`, which
`python -m kandinsky.lab.nano2.word_list` writes. No word is dropped in silence. No torch.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from kandinsky.families.nano.joined_emoji import COUPLES, sex_of, stand_ins
from kandinsky.families.nano.noun_phrases import FACES, NounPhrases, is_clause
from kandinsky.families.nano.scenes import (
    ARRANGEMENTS,
    CORNERS,
    MOST_SUBJECTS,
    PLACES,
    SIZES,
    WHITE,
    Backdrop,
    Scene,
    Subject,
)
from kandinsky.families.nano.spelling import (
    WORD_START,
    forms_of,
    least_likeness,
    likeness,
    other_stems,
    pauses,
    sound_of,
    stem,
    without_vowel,
    words_of,
)
from kandinsky.families.nano.tone_words import tones_of
from kandinsky.weights.untrusted import read_table, reading

LONGEST = 8  # words of a phrase
READ = 12  # words of a prompt that are compared with names of concepts, where none is known
SURER = 0.06  # what is so much less alike than the nearest is not named
SCOPE = 6  # words that a "no" speaks of, at most
_DETERMINERS = frozenset(
    [
        *("a", "an", "the", "one", "this", "that", "my", "your", "his", "her", "its", "our", "their", "each"),
        *("every", "another", "some"),
    ]
)
_BEFORE_VERBS = frozenset(
    [
        *("he", "she", "it", "they", "who", "which", "we", "i", "you", "to", "can", "will", "must", "should"),
        *("would", "could", "and", "then"),
    ]
)
_TOWARDS = frozenset(
    [
        *("on", "in", "at", "with", "by", "near", "against", "from", "over", "to", "behind", "beside", "inside"),
        *("but", "while", "as", "на", "в", "во", "с", "со", "у", "к", "по", "из", "от", "под", "над", "за"),
        *("возле", "около", "рядом", "но", "а"),
    ]
)
"""Words that end what a "no" speaks of."""
_AGAIN = frozenset(["and", "another", "one", "more", "и", "еще", "одна", "один", "одно"])
"""Words between two names of one thing that make them two of it."""
_SLOWLY = frozenset(["to", "the", "slowly", "quickly", "fast", "медленно", "быстро", "плавно"])
_NUMBERS = (("two", "three"), ("две", "три"))
_EACH = ("one of each", "по одному")
_OR = frozenset(["or", "nor", "или", "ни", "либо"])


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
        negated: Names of what should not be there.
        instead: Words of which something else is shown, as near as can be, in order, and what it is.
    """

    scene: Scene | None
    spans: tuple[Span, ...]
    ignored: tuple[str, ...]
    left_open: tuple[str, ...] = field(default=())
    negated: tuple[str, ...] = field(default=())
    instead: tuple[tuple[str, str], ...] = field(default=())


Lexicon = dict[tuple[str, ...], tuple[str, str]]


class SceneReader:
    """Reads prompts by a list of words.

    Args:
        table: The contents of `words.json`: `concepts`, names of each in English and Russian; `phrases`, triples of a
            role, a meaning and phrases for it, parted by bars, of which an earlier one wins; `silent`, words that need
            no answer, and `general`, what concepts do by themselves. Where it has them: `emoji`, the characters of each
            concept; `toned`, concepts whose skin can have tones; `verbs`, names that are also what somebody does;
            `near`, pairs of concepts and of words that are near them, parted by bars; `alike`, the concepts nearest to
            each; `real`, words that are near nothing but are spelt like one that is; `abstract`, those that name
            nothing; `describing`, synonyms that describe; `scenery`, what a thing stands before or on; `worn`, parts of
            a body and what is worn, in all forms; `going`, forms of verbs that a direction completes; `function`, words
            of grammar, which are no forms of names.
    """

    def __init__(self, table: Mapping[str, Any]) -> None:
        self.names: tuple[tuple[str, ...], ...] = tuple(tuple(map(str, names)) for names in table["concepts"])
        self.silent = frozenset(table["silent"].split())
        self.general = frozenset(table["general"].split())
        self.toned = frozenset(map(int, table.get("toned", ())))
        self._exact: Lexicon = {}
        self._stems: Lexicon = {}
        self._motions: dict[tuple[str, ...], str] = {}
        self._verbs = frozenset(table.get("verbs", "").split())
        self._real = frozenset(table.get("real", "").split()) | frozenset(table.get("abstract", "").split())
        self._describing = frozenset(table.get("describing", "").split())
        self._scenery = frozenset(map(stem, table.get("scenery", "").split()))
        self._worn = frozenset(table.get("worn", "").split())
        self._going = frozenset(table.get("going", "").split())
        self._function = frozenset(table.get("function", "").split())
        self._near: dict[str, list[int]] = {}
        for concepts, words in table.get("near", ()):
            for word in words.split("|"):
                self._near.setdefault(word, [int(number) for number in concepts.split()])
        for word, numbers in list(self._near.items()):
            self._near.setdefault(stem(word), numbers)
        self._alike = [[int(number) for number in numbers.split()] for numbers in table.get("alike", ())]
        self._emoji: list[str] = [characters.split()[0] for characters in table.get("emoji", ())]
        for number, characters in enumerate(table.get("emoji", ())):
            for one in characters.split():
                self._exact[tuple(words_of(one))] = ("subject", str(number))
        for role, meaning, phrases in table["phrases"]:
            for phrase in phrases.split("|"):
                if words := words_of(phrase):
                    self._exact.setdefault(tuple(words), (role, meaning))
                    stems = tuple(stem(word) for word in words)
                    for forms in (stems, (*stems[:-1], without_vowel(words[-1]))):
                        self._stems.setdefault(forms, (role, meaning))
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

    def _meaning(self, words: tuple[str, ...]) -> tuple[str, str] | None:
        """Role and meaning of a phrase, as it is or in another form; of Russian words a name before a synonym."""
        exact, other = self._exact.get(words), self._stems.get(tuple(stem(word) for word in words))
        if len(words) == 1 and words[0] in self._function:  # «как» is no form of «каяк»
            return exact
        if words and not words[-1].isascii() and not exact:
            before = tuple(stem(word) for word in words[:-1])
            stems = (words[-1], stem(words[-1]), *other_stems(words[-1]))  # «черепах» is no form of «череп»
            other = next((self._stems[(*before, one)] for one in stems if (*before, one) in self._stems), None)
        is_name = exact and other and (exact[0], other[0]) == ("synonym", "subject") and not words[0].isascii()
        return other if is_name else exact or other

    def names_something(self, phrase: str) -> bool:
        """Whether a word or phrase as a whole names a concept, in any of its forms."""
        words = tuple(words_of(phrase))
        found = self._meaning(words)
        return found is not None and found[0] in ("subject", "synonym")

    def find_spans(self, text: str) -> tuple[list[tuple[Span, int]], list[tuple[str, int]]]:
        """Known phrases, from left to right and the longest first, and all other words; each with its place."""
        words, at = words_of(text), 0
        spans: list[tuple[Span, int]] = []
        others: list[tuple[str, int]] = []
        while at < len(words):
            for length in range(min(LONGEST, len(words) - at), 0, -1):
                phrase = tuple(words[at : at + length])
                single = (*phrase[:-1], phrase[-1].removesuffix("s"))
                if length > 1 and at and words[at - 1] in ("a", "an") and phrase != single and single in self._exact:
                    continue  # "a panda bears a gift" speaks of no panda bears
                if found := self._meaning(phrase):
                    spans.append((Span(" ".join(phrase), *found), at))
                    at += length
                    break
            else:
                if words[at].isdecimal() and int(words[at][:4]) > MOST_SUBJECTS:
                    spans.append((Span(words[at], "count", words[at][:4]), at))
                    at += 1
                    continue
                if stood_for := [] if WORD_START.match(words[at]) else self._stand_ins(words[at]):
                    spans += [(Span(words[at], "subject", number), at) for number in stood_for]
                    at += 1
                    continue
                others.append((words[at], at))
                at += 1
        return spans, others

    def _stand_ins(self, emoji: str) -> list[str]:
        """Concepts that stand for an emoji that is none; none where nothing of it is known."""
        for parts in stand_ins(emoji):
            found = [self._exact[(part,)] for part in parts if (part,) in self._exact]
            if numbers := [number for role, number in found if role == "subject"]:
                return numbers
        return []

    def _instead(self, spans: Sequence[tuple[Span, int]], scene: Scene, language: int) -> list[tuple[str, str, int]]:
        """Words of which something else is shown, what it is, and their places."""
        found: list[tuple[str, str, int]] = []
        numbers = [subject.concept for subject in scene.subjects]
        alike = len(set(numbers)) == 1
        for at, group in itertools.groupby(spans, key=lambda one: one[1]):
            same = [span for span, _ in group]
            span = same[0]
            if span.role == "count" and (not alike or int(span.meaning) > len(numbers)) and int(span.meaning) > 1:
                shown = _NUMBERS[language][len(numbers) - 2] if alike and len(numbers) > 1 else _EACH[language]
                found.append((span.text, shown, at))
            if span.role != "subject" or WORD_START.match(span.text) or not self._is_stand_in(span):
                continue
            shown = ", ".join(self.names[int(one.meaning)][language] for one in same if int(one.meaning) in numbers)
            found.append((span.text, shown, at))
        return found

    def _is_stand_in(self, span: Span) -> bool:
        """Whether another thing is shown for an emoji than it is; a person of no sex is none."""
        shown = self._emoji[int(span.meaning)]
        if (span.text,) in self._exact or shown in COUPLES:
            return False
        asked, own = sex_of(span.text), sex_of(shown)
        bare = [re.sub("\u200d?[♀♂]|[👩👨🧑]", "", one) for one in (span.text, shown)]
        return bare[0] != bare[1] or bool(asked and own and asked != own)

    def read(self, text: str) -> Understood:
        """Understand a prompt.

        A colour stands for the background, unless a name holds it ("red apple"). Right before a subject it is ignored:
        a subject cannot be dyed, and nobody asked for a background of that colour. Of more than two different subjects
        the first two are taken. Synonyms name a subject only where no name does, and "something" is a subject that is
        left open only where nothing else is one. Of two motions the first is shown, and the other is named as ignored;
        so it is with all that the scene has no room for.
        """
        spans, others = self.find_spans(text)
        words, stops = words_of(text), pauses(text)
        language = int(bool(re.search("[а-яё]", text.lower())))
        spans = self._without_goings(spans, words)
        ignored = [(word, at) for word, at in others if word not in self.silent and word not in self.general]
        absent = _negated(words, spans, stops, self.silent)
        ignored += [(span.text, at) for span, at in spans if at in absent]
        negated = tuple(s.text for s, at in spans if at in absent and s.role in ("subject", "synonym"))
        spans = [(span, at) for span, at in spans if at not in absent]
        kept, doings = self._without_doings(words, spans, stops)
        named = any(span.role in ("subject", "anything") for span, _ in kept)
        kept, unmeant = self._without_strangers(kept, words, stops, named=named)
        kept, repeated = _counted(kept, words)
        ignored += doings + unmeant + repeated
        if named:  # beside a name, "crying" or "happy" is no second subject, and "jump" what "jumps" is
            begins = min(at for span, at in kept if span.role in ("subject", "anything"))
            kept = [(self._as_motion(span) if at > begins else span, at) for span, at in kept]
            ignored += [(s.text, at) for s, at in kept if s.role == "synonym" and s.text not in self.general]
            kept = [(span, at) for span, at in kept if span.role != "synonym"]
        else:  # "a kitty waves" is no wave, and "an old lighthouse" no old man
            described = self._before_strangers(kept, others, stops)
            ignored += [(span.text, at) for span, at in kept if at in described]
            kept = [(span, at) for span, at in kept if at not in described]
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
            parts = {"top": "sky", "bottom": "sky"}
            if all(span.meaning != "gradient" for span, _ in kept if span.role == "backdrop"):
                parts |= {"left": "halves", "right": "halves"}
            kept = [
                (replace(span, role="backdrop", meaning=parts[span.meaning]), at)
                if span.role == "place" and at in ends and span.meaning in parts
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
            return Understood(None, tuple(span for span, _ in kept), rest, negated=negated)
        tones, unused = tones_of(kept, self.toned)
        ignored += [(span.text, at) for span, at in kept if at in unused]
        kept = [(span, at) for span, at in kept if at not in unused]
        scene, left_open = _scene(numbers[:2], [span for span, _ in kept], [int(span.meaning) for span, _ in colours])
        scene = replace(scene, subjects=tuple(replace(s, tone=tones.get(s.concept, 0)) for s in scene.subjects))
        instead = sorted(self._instead(kept, scene, language), key=lambda item: item[2])
        told = {at for _, _, at in instead}
        shown = [(span, at) for span, at in kept if _is_shown(span, scene, is_coloured=bool(colours))]
        ignored += [(span.text, at) for span, at in kept if (span, at) not in shown and at not in told]
        ends = {at + len(span.text.split()) for span, at in kept if span.role == "subject"}
        ignored = [(word, at) for word, at in ignored if at not in told and not (word in FACES and at in ends)]
        if scene.motion is not None and scene.motion.startswith("moves "):
            ignored = [(word, at) for word, at in ignored if word not in self._going]
        rest = tuple(word for word, _ in sorted(ignored, key=lambda item: item[1]))
        others_shown = tuple((word, what) for word, what, _ in instead)
        return Understood(scene, tuple(span for span, _ in shown), rest, left_open, negated, others_shown)

    def _without_goings(self, spans: list[tuple[Span, int]], words: Sequence[str]) -> list[tuple[Span, int]]:
        """Spans without the verbs that a direction beside them completes: "flies to the right" speaks of no fly."""
        left_out: set[int] = set()
        for span, at in spans:
            if span.role != "motion" or not span.meaning.startswith("moves "):
                continue
            before, after = at - 1, at + len(span.text.split())
            while before > 0 and (words[before] in _SLOWLY or words[before].endswith("ly")):
                before -= 1
            left_out |= {n for n in (before, after) if 0 <= n < len(words) and words[n] in self._going}
        return [(span, at) for span, at in spans if at not in left_out or span.role not in ("subject", "synonym")]

    def _without_strangers(
        self, spans: list[tuple[Span, int]], words: Sequence[str], stops: frozenset[int], *, named: bool
    ) -> tuple[list[tuple[Span, int]], list[tuple[str, int]]]:
        """Spans without those of things that are not shown: "a dog in a blue hat" speaks of no blue background.

        Returns:
            The other spans, and the words of these. What a thing stands on is the ground.
        """

        def phrases(found: Sequence[tuple[Span, int]]) -> NounPhrases:
            begins = {at: span for span, at in found}
            sets = (self.silent | self.general, self._scenery, self._describing)
            return NounPhrases(words, stops, begins, named, *sets)

        worn = phrases(spans).worn(self._worn)
        others = [(span.text, at) for span, at in spans if at in worn]
        spans = [(span, at) for span, at in spans if at not in worn]
        behind, ground = phrases(spans).behind()
        kept = [
            (replace(span, role="backdrop", meaning="ground") if at in ground else span, at)
            for span, at in spans
            if at not in behind
        ]
        strange = phrases(kept).of_strangers() | phrases(kept).motions_of_others()
        if not named:
            strange |= phrases(kept).doings_of_strangers()
        others += [(span.text, at) for span, at in spans if at in behind | strange and span.text not in self.general]
        return [(span, at) for span, at in kept if at not in strange], others

    def _before_strangers(
        self, spans: Sequence[tuple[Span, int]], others: Sequence[tuple[str, int]], stops: frozenset[int]
    ) -> set[int]:
        """Places of the synonyms that describe a thing which is none of the concepts: they stand right before it."""
        strangers = {
            at for word, at in others if word not in FACES and any(form in self._near for form in forms_of(word))
        }
        ends = {at: at + len(span.text.split()) for span, at in spans if span.role == "synonym"}
        return {at for at, end in ends.items() if end in strangers and end - 1 not in stops}

    def _as_motion(self, span: Span) -> Span:
        """A synonym that is also a form of a word for a motion, as that motion."""
        meaning = self._motions.get(tuple(stem(word) for word in words_of(span.text)))
        return replace(span, role="motion", meaning=meaning) if span.role == "synonym" and meaning else span

    def _without_doings(
        self, words: list[str], spans: list[tuple[Span, int]], stops: frozenset[int]
    ) -> tuple[list[tuple[Span, int]], list[tuple[str, int]]]:
        """Spans without English names that say what somebody does ("a panda drums") or what kind of thing it is.

        Right behind a name, a word with an "s" is what one thing does, and a word without it what several do, if it is
        a verb. Between an article and a name, another name says of which kind it is: "an apple tree" is a tree.

        Returns:
            The other spans, and the words of these.
        """
        left_out: set[int] = set()
        for (one, at), (other, then) in itertools.pairwise(spans):
            if is_clause(one, other) and then == at + len(one.text.split()) and then - 1 not in stops:
                left_out.add(then)  # «кот зевает»
            if one.role not in ("subject", "synonym") or at in left_out or not _is_name(other):
                continue
            between = words[at + len(one.text.split()) : then]
            if any(not word.endswith("ly") for word in between) or any(n in stops for n in range(at, then)):
                continue
            first_is_many = one.text.isascii() and one.text != self._single(one.text)
            single = self._single(other.text)
            if other.text != single:
                article = _article(words, at, stops)
                if first_is_many:
                    continue
                is_doing = single in self._verbs
                if article:
                    is_doing = is_doing or one.role == "subject" or article != "the"
                else:
                    is_doing = is_doing or (one.role, other.role) == ("subject", "synonym")
                if is_doing:
                    left_out.add(then)
                elif one.role == "subject" and not article and one.text.isascii():
                    left_out.add(at)
            elif single in self._verbs and (first_is_many or _is_joined(words, at)):
                left_out.add(then)
            elif not between and one.role == other.role == "subject" and _is_name(one) and _article(words, at, stops):
                left_out.add(at)
        for span, at in spans:  # "she watches", "wants to fly"
            if at and _is_name(span) and words[at - 1] in _BEFORE_VERBS and at - 1 not in stops:
                single = self._single(span.text)
                if single in self._verbs and words[at - 1] != "and":
                    left_out.add(at)
            if at and span.text in ("he", "she", "он", "она") and spans[0][0].role == "subject":
                left_out.add(at)  # "a cat, she jumps"
            # «кот дома» is at home, «два дома» are houses
            if at and span.text == "дома" and not any(one.role == "count" and then == at - 1 for one, then in spans):
                left_out.add(at)
        others = [(span.text, at) for span, at in spans if at in left_out and span.text not in self.general]
        return [(span, at) for span, at in spans if at not in left_out], others

    def _single(self, text: str) -> str:
        """The word of which an English name is the form with an "s", or the name as it is."""
        for ending, instead in (("ies", "y"), ("ves", "f"), ("es", ""), ("s", "")):
            word = text.removesuffix(ending) + instead
            if text.endswith(ending) and (self._exact.get((word,)) or ("", ""))[0] in ("subject", "synonym"):
                return word
        return text

    def nearest(self, text: str, count: int = 3, *, language: int = 0) -> list[str]:
        """Names of concepts near the words of a text: misspelt, or near in meaning to one that is known to be.

        What is most like the first of them follows, where fewer are found.

        Args:
            text: Its first words count, in either language.
            count: How many, at most.
            language: Of the names: 0 for English, 1 for Russian.

        Returns:
            The nearest first; empty where nothing is near.
        """
        spans, others = self.find_spans(text)
        known = [
            span.text for span, _ in spans if span.role in ("subject", "synonym") and span.text not in self.general
        ]
        strangers = [word for word, _ in others if word not in self.silent and word not in self.general]
        strangers += [
            span.text for span, _ in spans if span.role == "backdrop" and span.text in self._near
        ]  # "the sky"
        best: dict[int, float] = {}
        for words in (strangers, known):  # of "an old lighthouse", the lighthouse
            for word in words[:READ] if not best else ():
                for number, value in self._like(word).items():
                    best[number] = max(best.get(number, 0.0), value)
        found = [n for n in sorted(best, key=lambda n: -best[n]) if best[n] > max(best.values()) - SURER]
        more = [other for number in found[:1] for other in (self._alike or [[]] * len(self.names))[number]]
        return [self.names[number][language] for number in dict.fromkeys((*found, *more))][:count]

    def _like(self, word: str) -> dict[int, float]:
        """Concepts near a word, and how sure that is."""
        best: dict[int, float] = {}

        def add(numbers: Iterable[int], value: float) -> None:
            for place, number in enumerate(numbers):
                best[number] = max(best.get(number, 0.0), value - 0.01 * place)

        exact = self._exact.get((word,)) or self._stems.get((stem(word),))
        if exact and exact[0] in ("subject", "synonym"):
            add(map(int, exact[1].split(",")), 1.0)
            return best
        if form := next((form for form in forms_of(word) if form in self._near), None):
            add(self._near[form], 0.98)
            return best
        if any(form in self._real for form in forms_of(word)):
            return best
        sound = sound_of(word)
        for other, numbers in self._spellings.get(sound[:1], ()):
            value = likeness(sound, other)
            if value >= least_likeness(word):
                add(numbers, value)
        return best

    @functools.cached_property
    def _spellings(self) -> dict[str, list[tuple[str, list[int]]]]:
        """All words that a misspelt one may mean, as they sound, by their first letters."""
        found: dict[str, list[tuple[str, list[int]]]] = {}
        for phrase, (role, meaning) in self._exact.items():
            if role in ("subject", "synonym") and len(phrase) == 1:
                found.setdefault(sound_of(phrase[0])[:1], []).append(
                    (sound_of(phrase[0]), list(map(int, meaning.split(","))))
                )
        for word, numbers in self._near.items():
            found.setdefault(sound_of(word)[:1], []).append((sound_of(word), numbers))
        return found

    def has_neighbours(self, word: str) -> bool:
        """Whether a word names a concept or is near one, spelt as it is."""
        return self.names_something(word) or any(form in self._near for form in forms_of(word))

    def is_like(self, word: str) -> bool:
        """Whether a word is taken for another one, misspelt."""
        return bool(self._like(word))

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


def _is_name(span: Span) -> bool:
    """Whether a span is one English word that names something."""
    return span.role in ("subject", "synonym") and bool(re.fullmatch("[a-z]+", span.text))


def _article(words: Sequence[str], at: int, stops: frozenset[int]) -> str:
    """The article or pronoun of a name, up to two other words before it."""
    if words[at] in ("he", "she"):
        return words[at]
    for n in range(at - 1, max(-1, at - 4), -1):
        if n in stops:
            break
        if words[n] in _DETERMINERS:
            return words[n]
    return ""


def _is_joined(words: Sequence[str], at: int) -> bool:
    """Whether a name is the second of two, or there are several of it."""
    return any(word in ("and", "two", "three", "2", "3") for word in words[max(0, at - 3) : at])


def _negated(
    words: Sequence[str], spans: Sequence[tuple[Span, int]], stops: frozenset[int], silent: frozenset[str]
) -> set[int]:
    """Places of the spans that a "no" speaks of, and of the "no" itself.

    It speaks of what follows: of the first phrase, of what describes it, and of all that "or" adds; not of what stands
    behind a comma, "and", or a word like "on". A «нет» that ends a sentence speaks of what stands before it.
    """
    begins = {at: span for span, at in spans}
    found: set[int] = set()
    for span, at in spans:
        if span.role != "not" or at in found:
            continue
        found.add(at)
        place, first = at + len(span.text.split()), True
        if place - 1 in stops or place >= len(words):
            found |= {one for one in begins if begins[one].role in ("subject", "synonym") and 0 < at - one <= 2}
            continue
        for _ in range(SCOPE):
            one = begins.get(place)
            if place >= len(words) or (not first and one and one.role in ("motion", "place", "backdrop")):
                break
            if one is None and words[place] in _OR:
                first = True
            elif one is None and words[place] in _TOWARDS:
                if not first:
                    break
            elif one is not None and one.role in ("and", "relation", "camera", "not"):
                break
            elif one is not None:
                found.add(place)
                place += len(one.text.split()) - 1
                if one.role not in ("colour", "size", "count") and (
                    place + 1 >= len(words) or words[place + 1] not in _OR
                ):
                    break
                first = False
            elif words[place] not in silent:
                first = False
            if place in stops:
                break
            place += 1
    return found


def _counted(
    spans: list[tuple[Span, int]], words: Sequence[str]
) -> tuple[list[tuple[Span, int]], list[tuple[str, int]]]:
    """Spans in which a thing that is named several times in a row is counted; and the names beyond the third."""
    runs: list[list[tuple[Span, int]]] = []
    joints: list[tuple[Span, int]] = []
    end, joined = 0, set[int]()
    for span, at in spans:
        last = runs[-1][-1][0] if runs else None
        is_same = last is not None and (last.role, last.meaning) == (span.role, span.meaning) == (
            "subject",
            span.meaning,
        )
        between = [words[n] for n in range(end, at) if n not in joined]
        if is_same and all(word in _AGAIN or word in _DETERMINERS for word in between):
            runs[-1].append((span, at))
        elif span.role in ("and", "size", "colour"):
            joints.append((span, at))
            joined |= set(range(at, at + len(span.text.split())))
            continue
        else:
            runs.append([(span, at)])
        end = at + len(span.text.split())
    kept: list[tuple[Span, int]] = list(joints)
    beyond: list[tuple[str, int]] = []
    for same in runs:
        kept.append(same[0])
        if len(same) > 1:
            kept.append((Span(same[1][0].text, "count", str(min(len(same), MOST_SUBJECTS))), same[1][1]))
        beyond += [(one.text, place) for one, place in same[MOST_SUBJECTS:]]
    return sorted(kept, key=lambda one: one[1]), beyond


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


def _is_shown(span: Span, scene: Scene, *, is_coloured: bool) -> bool:
    """Whether what was understood is part of a scene, whose background has a colour that was said or not."""
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
        case "relation":  # "on green ground under a blue sky"
            return not same or scene.backdrop == "ground"
        case "colour":
            return int(span.meaning) in scene.colours
        case "backdrop" if span.meaning in ("gradient", "halves"):
            return scene.backdrop == span.meaning
        case "backdrop":
            return is_coloured
        case "anything":
            return subjects == [None] * len(subjects)
        case "place" if scene.arrangement == "one" and span.meaning in CORNERS:
            return (scene.subjects[0].x, scene.subjects[0].y) == CORNERS[span.meaning][:2]
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
    count = min(int(first("count") or 1), MOST_SUBJECTS)
    if len(numbers) == 1 and count == 1:
        place, size = first("place"), first("size")
        x, y, side = (PLACES | CORNERS)[place or "middle"]
        if size is not None:
            side = SIZES[size] if place in (None, "middle") else side * (0.75 if size == "small" else 1.2)
        left_open += [role for role, said in (("place", place), ("size", size)) if said is None]
        subject = Subject(numbers[0], x, y, side)
        word = None if place in CORNERS else place or "middle"
        return Scene((subject,), backdrop, pair, "one", word, size, motion, camera), tuple(left_open)
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
