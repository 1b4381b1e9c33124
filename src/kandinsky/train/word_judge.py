"""Which of nano's concepts a word speaks of: a judgement over all concepts, learned from words with known owners.

A concept is known by its label and its training words. A new word is compared with all of them in every space of
meanings (``text_teachers.Space``), and five figures per concept and space go into a conditional logit,
P(concept | words) = softmax of a weighted sum of the figures. Its weights are fitted by leaving words out: a quarter
of the training words at a time loses its owners, together with everything spelt alike, and must be given back to them.

The text network imitates these judgements for all words near to what nano shows. Held tags have no part in it: they
belong to no concept here and are judged like every other word of the language.

Legend: W words, Q queries, C concepts, E exemplars (a concept's label or word), F figures.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kandinsky.data.concepts import LANGUAGES, Concept, Language, any_akin, fraction, plain, words
from kandinsky.errors import RequestError
from kandinsky.train.text_teachers import Space

FOLDS = 4
SPECIFIC = 3
"""A word that more concepts than this have is too vague to ask for one of them."""
BACKGROUND = 1500
"""So many words of a language tell how near anything is to an exemplar."""
SOFTNESS = 1 / 12
DECAY = 3e-3

Known = Sequence[Sequence[str]]
"""By concept: its label and the words it is known by."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Of the conditional logit: figures are standardised, then weighed. All [2F]: means over words, then maxima."""

    weight: Tensor
    centre: Tensor
    scale: Tensor

    def logits(self, figures_QCF: Tensor) -> Tensor:
        return ((figures_QCF.float() - self.centre) / self.scale) @ self.weight


class WordJudge:
    """Judges words of both languages; fitted when made. ``concepts`` carry the training words as their train tags."""

    def __init__(self, concepts: Sequence[Concept], spaces: Sequence[Space]) -> None:
        self.spaces = spaces
        self.known: dict[Language, Known] = {
            lang: [list(dict.fromkeys(map(plain, (c.label(lang), *c.tags(lang).train)))) for c in concepts]
            for lang in LANGUAGES
        }
        self.accuracy: dict[Language, float] = {}
        self.weights = {lang: self._fit(lang) for lang in LANGUAGES}

    def figures(self, lang: Language, texts: Sequence[str], known: Known | None = None) -> Tensor:
        """[W, C, F] of single words or phrases of the vocabulary; ``known`` replaces what concepts of that language are
        known by.
        """
        found = []
        for space in self.spaces:
            for other in LANGUAGES:
                if lang in space.vectors and other in space.vectors:
                    exemplars = known if known is not None and other == lang else self.known[other]
                    found.append(compare(space, lang, texts, other, exemplars))
        return torch.cat(found, dim=-1)

    def judge(self, lang: Language, figures_WCF: Tensor) -> Tensor:
        """Logits [C] of what W words together speak of, from their figures."""
        return self.weights[lang].logits(together(figures_WCF)[None])[0]

    def _fit(self, lang: Language) -> Weights:
        """The weights of one language; ``accuracy`` is that of words given back by weights that never saw them.

        Raises: RequestError where the concepts have too few words.
        """
        folds = []
        for fold in range(FOLDS):
            known, queries = leave_out(self.known[lang], lang, fold)
            if not queries:  # few words: the hash may leave a fold empty
                continue
            texts = list(dict.fromkeys(t for _, query in queries for t in query))
            rows, figures = {t: i for i, t in enumerate(texts)}, self.figures(lang, texts, known)
            asked = torch.stack([together(figures[[rows[t] for t in query]]) for _, query in queries])
            folds.append((asked, torch.tensor([owner for owner, _ in queries])))
        if len(folds) < 2:
            raise RequestError(
                f"too few words of concepts to learn from in {lang!r}",
                hint="give more associations (the recipe's `words`)",
            )
        right = 0
        for i, (asked, owners) in enumerate(folds):
            others = [f for j, f in enumerate(folds) if j != i]
            logits = conditional_logit(*(torch.cat(part) for part in zip(*others, strict=True))).logits(asked)
            right += int((logits.argmax(dim=1) == owners).sum())
        self.accuracy[lang] = right / sum(len(owners) for _, owners in folds)
        return conditional_logit(*(torch.cat(part) for part in zip(*folds, strict=True)))


class Judgements:
    """A judge's opinion of many texts, ready for any few of them together.

    texts: those that can be asked for.
    """

    def __init__(self, judge: WordJudge, texts: Sequence[tuple[Language, str]]) -> None:
        self.judge, self.texts = judge, list(texts)
        self.rows: dict[Language, dict[str, int]] = {}
        self.figures: dict[Language, Tensor] = {}
        for lang in LANGUAGES:
            mine = list(dict.fromkeys(text for other, text in texts if other == lang))
            self.rows[lang] = {t: i for i, t in enumerate(mine)}
            parts = [judge.figures(lang, mine[i : i + 500]).half() for i in range(0, len(mine), 500)]
            self.figures[lang] = torch.cat(parts) if parts else torch.zeros(0)

    def of(self, lang: Language, texts: Sequence[str]) -> Tensor | None:
        """Shares [C] of the concepts that these texts together speak of, or None where one cannot be asked for."""
        rows = self.rows[lang]
        if not all(t in rows for t in texts):
            return None
        return self.judge.judge(lang, self.figures[lang][[rows[t] for t in texts]].float()).softmax(dim=0)


def compare(space: Space, lang: Language, texts: Sequence[str], other: Language, known: Known) -> Tensor:
    """[W, C, 5]: nearness to the label, the nearest word, the three nearest, all softly, all on average.

    Nearness is the cosine less half of what the exemplar has with the words nearest to it in general, since some
    exemplars are near to everything.
    """
    owners = torch.tensor([c for c, row in enumerate(known) for _ in row])
    exemplars_ED = space.of(other, [t for row in known for t in row])
    general = space.vectors[lang]
    general = general[general.norm(dim=1) > 0]
    sample = general[torch.linspace(0, len(general) - 1, BACKGROUND).long()]
    hub_E = (sample @ exemplars_ED.T).topk(20, dim=0).values.mean(dim=0)
    asked_WD = space.of(lang, texts)
    near_WE = asked_WD @ exemplars_ED.T - 0.5 * hub_E
    near_WE[:, exemplars_ED.norm(dim=1) == 0] = -0.2  # nothing is known of the exemplar: as far as strangers are
    longest = int(owners.bincount().max())
    places = torch.cat([torch.arange(len(row)) for row in known])
    table_WCK = near_WE.new_full((len(texts), len(known), longest), -0.3)
    table_WCK[:, owners, places] = near_WE
    first = table_WCK.topk(min(3, longest), dim=2).values
    mean_WC = near_WE.new_zeros(len(texts), len(known)).index_add_(1, owners, near_WE) / owners.bincount()
    soft_WC = (table_WCK / SOFTNESS).logsumexp(dim=2) * SOFTNESS
    result = torch.stack([table_WCK[..., 0], first[..., 0], first.mean(dim=-1), soft_WC, mean_WC], dim=-1)
    result[asked_WD.norm(dim=1) == 0] = 0.0  # nothing is known of the word: it speaks for nobody
    return result


def together(figures_WCF: Tensor) -> Tensor:
    """[C, 2F]: means and maxima over the words of a query."""
    return torch.cat([figures_WCF.mean(dim=0), figures_WCF.amax(dim=0)], dim=-1)


def leave_out(known: Known, lang: Language, fold: int) -> tuple[Known, list[tuple[int, tuple[str, ...]]]]:
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
    queries: list[tuple[int, tuple[str, ...]]] = []
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


def conditional_logit(figures_QCF: Tensor, owners_Q: Tensor) -> Weights:
    """Maximum likelihood with a little weight decay."""
    centre = figures_QCF.mean(dim=(0, 1))
    scale = figures_QCF.std(dim=(0, 1)) + 1e-6
    standard = (figures_QCF - centre) / scale
    weight = torch.zeros(figures_QCF.shape[-1], requires_grad=True)
    optimiser = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(standard @ weight, owners_Q) + DECAY * (weight**2).sum()
        value.backward()
        return value

    optimiser.step(loss)
    return Weights(weight.detach(), centre, scale)
