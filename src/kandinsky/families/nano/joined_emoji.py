"""Emoji that are joined of several, such as a person and a profession, and what stands for unknown ones. No torch."""

from __future__ import annotations

from collections.abc import Iterator

_JOINER = "\u200d"
_WOMAN, _MAN, _PERSON = "👩", "👨", "🧑"
_PEOPLE = frozenset([_WOMAN, _MAN, _PERSON, "👧", "👦", "🧒", "👶"])
_FEMALE, _MALE = "♀", "♂"
_JOINTS = {"💋": "💏", "❤": "💑"}
"""What joins two people, and the emoji of a couple."""
COUPLES = frozenset(_JOINTS.values())


def stand_ins(emoji: str) -> Iterator[tuple[str, ...]]:
    """What may be shown for an emoji, the most like it first; each as one emoji or several.

    A person of the other sex or of none stands for one of the same profession, the members of a family for the
    family, and the longest part for what is joined of other things.

    Args:
        emoji: Without tones and variation selectors, see ``spelling.words_of``.
    """
    parts = emoji.split(_JOINER)
    if parts[0] in (_WOMAN, _MAN, _PERSON):
        for other in (_PERSON, _WOMAN, _MAN):
            yield (_JOINER.join([other, *parts[1:]]),)
    if parts[-1] in (_FEMALE, _MALE):
        parts = parts[:-1]
    for last in ((), (_FEMALE,), (_MALE,)):
        yield (_JOINER.join([*parts, *last]),)
    for joint, couple in _JOINTS.items():
        if joint in parts[1:]:
            yield (couple,)
    if len(parts) > 1 and _PEOPLE.issuperset(parts):
        yield tuple(parts)
    for length in range(len(parts) - 1, 0, -1):
        for at in range(len(parts) - length + 1):
            yield (_JOINER.join(parts[at : at + length]),)


def sex_of(emoji: str) -> str:
    """The sign of the sex that an emoji shows; empty where it shows none, or several."""
    found = {sign for sign, person in ((_FEMALE, _WOMAN), (_MALE, _MAN)) if sign in emoji or person in emoji}
    return found.pop() if len(found) == 1 else ""
