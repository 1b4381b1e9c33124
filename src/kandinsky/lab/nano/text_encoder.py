"""How nano's text encoder is made: from word lists, what teachers and dictionaries know of words, and captions.

Three steps: a Unigram tokenizer (``text_words``); distillation, where the network's meaning of a word or of a caption's
subject imitates the sentence models' embedding (``text_teachers``) and its choice among concepts the judgement of all
sources together (``word_judge``); captions, where the concept and the other roles are recognised as well.

The held tags of our concepts are never trained together with their concept, nor with any other emoji. As single words
they are part of the general vocabulary, so what teachers think of a held *word* is imitated like of any other word.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel

from kandinsky.families.nano.text import ROLES, NanoTextNetwork, NanoTextParams, Reading
from kandinsky.families.nano.text_encoder import NanoTextEncoder
from kandinsky.lab.nano import captions
from kandinsky.lab.nano.captions import (
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
from kandinsky.lab.nano.concepts import (
    LANGUAGES,
    Concept,
    Language,
    Tags,
    load_concepts,
    plain,
    with_associations,
    words,
)
from kandinsky.lab.nano.text_teachers import Forms, Teachers, Vocabulary, nearest_texts
from kandinsky.lab.nano.text_words import gather, known_texts, make_tokenizer, with_whole_words
from kandinsky.lab.nano.word_judge import Judgements, WordJudge
from kandinsky.runtime.devices import mixed_precision
from kandinsky.text.pretrained import read_tokenizer_file
from kandinsky.weights.read import assign_state, read_state
from kandinsky.weights.write import write_state

log = logging.getLogger(__name__)
PLACES: tuple[Position | None, ...] = (None, *POSITIONS)
SIZES: tuple[Scale | None, ...] = (None, *SCALES)
MOVES: tuple[Camera | None, ...] = (None, *CAMERAS)
NEAR = 0.85
"""The share of the vocabulary, the nearest to what nano can show, whose words are judged."""

Roles = tuple[int, int, int, int]
"""Slots of background, position, size and camera."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a recipe decides; see recipes/nano-text.yaml."""

    packages: str
    wordnet: str | None = None
    dictionary: str | None = None
    thesaurus: str | None = None
    vocab_size: int = 10_000
    gloss_weight: float = 0.7
    word_steps: int = 1500
    caption_steps: int = 1500
    batch: int = 128
    lr: float = 2e-3
    seed: int = 0
    width: int = 192
    layers: int = 3
    rows_pace: float = 1.0
    """The learning rate of the tokens' rows, which most steps do not see, in that of the rest."""
    sharpness: float = 4.0
    prototypes: int = 4
    whole_words: float = 0.0
    """Share of the vocabulary, the nearest to what nano can show, whose words are tokens of their own."""
    words: str | None = None
    """Associations written for training, see ``data.concepts.with_associations``."""
    start: str | None = None
    """Weights to go on from; their tokenizer.json stands beside them, and may get more whole words."""
    near_share: float = 0.9
    """Share of the drawn words that a judgement is imitated of; the others only keep their meaning."""
    meaning_weight: float = 0.5
    """What the teachers' meaning of a text counts where its concept or a judgement is to be learned."""
    captions: int = 128
    unknowns: int = 64
    words_a_step: int = 128
    """Texts of each kind in a step of the second phase; a step of the first has four times ``batch`` words."""
    memory: str | None = None
    """A weight file whose slot values a denoiser was trained with; without it they come from the network's own seed."""


def train_text_encoder(
    recipe: Mapping[str, Any], out: Path, *, on_log: Callable[[dict[str, float]], None] | None = None
) -> Path:
    """Train from nothing and write text.safetensors, tokenizer.json, config.json and metrics.json into ``out``.

    Raises: BackendError where a teacher's package is not installed.
    """
    settings = Settings(**{k: v for k, v in recipe.items() if k in {f.name for f in fields(Settings)}})
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    rng = random.Random(settings.seed)
    named = load_concepts()
    concepts = with_associations(named, Path(settings.words)) if settings.words else named

    sources = gather(concepts, Path(settings.packages))
    teachers = Teachers(
        sources,
        out,
        wordnet=Path(settings.wordnet) if settings.wordnet else None,
        dictionary=Path(settings.dictionary) if settings.dictionary else None,
        thesaurus=Path(settings.thesaurus) if settings.thesaurus else None,
        gloss_weight=settings.gloss_weight,
    )
    known = known_texts(concepts)
    if settings.start:
        tokenizer = read_tokenizer_file(Path(settings.start).with_name("tokenizer.json"))
    else:
        tokenizer = make_tokenizer(sources, settings.vocab_size)
    if settings.whole_words:
        near = nearest_texts(teachers.meanings(["."])[0], known, settings.whole_words)
        tokenizer = with_whole_words(tokenizer, [text for _, text in near if len(words(text)) == 1])
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    pieces = [str(tokenizer.id_to_token(i)) for i in range(tokenizer.get_vocab_size())]
    vocabulary, piece_meanings = teachers.meanings(pieces)
    judge = WordJudge(concepts, teachers.spaces(), named=named, form=Forms())
    log.info("words given back to their concepts: %s", judge.accuracy)
    judgements = Judgements(judge, nearest_texts(vocabulary, known, NEAR))
    params = NanoTextParams(
        vocab_size=len(pieces),
        concepts=len(concepts),
        width=settings.width,
        layers=settings.layers,
        prototypes=settings.prototypes,
    )
    network = NanoTextNetwork(params)
    initialise(network, concepts, vocabulary, piece_meanings, settings)
    log.info("ready to train after %.0f s", time.perf_counter() - started)

    encoder = NanoTextEncoder(network, tokenizer)
    draw = Examples(concepts, vocabulary, judgements, rng, near_share=settings.near_share)
    fit(encoder, draw, settings, on_log)
    metrics = measure(encoder, captions.evaluation_prompts(concepts))
    metrics["judge"] = {lang: round(share, 4) for lang, share in judge.accuracy.items()}
    metrics["seconds"] = round(time.perf_counter() - started)
    metrics["parameters"] = sum(t.numel() for t in network.state_dict().values())
    changed = {k: v for k, v in asdict(params).items() if v != getattr(NanoTextParams(), k)}
    (out / "config.json").write_text(json.dumps(changed))
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    # the slots' values stay exactly those a denoiser is trained with
    state = {k: t if k.endswith("_VC") else t.bfloat16() for k, t in network.state_dict().items()}
    return write_state(state, out / "text.safetensors", layout="official")


# ---------------------------------------------------------------- network


@torch.no_grad()
def initialise(
    network: NanoTextNetwork,
    concepts: Sequence[Concept],
    vocabulary: Vocabulary,
    piece_meanings: Tensor,
    settings: Settings,
) -> None:
    """Start near the teachers: token embeddings from their pieces, prototypes from the concepts; or from a recipe's
    ``start``, and only the rows it has not from their pieces.
    """
    D = network.params.width
    network.tokens.weight.copy_(piece_meanings[:, -D:] * D**0.5 * 0.7)
    torch.nn.init.zeros_(network.meaning.weight)
    torch.nn.init.zeros_(network.lexicon.weight)
    network.lexicon.weight[-D:] += torch.eye(D)
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

    if settings.start:
        stored = read_state(Path(settings.start))
        if (rows := stored.get("tokens.weight")) is not None:
            stored["tokens.weight"] = torch.cat([rows, network.tokens.weight[len(rows) :]])
        assign_state(network, stored, dtype=torch.float32, where=settings.start)
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
    """A text and what must be read from it; None: not asked. judged: shares [C] of the concepts it may speak of."""

    text: str
    meaning: Tensor
    concept: int | None = None
    roles: Roles | None = None
    judged: Tensor | None = None


class Examples:
    """Draws texts: bare words, words inside captions, captions of concepts.

    near_share: share of the words that are judged ones; the rest are of the whole language, or of labels and tags.
    """

    def __init__(
        self,
        concepts: Sequence[Concept],
        vocabulary: Vocabulary,
        judgements: Judgements,
        rng: random.Random,
        *,
        near_share: float = 0.0,
    ) -> None:
        self.concepts, self.vocabulary, self.judgements, self.rng = concepts, vocabulary, judgements, rng
        # words of emoji are drawn more often than the rest of the language
        self.known = known_texts(concepts)
        self.near_share = near_share

    def any_words(self) -> tuple[Language, tuple[str, ...], Tensor | None]:
        """Texts of one language with their judgement: mostly of something nano can show, or one of all the others."""
        rng = self.rng
        if rng.random() < self.near_share:
            found = self.judgements.draw(rng) if rng.random() < 0.75 else rng.choice(self.judgements.singles)
            return found.lang, found.texts, found.shares.float()
        lang, text = rng.choice(self.vocabulary.general) if rng.random() < 0.5 else rng.choice(self.known)
        return lang, (text,), None

    def word(self) -> Example:
        """A word or phrase, or two or three that speak of the same."""
        lang, texts, judged = self.any_words()
        return Example(self._typo(", ".join(texts), 0.03), self.vocabulary.mean(lang, texts), judged=judged)

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
        lang, texts, judged = self.any_words()
        name = ", ".join(self.rng.sample(texts, len(texts)))
        text, roles = self._caption(Concept("", "", "", name, name, "clause"), lang, range(len(COLOURS)))
        return Example(self._typo(text, 0.01), self.vocabulary.mean(lang, texts), roles=roles, judged=judged)

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
    draw: Examples,
    settings: Settings,
    on_log: Callable[[dict[str, float]], None] | None,
) -> None:
    """Words first, then words and captions together; one cosine of the learning rate over both."""
    network = encoder.network.train()
    # a word's own row moves only in the few steps that see it
    rates = {"tokens": settings.lr * settings.rows_pace, "prototypes_VPM": settings.lr / 2}
    named = [(name.split(".")[0], p) for name, p in network.named_parameters()]
    optimiser = torch.optim.AdamW(
        [{"params": [p], "base": rates.get(part, settings.lr)} for part, p in named],
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
            loss, parts = losses(encoder, batch, settings)
            loss.backward()
            record |= parts
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        if on_log and (step % 100 == 0 or step == total - 1):
            spent = round(time.perf_counter() - began, 1)
            on_log({"step": step, "steps": total, "seconds": spent, "loss": float(loss.detach()), **record})
    network.eval()


def losses(encoder: NanoTextEncoder, batch: Sequence[Example], settings: Settings) -> tuple[Tensor, dict[str, float]]:
    """Distance to the teachers' meaning; cross entropy of concept, judgement and roles where they are asked."""
    reading = read_by_length(encoder, [e.text for e in batch])
    target = torch.stack([e.meaning for e in batch])
    far = 1 - (reading.meaning_BM * target).sum(dim=1)
    # where a concept or a judgement is to be learned the teachers' meaning only keeps the text in place
    known = [e.concept is not None or e.judged is not None for e in batch]
    loss = 4 * (far * torch.tensor([settings.meaning_weight if k else 1.0 for k in known])).mean()
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
    if asked := [i for i, e in enumerate(batch) if e.judged is not None]:
        shares = torch.stack([e.judged for e in batch if e.judged is not None])
        logits = reading.logits["concept"][asked]
        apart = F.kl_div(logits.log_softmax(dim=1), shares, reduction="batchmean")
        loss = loss + 2 * apart
        parts["judged" if batch[0].roles else "judged_word"] = float(apart.detach())
    return loss, parts


def read_by_length(encoder: NanoTextEncoder, texts: Sequence[str], parts: int = 4) -> Reading:
    """The network's reading of texts, in parts of like length: most are one word, few a sentence."""
    ids, mask, _ = encoder.tokenize(texts)
    lengths = mask.sum(dim=1)
    order = lengths.argsort()
    readings = []
    for rows in order.tensor_split(parts):
        longest = int(lengths[rows].max())
        # the fused kernel's backward pass is slow for sequences this short
        with mixed_precision("cpu"), sdpa_kernel(SDPBackend.MATH):
            readings.append(encoder.network.read(ids[rows, :longest], mask[rows, :longest]))
    back = order.argsort()
    logits = {role: torch.cat([r.logits[role] for r in readings])[back] for role in ROLES}
    return Reading(torch.cat([r.meaning_BM for r in readings])[back], logits)


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
