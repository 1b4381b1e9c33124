"""How far annotators agree: pairwise agreement, and Krippendorff's alpha, which takes agreement by chance into account.

Source: K. Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), coincidence matrices for any number of
annotators and missing answers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from kandinsky.evaluate.questions import Questionnaire
from kandinsky.evaluate.votes import Vote, latest

Level = Literal["nominal", "ordinal", "interval"]


def by_question(votes: Iterable[Vote]) -> dict[str, dict[Hashable, list[Vote]]]:
    """Answers to the same question about the same pair, by criterion; all seen from the model first in the alphabet."""
    made: dict[str, dict[Hashable, list[Vote]]] = defaultdict(lambda: defaultdict(list))
    for one in latest(votes):
        pair = tuple(sorted((one.left, one.right)))
        made[one.criterion][(one.prompt, pair)].append(one.seen_from(pair[0]))
    return made


def agreements(votes: Iterable[Vote], questionnaire: Questionnaire) -> dict[str, tuple[float, float]]:
    """Agreement on each criterion: the share of pairs of annotators with the same verdict, and Krippendorff's alpha.

    The verdict is left, tie or right, whatever the words of the scale, and alpha treats it as ordinal.

    Args:
        votes: All votes.
        questionnaire: The questions that were asked.

    Returns:
        (share, alpha) by criterion; not a number where no question was answered twice.

    Raises:
        RequestError: A criterion or choice is none of the questionnaire's.
    """
    made = {}
    for name, items in by_question(votes).items():
        criterion = questionnaire.criterion(name)
        units = [[criterion.answer(one.choice).verdict for one in answers] for answers in items.values()]
        made[name] = (pairwise(units), alpha(units, level="ordinal"))
    return {name: made[name] for name in questionnaire.criteria if name in made}


def pairwise(units: Sequence[Sequence[Hashable]]) -> float:
    """Share of pairs of answers to one question that are equal; each pair of annotators counts once.

    Args:
        units: Answers to each question.

    Returns:
        The share; not a number where no question has two answers.
    """
    equal = total = 0
    for unit in units:
        counts: Mapping[Hashable, int] = {value: list(unit).count(value) for value in unit}
        equal += sum(n * (n - 1) // 2 for n in counts.values())
        total += len(unit) * (len(unit) - 1) // 2
    return equal / total if total else float("nan")


def alpha(units: Sequence[Sequence[float]], level: Level = "nominal") -> float:
    """Krippendorff's alpha: 1 for perfect agreement, 0 for what chance gives, below 0 for worse.

    Args:
        units: Answers to each question, as numbers; questions with fewer than two are passed over.
        level: Whether values are names, ranks or quantities.

    Returns:
        Alpha; 1 where all answers are equal; not a number where no question has two answers.
    """
    paired = [unit for unit in units if len(unit) > 1]
    if not paired:
        return float("nan")
    values = sorted({value for unit in paired for value in unit})
    place = {value: i for i, value in enumerate(values)}
    coincidences = np.zeros((len(values), len(values)))
    for unit in paired:
        counts = np.bincount([place[value] for value in unit], minlength=len(values)).astype(np.float64)
        coincidences += (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    totals = coincidences.sum(axis=1)
    distance = _squared_distances(np.asarray(values, dtype=np.float64), totals, level)
    expected = (np.outer(totals, totals) * distance).sum() / (totals.sum() - 1)
    return float(1.0 - (coincidences * distance).sum() / expected) if expected else 1.0


def _squared_distances(values: np.ndarray, totals: np.ndarray, level: Level) -> np.ndarray:
    if level == "nominal":
        return 1.0 - np.eye(len(values))
    # ranks lie as far apart as there are answers between them, the two ends counted by half
    at = np.cumsum(totals) - totals / 2 if level == "ordinal" else values
    return np.asarray((at[:, None] - at[None, :]) ** 2)
