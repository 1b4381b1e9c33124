"""Words for nano's clips: background colours, places, sizes and camera moves in English and Russian.

A caption names a concept by its label or, when asked, by synonyms that training may use, and says as much of the rest
as is given. Three rules hold for every caption, trained or typed: no background word means a white background, no
place means the middle, no camera word means a camera at rest.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kandinsky.lab.nano.concepts import LANGUAGES, Concept, Language, fraction, load_concepts, plain

Position = Literal["left", "right", "top", "bottom"]
Scale = Literal["small", "large"]
Camera = Literal["zoom in", "zoom out", "pan left", "pan right"]
POSITIONS: tuple[Position, ...] = ("left", "right", "top", "bottom")
SCALES: tuple[Scale, ...] = ("small", "large")
CAMERAS: tuple[Camera, ...] = ("zoom in", "zoom out", "pan left", "pan right")


@dataclass(frozen=True, slots=True)
class Colour:
    """A background colour. en: its name; ru: the Russian adjective as in «на … фоне»; ru_name: as in «… фон»."""

    en: str
    ru: str
    ru_name: str
    rgb: tuple[int, int, int]


COLOURS: tuple[Colour, ...] = (
    Colour("red", "красном", "красный", (214, 40, 40)),
    Colour("orange", "оранжевом", "оранжевый", (245, 140, 30)),
    Colour("yellow", "жёлтом", "жёлтый", (250, 218, 60)),
    Colour("green", "зелёном", "зелёный", (50, 160, 75)),
    Colour("light blue", "голубом", "голубой", (140, 210, 250)),
    Colour("blue", "синем", "синий", (40, 75, 205)),
    Colour("purple", "фиолетовом", "фиолетовый", (125, 55, 180)),
    Colour("pink", "розовом", "розовый", (250, 150, 195)),
    Colour("brown", "коричневом", "коричневый", (120, 75, 45)),
    Colour("white", "белом", "белый", (255, 255, 255)),
    Colour("black", "чёрном", "чёрный", (15, 15, 15)),
    Colour("grey", "сером", "серый", (135, 135, 135)),
)
WHITE = next(i for i, c in enumerate(COLOURS) if c.en == "white")
"""The background of a prompt that names none."""
TRAIN_SHARE = 2 / 3

_EN_BACKGROUNDS = (
    "on a {} background",
    "against a {} background",
    "with a {} background",
    "on {}",
    "over a {} backdrop",
)
_EN_VERBS = (
    *("", "", "", "waves", "moves", "dances", "is animated", "bounces", "jumps", "is moving", "comes alive"),
    *("in motion", "plays", "sways", "looks around"),
)
_EN_OPENINGS = (
    *("", "", "", "", "animated emoji of ", "an emoji of ", "emoji: ", "animation of ", "a short clip of "),
    *("3D emoji, ", "animated ", "a video of ", "picture of "),
)
_RU_BACKGROUNDS = ("на {} фоне", "на {} фоне", "на {} фоне", "на однотонном {} фоне")
_RU_OPENINGS = (
    *("", "", "", "", "анимированный эмодзи: ", "эмодзи «", "анимация: ", "эмодзи: ", "видео: ", "смайлик «"),
    *("анимированный смайлик: ", "короткий ролик: "),
)
_RU_VERBS = {
    "singular": ("", "", "", "движется", "танцует", "в движении", "оживает", "качается", "подпрыгивает", "машет"),
    "plural": ("", "", "", "движутся", "танцуют", "в движении", "оживают", "качаются", "подпрыгивают"),
    "clause": ("",),
}
_PLACE: dict[Language, dict[Position, tuple[str, ...]]] = {
    "en": {
        "left": ("on the left", "on the left side", "to the left"),
        "right": ("on the right", "on the right side", "to the right"),
        "top": ("at the top", "near the top", "in the upper part"),
        "bottom": ("at the bottom", "near the bottom", "in the lower part"),
    },
    "ru": {
        "left": ("слева", "в левой части кадра", "с левой стороны"),
        "right": ("справа", "в правой части кадра", "с правой стороны"),
        "top": ("вверху", "сверху", "в верхней части кадра"),
        "bottom": ("внизу", "снизу", "в нижней части кадра"),
    },
}
_SIZE: dict[Language, dict[Scale, tuple[str, ...]]] = {
    "en": {"small": ("small", "tiny", "little"), "large": ("large", "big", "huge")},
    "ru": {
        "small": ("маленького размера", "небольшого размера", "маленький размер", "мелко"),
        "large": ("большого размера", "крупного размера", "большой размер", "крупно"),
    },
}
# masculine, feminine, neuter, plural
_RU_SIZE_ADJECTIVES = {
    "small": ("маленький", "маленькая", "маленькое", "маленькие"),
    "large": ("большой", "большая", "большое", "большие"),
}
_MOVE: dict[Language, dict[Camera, tuple[str, ...]]] = {
    "en": {
        "zoom in": ("the camera zooms in", "zooming in", "zoom in", "slow zoom in"),
        "zoom out": ("the camera zooms out", "zooming out", "zoom out", "slow zoom out"),
        "pan left": ("the camera pans left", "panning to the left", "pan left", "the camera moves left"),
        "pan right": ("the camera pans right", "panning to the right", "pan right", "the camera moves right"),
    },
    "ru": {
        "zoom in": ("камера приближается", "с приближением камеры", "наезд камеры", "приближение"),
        "zoom out": ("камера отдаляется", "камера удаляется", "отъезд камеры", "отдаление"),
        "pan left": ("камера движется влево", "камера смещается влево", "панорама влево"),
        "pan right": ("камера движется вправо", "камера смещается вправо", "панорама вправо"),
    },
}


def TRAIN_COLOURS(concept: Concept) -> tuple[int, ...]:  # noqa: N802 - the name other modules agreed on
    """Indices into COLOURS this concept is trained on, about two thirds, at least six; the others are held out."""
    order = sorted(range(len(COLOURS)), key=lambda i: fraction("colour", concept.hexcode, COLOURS[i].en))
    return tuple(sorted(order[: max(6, round(TRAIN_SHARE * len(COLOURS)))]))


def held_colours(concept: Concept) -> tuple[int, ...]:
    """Indices into COLOURS that are never shown behind this concept in training."""
    shown = TRAIN_COLOURS(concept)
    return tuple(i for i in range(len(COLOURS)) if i not in shown)


def background(colour: int, lang: Language) -> str:
    """The plain phrase: "on a light blue background", «на голубом фоне»."""
    if lang == "en":
        article = "an" if COLOURS[colour].en[0] in "aeiou" else "a"
        return f"on {article} {COLOURS[colour].en} background"
    return f"на {COLOURS[colour].ru} фоне"


def caption(
    concept: Concept,
    colour: int | None,
    *,
    lang: Language,
    rng: random.Random,
    position: Position | None = None,
    scale: Scale | None = None,
    camera: Camera | None = None,
    use_tags: float = 0.0,
) -> str:
    """One way to say it, drawn with `rng`.

    colour:   index into COLOURS; None leaves the background out, which means white.
    use_tags: probability of naming the concept by one to three of its train tags instead of its label.
    """
    name = _name(concept, lang, rng, use_tags)
    return (_english if lang == "en" else _russian)(concept, name, colour, position, scale, camera, rng)


def _name(concept: Concept, lang: Language, rng: random.Random, use_tags: float) -> str | None:
    """Train tags joined by commas, or None for the label."""
    tags = concept.tags(lang).train
    if not tags or rng.random() >= use_tags:
        return None
    return ", ".join(rng.sample(tags, min(len(tags), rng.choice((1, 2, 2, 3)))))


def _assemble(subject: str, extras: list[str], rng: random.Random) -> str:
    """Subject first mostly; what follows in any order, with or without commas; sometimes a capital or a full stop."""
    rng.shuffle(extras)
    if extras and rng.random() < 0.15:
        text = ", ".join([*extras, subject])
    else:
        comma = ", " if rng.random() < 0.35 else " "
        text = comma.join([subject, *extras])
    text = " ".join(text.split())
    if rng.random() < 0.3:
        text = text[:1].upper() + text[1:]
    return text + ("." if rng.random() < 0.15 else "")


def _english(
    concept: Concept,
    name: str | None,
    colour: int | None,
    position: Position | None,
    scale: Scale | None,
    camera: Camera | None,
    rng: random.Random,
) -> str:
    size = rng.choice(_SIZE["en"][scale]) if scale else ""
    words = f"{size} {name or concept.en}".strip()
    if name is None and rng.random() < 0.6:
        words = _with_article(words, rng)
    extras = []
    if colour is not None:
        extras.append(_english_background(colour, rng))
    if position:
        extras.append(rng.choice(_PLACE["en"][position]))
    if camera:
        extras.append(rng.choice(_MOVE["en"][camera]))
    subject = f"{rng.choice(_EN_OPENINGS)}{words} {rng.choice(_EN_VERBS)}".strip()
    return _assemble(subject, extras, rng)


def _english_background(colour: int, rng: random.Random) -> str:
    if rng.random() < 0.4:
        return background(colour, "en")
    name = COLOURS[colour].en
    if name == "grey" and rng.random() < 0.3:
        name = "gray"
    text = rng.choice((*_EN_BACKGROUNDS, "{} background")).format(name)
    return text.replace(" a orange", " an orange")


def _with_article(words: str, rng: random.Random) -> str:
    head = words.split(" with ")[0].split(" of ")[0]
    plural = head.endswith("s") and not head.endswith(("ss", "us"))
    if plural or head[:1].isupper() or rng.random() < 0.2:
        return f"the {words}"
    return f"{'an' if words[0].lower() in 'aeiou' and not words.startswith('un') else 'a'} {words}"


def _russian(
    concept: Concept,
    name: str | None,
    colour: int | None,
    position: Position | None,
    scale: Scale | None,
    camera: Camera | None,
    rng: random.Random,
) -> str:
    words, extras = name or concept.ru, []
    if scale:
        adjective = None if name else _agreeing(concept, scale)
        if adjective and rng.random() < 0.5:
            words = f"{adjective} {words}"
        else:
            extras.append(rng.choice(_SIZE["ru"][scale]))
    if colour is not None:
        c = COLOURS[colour]
        extras.append(rng.choice(_RU_BACKGROUNDS).format(c.ru) if rng.random() < 0.85 else f"{c.ru_name} фон")
    if position:
        extras.append(rng.choice(_PLACE["ru"][position]))
    if camera:
        extras.append(rng.choice(_MOVE["ru"][camera]))
    verb = "" if name else rng.choice(_RU_VERBS[concept.number_ru])
    opening = rng.choice(_RU_OPENINGS)
    subject = f"{opening}{words}» {verb}" if opening.endswith("«") else f"{opening}{words} {verb}"
    return _assemble(subject.strip(), extras, rng)


def _agreeing(concept: Concept, scale: Scale) -> str | None:
    """The size adjective in the label's gender and number, where one noun's ending tells it; otherwise None."""
    forms, noun = _RU_SIZE_ADJECTIVES[scale], concept.ru.lower()
    if concept.number_ru != "singular" or " " in noun or "-" in noun:
        return None
    if noun[-1] in "ая" and noun not in {"судья"}:
        return forms[1]
    if noun[-1] in "ое":
        return forms[2]
    return forms[0] if noun[-1] in "бвгджзклмнпрстфхцчшщй" else None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt with what it must produce. kind: worded with the label, or only with tags training never saw."""

    text: str
    lang: Language
    concept_index: int
    colour: int
    kind: Literal["label", "synonym"]


def synonym_words(concepts: Sequence[Concept], lang: Language) -> list[tuple[str, ...]]:
    """For every concept up to three of its held tags, rarest first, that together no other concept of the list carries.

    Empty where it has none, or where even all of them would describe another concept as well.
    """
    carried = [{plain(t) for t in c.tags(lang).all} for c in concepts]
    owners = Counter(t for tags in carried for t in tags)
    result: list[tuple[str, ...]] = []
    for i, concept in enumerate(concepts):
        held = sorted(concept.tags(lang).held, key=lambda t: (owners[t], fraction("order", lang, t)))[:3]
        shared = any(set(held) <= tags for j, tags in enumerate(carried) if j != i)
        result.append(() if shared else tuple(held))
    return result


def evaluation_prompts(concepts: Sequence[Concept] | None = None) -> list[Prompt]:
    """What nano is measured on, the same on every machine.

    For each concept one English and one Russian prompt with its label, and, where it has held tags that single it out,
    one in each language worded only with those. Every background is one the concept was never trained on.
    """
    listed = load_concepts() if concepts is None else concepts
    synonyms = {lang: synonym_words(listed, lang) for lang in LANGUAGES}
    prompts = []
    for i, concept in enumerate(listed):
        held = held_colours(concept)
        for lang in LANGUAGES:
            for kind, words in (("label", concept.label(lang)), ("synonym", ", ".join(synonyms[lang][i]))):
                if words:
                    colour = held[int(fraction("prompt", concept.hexcode, lang, kind) * len(held))]
                    text = f"{words} {background(colour, lang)}"
                    prompts.append(Prompt(text, lang, i, colour, "label" if kind == "label" else "synonym"))
    return prompts
