"""The words that a second Nano knows, and the reader of prompts that knows them.

    python -m kandinsky.lab.nano2.reader TARGET

writes the list as it ships with the weights: labels of the catalogue in their usual forms, synonyms, and the words for
places, sizes, motions, cameras, counts and backgrounds. Nothing is trained on synonyms, so none need be held out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from kandinsky.families.nano.reader import SceneReader, Understood
from kandinsky.families.nano.tone_words import apart
from kandinsky.files import replacing
from kandinsky.lab.nano.captions import COLOURS
from kandinsky.lab.nano.concepts import LANGUAGES, core
from kandinsky.lab.nano2.catalogue import catalogue, toned
from kandinsky.lab.nano2.describe import genitives, plural

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
    "|slides to the right|to the right|движется вправо|едет направо|вправо|направо|перемещается вправо"
    "|движутся вправо|едут направо|перемещаются вправо",
    ("motion", "moves left"): "moves left|moves to the left|goes left|goes to the left|moving left"
    "|slides to the left|to the left|движется влево|едет налево|влево|налево|перемещается влево"
    "|движутся влево|едут налево|перемещаются влево",
    (
        "motion",
        "moves up",
    ): "moves up|rises|goes up|flies up|rising|движется вверх|летит вверх|вверх|взлетает|поднимается"
    "|движутся вверх|летят вверх|взлетают|поднимаются",
    ("motion", "moves down"): "moves down|sinks|goes down|falls|falling down|движется вниз|вниз|опускается|падает"
    "|движутся вниз|опускаются|падают",
    ("motion", "jumps"): "jumps|bounces|hops|jumping|bouncing|jumping up and down|прыгает|подпрыгивает|скачет|прыгают"
    "|подпрыгивают|скачут",
    ("motion", "spins"): "spins|turns around|rotates|spinning|rotating|вращается|крутится|поворачивается|кружится"
    "|вращаются|крутятся|поворачиваются|кружатся",
    ("motion", "grows"): "grows|gets bigger|becomes larger|growing|растет|увеличивается|становится больше"
    "|растут|увеличиваются|становятся больше",
    ("motion", "shrinks"): "shrinks|gets smaller|becomes smaller|shrinking|уменьшается|становится меньше|сжимается"
    "|уменьшаются|становятся меньше|сжимаются",
    ("motion", "fades in"): "fades in|appears|appearing|fade in|slowly appears|появляется|плавно появляется|проявляется"
    "|появляются|плавно появляются|проявляются",
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
    ("anything", ""): "something|anything|what you like|что-нибудь|что-то|нечто",
    ("and", ""): "and|и",
    ("not", ""): "no|not|without|не|без|нет",
    ("backdrop", "ground"): "ground|floor|пол",
    ("backdrop", "sky"): "sky|небо",
    ("backdrop", "plain"): "background|backdrop|фон",
    ("backdrop", "gradient"): "gradient|fading from|градиент|фон переходит",
    ("backdrop", "halves"): "half|пополам",
}
# tones of skin, lightest first: adjectives in English, in Russian, and Russian words that need no noun. Unicode names
# them differently in each language: «светлый тон кожи» is "medium-light skin tone"
_TONES: tuple[tuple[str, str, str], ...] = (
    ("light|fair|pale", "очень светлый|бледный", "бледнокожий|белокожий"),
    ("medium-light|medium light", "светлый|средне-светлый", "светлокожий"),
    ("medium|tan|olive", "средний|смуглый", "смуглый|смуглокожий"),
    ("medium-dark|medium dark|brown", "темный|средне-темный", "темнокожий"),
    ("dark|black", "очень темный|черный", "чернокожий"),
)
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
        "со",
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
OWNERS = 8  # concepts that share a synonym, at most
_GENERAL = frozenset(
    ["moves", "waves", "dances", "plays", "walks", "moving", "движется", "танцует", "машет", "играет", "идет", "гуляет"]
)
"""What concepts do by themselves: their own motion answers it, so it is known and changes nothing."""
_DOINGS = frozenset(
    [
        *("flies", "rings", "kisses", "rains", "snows", "sleeping", "crying", "sneezing", "smiling"),
        *("спит", "плачет", "улыбается", "целует", "подмигивает"),
    ]
)
"""Names that beside another one are what it does ("a dragon flies"), and no second subject."""


def scene_words() -> dict[str, Any]:
    """The contents of `words.json`; see ``families/nano/reader.SceneReader``."""
    entries = catalogue()
    phrases: list[list[str]] = [[role, meaning, text] for (role, meaning), text in _PHRASES.items()]

    def add(words: Iterable[str], role: str, meaning: str) -> None:
        known = list(dict.fromkeys(word for word in words if word))
        if role == "subject" and (doings := [word for word in known if word.lower() in _DOINGS]):
            phrases.append(["synonym", meaning, "|".join(doings)])
        if text := "|".join(word for word in known if word.lower() not in _DOINGS or role != "subject"):
            phrases.append([role, meaning, text])

    for number, (english, russian, alone) in enumerate(_TONES, 1):
        ends = (" skin tone", " skin", "-skinned", " skinned")
        of_skin = [f"{one}{end}" for one in english.split("|") for end in ends]
        of_skin += [f"{one} {noun}" for one in russian.split("|") for noun in ("тон кожи", "оттенок кожи", "кожа")]
        add((*of_skin, *alone.split("|"), chr(0x1F3FA + number)), "tone", str(number))
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
        sign = "".join(chr(int(code, 16)) for code in entry.hexcode.split("-"))
        add((core(entry.en), core(entry.ru), apart(sign).strip()), "subject", str(number))
    for lang in LANGUAGES:
        owners: dict[str, list[tuple[bool, int, int]]] = {}
        for number, entry in enumerate(entries):
            tags = entry.tags(lang).all
            more = further().get(entry.hexcode, []) if lang == "en" else []
            every = dict.fromkeys((*tags, *more))
            for tag in every:
                if len(tag) > 2 and tag not in _GENERAL:
                    # whom both lists name first, then who has few words of its own
                    owners.setdefault(tag, []).append((not (tag in tags and tag in more), len(every), number))
        same: dict[tuple[int, ...], list[str]] = {}
        for tag, ranked in owners.items():
            same.setdefault(tuple(number for *_, number in sorted(ranked)[:OWNERS]), []).append(tag)
        for meant, alike in same.items():
            add(alike, "synonym", ",".join(map(str, meant)))
    return {
        "concepts": [[entry.en, entry.ru] for entry in entries],
        "silent": " ".join(sorted(_SILENT)),
        "general": " ".join(sorted(_GENERAL)),
        "toned": sorted(toned()),
        "phrases": phrases,
    }


@cache
def further() -> dict[str, list[str]]:
    """English synonyms by the code of an emoji: keywords of `emojilib` (MIT), a second list beside emojibase's."""
    text = resources.files("kandinsky.lab.nano2").joinpath("more_synonyms.json").read_text("utf-8")
    return dict(json.loads(text))


@cache
def reader() -> SceneReader:
    """The reader of this list."""
    return SceneReader(scene_words())


def read(text: str) -> Understood:
    """Understand a prompt, see ``SceneReader.read``."""
    return reader().read(text)


if __name__ == "__main__":
    with replacing(Path(sys.argv[1])) as part:
        part.write_text(json.dumps(scene_words(), ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
