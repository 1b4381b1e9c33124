"""Writes the list of words that a shipped Nano knows: `python -m kandinsky.lab.nano.known_words TARGET`.

Labels and tags of its concepts, and the words of captions (`lab/nano/captions.py`), in both languages.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kandinsky.files import replacing
from kandinsky.lab.nano import captions
from kandinsky.lab.nano.captions import CAMERAS, COLOURS, POSITIONS, SCALES
from kandinsky.lab.nano.concepts import LANGUAGES, load_concepts, plain, words

FILLER = (
    "a an the of on in at to with and is are its it this that against over near by for from one single plain solid "
    "background backdrop side part frame video clip image picture photo animation animated emoji emoticon 3d short "
    "и на в во с со у от для это один одна одно одном одним однотонный фон часть кадр размер видео ролик клип картинка "
    "изображение фото анимация анимированный эмодзи смайлик короткий камера camera"
)
NUMBERS = (
    "two three four five six seven eight nine ten several many few both 2 3 4 5 6 7 8 9 10 "
    "два две двое три трое четыре пять шесть семь восемь девять десять несколько много"
)


def known_words() -> dict[str, object]:
    """The contents of `words.json`; see ``families/nano/known_words.py``."""
    concepts = [
        " ".join(
            _once(word for lang in LANGUAGES for text in (c.label(lang), *c.tags(lang).all) for word in words(text))
        )
        for c in load_concepts()
    ]
    spoken = [*captions._EN_VERBS, *captions._EN_OPENINGS, *captions._EN_BACKGROUNDS, *captions._RU_OPENINGS]
    spoken += [*captions._RU_BACKGROUNDS, *(verb for forms in captions._RU_VERBS.values() for verb in forms)]
    filler = _once([*words(FILLER), *(word for text in spoken for word in words(text))])
    colours = [" ".join(words(f"{c.en} {c.ru} {c.ru_name}{' gray' if c.en == 'grey' else ''}")) for c in COLOURS]
    sizes: dict[Any, Any] = {**captions._SIZE, "adjectives": captions._RU_SIZE_ADJECTIVES}
    return {
        "filler": " ".join(filler),
        "numbers": NUMBERS,
        "roles": {
            "background": colours,
            "position": _slots(POSITIONS, captions._PLACE, filler),
            "size": _slots(SCALES, sizes, filler),
            "camera": _slots(CAMERAS, captions._MOVE, filler),
        },
        "concepts": concepts,
        "colours": [list(c.rgb) for c in COLOURS],
        "names": [[c.label(language) for language in LANGUAGES] for c in load_concepts()],
    }


def _slots(names: Iterable[str], phrases: Mapping[Any, Mapping[Any, tuple[str, ...]]], filler: list[str]) -> list[str]:
    """Words that speak of each slot; none of the first, which is nothing special."""
    said = [_once(w for table in phrases.values() for phrase in table[name] for w in words(phrase)) for name in names]
    return ["", *(" ".join(word for word in found if word not in filler) for found in said)]


def _once(found: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(plain(word) for word in found))


if __name__ == "__main__":
    with replacing(Path(sys.argv[1])) as part:
        part.write_text(json.dumps(known_words(), ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
