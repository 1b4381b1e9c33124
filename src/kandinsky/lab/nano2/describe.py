"""Captions for scenes in English and Russian: the ground truth that compositing gives for free.

Every caption says a subset of what a scene shows; ``Caption.left_open`` names the roles it leaves open, so what is
not said is known to be not said. Russian needs each label's genitive ("слева от кошки", "два пингвина"), which
``genitives.json`` holds for the labels that have one; other subjects are named in ways that need none.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from kandinsky.families.nano.scenes import Scene
from kandinsky.lab.nano.captions import COLOURS
from kandinsky.lab.nano.concepts import Concept, Language
from kandinsky.lab.nano2.catalogue import catalogue

_WORDS: dict[Language, dict[str, tuple[str, ...]]] = {
    "en": {
        "left": ("on the left", "at the left", "on the left side"),
        "right": ("on the right", "at the right", "on the right side"),
        "top": ("at the top", "near the top", "up high"),
        "bottom": ("at the bottom", "near the bottom", "down low"),
        "middle": ("in the middle", "in the centre", "in the center"),
        "moves right": ("moves right", "goes to the right", "moving right", "slides to the right"),
        "moves left": ("moves left", "goes to the left", "moving left", "slides to the left"),
        "moves up": ("moves up", "rises", "goes up", "flies up"),
        "moves down": ("moves down", "sinks", "goes down", "falls"),
        "jumps": ("jumps", "bounces", "hops", "jumping up and down"),
        "spins": ("spins", "turns around", "rotates", "spinning"),
        "grows": ("grows", "gets bigger", "becomes larger", "growing"),
        "shrinks": ("shrinks", "gets smaller", "becomes smaller", "shrinking"),
        "fades in": ("fades in", "appears", "slowly appears", "appearing"),
        "zoom in": ("the camera zooms in", "zoom in", "the camera comes closer"),
        "zoom out": ("the camera zooms out", "zoom out", "the camera moves back"),
        "pan left": ("the camera pans left", "pan left", "the camera turns left"),
        "pan right": ("the camera pans right", "pan right", "the camera turns right"),
    },
    "ru": {
        "left": ("слева", "с левой стороны", "в левой части кадра"),
        "right": ("справа", "с правой стороны", "в правой части кадра"),
        "top": ("вверху", "сверху", "в верхней части кадра"),
        "bottom": ("внизу", "снизу", "в нижней части кадра"),
        "middle": ("в центре", "посередине", "в середине кадра"),
        "moves right": ("движется вправо", "едет направо", "перемещается вправо"),
        "moves left": ("движется влево", "едет налево", "перемещается влево"),
        "moves up": ("движется вверх", "летит вверх", "взлетает"),
        "moves down": ("движется вниз", "опускается", "падает"),
        "jumps": ("прыгает", "подпрыгивает", "скачет"),
        "spins": ("вращается", "крутится", "поворачивается"),
        "grows": ("растёт", "увеличивается", "становится больше"),
        "shrinks": ("уменьшается", "становится меньше", "сжимается"),
        "fades in": ("появляется", "плавно появляется", "проявляется"),
        "zoom in": ("камера приближается", "наезд камеры"),
        "zoom out": ("камера отдаляется", "отъезд камеры"),
        "pan left": ("камера движется влево", "панорама влево"),
        "pan right": ("камера движется вправо", "панорама вправо"),
    },
}
_SIZES = {
    ("en", "small"): ("small", "little", "tiny"),
    ("en", "large"): ("big", "large", "huge"),
    ("ru", "small"): ("маленький", "маленькая", "маленькое", "мелко"),
    ("ru", "large"): ("большой", "большая", "большое", "крупно"),
}
_TONES: dict[Language, tuple[str, ...]] = {
    "en": ("light", "medium-light", "medium", "medium-dark", "dark"),
    "ru": ("очень светлой", "светлой", "смуглой", "темной", "очень темной"),
}
_TWO_RU = {"m": "два", "n": "два", "f": "две"}


@dataclass(frozen=True, slots=True)
class Caption:
    """A text for a scene, and the roles of ``scene_words.ROLES`` that it leaves open."""

    text: str
    left_open: tuple[str, ...]


@cache
def genitives() -> dict[str, tuple[str, str]]:
    """Genitive singular and gender of Russian labels, by hexcode."""
    text = resources.files("kandinsky.lab.nano2").joinpath("genitives.json").read_text("utf-8")
    return {hexcode: (form, gender) for hexcode, (form, gender) in json.loads(text).items()}


def describe(scene: Scene, *, lang: Language, rng: random.Random, names: Sequence[str] | None = None) -> Caption:
    """One caption of a scene.

    Args:
        scene: All its subjects are concepts.
        names: How the subjects are called instead of by their labels, such as a synonym each; not where one of them
            has a tone of skin.
    """
    entries = [catalogue()[s.concept] for s in scene.subjects if s.concept is not None]
    assert len(entries) == len(scene.subjects), "a subject that is no concept has no name"
    left_open: list[str] = []
    parts = [_subjects(scene, entries, lang, rng, names)]
    if scene.motion:
        parts[0] += " " + rng.choice(_WORDS[lang][scene.motion])
    extras: list[str] = []
    if scene.arrangement == "one":
        if scene.place is None or (scene.place == "middle" and rng.random() < 0.8):
            left_open.append("place")
        else:
            extras.append(rng.choice(_WORDS[lang][scene.place]))
    if scene.camera:
        extras.append(rng.choice(_WORDS[lang][scene.camera]))
    if rng.random() < 0.75:
        extras.append(_backdrop(scene, lang, rng))
    else:
        left_open += ["backdrop", "colour", "second colour"]
    if scene.size is None:
        left_open.append("size")
    rng.shuffle(extras)
    glue = ", " if rng.random() < 0.4 else " "
    text = glue.join([*parts, *extras])
    if rng.random() < 0.25:
        text = text[:1].upper() + text[1:] + ("." if rng.random() < 0.5 else "")
    return Caption(text, tuple(left_open))


def _subjects(
    scene: Scene, entries: Sequence[Concept], lang: Language, rng: random.Random, names: Sequence[str] | None
) -> str:
    if any(s.tone for s in scene.subjects):
        names = [_toned(e.label(lang), s.tone, lang) for s, e in zip(scene.subjects, entries, strict=True)]
    called = list(names) if names is not None else [e.label(lang) for e in entries]
    if scene.arrangement == "one":
        return _one(scene, entries[0], called[0], lang, rng)
    if len({s.concept for s in scene.subjects}) == 1:
        return _several(len(entries), entries[0], called[0], lang, rng, labelled=names is None)
    first, second = called
    if lang == "en":
        a, b = with_article(first), with_article(second)
        if scene.arrangement == "one above the other":
            return rng.choice([f"{a} above {b}", f"{b} below {a}", f"{a} on top and {b} at the bottom"])
        ways = [f"{a} left of {b}", f"{b} to the right of {a}", f"{a} on the left and {b} on the right", f"{a} and {b}"]
        return rng.choice(ways)
    forms = [genitives().get(e.hexcode) if names is None else None for e in entries]
    if scene.arrangement == "one above the other":
        ways = [f"{first} вверху, {second} внизу", f"вверху {first}, внизу {second}"]
        if forms[1]:
            ways.append(f"{first} выше {forms[1][0]}")
        return rng.choice(ways)
    ways = [f"{first} слева, {second} справа", f"слева {first}, справа {second}", f"{first} и {second}"]
    if forms[1]:
        ways.append(f"{first} слева от {forms[1][0]}")
    if forms[0]:
        ways.append(f"{second} справа от {forms[0][0]}")
    return rng.choice(ways)


def _toned(name: str, tone: int, lang: Language) -> str:
    """A name with the tone of its skin, where it has one."""
    if not tone:
        return name
    return f"{name} with {_TONES[lang][tone - 1]} skin" if lang == "en" else f"{name} с {_TONES[lang][tone - 1]} кожей"


def _one(scene: Scene, entry: Concept, called: str, lang: Language, rng: random.Random) -> str:
    if scene.size is None:
        return with_article(called) if lang == "en" and rng.random() < 0.7 else called
    words = _SIZES[lang, scene.size]
    if lang == "en":
        return with_article(f"{rng.choice(words)} {called}")
    form = genitives().get(entry.hexcode)
    if form is None or rng.random() < 0.3:
        return f"{called}, {words[3]}"
    return f"{words['mfn'.index(form[1])]} {called}"


def _several(count: int, entry: Concept, called: str, lang: Language, rng: random.Random, *, labelled: bool) -> str:
    if lang == "en":
        number = {2: ("two", "2", "a pair of"), 3: ("three", "3")}[count]
        return f"{rng.choice(number)} {plural(called)}"
    form = genitives().get(entry.hexcode) if labelled else None
    if form and " " not in form[0]:
        numbers = [_TWO_RU[form[1]], "2"] if count == 2 else ["три", "3"]
        return f"{rng.choice(numbers)} {form[0]}"
    return f"{called}, {rng.choice(['две штуки', '2 шт.'] if count == 2 else ['три штуки', '3 шт.'])}"


def _backdrop(scene: Scene, lang: Language, rng: random.Random) -> str:
    one = COLOURS[scene.colours[0]]
    if scene.backdrop == "plain" or scene.colours[1] is None:
        if lang == "en":
            return rng.choice([f"on {with_article(one.en)} background", f"{one.en} background", f"on {one.en}"])
        return rng.choice([f"на {one.ru} фоне", f"{one.ru_name} фон"])
    two = COLOURS[scene.colours[1]]
    if lang == "en":
        ways = {
            "gradient": (f"background fading from {one.en} to {two.en}", f"gradient from {one.en} to {two.en}"),
            "halves": (f"half {one.en}, half {two.en} background", f"{one.en} on the left half, {two.en} on the right"),
            "ground": (f"{one.en} sky and {two.en} ground", f"on {two.en} ground under {with_article(one.en)} sky"),
        }
        return rng.choice(ways[scene.backdrop])
    ways = {
        "gradient": (
            f"градиент: {one.ru_name} вверху, {two.ru_name} внизу",
            f"фон переходит: {one.ru_name}, {two.ru_name}",
        ),
        "halves": (
            f"фон: {one.ru_name} слева, {two.ru_name} справа",
            f"фон пополам: {one.ru_name} и {two.ru_name}",
        ),
        "ground": (f"на {one.ru} фоне, пол {two.ru_name}", f"фон {one.ru_name}, внизу {two.ru_name}"),
    }
    return rng.choice(ways[scene.backdrop])


def with_article(name: str) -> str:
    """An English name with its indefinite article; plural and proper names have none."""
    head = name.split(" with ")[0].split(" of ")[0].split(" in ")[0]
    if head[:1].isupper() or (head.endswith("s") and not head.endswith(("ss", "us"))):
        return name
    return f"{'an' if name[0].lower() in 'aeiou' and not name.startswith(('un', 'uni')) else 'a'} {name}"


_IRREGULAR = {"man": "men", "woman": "women", "mouse": "mice", "person": "people", "child": "children", "foot": "feet"}
_IRREGULAR |= {"tooth": "teeth", "goose": "geese", "ox": "oxen", "wolf": "wolves", "leaf": "leaves", "fish": "fish"}
_IRREGULAR |= {
    "sheep": "sheep",
    "deer": "deer",
    "shrimp": "shrimp",
    "squid": "squid",
    "bison": "bison",
    "knife": "knives",
}


def plural(name: str) -> str:
    """The English plural of a name: its head noun, before "with", "of" or "in", changes."""
    for cut in (" with ", " of ", " in ", " wearing ", " on "):
        if cut in name:
            head, rest = name.split(cut, 1)
            return f"{plural(head)}{cut}{rest}"
    words = name.split(" ")
    last = words[-1]
    if last in _IRREGULAR:
        words[-1] = _IRREGULAR[last]
    elif last.endswith(("s", "x", "ch", "sh")):
        words[-1] = last if last.endswith("s") and not last.endswith(("ss", "us")) else last + "es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        words[-1] = last[:-1] + "ies"
    else:
        words[-1] = last + "s"
    return " ".join(words)
