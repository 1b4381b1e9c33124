"""Captions of scenes: taken from their files, cleaned, and checked for known kinds of faults."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

# openings that say nothing of what is seen
_OPENING = re.compile(
    r"^(?:the|this)\s+(?:short\s+)?(?:video|clip|scene|image|footage)\s+(?:starts|begins|opens|shows|depicts|displays"
    r"|features|captures)\s+(?:with\s+|that\s+|off\s+with\s+)?"
    r"|^(?:на|в)\s+(?:этом\s+)?(?:видео|ролике|изображении|кадре)\s+(?:показан[аоы]?|виден|видна|видно|видны)\s+",
    re.IGNORECASE,
)
FLAGS = ("wrong_script", "repeats", "too_short", "unfinished", "not_confirmed")
_REPEATS = 4


def cleaned(text: str) -> str:
    """A caption without an opening such as "The video shows", with a capital letter."""
    words = " ".join(text.split())
    rest = _OPENING.sub("", words)
    return rest[:1].upper() + rest[1:] if rest != words and rest else words


def flags(text: str, language: str) -> list[str]:
    """Known kinds of faults of captions that models write: some of ``FLAGS``.

    ``wrong_script``: letters that the language does not have (Cyrillic or Chinese in English, Chinese in Russian).
    ``repeats``: three words in a row that come four times. ``too_short``: fewer than two words. ``unfinished``: a
    longer text that ends without a mark. ``not_confirmed``, of captions that a model wrote here: it denies them.
    """
    found = []
    scripts = {unicodedata.name(c, "").split(" ")[0] for c in text if c.isalpha()}
    allowed = {"en": {"LATIN"}, "ru": {"CYRILLIC", "LATIN"}}.get(language)
    if allowed and scripts & {"LATIN", "CYRILLIC", "CJK", "HIRAGANA", "KATAKANA", "HANGUL"} - allowed:
        found.append("wrong_script")
    words = re.findall(r"\w+", text.lower())
    threes = Counter(zip(words, words[1:], words[2:], strict=False))
    if max(threes.values(), default=0) >= _REPEATS:
        found.append("repeats")
    if len(words) < 2:
        found.append("too_short")
    if len(words) >= 12 and text.rstrip()[-1:] not in '.!?…"»)':
        found.append("unfinished")
    return found


def of_scene(captions: Sequence[Mapping[str, str]]) -> tuple[str | None, list[dict[str, str]], list[str]]:
    """A scene's prompt, its captions, and their faults, from the captions of its file.

    The prompt is the first English caption, or the first of all.
    """
    made = [{**one, "text": cleaned(one["text"])} for one in captions]
    found = sorted({flag for one in made for flag in flags(one["text"], one["language"])}, key=FLAGS.index)
    prompt = next((one["text"] for one in made if one["language"] in ("", "en")), made[0]["text"] if made else None)
    return prompt, made, found


def added(scene: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """A scene's prompt, captions and their faults with those that were written for it; given ones come first."""
    captions = [*scene["captions"], *(row["written"] or ())]
    prompt = scene["prompt"]
    if prompt is None and captions:
        prompt = next((one["text"] for one in captions if one["language"] in ("", "en")), captions[0]["text"])
    found = sorted({*scene["caption_flags"], *(row["written_flags"] or ())}, key=FLAGS.index)
    return {"prompt": prompt, "captions": captions, "caption_flags": found}
