"""How words are written: their forms, emoji among them, and how alike two spellings are. No torch."""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata

from kandinsky.families.nano.tone_words import apart

LIKE = 0.78  # likeness of spelling from which on a word is taken for another one, misspelt
_PICTOGRAPH = "[\u231a\u231b\u23e9-\u23fa\u2600-\u27bf\u2b1b\u2b1c\u2b50\u2b55\U0001f000-\U0001faff]"
_WORD = re.compile(
    rf"\w+(?:['’-]+\w+)*|[\U0001f1e6-\U0001f1ff]{{2}}|{_PICTOGRAPH}[\ufe0e\ufe0f\U0001f3fb-\U0001f3ff]*"
    rf"(?:\u200d(?:{_PICTOGRAPH}|[\u2640\u2642])[\ufe0e\ufe0f\U0001f3fb-\U0001f3ff]*)*"
)
"""A word, or an emoji with all that belongs to it."""
WORD_START = re.compile(r"\w")
_SHADES = re.compile("[\ufe0e\ufe0f\U0001f3fb-\U0001f3ff]")
"""How an emoji is drawn, and which tone its skin has."""
_REFLEXIVE = re.compile(r"([а-я-]+(?:[уюая]щ|вш))(?:[а-я]{2,3})ся")
"""A Russian participle that ends in «ся», and what stands before its own ending: «вращающаяся»."""
_PAUSE = re.compile(r"[,;:.!?()/|\n—–]|\s-+\s")
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
        if participle := _REFLEXIVE.fullmatch(word):
            return participle[1] + "ся"
        for ending in _RU_ENDINGS:
            if word.endswith(ending) and len(word) - len(ending) >= 3:
                return word[: -len(ending)]
        return word
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us")):
        return word[:-1]
    return word


def without_vowel(word: str) -> str:
    """The stem of a Russian word's other cases where a vowel comes and goes («цветок», «цветка»), or its own."""
    found = re.fullmatch("([а-я]{2,})[еоя]([клрнц])ь?", word)
    return found[1] + found[2] if found else stem(word)


def other_stems(word: str) -> list[str]:
    """Stems of which a Russian word may be a form that no ending tells: «кошек», «мышью», «волчата»."""
    found = [without_vowel(word)]
    if re.fullmatch("[а-я]{3,}ью", word):
        found.append(word[:-2])
    if young := re.fullmatch("([а-я]{2,})[ая]т(?:а|ам|ами|ах)?", word):
        found += [f"{young[1]}енок", f"{young[1]}онок"]
    return found


def words_of(text: str) -> list[str]:
    """Words and emoji of a text: lower case, «ё» as «е»; emoji without variation selectors, their tones behind them."""
    return [_SHADES.sub("", word) or word for word in _WORD.findall(plain(apart(text)))]


def pauses(text: str) -> frozenset[int]:
    """Numbers of the words that a comma or another mark follows."""
    found = list(_WORD.finditer(plain(apart(text))))
    return frozenset(
        number
        for number, (one, other) in enumerate(itertools.pairwise(found))
        if _PAUSE.search(plain(apart(text)), one.end(), other.start())
    )


def spelt(text: str) -> list[str]:
    """The same words as they were spelt, as far as they can be told."""
    found = _WORD.findall(unicodedata.normalize("NFC", apart(text)))
    return found if len(found) == len(words_of(text)) else words_of(text)


def likeness(one: str, other: str) -> float:
    """How alike two words are spelt, in [0, 1].

    It is 1 less the share of letters to change, insert, drop or exchange with their neighbours, which counts half; what
    is missing shrinks by a tenth for each of up to four letters with which both begin. Short words are alike or not.
    """
    longest = max(len(one), len(other))
    if min(len(one), len(other)) < 4 or abs(len(one) - len(other)) > longest // 3 or one[0] != other[0]:
        return 1.0 if one == other and one else 0.0
    before: list[float] = []
    row: list[float] = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        above, before, row = before, row, [i]
        for j, against in enumerate(other, 1):
            value: float = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != against))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == against:
                value = min(value, above[j - 2] + 0.5)
            row.append(value)
    missing = row[-1] / longest
    same = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 4)
    return 1 - missing * (1 - 0.1 * min(4, same))


@functools.lru_cache(50_000)
def sound_of(word: str) -> str:
    """A word as it may sound: no doubled letters, "f" for "ph" and "k" for "ck"."""
    word = word.replace("ph", "f").replace("ck", "k")
    return re.sub(r"(.)\1", r"\1", word)


def forms_of(word: str) -> tuple[str, ...]:
    """A word, and words that it may be a form of."""
    return tuple(dict.fromkeys((word, stem(word), word.removesuffix("es"), re.sub("ies$", "y", word))))


def least_likeness(word: str) -> float:
    """Likeness from which on a word is taken for another one: of short ones many are alike."""
    return LIKE if len(word) > 6 else 0.82 if len(word) == 6 else 0.86
