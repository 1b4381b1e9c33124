"""What the votes of a side-by-side comparison say: scores, wins, ties and losses, with their uncertainty.

Each prompt counts once, however many annotators answered: votes are averaged over a prompt first, then over prompts.
A group of criteria is the mean of its criteria's percentages, since not every criterion applies to every pair
(Kandinsky 5 report). Intervals resample prompts, not votes, since votes on one prompt depend on each other.

Legend: P prompts; R resamples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from kandinsky.errors import RequestError
from kandinsky.evaluate.questions import Answer, Questionnaire
from kandinsky.evaluate.votes import Vote, between, latest

RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Result:
    """One criterion, or one group of them, for one model against another.

    Attributes:
        name: Criterion or group.
        prompts: Number of prompts with votes.
        votes: Number of votes.
        win: Share of votes for the model, 0 to 1, prompts weighted alike.
        tie: Share of votes for neither.
        loss: Share of votes for the rival.
        score: Points of the model per vote, 0 to 1, see ``questions.SCALES``.
        rival_score: Points of the rival per vote.
        net: Net win rate, ``win - loss``, -1 to 1.
        low: Lower end of the 95 % interval of ``net``.
        high: Upper end.
        p_value: Two-sided sign test over prompts that prefer either model; 1 where there are none.
    """

    name: str
    prompts: int
    votes: int
    win: float
    tie: float
    loss: float
    score: float
    rival_score: float
    net: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """One model against another.

    Attributes:
        model: The model whose wins are counted.
        rival: The other one.
        criteria: A row for each criterion that was answered, in the order of the questionnaire.
        groups: A row for each group of which any criterion was answered.
    """

    model: str
    rival: str
    criteria: tuple[Result, ...]
    groups: tuple[Result, ...]


def compare(
    votes: Iterable[Vote], model: str, rival: str, questionnaire: Questionnaire, *, seed: int = 0
) -> Comparison:
    """Count the votes between two models.

    Args:
        votes: All votes; those about other pairs are passed over, and a later answer replaces an earlier one.
        model: Whose wins are counted.
        rival: The other model.
        questionnaire: The questions that were asked.
        seed: Of the resampling.

    Returns:
        The counts.

    Raises:
        RequestError: There is no vote between the two, or a criterion or choice is none of the questionnaire's.
    """
    ours = latest(between(votes, model, rival))
    if not ours:
        raise RequestError(f"no vote compares `{model}` with `{rival}`")
    rows: dict[str, dict[str, list[Answer]]] = defaultdict(lambda: defaultdict(list))
    for one in ours:
        rows[one.criterion][one.prompt].append(questionnaire.criterion(one.criterion).answer(one.choice))
    prompts = sorted({one.prompt for one in ours})
    draws_RP = np.random.default_rng(seed).integers(0, len(prompts), size=(RESAMPLES, len(prompts)))
    asked = [name for name in questionnaire.criteria if name in rows]
    tables = {name: _table(rows[name], prompts) for name in asked}
    counts = {name: sum(map(len, rows[name].values())) for name in asked}
    groups = {group: [name for name in names if name in rows] for group, names in questionnaire.groups.items()}
    return Comparison(
        model,
        rival,
        tuple(_result(name, [tables[name]], counts[name], draws_RP) for name in asked),
        tuple(
            _result(group, [tables[name] for name in names], sum(counts[name] for name in names), draws_RP)
            for group, names in groups.items()
            if names
        ),
    )


COLUMNS = ("win", "tie", "loss", "score", "rival_score")


def _table(rows: dict[str, list[Answer]], prompts: Sequence[str]) -> np.ndarray:
    """Means of each prompt [P, columns]; not a number where nobody answered."""
    table = np.full((len(prompts), len(COLUMNS)), np.nan)
    for i, prompt in enumerate(prompts):
        answers = rows.get(prompt)
        if answers:
            table[i] = np.mean(
                [(one.verdict > 0, one.verdict == 0, one.verdict < 0, one.left, one.right) for one in answers],
                axis=0,
            )
    return table


def _result(name: str, tables: Sequence[np.ndarray], votes: int, draws_RP: np.ndarray) -> Result:
    means = np.mean([np.nanmean(table, axis=0) for table in tables], axis=0)
    net = float(means[0] - means[2])
    nets = [table[:, 0] - table[:, 2] for table in tables]
    low, high = interval(nets, draws_RP)
    by_prompt = _mean_of_known(np.stack(nets, axis=1))
    known = by_prompt[~np.isnan(by_prompt)]
    win, tie, loss, score, rival_score = (float(value) for value in means)
    return Result(
        name, len(known), votes, win, tie, loss, score, rival_score, net, low, high,
        sign_test(int((known > 0).sum()), int((known < 0).sum())),
    )  # fmt: skip


def _mean_of_known(table: np.ndarray) -> np.ndarray:
    """Means of the rows over what is known; not a number where nothing is."""
    known = ~np.isnan(table)
    total = np.where(known, table, 0.0).sum(axis=1)
    return np.asarray(np.divide(total, known.sum(axis=1), out=np.full(len(table), np.nan), where=known.any(axis=1)))


def interval(columns: Sequence[np.ndarray], draws_RP: np.ndarray, share: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean over columns of their means, resampling prompts.

    Args:
        columns: Values by prompt [P] each; not a number where a prompt has none.
        draws_RP: Indices of the prompts of each resample.
        share: Of the resamples that lie inside.

    Returns:
        Lower and upper end.
    """
    totals = []
    for column in columns:
        drawn = column[draws_RP]
        known = ~np.isnan(drawn)
        count = known.sum(axis=1)
        total = np.where(known, drawn, 0.0).sum(axis=1)
        totals.append(np.divide(total, count, out=np.full(len(drawn), np.nan), where=count > 0))
    means = _mean_of_known(np.stack(totals, axis=1))
    low, high = np.nanquantile(means, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact sign test: how likely a split at least as uneven is if neither is better; ties are left out.

    Args:
        wins: Number of prompts won.
        losses: Number of prompts lost.

    Returns:
        The p-value, 0 to 1.
    """
    total, few = wins + losses, min(wins, losses)
    tail = ways = 1
    for k in range(few):
        ways = ways * (total - k) // (k + 1)
        tail += ways
    return min(1.0, 2 * tail / (1 << total)) if total else 1.0
