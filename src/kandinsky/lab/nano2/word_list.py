"""The words that a second Nano knows, and the reader of prompts that knows them.

    python -m kandinsky.lab.nano2.word_list TARGET [--wordnet FOLDER --common FILE --emojibase FOLDER]

writes the list as it ships with the weights: labels of the catalogue in their usual forms, synonyms, and the words for
places, sizes, motions, cameras, counts and backgrounds. Nothing is trained on synonyms, so none need be held out. Words
that are near a concept are found again where their sources are given (``neighbours.py``), and else taken over from the
list that ships.
"""

from __future__ import annotations

import argparse
import json
import lzma
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from kandinsky.families.nano.reader import SceneReader, Understood
from kandinsky.files import replacing
from kandinsky.lab.nano.captions import COLOURS
from kandinsky.lab.nano.concepts import LANGUAGES, Concept, core, plain
from kandinsky.lab.nano2.catalogue import catalogue, toned
from kandinsky.lab.nano2.describe import genitives, plural
from kandinsky.lab.nano2.neighbours import NEAREST, by_hand, listed, meant_first, neighbours, russian, unlike
from kandinsky.weights.untrusted import read_table

# by role and meaning: stems, or phrases of stems
_PHRASES: dict[tuple[str, str], str] = {
    ("place", "left"): "on the left|at the left|to the left side|on the left side|left side|on the left hand side"
    "|слева|слев|в левой части|с левой стороны|на левой стороне|в левом углу|in the left corner",
    (
        "place",
        "right",
    ): "on the right|at the right|to the right side|on the right side|right side|on the right hand side"
    "|справа|в правой части|с правой стороны|на правой стороне|в правом углу|in the right corner",
    ("place", "top"): "at the top|on top|near the top|up high|вверху|сверху|наверху|в верхней части|in the upper part",
    ("place", "bottom"): "at the bottom|near the bottom|down low|внизу|снизу|в нижней части|in the lower part",
    ("place", "middle"): "in the middle|in the centre|in the center|в центре|посередине|в середине|по центру",
    ("place", "top left"): "in the top left corner|in the upper left corner|top left|upper left|top left corner"
    "|в левом верхнем углу|в верхнем левом углу|слева вверху|слева сверху"
    "|вверху слева|сверху слева",
    ("place", "top right"): "in the top right corner|in the upper right corner|top right|upper right|top right corner"
    "|в правом верхнем углу|в верхнем правом углу|справа вверху|справа сверху|вверху справа|сверху справа",
    ("place", "bottom left"): "in the bottom left corner|in the lower left corner|bottom left|lower left"
    "|bottom left corner|в левом нижнем углу|в нижнем левом углу|слева внизу|слева снизу|внизу слева|снизу слева",
    ("place", "bottom right"): "in the bottom right corner|in the lower right corner|bottom right|lower right"
    "|bottom right corner|в правом нижнем углу|в нижнем правом углу|справа внизу|справа снизу"
    "|внизу справа|снизу справа",
    ("size", "small"): "small|little|tiny|маленький|маленькая|маленькое|маленькие|мелко|небольшой",
    ("size", "large"): "big|large|huge|giant|большой|большая|большое|большие|крупно|огромный|огромная",
    ("camera", "zoom in"): "the camera zooms in|camera zooms in|zoom in|zooming in|the camera comes closer"
    "|камера приближается|наезд камеры",
    ("camera", "zoom out"): "the camera zooms out|camera zooms out|zoom out|zooming out|the camera moves back"
    "|камера отдаляется|отъезд камеры",
    ("camera", "pan left"): "the camera pans left|camera pans left|pan left|the camera turns left"
    "|камера движется влево|панорама влево",
    ("camera", "pan right"): "the camera pans right|camera pans right|pan right|the camera turns right"
    "|камера движется вправо|панорама вправо",
    ("count", "2"): "two|2|a pair of|pair of|a couple of|couple of|два|две|двое|пара|пару|обе|оба",
    ("count", "3"): "three|3|a few|several|a trio of|три|трое|тройка|несколько",
    ("count", "4"): "four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|fifty|hundred|a hundred|hundreds of"
    "|a thousand|thousand|thousands of|million|millions of|a dozen|dozen|dozens of|many|lots of|a lot of|plenty of"
    "|a bunch of|bunch of|a group of|group of|a crowd of|crowd of|a herd of|herd of|a flock of|flock of|a pack of"
    "|a swarm of|swarm of|countless|numerous|четыре|четверо|пять|пятеро|шесть|шестеро|семь|семеро|восемь|девять|десять"
    "|одиннадцать|двенадцать|двадцать|тридцать|сорок|пятьдесят|сто|сотня|сотни|тысяча|тысячи|миллион|много|множество"
    "|куча|толпа|стая|стадо|стайка|группа|десяток|десятки|дюжина",
    ("relation", "left"): "left of|to the left of|слева от|левее",
    ("relation", "right"): "right of|to the right of|справа от|правее",
    ("relation", "above"): "above|over|on top of|над|выше",
    ("relation", "below"): "below|under|beneath|под|ниже",
    ("anything", ""): "something|anything|what you like|что-нибудь|что-то|нечто",
    ("and", ""): "and|и",
    ("not", ""): "no|not|without|never|don't|doesn't|isn't|aren't|can't|cannot|won't|don’t|doesn’t|isn’t"
    "|except|except for|instead of|rather than|minus|neither|не|без|безо|нет|нету|кроме|вместо|ни|никаких|никакого",
    ("backdrop", "ground"): "ground|floor|пол",
    ("backdrop", "sky"): "sky|небо",
    ("backdrop", "plain"): "background|backdrop|in the background|фон|на заднем плане|на заднем фоне|задний план",
    ("backdrop", "gradient"): "gradient|fading from|градиент|фон переходит",
    ("backdrop", "halves"): "half|пополам",
}
# what somebody does, by motion: English verbs, with what follows them behind a space, and Russian ones by the ending of
# their infinitive
_VERBS_EN: dict[str, str] = {
    "moves up": "rise|take off|lift off|ascend|rise up|fly up|soar up",
    "moves down": "sink|fall|fall down|drop down|descend|sink down|come down",
    "jumps": "jump|bounce|hop|leap|jump up and down|bounce up and down|jump up|hop up and down",
    "spins": "spin|rotate|turn around|spin around|twirl|whirl|revolve|turn round|spin in circles|rotate around",
    "grows": "grow|get bigger|become bigger|become larger|get larger|grow bigger|grow larger|increase in size",
    "shrinks": "shrink|get smaller|become smaller|grow smaller",
    "fades in": "fade in|appear|emerge|materialize",
}
_VERBS_RU: dict[str, str] = {
    "moves up": "взлетать подниматься",
    "moves down": "падать опускаться спускаться снижаться",
    "jumps": "прыгать подпрыгивать подскакивать отскакивать",
    "spins": "вращаться крутиться кружиться поворачиваться вертеться",
    "grows": "увеличиваться",
    "shrinks": "уменьшаться сжиматься",
    "fades in": "появляться проявляться возникать",
}
_FORMS_RU: dict[str, str] = {
    "ать": "ать ает ают ал ала ало али ающий ая",
    "яться": "яться яется яются ялся ялась ялось ялись яющийся яясь",
    "аться": "аться ается аются ался алась алось ались ающийся аясь",
    "иться": "иться ится ятся атся ился илась илось ились ащийся ящийся ась ясь",
    "еться": "еться ится ятся елся елась елось елись ящийся ясь",
}
"""Endings of a verb's forms by that of its infinitive, participles in the masculine."""
_IRREGULAR = {
    "rise": "rises rising risen",  # "rose" is the flower
    "take": "takes taking took",
    "ascend": "ascends ascending ascended",
    "sink": "sinks sinking sank",
    "fall": "falls falling fell",
    "come": "comes coming came",
    "spin": "spins spinning spun",
    "become": "becomes becoming became",
    "get": "gets getting got",
    "grow": "grows growing grew",
    "shrink": "shrinks shrinking shrank",
    "leap": "leaps leaping leapt",
    "hop": "hops hopping hopped",
    "drop": "drops dropping dropped",
    "fly": "flies flying flew",
}


_PACES = ("slowly", "quickly", "fast")


def _motions() -> Iterable[tuple[str, str]]:
    """Motions, and phrases for each in all forms of their verbs."""
    ways = {
        "right": "right|to the right|towards the right|rightward|rightwards",
        "left": "left|to the left|towards the left|leftward|leftwards",
        "up": "up|upward|upwards",
        "down": "down|downward|downwards",
    }
    going = [word for word in sorted(listed("going")) if word.isascii()]
    for way, words in ways.items():
        alone = [word for word in words.split("|") if word != way and word not in ("upward", "downward")]
        yield f"moves {way}", "|".join([*alone, *(f"{verb} {way}" for verb in (*going, *_PACES))])
    russian = {
        "right": "вправо|направо|слева направо|в правую сторону",
        "left": "влево|налево|справа налево|в левую сторону",
    }
    russian |= {"up": "вверх|кверху|ввысь", "down": "вниз|книзу"}
    for way, words in russian.items():
        yield f"moves {way}", words
    yield "moves right", "from left to right|left to right"
    yield "moves left", "from right to left|right to left"
    for motion, phrases in _VERBS_EN.items():
        forms = []
        for phrase in phrases.split("|"):
            verb, *rest = phrase.split(" ", 1)
            root = verb.removesuffix("e")
            several = _IRREGULAR.get(verb, f"{verb}s {root}ing {root}ed").split()
            forms += [" ".join([form, *rest]) for form in (verb, *several)]
        yield motion, "|".join(forms)
    for motion, verbs in _VERBS_RU.items():
        forms = []
        for verb in verbs.split():
            ending = next(one for one in ("яться", "аться", "иться", "еться", "ать") if verb.endswith(one))
            forms += [verb.removesuffix(ending) + one for one in _FORMS_RU[ending].split()]
        yield motion, "|".join(forms)
    yield "jumps", "скачет|скачут|скакать|скачущий|прыгнул|прыгнет|в прыжке|прыжок"
    yield "grows", "растет|растут|расти|растущий|рос|росла|становится больше|становятся больше"
    yield "shrinks", "становится меньше|становятся меньше"
    yield (
        "fades in",
        "slowly appears|плавно появляется|плавно появляются|возникнет|появится|появился|появилась|появилось",
    )
    yield "moves up", "взлетел|взлетела|взлет|восходит"
    yield "moves down", "упал|упала|упадет"


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
        *(
            "one",
            "1",
            "один",
            "одна",
            "одно",
            "одни",
            "these",
            "those",
            "плавно",
            "медленно",
            "row",
            "ряд",
            "some",
            "there",
            "another",
        ),
        "against",
        "over",
        *("my", "your", "his", "her", "its", "our", "their", "photo", "фото", "картинка"),
        *("мой", "моя", "мое", "мои", "твой", "твоя", "твое", "твои"),
    ]
)
OWNERS = 8  # concepts that share a synonym, at most
_GENERAL = frozenset(["moves", "waves", "walks", "moving", "движется", "движутся", "машет", "идет"])
"""What concepts do by themselves: their own motion answers it, so it is known and changes nothing."""
_FORMS = ("s", "es", "ed", "d", "ly")
"""Endings of forms that are left to their words."""
_DOINGS = frozenset(
    [
        *("flies", "rings", "kisses", "rains", "snows", "sleeping", "crying", "sneezing", "smiling"),
        *("спит", "плачет", "улыбается", "целует", "подмигивает"),
    ]
)
"""Names that beside another one are what it does ("a dragon flies"), and no second subject."""


_VERBS = frozenset(
    [
        *("bat", "bear", "bug", "cook", "dance", "drum", "duck", "fire", "fish", "fly", "guard", "hammer"),
        *("judge", "juggle", "kiss", "parachute", "plant", "rain", "ram", "ring", "rocket", "ship", "skate"),
        *("ski", "snow", "star", "surf", "train", "trumpet", "watch", "wave", "wolf", "worm", "parrot", "crown"),
        *("shield", "bow", "box", "eye", "mouth", "pilot", "ferry", "camp", "blossom", "bomb", "whistle"),
        *("dress", "sun", "phone", "bus", "cycle", "bike", "book", "bank", "park", "rock"),
        *("run", "walk", "dance", "cry", "laugh", "smile", "sing", "sleep", "hug", "swim", "surf", "sneeze", "yawn"),
        *("wink", "clap", "write", "read", "shout", "scream", "jog", "climb", "row", "golf", "shrug", "think", "look"),
        *("listen", "eat", "drink", "work", "study", "speak", "whisper", "frown", "grin", "blush", "pray", "sniff"),
    ]
)
"""Names that are also what somebody does."""


NEAR = ("near", "alike", "real")
"""Parts of the list that need sources from outside."""


@cache
def shipped() -> dict[str, Any]:
    """The list that ships."""
    with resources.as_file(resources.files("kandinsky") / "assets" / "nano2-t2v" / "words.json.xz") as path:
        return read_table(path)


def characters(hexcode: str) -> str:
    """An emoji as it is read: without variation selectors; and without its sex, as one that has none is the same."""
    every = "".join(chr(int(code, 16)) for code in hexcode.split("-")).replace("\ufe0f", "")
    return " ".join(dict.fromkeys((every, re.sub("\u200d[♀♂]$", "", every))))


def scene_words(near: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The contents of `words.json`; see ``families/nano/reader.SceneReader``.

    Args:
        near: `near`, `alike` and `real`; those that ship if none are given.
    """
    entries = catalogue()
    phrases: list[list[str]] = [[role, meaning, text] for (role, meaning), text in _PHRASES.items()]
    phrases += [["motion", motion, text] for motion, text in _motions()]
    beside = _DOINGS | listed("describing")

    def add(words: Iterable[str], role: str, meaning: str) -> None:
        known = list(dict.fromkeys(word for word in words if word))
        if role == "subject" and (doings := [word for word in known if word.lower() in beside]):
            phrases.append(["synonym", meaning, "|".join(doings)])
        if text := "|".join(word for word in known if word.lower() not in beside or role != "subject"):
            phrases.append([role, meaning, text])

    for number, (english, in_russian, alone) in enumerate(_TONES, 1):
        ends = (" skin tone", " skin", "-skinned", " skinned")
        of_skin = [f"{one}{end}" for one in english.split("|") for end in ends]
        of_skin += [f"{one} {noun}" for one in in_russian.split("|") for noun in ("тон кожи", "оттенок кожи", "кожа")]
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
            does = name.split()[0] in ("he", "she", "man", "woman") and name.endswith("s")
            add([name, plural(name)] if name.isascii() and not does else [name], "subject", by_label[label])
    for number, entry in enumerate(entries):
        add((core(entry.en), core(entry.ru)), "subject", str(number))
    first = meant_first()
    loose: dict[str, tuple[int, ...]] = {}
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
            meant = tuple(number for *_, number in sorted(ranked)[:OWNERS])
            if (word := plain(tag)) in first:
                meant = tuple(dict.fromkeys((first[word], *meant)))
            if word in unlike():
                if word in listed("unlike"):
                    loose.setdefault(word, meant[:NEAREST])
                continue
            same.setdefault(meant[:OWNERS], []).append(tag)
        for meant, alike in same.items():
            add(alike, "synonym", ",".join(map(str, meant)))
    table = {
        "concepts": [[entry.en, entry.ru] for entry in entries],
        "silent": " ".join(sorted(_SILENT)),
        "general": " ".join(sorted(_GENERAL)),
        "toned": sorted(toned()),
        "verbs": " ".join(sorted(_VERBS)),
        **{
            name: " ".join(sorted(listed(name)))
            for name in ("abstract", "describing", "scenery", "worn", "going", "function")
        },
        "emoji": _emoji(entries),
        "phrases": phrases,
        **(near or {name: shipped()[name] for name in NEAR}),
    }
    return table | {"near": _near(table, loose)}


def _near(table: Mapping[str, Any], loose: Mapping[str, tuple[int, ...]]) -> list[list[str]]:
    """The neighbours of a list, with those by hand and those of tags that show something else than they say."""
    known = SceneReader({**table, "near": []}).names_something
    found = {word: tuple(map(int, numbers.split())) for numbers, words in table["near"] for word in words.split("|")}
    hand = by_hand()
    hand = hand | {word: hand[english] for word, english in russian().items() if english in hand}
    found |= {word: numbers[:NEAREST] for word, numbers in hand.items()}
    for word, numbers in loose.items():
        found.setdefault(word, numbers)
    same: dict[tuple[int, ...], list[str]] = {}
    for word, numbers in found.items():
        if not known(word):
            same.setdefault(numbers, []).append(word)
    return [[" ".join(map(str, numbers)), "|".join(words)] for numbers, words in same.items()]


def _emoji(entries: Iterable[Concept]) -> list[str]:
    """The characters of each concept; those without a sex are its own unless another's."""
    taken: set[str] = set()
    found = [characters(entry.hexcode).split() for entry in entries]
    taken.update(every for every, *_ in found)
    out = []
    for every, *others in found:
        out.append(" ".join([every, *(one for one in others if one not in taken)]))
        taken.update(others)
    return out


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


def real_words(reader: SceneReader, common: Path) -> str:
    """Common words that are near nothing, and would be taken for others that are spelt like them."""
    lines = common.read_text("utf-8").splitlines()
    words = {word for word in lines if re.fullmatch("[a-z]{4,}", word)}
    base = [
        word for word in sorted(words) if not any(word.endswith(e) and word.removesuffix(e) in words for e in _FORMS)
    ]
    return " ".join(word for word in base if not reader.has_neighbours(word) and reader.is_like(word))


def write(target: Path, near: Mapping[str, Any] | None = None) -> None:
    """Write the list, compressed where the name of its file ends in `.xz`.

    Args:
        target: The file.
        near: See ``scene_words``.
    """
    text = (json.dumps(scene_words(near), ensure_ascii=False, indent=0) + "\n").encode("utf-8")
    if target.suffix == ".xz":
        text = lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)
    with replacing(target) as part:
        part.write_bytes(text)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("--wordnet", type=Path, help="folder of `data.noun` and `index.noun`")
    parser.add_argument("--common", type=Path, help="common English words, one a line")
    parser.add_argument("--emojibase", type=Path, help="folder of `emojibase-data`")
    options = parser.parse_args()
    near: dict[str, Any] | None = None
    if options.wordnet:
        own = SceneReader(scene_words({"near": []}))
        pairs, alike = neighbours(options.wordnet, options.common, options.emojibase, own.names_something)
        near = {"near": pairs, "alike": alike}
        near["real"] = real_words(SceneReader(scene_words(near)), options.common)
    write(options.target, near)


if __name__ == "__main__":
    main()
