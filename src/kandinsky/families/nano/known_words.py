"""Which words of a prompt Nano uses: those that name what it shows, and those that it was trained to ignore.

The list ships with the weights as `words.json`; `python -m kandinsky.lab.nano.known_words` writes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kandinsky.errors import WeightsError
from kandinsky.weights.untrusted import read_table, reading

# What is chosen of each role, by its number.
Choice = Mapping[str, int]
_RUSSIAN = (
    *("иями", "ями", "ами", "ого", "его", "ому", "ему", "ыми", "ими", "ется", "ются", "ает", "ают", "ует", "уют"),
    *("ах", "ях", "ов", "ев", "ей", "ой", "ий", "ый", "ая", "яя", "ое", "ее", "ые", "ие", "ую", "юю", "ом", "ем"),
    *("ым", "им", "ых", "их", "ам", "ям", "ет", "ит", "ат", "ят", "ут", "ют", "а", "я", "о", "е", "ы", "и", "у", "ю"),
    *("ь", "й"),
)
_ENGLISH = ("ings", "ing", "ies", "ied", "es", "ed", "s", "y", "e")
_SHORTEST_STEM = 3


@dataclass(frozen=True, slots=True)
class KnownWords:
    """Stems of the known words.

    Attributes:
        filler: Words to skip, such as articles and "emoji of".
        numbers: Numbers of things; one is shown whatever they say.
        roles: Word to what it may name in each role but the concept: `{"red": {"background": (0,)}}`.
        concepts: Words of each concept, by its number.
        names: What each concept is called, English and Russian; empty where the list has none.
        colours: RGB of each background; empty where the list has none.
    """

    filler: frozenset[str]
    numbers: frozenset[str]
    roles: Mapping[str, Mapping[str, tuple[int, ...]]]
    concepts: tuple[frozenset[str], ...]
    names: tuple[tuple[str, ...], ...] = ()
    colours: tuple[tuple[int, int, int], ...] = ()

    @classmethod
    def read(cls, path: Path) -> KnownWords:
        """Read `words.json`.

        Raises:
            WeightsError: The file is not valid.
        """
        table = read_table(path)
        with reading(path, "holds no list of words"):
            roles: dict[str, dict[str, set[int]]] = {}
            for role, slots in table["roles"].items():
                for number, words in enumerate(slots):
                    for word in words.split():
                        roles.setdefault(stem(word), {}).setdefault(role, set()).add(number)
            return cls(
                frozenset(map(stem, table["filler"].split())),
                frozenset(map(stem, table["numbers"].split())),
                {word: {role: tuple(sorted(n)) for role, n in named.items()} for word, named in roles.items()},
                tuple(frozenset(map(stem, words.split())) for words in table["concepts"]),
                tuple(tuple(map(str, names)) for names in table.get("names", ())),
                tuple((int(r), int(g), int(b)) for r, g, b in table.get("colours", ())),
            )

    def check(self, concepts: int, path: Path) -> None:
        """Check that the list belongs to a network.

        Raises:
            WeightsError: The network has another number of concepts.
        """
        if len(self.concepts) != concepts:
            raise WeightsError(f"`{path}` has the words of {len(self.concepts)} concepts, and the network {concepts}")

    def found(self, text: str = "") -> list[tuple[str, ...]]:
        """Names of the concepts that a text speaks of, in the order of their names; of all of them if it is empty.

        A word of the text is one of a concept's, or the beginning of one.
        """
        wanted = [stem(word) for word in re.findall(r"[^\W_]+", text)]
        return sorted(
            names
            for names, words in zip(self.names, self.concepts, strict=bool(self.names))
            if all(any(one.startswith(word) for one in words) for word in wanted)
        )

    def said(self, prompt: str, chosen: Choice) -> frozenset[str]:
        """Roles of which a prompt speaks: those of whose slot it has a word.

        Args:
            prompt: As it was given.
            chosen: How it was understood.
        """
        words = [stem(word) for word in re.findall(r"[^\W_]+", prompt)]
        said = {role for word in words for role, slots in self.roles.get(word, {}).items() if chosen[role] in slots}
        own = self.concepts[chosen["concept"]]
        return frozenset(said | {"concept"} if any(word in own for word in words) else said)

    def beside_filler(self, prompt: str) -> tuple[str, ...]:
        """The words of a prompt that mean something, in their order, each once."""
        words = dict.fromkeys(re.findall(r"[^\W_]+", prompt))
        return tuple(word for word in words if stem(word) not in self.filler)

    def unused(self, prompt: str, chosen: Choice, read: Callable[[str], Choice], *, end: int) -> tuple[str, ...]:
        """Words of a prompt that have no influence on what will be shown, in their order, each once.

        Args:
            prompt: As it was given.
            chosen: How it was understood.
            read: Reads another prompt, to find out whether a word of some other concept played a part.
            end: Number of characters that were read; later ones are not used.
        """
        own = self.concepts[chosen["concept"]]
        found = dict[str, None]()
        for match in re.finditer(r"[^\W_]+", prompt):
            word = stem(match[0].lower())
            is_read = match.start() < end
            if is_read and (word in own or word in self.filler or self._is_honoured(word, chosen)):
                continue
            if is_read and word not in self.roles and word not in self.numbers and self._names_a_concept(word):
                rest = f"{prompt[: match.start()]} {prompt[match.end() :]}"
                others = (stem(other.lower()) for other in re.findall(r"[^\W_]+", rest))
                if not any(self._names_a_concept(other) for other in others) or read(rest) != chosen:
                    continue
            found[match[0]] = None
        return tuple(found)

    def _is_honoured(self, word: str, chosen: Choice) -> bool:
        return any(chosen[role] in numbers for role, numbers in self.roles.get(word, {}).items())

    def _names_a_concept(self, word: str) -> bool:
        return any(word in words for words in self.concepts)


def stem(word: str) -> str:
    """A word without the endings of its inflection, as far as spelling tells: «панды» and «панда» have one."""
    word = word.lower().replace("ё", "е")
    for ending in _RUSSIAN if re.search("[а-я]", word) else _ENGLISH:
        if word.endswith(ending) and len(word) - len(ending) >= _SHORTEST_STEM:
            return word[: -len(ending)]
    return word
