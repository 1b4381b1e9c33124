"""How the second Nano refuses a prompt of which it can show nothing. No torch."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from kandinsky.errors import RequestError
from kandinsky.families.nano.reader import SceneReader, Understood
from kandinsky.printing import escaped

EXAMPLES = (("cat", "rocket", "birthday cake"), ("кошка", "ракета", "торт"))
"""What can be shown, in English and Russian, where nothing is near what was asked for."""


def refused(reader: SceneReader, prompt: str, understood: Understood) -> RequestError:
    """The refusal of a prompt without a scene; it names the nearest concepts."""
    hint = "`kandinsky show MODEL --concepts` lists all it can show"
    if understood.negated:
        return RequestError(
            f"`{escaped(prompt)}` says only what to leave out, and what is left out is not shown: say what is",
            hint=hint,
        )
    language = int(bool(re.search("[а-яА-ЯёЁ]", prompt)))
    if near := reader.nearest(prompt, language=language):
        near = [f"`{name}`" for name in near]
        return RequestError(
            f"this model knows nothing that `{escaped(prompt)}` asks for: the nearest that it can show are "
            + ", ".join(near),
            hint=hint,
        )
    return RequestError(
        f"this model knows nothing that `{escaped(prompt)}` asks for, and nothing like it: it shows things such as "
        + ", ".join(f"`{name}`" for name in EXAMPLES[language]),
        hint=hint,
    )


def check(words: Path, prompt: str) -> None:
    """Refuse a prompt of which nothing is known, as it is refused when it is read for a clip.

    Args:
        words: The table of words.
        prompt: The prompt.

    Raises:
        RequestError: Nothing is known.
    """
    reader = _reader(words)
    if prompt.strip() and (understood := reader.read(prompt)).scene is None:
        raise refused(reader, prompt, understood)


@functools.lru_cache(1)
def _reader(words: Path) -> SceneReader:
    return SceneReader.of(words)
