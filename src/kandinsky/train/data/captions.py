"""Captions of a clip: several of them, in languages and lengths, one of which is drawn each time the clip is seen."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kandinsky.errors import RequestError
from kandinsky.weights.untrusted import shown

if TYPE_CHECKING:
    import torch

LONGEST = 64 << 10  # bytes of a caption
LENGTHS = ("short", "medium", "long")
_NAMES = ("caption", "text", "prompt")
_LANGUAGE = re.compile(r"[a-z]{2}")


@dataclass(frozen=True, slots=True)
class Caption:
    """What a clip shows, in words.

    Attributes:
        text: The words.
        language: Such as `en` or `ru`; empty where it is not known.
        length: `short`, `medium` or `long`; empty where it is not known.
    """

    text: str
    language: str = ""
    length: str = ""


@dataclass(frozen=True, slots=True)
class CaptionChoice:
    """How one of a clip's captions is drawn.

    Attributes:
        drop: Share of the visits at which the clip is shown without a caption, for guidance.
        languages: Weight of each language; 1 where it is not named.
        lengths: Weight of each length; 1 where it is not named.
    """

    drop: float = 0.1
    languages: Mapping[str, float] = field(default_factory=dict)
    lengths: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse shares that are none.

        Raises:
            RequestError: A share is not from 0 to 1, or a weight is below 0.
        """
        if not 0 <= self.drop <= 1:
            raise RequestError(f"`drop` must be from 0 to 1, not `{self.drop}`")
        for name, weight in {**self.languages, **self.lengths}.items():
            if not 0 <= weight < float("inf"):
                raise RequestError(f"the weight of captions `{shown(name)}` must be 0 or more, not `{weight}`")

    def choose(self, captions: Sequence[Caption], generator: torch.Generator) -> int | None:
        """Draw a caption. Two numbers are drawn whatever the captions are.

        Args:
            captions: Of one clip. Where all of them have weight 0, each has the same chance.
            generator: Of this example at this step.

        Returns:
            The number of the caption, or None for the empty prompt.
        """
        import torch

        drop, chosen = torch.rand(2, dtype=torch.float64, generator=generator).tolist()
        if drop < self.drop or not captions:
            return None
        weights = [self.languages.get(one.language, 1.0) * self.lengths.get(one.length, 1.0) for one in captions]
        total = sum(weights)
        if total == 0:
            weights, total = [1.0] * len(captions), float(len(captions))
        passed = 0.0
        for number, weight in enumerate(weights):
            passed += weight
            if chosen * total < passed:
                return number
        return max(number for number, weight in enumerate(weights) if weight)  # of rounding


def variant(words: Iterable[str]) -> tuple[str, str] | None:
    """Language and length that words name, in any order; None where one of them names neither."""
    language = length = ""
    for word in words:
        if word in LENGTHS and not length:
            length = word
        elif _LANGUAGE.fullmatch(word) and not language:
            language = word
        else:
            return None
    return language, length


def column(name: str) -> tuple[str, str] | None:
    """Language and length of the captions in a column: `caption`, `text_ru`, `caption_en_short`, `long_prompt`, ….

    Returns:
        None for a column of anything else.
    """
    words = name.lower().split("_")
    if sum(word in _NAMES for word in words) != 1:
        return None
    return variant(word for word in words if word not in _NAMES)


def checked(text: object, where: str) -> str:
    """A caption without space around it.

    Args:
        text: Bytes of UTF-8, or text.
        where: What it is called in errors, such as "caption `a.txt`".

    Raises:
        RequestError: It is not UTF-8, is too long or is empty.
    """
    if isinstance(text, str):
        text = text.encode("utf-8", "surrogateescape" if _is_escaped(text) else "surrogatepass")
    if not isinstance(text, bytes):
        raise RequestError(f"{where} is no text but `{shown(text)}`")
    if len(text) > LONGEST:
        raise RequestError(f"{where} is longer than {LONGEST >> 10} KB")
    try:
        words = text.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise RequestError(f"{where} is not UTF-8 text: {shown(error)}") from error
    if not words:
        raise RequestError(f"{where} is empty: write what the file shows")
    return words


def _is_escaped(text: str) -> bool:
    """Whether all surrogates are bytes that were no UTF-8."""
    return all("\udc80" <= c <= "\udcff" for c in text if "\ud800" <= c <= "\udfff")
