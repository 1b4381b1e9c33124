"""One order of many models from comparisons of two at a time: Bradley–Terry strengths on the scale of Elo.

Bradley–Terry: the chance that i beats j is s_i / (s_i + s_j); a tie counts half a win to each. The likelihood is
concave in the logarithms of the strengths, so that it has one highest point.
Elo's scale: 400 points are odds of ten to one; the mean of all models is 1000.

Legend: M models.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kandinsky.errors import RequestError
from kandinsky.evaluate.questions import Questionnaire
from kandinsky.evaluate.votes import Vote, latest

MEAN, SCALE = 1000.0, 400.0 / math.log(10.0)
RESAMPLES = 200
ROUNDS = 100


@dataclass(frozen=True, slots=True)
class Rank:
    """A model's place.

    Attributes:
        model: The model.
        rating: Bradley–Terry strength in Elo points.
        low: Lower end of the 95 % interval, prompts resampled.
        high: Upper end.
        games: Number of comparisons.
    """

    model: str
    rating: float
    low: float
    high: float
    games: int


def ranks(
    votes: Iterable[Vote], questionnaire: Questionnaire, *, criterion: str | None = None, seed: int = 0
) -> list[Rank]:
    """All models, the best first.

    Args:
        votes: All votes; a later answer of the same annotator replaces an earlier one.
        questionnaire: The questions that were asked.
        criterion: Only votes on this question; default: on all, each one comparison.
        seed: Of the resampling.

    Returns:
        The models.

    Raises:
        RequestError: There are no votes, or models fall into groups that were never compared with each other.
    """
    used = [one for one in latest(votes) if criterion in (None, one.criterion)]
    if not used:
        raise RequestError("no votes" + (f" on `{criterion}`" if criterion else "") + ": nothing can be ranked")
    models = sorted({name for one in used for name in (one.left, one.right)})
    place = {name: i for i, name in enumerate(models)}
    prompts = sorted({one.prompt for one in used})
    of_prompt = {prompt: i for i, prompt in enumerate(prompts)}
    wins_PMM = np.zeros((len(prompts), len(models), len(models)))
    for one in used:
        left, right, prompt = place[one.left], place[one.right], of_prompt[one.prompt]
        verdict = questionnaire.criterion(one.criterion).answer(one.choice).verdict
        wins_PMM[prompt, left, right] += (1 + verdict) / 2
        wins_PMM[prompt, right, left] += (1 - verdict) / 2
    wins_MM = wins_PMM.sum(axis=0)
    _check_connected(wins_MM + wins_MM.T, models)
    best = strengths(wins_MM)
    ratings = elo(best)
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(RESAMPLES):
        chosen = wins_PMM[generator.integers(0, len(prompts), len(prompts))].sum(axis=0)
        drawn.append(elo(strengths(chosen, start=best)))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    games = (wins_MM + wins_MM.T).sum(axis=1)
    found = [
        Rank(name, float(ratings[i]), float(low[i]), float(high[i]), round(float(games[i])))
        for i, name in enumerate(models)
    ]
    return sorted(found, key=lambda one: (-one.rating, one.model))


def strengths(wins_MM: np.ndarray, *, prior: float = 0.1, start: np.ndarray | None = None) -> np.ndarray:
    """Bradley–Terry strengths with geometric mean 1, by Newton's method on their logarithms.

    Args:
        wins_MM: ``[i, j]``: how often i beat j, ties as halves.
        prior: Wins and losses added against an imagined model of strength 1, so that a model which won every time has
            a finite strength; 0 is plain maximum likelihood, for which every model must have won and lost.
        start: Strengths to begin with; default: all equal.

    Returns:
        Strengths [M].
    """
    games = wins_MM + wins_MM.T
    won = wins_MM.sum(axis=1)
    found = np.zeros(len(wins_MM)) if start is None else np.log(start)

    def likelihood(at: np.ndarray) -> float:
        pairs = wins_MM * -np.logaddexp(0.0, at[None, :] - at[:, None])
        return float(pairs.sum() - prior * (np.logaddexp(0.0, at) + np.logaddexp(0.0, -at)).sum())

    for _ in range(ROUNDS):
        chances = 1.0 / (1.0 + np.exp(np.clip(found[None, :] - found[:, None], -500, 500)))
        against_prior = 1.0 / (1.0 + np.exp(-found))
        gradient = won - (games * chances).sum(axis=1) + prior * (1.0 - 2.0 * against_prior)
        curvature = games * chances * chances.T
        hessian = np.diag(curvature.sum(axis=1) + 2.0 * prior * against_prior * (1.0 - against_prior)) - curvature
        step = np.linalg.lstsq(hessian, gradient, rcond=None)[0]
        here, share = likelihood(found), 1.0
        while likelihood(found + share * step) < here and share > 1e-6:
            share /= 2
        found = found + share * step
        if np.abs(step).max() < 1e-10:
            break
    return np.asarray(np.exp(found - found.mean()))


def elo(strength: np.ndarray) -> np.ndarray:
    """Strengths on the scale of Elo, with mean 1000."""
    return np.asarray(MEAN + SCALE * np.log(strength))


def chance(rating: float, rival: float) -> float:
    """How likely a model with this rating beats its rival, ties as halves."""
    return float(1.0 / (1.0 + 10.0 ** ((rival - rating) / 400.0)))


def running_elo(results: Sequence[tuple[str, str, float]], *, k: float = 16.0) -> Mapping[str, float]:
    """Elo ratings updated game by game, as leaderboards that run on show them; the order of games matters.

    Args:
        results: (model, rival, points of the model: 1, 0.5 or 0), in order.
        k: Largest change of a rating in one game.

    Returns:
        Rating by model; all begin at 1000.
    """
    ratings: dict[str, float] = {}
    for model, rival, points in results:
        ours, theirs = ratings.setdefault(model, MEAN), ratings.setdefault(rival, MEAN)
        change = k * (points - chance(ours, theirs))
        ratings[model], ratings[rival] = ours + change, theirs - change
    return ratings


def _check_connected(games_MM: np.ndarray, models: Sequence[str]) -> None:
    seen, todo = {0}, [0]
    while todo:
        for other in np.nonzero(games_MM[todo.pop()])[0]:
            if other not in seen:
                seen.add(int(other))
                todo.append(int(other))
    apart = [name for i, name in enumerate(models) if i not in seen]
    if apart:
        raise RequestError(
            f"`{apart[0]}` was never compared with `{models[0]}`, not even by way of others: collect such votes first"
        )
