"""Tones of skin in a prompt: emoji and modifiers as words, and whose skin a word for a tone speaks of. No torch."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from typing import Protocol

_MODIFIER = "[\U0001f3fb-\U0001f3ff]"
_SIGN = "[\u231a-\u23ff\u25aa-\u27bf\u2934-\u2b55\U0001f000-\U0001f3fa\U0001f400-\U0001faff]"
_UNSAID = f"{_MODIFIER}|\ufe0f"
_SEQUENCE = re.compile(f"{_SIGN}(?:{_MODIFIER}|\ufe0f|\u200d{_SIGN})*")


def apart(text: str) -> str:
    """The same with every emoji as a word of its own, and its modifier as the next: "👩🏽‍⚕️" as "👩‍⚕ 🏽"."""

    def words(found: re.Match[str]) -> str:
        tones = re.findall(_MODIFIER, found[0])
        return " ".join(["", re.sub(_UNSAID, "", found[0]), *tones[:1], ""])

    return _SEQUENCE.sub(words, text)


class Spoken(Protocol):
    """What the reader understood in one place."""

    @property
    def text(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def meaning(self) -> str: ...


def tones_of(spans: Sequence[tuple[Spoken, int]], toned: Container[int]) -> tuple[dict[int | None, int], set[int]]:
    """Whose skin has which tone.

    A tone belongs to the subject before it ("a hand, dark skin"), one like "dark-skinned" to the one after it, but not
    across "and" or a relation, unless there is none on its own side. The first tone of a subject counts.

    Args:
        spans: What was understood, with the places of their first words, in order.
        toned: Concepts whose skin can have tones.

    Returns:
        Tones by concept, and the places of words for tones that change nothing.
    """
    subjects = [(at, int(span.meaning)) for span, at in spans if span.role == "subject"]
    ends = [at for span, at in spans if span.role in ("and", "relation")]
    found: dict[int | None, int] = {}
    unused: set[int] = set()
    for span, at in spans:
        if span.role != "tone":
            continue
        side = sum(end < at for end in ends)
        near = [one for one in subjects if sum(end < one[0] for end in ends) == side] or subjects
        before, after = [one for one in near if one[0] < at][::-1], [one for one in near if one[0] > at]
        adjective = "skinned" in span.text or re.search(r"окож", span.text) is not None
        whose = [number for _, number in (after + before if adjective else before + after)]
        if whose and whose[0] in toned and whose[0] not in found:
            found[whose[0]] = int(span.meaning)
        else:
            unused.add(at)
    return found, unused
