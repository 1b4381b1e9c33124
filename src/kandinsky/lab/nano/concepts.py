"""The things nano knows: which emoji, their names and synonyms in two languages, and which synonyms are held out.

`concepts.json` is the committed list, in a fixed order; a concept's index in it is its class number everywhere.
Names and tags are emojibase-data's (MIT), pictures are `@lobehub/fluent-emoji-anim-*` (MIT). Which emoji are in it was
chosen by hand: animated, no skin-tone code, and tellable from the others by its name alone. `rebuild` derives
everything else again from the unpacked packages.

Tags are split by a hash of the tag itself, so a held tag is held for every concept that has it:

- held: only evaluation prompts use it. It is a real synonym: no word of it is akin to a word of the concept's label,
  and a person who read the tag with the list of names before them, and nothing else, found that it means this concept
  ("chemist" for the scientist; not "small" for the zany face). Nobody looked at a model's answers for this.
- train: captions may use it. A tag akin to one of the concept's held tags is in neither.
- unused: never trained on and never asked: drawn to be held but too vague, akin to a held tag, the name of another
  concept, or a word that says nothing ("more", «что»).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from kandinsky.families.nano.spelling import plain as plain
from kandinsky.weights.untrusted import read_table

Language = Literal["en", "ru"]
LANGUAGES: tuple[Language, Language] = ("en", "ru")
HELD_SHARE = 0.4
"""About this part of the tags that could be held are held."""
MAX_OWNERS = 4
"""A tag that more concepts than this carry ("face", "animal") does not single one out and is never held."""

_SILENT = {
    "en": frozenset({"and", "the", "for", "with", "not", "you", "your", "yourself", "how", "what", "that", "this"})
    | {"are", "can", "its", "it's", "all", "more", "very", "get", "got"},
    "ru": frozenset({"вот", "что", "это", "как", "для", "при", "или", "быть", "может", "все", "кто", "где", "когда"})
    | {"еще", "над", "под", "без", "быль", "его", "нет", "очень"},
}


@dataclass(frozen=True, slots=True)
class Tags:
    """Synonyms of one concept in one language; see the module for the three parts."""

    train: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        return self.train + self.held + self.unused


@dataclass(frozen=True, slots=True)
class Concept:
    """One animated emoji.

    hexcode: emojibase's code points.  file: the picture, relative to the folder of unpacked packages.
    number_ru: whether the Russian label is a singular noun phrase, a plural one, or a clause that has its own verb.
    """

    hexcode: str
    file: str
    group: str
    en: str
    ru: str
    number_ru: Literal["singular", "plural", "clause"] = "singular"
    tags_en: Tags = field(default_factory=Tags)
    tags_ru: Tags = field(default_factory=Tags)

    def label(self, lang: Language) -> str:
        return self.en if lang == "en" else self.ru

    def tags(self, lang: Language) -> Tags:
        return self.tags_en if lang == "en" else self.tags_ru

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Concept:
        tags = {f"tags_{lang}": Tags(**{k: tuple(v) for k, v in values[f"tags_{lang}"].items()}) for lang in LANGUAGES}
        return cls(**{**values, **tags})

    def to_dict(self) -> dict[str, Any]:
        def tags(t: Tags) -> dict[str, list[str]]:
            return {"train": list(t.train), "held": list(t.held), "unused": list(t.unused)}

        return {
            "hexcode": self.hexcode,
            "file": self.file,
            "group": self.group,
            "en": self.en,
            "ru": self.ru,
            "number_ru": self.number_ru,
            "tags_en": tags(self.tags_en),
            "tags_ru": tags(self.tags_ru),
        }


@cache
def load_concepts() -> tuple[Concept, ...]:
    """The committed list, in its fixed order."""
    text = resources.files("kandinsky.lab.nano").joinpath("concepts.json").read_text("utf-8")
    return tuple(Concept.from_dict(v) for v in json.loads(text))


def fraction(*keys: str) -> float:
    """A fixed number in [0, 1) for these strings; the same on every machine and in every version."""
    digest = hashlib.sha256("\x1f".join(keys).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def words(text: str) -> list[str]:
    return re.findall(r"[\w]+", plain(text))


def akin(a: str, b: str) -> bool:
    """Whether two words share a stem, as far as spelling tells: dog–doggy, boat–rowboat, волк–волчья."""
    short, long = sorted((a, b), key=len)
    if len(short) >= 4 and short in long:
        return True
    common = 0
    for x, y in zip(short, long, strict=False):
        if x != y:
            break
        common += 1
    return short == long or (common >= 3 and common >= 0.6 * len(short))


def any_akin(a: Iterable[str], b: Iterable[str]) -> bool:
    """Whether a word of one group is akin to a word of the other; words of one or two letters do not count."""
    b = [w for w in b if len(w) > 2]
    return any(akin(x, y) for x in a if len(x) > 2 for y in b)


def core(label: str) -> str:
    """A label without the words that only say "emoji of": a tag "dog" names the concept "dog face" too."""
    return " ".join(w for w in words(label) if w not in {"face", "морда", "лицо", "голова"})


def split_tags(labels: Sequence[str], tags: Sequence[Sequence[str]], lang: Language) -> list[Tags]:
    """Divide every concept's tags into train, held and unused.

    labels, tags: of all concepts, in the same order. The result depends on nothing else.
    """
    cleaned = [list(dict.fromkeys(plain(t) for t in row)) for row in tags]
    owners = Counter(t.removesuffix("s") for row in cleaned for t in row)
    names = {plain(x) for x in labels} | {core(x) for x in labels}

    def says_something(tag: str) -> bool:
        return len(tag) > 2 and tag not in _SILENT[lang]

    def may_be_held(tag: str, label: str) -> bool:
        enough = says_something(tag) and owners[tag.removesuffix("s")] <= MAX_OWNERS and tag not in names
        return enough and not any_akin(words(tag), words(label))

    def order(tag: str) -> float:
        return fraction("held", lang, tag)

    held: set[str] = set()
    for label, row in zip(labels, cleaned, strict=True):
        able = [t for t in row if may_be_held(t, label)]
        held |= {t for t in able if order(t) < HELD_SHARE}
    for label, row in zip(labels, cleaned, strict=True):
        able = [t for t in row if may_be_held(t, label)]
        if len(able) > 1 and not held.intersection(able):
            held.add(min(able, key=order))

    result = []
    for label, row in zip(labels, cleaned, strict=True):
        mine = [t for t in row if t in held and may_be_held(t, label)]
        mine_words = [w for t in mine for w in words(t)]
        train: list[str] = []
        unused: list[str] = []
        for tag in row:
            if tag in mine:
                continue
            other_name = tag in names and tag not in (plain(label), core(label))
            bad = tag in held or other_name or not says_something(tag) or any_akin(words(tag), mine_words)
            (unused if bad else train).append(tag)
        result.append(Tags(tuple(train), tuple(mine), tuple(unused)))
    return result


def with_associations(concepts: Sequence[Concept], path: Path) -> list[Concept]:
    """The concepts with more train tags: words people use for them, written for training (recipes/nano-words.json.xz).

    path: JSON, or that as `.xz`: {hexcode: {"en": [...], "ru": [...]}}.
    What was held out stays out: an item is dropped where a word of it is held for any concept, or akin to a held tag of
    its own.
    """
    written: dict[str, dict[str, list[str]]] = read_table(path)
    result = []
    held_words = {lang: {w for c in concepts for t in c.tags(lang).held for w in words(t)} for lang in LANGUAGES}
    for concept in concepts:
        more: dict[Language, Tags] = {}
        for lang in LANGUAGES:
            tags, entry = concept.tags(lang), written.get(concept.hexcode, {})
            mine = [w for t in tags.held for w in words(t)]
            known = {plain(t) for t in (concept.label(lang), *tags.all)}
            items = [plain(t) for t in entry.get(lang, [])]
            fresh = [
                t
                for t in dict.fromkeys(items)
                if t and t not in known and not held_words[lang].intersection(words(t)) and not any_akin(words(t), mine)
            ]
            more[lang] = replace(tags, train=tags.train + tuple(fresh))
        result.append(replace(concept, tags_en=more["en"], tags_ru=more["ru"]))
    return result


def read_emojibase(packages: Path, lang: Language) -> dict[str, dict[str, Any]]:
    """emojibase's entries of one language by hexcode.

    packages: the folder that holds `emojibase/` (default of the data command: `.cache/nano/packages`).
    """
    path = packages / "emojibase" / lang / "compact.json"
    return {entry["hexcode"]: entry for entry in json.loads(path.read_text("utf-8"))}


def rebuild(packages: Path, listed: Sequence[Concept] | None = None, *, reviewed: bool = True) -> list[Concept]:
    """The list again from emojibase: same emoji, same order, labels and tags as the packages have them.

    reviewed: what the list does not hold stays unheld, so the reading by a person is kept; without it every tag that
    was drawn is held, for a person to read.
    """
    listed = list(listed or load_concepts())
    base = {lang: read_emojibase(packages, lang) for lang in LANGUAGES}
    tags = {
        lang: split_tags(
            [base[lang][c.hexcode]["label"] for c in listed], [base[lang][c.hexcode]["tags"] for c in listed], lang
        )
        for lang in LANGUAGES
    }
    if reviewed:
        for lang in LANGUAGES:
            tags[lang] = [_keep_held(t, c.tags(lang).held) for t, c in zip(tags[lang], listed, strict=True)]
    return [
        Concept(
            hexcode=c.hexcode,
            file=c.file,
            group=c.group,
            en=base["en"][c.hexcode]["label"],
            ru=base["ru"][c.hexcode]["label"].replace("ё", "е"),
            number_ru=c.number_ru,
            tags_en=tags["en"][i],
            tags_ru=tags["ru"][i],
        )
        for i, c in enumerate(listed)
    ]


def _keep_held(tags: Tags, held: Sequence[str]) -> Tags:
    vague = tuple(t for t in tags.held if t not in held)
    return Tags(tags.train, tuple(t for t in tags.held if t in held), tags.unused + vague)


def write(concepts: Sequence[Concept], path: Path) -> None:
    """Write the list as `concepts.json` has it: one concept a line."""
    lines = ",\n".join(json.dumps(c.to_dict(), ensure_ascii=False) for c in concepts)
    path.write_text(f"[\n{lines}\n]\n", "utf-8")
