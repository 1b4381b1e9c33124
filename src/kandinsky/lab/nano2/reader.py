"""Reading a prompt by rules: what is known in it becomes a scene, and everything else is named.

The rules know the labels of the catalogue in their usual forms, synonyms that training may use and that are one
concept's alone, and the words for places, sizes, motions, cameras, counts and backgrounds. They are the teacher of the
text network and the answer to "what did it understand": no word is dropped in silence. Held-out synonyms are unknown
here by design.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources

from kandinsky.lab.nano.captions import COLOURS, WHITE
from kandinsky.lab.nano.concepts import LANGUAGES, core, plain
from kandinsky.lab.nano2.catalogue import catalogue
from kandinsky.lab.nano2.describe import genitives, plural
from kandinsky.lab.nano2.scenes import ARRANGEMENTS, PLACES, SIZES, Backdrop, Scene, Subject

_RU_ENDINGS = sorted(
    [
        "ами",
        "ями",
        "ого",
        "его",
        "ому",
        "ему",
        "ыми",
        "ими",
        "ой",
        "ей",
        "ою",
        "ею",
        "ом",
        "ем",
        "ов",
        "ев",
        "ах",
        "ях",
        "ам",
        "ям",
        "ая",
        "яя",
        "ое",
        "ее",
        "ый",
        "ий",
        "ые",
        "ие",
        "ую",
        "юю",
        "ых",
        "их",
        "а",
        "я",
        "о",
        "е",
        "ы",
        "и",
        "у",
        "ю",
        "ь",
        "й",
    ],
    key=len,
    reverse=True,
)
# by role and meaning: stems, or phrases of stems
_PHRASES: dict[tuple[str, str], str] = {
    ("place", "left"): "on the left|at the left|on the left side|left side|слева|слев|в левой части|с левой стороны",
    ("place", "right"): "on the right|at the right|on the right side|right side|справа|в правой части|с правой стороны",
    ("place", "top"): "at the top|on top|near the top|up high|вверху|сверху|наверху|в верхней части",
    ("place", "bottom"): "at the bottom|near the bottom|down low|внизу|снизу|в нижней части",
    ("place", "middle"): "in the middle|in the centre|in the center|в центре|посередине|в середине",
    ("size", "small"): "small|little|tiny|маленький|маленькая|маленькое|маленькие|мелко|небольшой",
    ("size", "large"): "big|large|huge|giant|большой|большая|большое|большие|крупно|огромный|огромная",
    ("motion", "moves right"): "moves right|moves to the right|goes right|goes to the right|moving right"
    "|slides to the right|to the right|движется вправо|едет направо|вправо|направо|перемещается вправо",
    ("motion", "moves left"): "moves left|moves to the left|goes left|goes to the left|moving left"
    "|slides to the left|to the left|движется влево|едет налево|влево|налево|перемещается влево",
    (
        "motion",
        "moves up",
    ): "moves up|rises|goes up|flies up|rising|движется вверх|летит вверх|вверх|взлетает|поднимается",
    ("motion", "moves down"): "moves down|sinks|goes down|falls|falling down|движется вниз|вниз|опускается|падает",
    ("motion", "jumps"): "jumps|bounces|hops|jumping|bouncing|jumping up and down|прыгает|подпрыгивает|скачет|прыгают",
    ("motion", "spins"): "spins|turns around|rotates|spinning|rotating|вращается|крутится|поворачивается|кружится",
    ("motion", "grows"): "grows|gets bigger|becomes larger|growing|растет|увеличивается|становится больше",
    ("motion", "shrinks"): "shrinks|gets smaller|becomes smaller|shrinking|уменьшается|становится меньше|сжимается",
    (
        "motion",
        "fades in",
    ): "fades in|appears|appearing|fade in|slowly appears|появляется|плавно появляется|проявляется",
    ("camera", "zoom in"): "the camera zooms in|camera zooms in|zoom in|zooming in|the camera comes closer"
    "|камера приближается|наезд камеры",
    ("camera", "zoom out"): "the camera zooms out|camera zooms out|zoom out|zooming out|the camera moves back"
    "|камера отдаляется|отъезд камеры",
    ("camera", "pan left"): "the camera pans left|camera pans left|pan left|the camera turns left"
    "|камера движется влево|панорама влево",
    ("camera", "pan right"): "the camera pans right|camera pans right|pan right|the camera turns right"
    "|камера движется вправо|панорама вправо",
    ("count", "2"): "two|2|a pair of|pair of|два|две|пара",
    ("count", "3"): "three|3|три|трое",
    ("relation", "left"): "left of|to the left of|слева от|левее",
    ("relation", "right"): "right of|to the right of|справа от|правее",
    ("relation", "above"): "above|over|on top of|над|выше",
    ("relation", "below"): "below|under|beneath|под|ниже",
    ("and", ""): "and|и",
    ("not", ""): "no|not|without|не|без|нет",
    ("backdrop", "ground"): "ground|floor|пол",
    ("backdrop", "sky"): "sky|небо",
    ("backdrop", "plain"): "background|backdrop|фон",
    ("backdrop", "gradient"): "gradient|fading from|градиент|фон переходит",
    ("backdrop", "halves"): "half|пополам",
}
_SILENT = frozenset(
    [
        "a",
        "an",
        "the",
        "of",
        "with",
        "is",
        "are",
        "on",
        "in",
        "at",
        "to",
        "from",
        "it",
        "its",
        "this",
        "that",
        "emoji",
        "animated",
        "animation",
        "video",
        "clip",
        "short",
        "3d",
        "picture",
        "image",
        "camera",
        "slow",
        "slowly",
        "против",
        "на",
        "в",
        "с",
        "и",
        "к",
        "по",
        "у",
        "эмодзи",
        "анимация",
        "анимированный",
        "видео",
        "ролик",
        "кадра",
        "кадр",
        "части",
        "стороны",
        "кадре",
        "штуки",
        "штук",
        "шт",
        "against",
        "over",
    ]
)
_GENERAL = frozenset(
    ["moves", "waves", "dances", "plays", "walks", "moving", "движется", "танцует", "машет", "играет", "идет", "гуляет"]
)
"""What concepts do by themselves: their own motion answers it, so it is known and changes nothing."""


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
    """Words of a text in lower case, «ё» as «е»."""
    return re.findall(r"[\w'’-]+", plain(text))


def key_of(phrase: str) -> tuple[str, ...]:
    return tuple(stem(word) for word in words_of(phrase))


@dataclass(frozen=True, slots=True)
class Span:
    """Words that were understood: ``role`` and what they mean there; a subject's meaning is its number."""

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
        left_open: Roles of ``words.ROLES`` that the prompt does not speak of; the scene holds defaults there.
    """

    scene: Scene | None
    spans: tuple[Span, ...]
    ignored: tuple[str, ...]
    left_open: tuple[str, ...] = field(default=())


Lexicon = dict[tuple[str, ...], tuple[str, str]]


@cache
def lexicon() -> tuple[Lexicon, Lexicon]:
    """Role and meaning by a phrase's words, and by their stems; of a subject the meaning is its number."""
    entries = catalogue()
    exact: Lexicon = {}
    stems: Lexicon = {}

    def add(phrases: Iterable[str], role: str, meaning: str) -> None:
        for phrase in phrases:
            if words := words_of(phrase):
                exact.setdefault(tuple(words), (role, meaning))
                stems.setdefault(tuple(stem(word) for word in words), (role, meaning))

    for (role, meaning), phrases in _PHRASES.items():
        add(phrases.split("|"), role, meaning)
    for number, colour in enumerate(COLOURS):
        add((colour.en, colour.ru, colour.ru_name, "gray" if colour.en == "grey" else colour.en), "colour", str(number))
    for number, entry in enumerate(entries):
        add((entry.en, entry.ru), "subject", str(number))
    for number, entry in enumerate(entries):
        add((plural(entry.en), genitives().get(entry.hexcode, ("",))[0]), "subject", str(number))
    text = resources.files("kandinsky.lab.nano2").joinpath("everyday.json").read_text("utf-8")
    by_label = {entry.en: str(number) for number, entry in enumerate(entries)}
    for names in json.loads(text).values():
        for name, label in names.items():
            add([name, plural(name)] if name.isascii() else [name], "subject", by_label[label])
    for number, entry in enumerate(entries):
        add((core(entry.en), core(entry.ru)), "subject", str(number))
    for lang in LANGUAGES:
        owners = Counter(key_of(tag) for entry in entries for tag in set(entry.tags(lang).all))
        for number, entry in enumerate(entries):
            alone = [tag for tag in entry.tags(lang).train if owners[key_of(tag)] == 1]
            add([tag for tag in alone if len(tag) > 2 and tag not in _GENERAL], "synonym", str(number))
    return exact, stems


LONGEST = 8


def find_spans(text: str) -> tuple[list[tuple[Span, int]], list[tuple[str, int]]]:
    """Known phrases, from left to right and the longest first, and all other words; each with its place."""
    words, (exact, stems), at = words_of(text), lexicon(), 0
    spans: list[tuple[Span, int]] = []
    others: list[tuple[str, int]] = []
    while at < len(words):
        for length in range(min(LONGEST, len(words) - at), 0, -1):
            phrase = tuple(words[at : at + length])
            if found := exact.get(phrase) or stems.get(tuple(stem(word) for word in phrase)):
                spans.append((Span(" ".join(phrase), *found), at))
                at += length
                break
        else:
            others.append((words[at], at))
            at += 1
    return spans, others


def read(text: str) -> Understood:
    """Understand a prompt.

    A colour stands for the background, unless a name holds it ("red apple"). Right before a subject it is ignored: a
    subject cannot be dyed, and nobody asked for a background of that colour. Of more than two different subjects the
    first two are taken. Synonyms name a subject only where no name does.
    """
    spans, others = find_spans(text)
    ignored = [(word, at) for word, at in others if word not in _SILENT and word not in _GENERAL]
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
    if named:  # beside a name, "crying" or "happy" is no second subject
        ignored += [(s.text, at) for s, at in kept if s.role == "synonym" and s.text not in _GENERAL]
        kept = [(span, at) for span, at in kept if span.role != "synonym"]
    else:
        kept = [(replace(span, role="subject") if span.role == "synonym" else span, at) for span, at in kept]
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
    numbers = list(dict.fromkeys(int(span.meaning) for span, _ in subjects))
    ignored += [(span.text, at) for span, at in subjects if int(span.meaning) in numbers[2:]]
    spoken = tuple(span for span, at in kept if not (span.role == "subject" and int(span.meaning) in numbers[2:]))
    rest = tuple(word for word, _ in sorted(ignored, key=lambda item: item[1]))
    if not numbers:
        return Understood(None, spoken, rest)
    scene, left_open = _scene(numbers[:2], [span for span, _ in kept], [int(span.meaning) for span, _ in colours])
    return Understood(scene, spoken, rest, left_open)


def _scene(numbers: list[int], spans: list[Span], colours: list[int]) -> tuple[Scene, tuple[str, ...]]:
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
