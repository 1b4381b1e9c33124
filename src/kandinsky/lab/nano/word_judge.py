"""Which of nano's concepts a word speaks of: a judgement over all concepts, learned from words with known owners.

A concept is known by its label and its training words. A new word is compared with all of them in every space of
meanings (``text_teachers.Space``), and a ridge regression of owners on meanings says where it belongs. These figures,
each concept's place in their order and its distance to the first go through a small network shared by all concepts:
P(concept | words) = softmax of its scores. It is fitted by leaving words out: a quarter of the training words at a
time loses its owners, together with everything spelt alike, and must be given back to them. A known word is therefore
always judged as if it were not known: itself it is like nothing that the ranker was fitted on.

The text network imitates these judgements for all words near to what nano shows; of known words it is also told their
owners. Held tags have no part in it: they
belong to no concept here and are judged like every other word of the language.

Legend: W words, Q queries, C concepts, E exemplars (a concept's label or word), F figures.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.errors import RequestError
from kandinsky.lab.nano.concepts import LANGUAGES, Concept, Language, any_akin, core, fraction, plain, words
from kandinsky.lab.nano.text_teachers import Space

FOLDS = 4
SPECIFIC = 3
"""A word that more concepts than this have is too vague to ask for one of them."""
BACKGROUND = 1500
"""So many words of a language tell how near anything is to an exemplar."""
NAME_TRUST, TAG_TRUST, WORD_TRUST = 0.9, 0.6, 0.3
"""The part of a judgement that owners have: of a name, of a tag of few, of any known word. "Honey" is a word of the
bear, and speaks of the bee."""
STRANGE = -0.2
"""The nearness of strangers."""
SOFTNESS = 1 / 12
RIDGE = 10.0
WIDTH = 96
DROPOUT = 0.25
EPOCHS = 6
LEARNING_RATE = 3e-3
QUERIES = 64
"""Queries of a step."""
CHUNK = 250
"""Words compared at a time."""

_T = TypeVar("_T")
Known = Sequence[Sequence[str]]
"""By concept: its label and the words it is known by."""
Query = tuple[int, tuple[str, ...]]
"""An owner and one to three of its words."""


class Exemplars:
    """What the concepts are known by in one language, in one space: rows, owners, and how near everything is to each.

    Nearness is the cosine less half of what the exemplar has with the words nearest to it in general, since some
    exemplars are near to everything.
    """

    def __init__(self, space: Space, lang: Language, known: Known) -> None:
        self.space, self.lang = space, lang
        self.owners = torch.tensor([c for c, row in enumerate(known) for _ in row])
        self.places = torch.cat([torch.arange(len(row)) for row in known])
        self.rows_ED = space.of(lang, [t for row in known for t in row])
        self.counts = self.owners.bincount()
        self._rows: dict[str, list[int]] = {}
        for place, text in enumerate(t for row in known for t in row):
            self._rows.setdefault(text, []).append(place)
        self._hubs: dict[Language, Tensor] = {}

    def hubs(self, lang: Language) -> Tensor:
        """[E]: the mean cosine with the twenty nearest of a sample of that language."""
        if lang not in self._hubs:
            general = self.space.vectors[lang]
            general = general[general.norm(dim=1) > 0]
            sample = general[torch.linspace(0, len(general) - 1, BACKGROUND).long()]
            self._hubs[lang] = (sample @ self.rows_ED.T).topk(20, dim=0).values.mean(dim=0)
        return self._hubs[lang]

    def compare(self, lang: Language, texts: Sequence[str]) -> Tensor:
        """[W, C, 5] of words of a language: nearness to the label, the nearest word, the three nearest, all softly, all
        on average. A text is not compared with itself.
        """
        hubs_E = self.hubs(lang)
        return torch.cat([self._compare(lang, part, hubs_E) for part in chunks(texts, CHUNK)])

    def _compare(self, lang: Language, texts: Sequence[str], hubs_E: Tensor) -> Tensor:
        asked_WD = self.space.of(lang, texts)
        near_WE = asked_WD @ self.rows_ED.T - 0.5 * hubs_E
        near_WE[:, self.rows_ED.norm(dim=1) == 0] = STRANGE
        if lang == self.lang:
            for w, text in enumerate(texts):
                near_WE[w, self._rows.get(text, [])] = STRANGE
        concepts, longest = len(self.counts), int(self.counts.max())
        table_WCK = near_WE.new_full((len(near_WE), concepts, longest), -0.3)
        table_WCK[:, self.owners, self.places] = near_WE
        first = table_WCK.topk(min(3, longest), dim=2).values
        mean_WC = near_WE.new_zeros(len(near_WE), concepts).index_add_(1, self.owners, near_WE) / self.counts
        soft_WC = (table_WCK / SOFTNESS).logsumexp(dim=2) * SOFTNESS
        result = torch.stack([table_WCK[..., 0], first[..., 0], first.mean(dim=-1), soft_WC, mean_WC], dim=-1)
        result[asked_WD.norm(dim=1) == 0] = 0.0  # nothing is known of the word: it speaks for nobody
        return result


class Acquaintance:
    """All that is known of the concepts: exemplars in every space, and the ridge regression of owners on meanings."""

    def __init__(self, spaces: Sequence[Space], known: Mapping[Language, Known]) -> None:
        self.spaces = spaces
        self.exemplars = [Exemplars(s, lang, known[lang]) for s in spaces for lang in LANGUAGES if lang in s.vectors]
        meanings = torch.cat([self._meanings(lang, [t for row in known[lang] for t in row]) for lang in LANGUAGES])
        owners = torch.tensor([c for lang in LANGUAGES for c, row in enumerate(known[lang]) for _ in row])
        owned_EC = F.one_hot(owners).float()
        normal = meanings.T @ meanings + RIDGE * torch.eye(meanings.shape[1])
        self.inverse_DD = torch.linalg.inv(normal)
        targets_EC = owned_EC - owned_EC.mean(dim=0)
        self.ridge_DC = self.inverse_DD @ (meanings.T @ targets_EC)
        texts = [(lang, t) for lang in LANGUAGES for row in known[lang] for t in row]
        self._targets: dict[tuple[Language, str], Tensor] = {}
        self._times = Counter(texts)
        for key, target in zip(texts, targets_EC, strict=True):
            self._targets[key] = self._targets.get(key, 0) + target

    def _meanings(self, lang: Language, texts: Sequence[str]) -> Tensor:
        """[W, D]: all spaces side by side, zeros where a space has not this language."""
        parts = []
        for space in self.spaces:
            width = next(iter(space.vectors.values())).shape[1]
            known = lang in space.vectors
            parts.append(space.of(lang, texts) if known else torch.zeros(len(texts), width))
        return torch.cat(parts, dim=1)

    def figures(self, lang: Language, texts: Sequence[str]) -> Tensor:
        """[W, C, F] of single words or phrases of the vocabulary, each as if it were not among the known ones."""
        compared = [e.compare(lang, texts) for e in self.exemplars if lang in e.space.vectors]
        return torch.cat([*compared, self._regressed(lang, texts)[..., None]], dim=-1)

    def _regressed(self, lang: Language, texts: Sequence[str]) -> Tensor:
        """[W, C] of the regression without the text itself, by the closed form of leaving out equal rows."""
        meanings_WD = self._meanings(lang, texts)
        owned_WC = meanings_WD @ self.ridge_DC
        for w, text in enumerate(texts):
            if times := self._times[lang, text]:
                leverage = meanings_WD[w] @ self.inverse_DD @ meanings_WD[w]
                owned_WC[w] = (owned_WC[w] - leverage * self._targets[lang, text]) / (1 - times * leverage)
        out: Tensor = owned_WC
        return out


class Ranker(nn.Module):
    """Scores [Q, C] of concepts from their figures; the same small network for every concept, beside a linear path."""

    centre: Tensor
    scale: Tensor

    def __init__(self, standing_QCF: Tensor) -> None:
        super().__init__()
        self.register_buffer("centre", standing_QCF.float().mean(dim=(0, 1)))
        self.register_buffer("scale", standing_QCF.float().std(dim=(0, 1)) + 1e-3)
        count = standing_QCF.shape[-1]
        self.linear = nn.Linear(count, 1, bias=False)
        nn.init.zeros_(self.linear.weight)
        self.layers = nn.Sequential(
            nn.Linear(count, WIDTH),
            nn.GELU(),
            nn.Dropout(DROPOUT),
            nn.Linear(WIDTH, WIDTH),
            nn.GELU(),
            nn.Linear(WIDTH, 1),
        )

    def forward(self, standing_QCF: Tensor) -> Tensor:
        x = (standing_QCF.float() - self.centre) / self.scale
        out: Tensor = (self.linear(x) + self.layers(x))[..., 0]
        return out


class WordJudge:
    """Judges words of both languages; fitted when made. ``concepts`` carry the training words as their train tags.

    named:    the concepts with no more than their own tags, which are trusted more than other words.
    form:     the dictionary form of a text.
    accuracy: by language, the share of the words left out that a judge fitted on the others gives back.
    """

    def __init__(
        self,
        concepts: Sequence[Concept],
        spaces: Sequence[Space],
        *,
        named: Sequence[Concept] = (),
        form: Callable[[Language, str], str] = lambda lang, text: text,
    ) -> None:
        self.form = form
        self.known: dict[Language, Known] = {
            lang: [list(dict.fromkeys(map(plain, (c.label(lang), *c.tags(lang).train)))) for c in concepts]
            for lang in LANGUAGES
        }
        self.acquaintance = Acquaintance(spaces, self.known)
        self._by_form: dict[Language, list[tuple[float, dict[str, set[int]]]]] = {}
        self._by_text = {lang: owners_of([row[1:] for row in self.known[lang]]) for lang in LANGUAGES}
        for lang in LANGUAGES:
            labels = [plain(c.label(lang)) for c in concepts]
            tags = owners_of([[form(lang, plain(t)) for t in c.tags(lang).train] for c in named])
            self._by_form[lang] = [
                (NAME_TRUST, owners_of([[form(lang, label)] for label in labels])),
                (NAME_TRUST, owners_of([[form(lang, core(label))] for label in labels])),
                (TAG_TRUST, {text: owners for text, owners in tags.items() if len(owners) <= SPECIFIC}),
            ]
        self.accuracy: dict[Language, float] = {}
        self.rankers = {lang: self._fit(lang, spaces) for lang in LANGUAGES}

    def figures(self, lang: Language, texts: Sequence[str]) -> Tensor:
        """[W, C, F] of single words or phrases of the vocabulary."""
        return self.acquaintance.figures(lang, texts)

    @torch.no_grad()
    def judge(self, lang: Language, figures_QCF: Tensor) -> Tensor:
        """Logits [Q, C] of what queries speak of, from the figures of their words ``together``."""
        out: Tensor = self.rankers[lang](standing(figures_QCF))
        return out

    def _fit(self, lang: Language, spaces: Sequence[Space]) -> Ranker:
        """The ranker of one language, and its ``accuracy``.

        Raises: RequestError where the concepts have too few words.
        """
        folds = []
        for fold in range(FOLDS):
            kept, queries = leave_out(self.known[lang], lang, fold)
            if not queries:  # few words: the hash may leave a fold empty
                continue
            folds.append(_asked(Acquaintance(spaces, {**self.known, lang: kept}), lang, queries))
        if len(folds) < 2:
            raise RequestError(
                f"too few words of concepts to learn from in {lang!r}",
                hint="give more associations (the recipe's `words`)",
            )
        (asked, owners), *others = folds
        ranker = fit_ranker(*(torch.cat(part) for part in zip(*others, strict=True)))
        with torch.no_grad():
            chosen = torch.cat([ranker(part).argmax(dim=1) for part in asked.split(CHUNK)])
        self.accuracy[lang] = float((chosen == owners).float().mean())
        return fit_ranker(*(torch.cat(part) for part in zip(*folds, strict=True)))

    def told(self, lang: Language, text: str) -> tuple[float, Tensor] | None:
        """What is known of a text beside its judgement: how much that is trusted, and the shares [C] of its owners."""
        form = self.form(lang, text)
        found = [(trust, table.get(form)) for trust, table in self._by_form[lang]]
        for trust, owners in (*found, (WORD_TRUST, self._by_text[lang].get(text))):
            if owners:
                shares = torch.zeros(len(self.known[lang]))
                shares[sorted(owners)] = 1 / len(owners)
                return trust, shares
        return None


def owners_of(rows: Sequence[Sequence[str]]) -> dict[str, set[int]]:
    """The concepts of every text, from the texts of every concept."""
    found: dict[str, set[int]] = {}
    for concept, row in enumerate(rows):
        for text in row:
            found.setdefault(text, set()).add(concept)
    return found


def _asked(acquaintance: Acquaintance, lang: Language, queries: Sequence[Query]) -> tuple[Tensor, Tensor]:
    """The standing [Q, C, F] of queries in half precision, and their owners [Q]."""
    texts = list(dict.fromkeys(t for _, query in queries for t in query))
    rows = {t: i for i, t in enumerate(texts)}
    figures = acquaintance.figures(lang, texts)
    asked = torch.stack([together(figures[[rows[t] for t in query]]) for _, query in queries])
    owners = torch.tensor([owner for owner, _ in queries])
    return torch.cat([standing(part).half() for part in asked.split(CHUNK)]), owners


@dataclass(frozen=True, slots=True)
class Judgement:
    """Texts of one language, and the shares [C] of the concepts that they together speak of."""

    lang: Language
    texts: tuple[str, ...]
    shares: Tensor


class Judgements:
    """A judge's opinion of many texts, and of groups of two or three that speak of the same.

    texts:  those that are judged one by one, of the vocabulary; with what is ``told`` of a known one.
    groups: so many are drawn for every concept and language, from the ``likely`` texts that speak of it most.
    """

    def __init__(
        self,
        judge: WordJudge,
        texts: Sequence[tuple[Language, str]],
        *,
        groups: int = 100,
        likely: int = 60,
        seed: int = 0,
    ) -> None:
        rng = random.Random(seed)
        self.singles: list[Judgement] = []
        self.groups: list[Judgement] = []
        self.likely: list[tuple[list[Judgement], list[float]]] = []
        """By language and concept: the texts that speak of it most, and the shares of them that do."""
        for lang in LANGUAGES:
            mine = list(dict.fromkeys(text for other, text in texts if other == lang))
            if not mine:
                continue
            figures = torch.cat([judge.figures(lang, part).half() for part in chunks(mine, 1000)])
            shares = _shares(judge, lang, [[i] for i in range(len(mine))], figures)
            best = shares.float().topk(min(likely, len(mine)), dim=0)
            for row, text in enumerate(mine):
                if told := judge.told(lang, text):
                    trust, owned = told
                    shares[row] = (1 - trust) * shares[row].float() + trust * owned
            singles = [Judgement(lang, (text,), share) for text, share in zip(mine, shares, strict=True)]
            drawn = list[tuple[int, ...]]()
            for rows, weights in zip(best.indices.T.tolist(), best.values.T.clamp(min=1e-6).tolist(), strict=True):
                drawn += [tuple(sorted({*rng.choices(rows, weights, k=rng.choice((2, 3)))})) for _ in range(groups)]
                self.likely.append(([singles[r] for r in rows], weights))
            drawn = [rows for rows in dict.fromkeys(drawn) if len(rows) > 1]
            shares = _shares(judge, lang, drawn, figures)
            self.groups += [
                Judgement(lang, tuple(mine[r] for r in rows), share) for rows, share in zip(drawn, shares, strict=True)
            ]
            self.singles += singles

    def draw(self, rng: random.Random) -> Judgement:
        """Texts that speak of a concept, each concept as likely as the others; every second time a group."""
        if self.groups and rng.random() < 0.5:
            return rng.choice(self.groups)
        texts, weights = rng.choice(self.likely)
        return rng.choices(texts, weights)[0]


def _shares(judge: WordJudge, lang: Language, queries: Sequence[Sequence[int]], figures_WCF: Tensor) -> Tensor:
    """[Q, C] of queries given as rows of ``figures_WCF``, in half precision."""
    found = []
    for part in chunks(queries, CHUNK):
        asked = torch.stack([together(figures_WCF[list(rows)].float()) for rows in part])
        found.append(judge.judge(lang, asked).softmax(dim=1).half())
    return torch.cat(found) if found else figures_WCF.new_zeros(0, figures_WCF.shape[1])


def chunks(items: Sequence[_T], size: int) -> list[Sequence[_T]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def standing(figures_QCF: Tensor) -> Tensor:
    """[Q, C, 3F]: the figures, how far each is behind the best of its query, and -log(1 + how many are better)."""
    best = figures_QCF.amax(dim=1, keepdim=True)
    across = figures_QCF.transpose(1, 2).contiguous()
    better = across.shape[-1] - torch.searchsorted(across.sort(dim=-1).values, across, right=True)
    return torch.cat([figures_QCF, figures_QCF - best, -torch.log1p(better.float()).transpose(1, 2)], dim=-1)


def together(figures_WCF: Tensor) -> Tensor:
    """[C, 2F]: means and maxima over the words of a query."""
    return torch.cat([figures_WCF.mean(dim=0), figures_WCF.amax(dim=0)], dim=-1)


def leave_out(known: Known, lang: Language, fold: int) -> tuple[Known, list[Query]]:
    """What is known without one fold of the words, and queries of one to three of those words with their owner.

    Words are drawn by a hash, so a word is left out everywhere; a concept also loses what is spelt like them. A word
    akin to the concept's label, the name of another concept or vague is not asked for.
    """
    owners = Counter(t for row in known for t in row[1:])
    names = {row[0] for row in known}

    def asked(text: str, label: str) -> bool:
        drawn = int(fraction("judge", lang, text) * FOLDS) == fold and owners[text] <= SPECIFIC
        return drawn and len(text) > 2 and text not in names and not any_akin(words(text), words(label))

    gone = {t for row in known for t in row[1:] if asked(t, row[0])}
    kept: list[list[str]] = []
    queries: list[Query] = []
    rng = random.Random(fold)
    for concept, (label, *row) in enumerate(known):
        mine = [t for t in row if t in gone and asked(t, label)]
        spelt = [w for t in mine for w in words(t)]
        kept.append([label, *(t for t in row if t not in gone and not any_akin(words(t), spelt))])
        rng.shuffle(mine)
        while mine:
            count = rng.choice((1, 1, 2, 3))
            queries.append((concept, tuple(mine[:count])))
            mine = mine[count:]
    return kept, queries


def fit_ranker(standing_QCF: Tensor, owners_Q: Tensor) -> Ranker:
    """Maximum likelihood of the owners by AdamW; the same figures give the same ranker."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ranker = Ranker(standing_QCF)
        optimiser = torch.optim.AdamW(ranker.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
        orders = [order for _ in range(EPOCHS) for order in torch.randperm(len(owners_Q)).split(QUERIES)]
        for step, rows in enumerate(orders):
            for group in optimiser.param_groups:
                group["lr"] = LEARNING_RATE * (1 - step / len(orders))
            loss = F.cross_entropy(ranker(standing_QCF[rows]), owners_Q[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return ranker.eval()
