"""Whose adjective a word is: of a thing that is shown, of one that is not, or of the background. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kandinsky.families.nano.spelling import stem
from kandinsky.families.nano.tone_words import Spoken

_ADJECTIVE = re.compile("[а-я-]{2,}(?:[ыио]й|[ая]я|[ое]е|[ыи]е|[ое]го|[ое]му|[ую]ю|[ыи]х|[ыи]ми?|[ое]й|[ое]м)")
_VERB = re.compile("[а-я]{2,}(?:[еиуюая]т|тся|л[аои]?сь)")
"""Russian words by their endings; nouns end so too."""
_BETWEEN = frozenset(
    [
        *("on", "in", "at", "with", "by", "near", "against", "from", "over", "to", "behind", "beside", "inside", "of"),
        *("but", "while", "as", "for", "under", "and", "or", "nor", "who", "which", "that", "is", "are", "was"),
        *("a", "an", "the", "this", "my", "your", "his", "her", "its", "our", "their", "each", "every", "wearing"),
        *("holding", "having", "has", "being", "then", "very", "so", "when", "because", "it", "he", "she", "they"),
        *("на", "в", "во", "с", "со", "у", "к", "по", "из", "от", "под", "над", "за", "возле", "около", "рядом", "но"),
        *("а", "и", "или", "ни", "перед", "для", "при", "это", "очень", "который", "которая", "которое", "которые"),
    ]
)
"""Words that no noun phrase goes on behind."""
_BEFORE = frozenset(
    [
        *("on", "in", "at", "against", "over", "under", "by", "before", "upon", "above", "onto"),
        *("на", "в", "во", "под", "над", "перед", "у", "при", "по", "среди"),
    ]
)
"""Words between a thing and what it stands before or on."""
_WEARING = frozenset(["with", "in", "wearing", "has", "having", "с", "со", "в", "во"])
"""Words between a thing and what is part of it, or what it wears."""
_ARTICLES = frozenset(["a", "an", "the", "some", "this", "that"])
_AND = frozenset(["and", "и"])
FACES = frozenset(["face", "faces", "лицо", "лица", "лицом", "expression", "выражение"])
"""Nouns that say no more than the adjective before them does."""


@dataclass(frozen=True, slots=True)
class NounPhrases:
    """A prompt as noun phrases.

    Args:
        words: Of the prompt.
        stops: Numbers of the words that a comma or another mark follows.
        spans: What was understood, by the number of its first word.
        named: Whether the prompt names a subject, so that its synonyms are none.
        silent: Words that need no answer.
        scenery: Stems of what a thing stands before or on.
        describing: Synonyms that describe.
    """

    words: Sequence[str]
    stops: frozenset[int]
    spans: Mapping[int, Spoken]
    named: bool
    silent: frozenset[str]
    scenery: frozenset[str]
    describing: frozenset[str]

    def head(self, at: int) -> tuple[str, int] | None:
        """What the words from a place on describe.

        Returns:
            "subject" or "stranger", which is no thing that is shown, and its place; "backdrop" likewise; None where a
            mark, a verb, or what else goes on with the sentence stands there.
        """
        found: tuple[str, int] | None = None
        while at < len(self.words):
            span, word = self.spans.get(at), self.words[at]
            length = 1 if span is None else len(span.text.split())
            if span is not None and span.role == "subject":
                found = ("subject", at)
            elif span is not None and span.role == "backdrop":
                return "backdrop", at
            elif span is not None and span.role == "synonym":
                if found is None or found[0] != "subject":
                    found = ("stranger" if self.named else "subject", at)
            elif span is not None and span.role not in ("colour", "size", "tone"):
                break
            elif span is None:
                if word in _BETWEEN or word in self.silent or word in FACES or _is_verb(word):
                    break
                if not word.endswith("ly") and (found is None or found[0] != "subject"):
                    found = ("stranger", at)
            if at + length - 1 in self.stops:
                break
            at += length
        return found

    def of_strangers(self) -> set[int]:
        """Places of the adjectives and numbers that belong to no subject, and to no background."""
        found: set[int] = set()
        for at, span in self.spans.items():
            if span.role not in ("colour", "size", "count") and not self._describes(span):
                continue
            end = at + len(span.text.split())
            head = None if end - 1 in self.stops else self.head(end)
            if span.role == "count" and int(span.meaning) > 3 and (head is None or head[0] != "subject"):
                found.add(at)
            if head is None or head[0] != "stranger":
                continue
            if span.role == "synonym":
                if self.spans.get(head[1]) is None:
                    found.add(at)
            elif span.role != "colour" or not self._is_behind(at, head[1]):
                found.add(at)
        return found

    def doings_of_strangers(self) -> set[int]:
        """Places of synonyms that say what something does that is none of the subjects: "a mob running"."""
        found = set()
        for at, span in self.spans.items():
            text = span.text
            is_verb = (text.endswith("ing") and text in self.describing) or _is_verb(text)
            before = self.words[at - 1] if at else ""
            if span.role != "synonym" or not is_verb or not before or at - 1 in self.stops:
                continue
            ends = {begin + len(one.text.split()) for begin, one in self.spans.items()}
            if at not in ends and before not in _BETWEEN and before not in self.silent and not _is_adverb(before):
                found.add(at)
        return found

    def motions_of_others(self) -> set[int]:
        """Places of motions that are not the first subject's: "a snowman with snow falling"."""
        ends = {at + len(span.text.split()): at for at, span in self.spans.items() if span.role == "subject"}
        moving = [at for at, span in self.spans.items() if span.role == "motion" and span.text.split()[0][-3:] == "ing"]
        return {at for at in moving if at in ends and "with" in self.words[max(0, ends[at] - 2) : ends[at]]}

    def worn(self, names: frozenset[str]) -> set[int]:
        """Places of parts and garments of a subject before them, which are no second subject: "a cat in sunglasses".

        Args:
            names: Of parts and garments, in all forms.
        """
        found: set[int] = set()
        subjects = [at for at, span in self.spans.items() if span.role == "subject"]
        for at in subjects:
            if self.spans[at].text not in names:
                continue
            before = at - 1
            while before > 0 and before not in self.stops and self._is_between(before):
                before -= 1
            owners = [one for one in subjects if one < before and self.spans[one].text not in names]
            if owners and before not in self.stops and self.words[before] in _WEARING:
                found.add(at)
        return found

    def _is_between(self, at: int) -> bool:
        """Whether a word may stand between "with" and the part or garment: an article, or an adjective."""
        span, word = self.spans.get(at), self.words[at]
        is_adjective = span.role in ("colour", "size") if span is not None else word not in _BETWEEN
        return word in _ARTICLES or word in ("his", "her", "its", "their") or is_adjective

    def _describes(self, span: Spoken) -> bool:
        is_adjective = span.text in self.describing or bool(_ADJECTIVE.fullmatch(span.text))
        return span.role == "synonym" and not self.named and is_adjective

    def _is_behind(self, at: int, noun: int) -> bool:
        """Whether a coloured thing is what the subject stands on or before: its colour is the background's."""
        before = [at - n for n in (1, 2, 3) if at - n >= 0 and at - n not in self.stops]
        places = [self.words[n] for n in before]
        while places and (places[0] in _ARTICLES or _ADJECTIVE.fullmatch(places[0])):
            places = places[1:]
        if not places or places[0] not in _BEFORE:
            return False
        mass = places[0] == "on" and self.words[at - 1] == "on"  # "on blue ice"
        return mass or stem(self.words[noun]) in self.scenery

    def behind(self) -> tuple[set[int], set[int]]:
        """Places of things that are said to be the background or in it, and of those that are the ground.

        "on a background of stars", «звёзды на заднем плане», «на зелёной земле».
        """
        subjects = [at for at, span in self.spans.items() if span.role in ("subject", "synonym")]
        found: set[int] = set()
        for at, span in self.spans.items():
            if span.role != "backdrop" or span.meaning != "plain":
                continue
            found |= set(self._behind(at, span, subjects))
        ground = {
            at
            for at in subjects
            if stem(self.spans[at].text) in self.scenery and self._stands_on(at) and at not in found
        }
        return (found, ground) if set(subjects) - found - ground else (set(), set())

    def _behind(self, at: int, span: Spoken, subjects: Sequence[int]) -> Iterator[int]:
        ends = {one + len(self.spans[one].text.split()): one for one in subjects}
        is_whole = span.text.startswith("фон")  # «панда фон синий»
        if at in ends and not is_whole and at - 1 not in self.stops and min(subjects) != ends[at]:  # "star background"
            yield ends[at]
        place = at + len(span.text.split())
        coloured = any(one.role == "colour" and n + len(one.text.split()) == at for n, one in self.spans.items())
        if place - 1 in self.stops or coloured:
            return
        if place < len(self.words) and self.words[place] == "of":
            place += 1
        elif not re.search("[а-я]", span.text):
            return
        while place < len(self.words):
            one = self.spans.get(place)
            length = 1 if one is None else len(one.text.split())
            if place in subjects:
                yield place
                if _AND.isdisjoint(self.words[place + length : place + length + 1]):
                    return
            elif self.words[place] in _BEFORE or (one is not None and one.role in ("motion", "place", "camera")):
                return
            if place + length - 1 in self.stops:
                return
            place += length

    def _stands_on(self, at: int) -> bool:
        """Whether "on" stands before a noun, with adjectives between at most."""
        for n in range(at - 1, max(-1, at - 5), -1):
            if n in self.stops:
                return False
            if self.words[n] in ("on", "на"):
                return True
            span = self.spans.get(n)
            is_adjective = _ADJECTIVE.fullmatch(self.words[n]) or (span is not None and span.role in ("colour", "size"))
            if self.words[n] not in _ARTICLES and not is_adjective:
                return False
        return False


def is_clause(one: Spoken, other: Spoken) -> bool:
    """Whether the name of a second thing says in Russian what the first does."""
    return (one.role in ("subject", "synonym")) and other.role == "subject" and _is_verb(other.text.split()[0])


def _is_verb(word: str) -> bool:
    return bool(_VERB.fullmatch(word))


def _is_adverb(word: str) -> bool:
    return word.endswith("ly") or bool(re.fullmatch("[а-я]{4,}о", word))
