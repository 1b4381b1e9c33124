"""Scores, agreement and rankings against numbers counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kandinsky.errors import RequestError
from kandinsky.evaluate import agreement, ranking
from kandinsky.evaluate.questions import KANDINSKY_5, SIMPLE
from kandinsky.evaluate.scores import compare, sign_test
from kandinsky.evaluate.votes import Vote


def votes(criterion: str, *choices: str, prompt: str = "p", left: str = "ours", right: str = "theirs") -> list[Vote]:
    return [Vote(prompt, left, right, f"annotator {i}", criterion, choice) for i, choice in enumerate(choices)]


def test_points_of_the_report_are_counted() -> None:
    """Five answers on prompt following: better, both right, equal, both wrong, worse."""
    made = compare(
        votes("object presence", "left", "both-correct", "equal", "both-wrong", "right"), "ours", "theirs", KANDINSKY_5
    )
    (row,) = made.criteria
    assert (row.win, row.tie, row.loss) == pytest.approx((0.2, 0.6, 0.2))
    assert (row.score, row.rival_score) == pytest.approx(((1 + 1 + 0.5) / 5, (1 + 0.5 + 1) / 5))
    assert row.votes == 5 and row.prompts == 1 and row.net == 0


def test_an_unsure_preference_counts_half_and_still_wins() -> None:
    (row,) = compare(votes("lighting", "left", "left-unsure", "equal"), "ours", "theirs", KANDINSKY_5).criteria
    assert (row.score, row.rival_score) == pytest.approx(((1 + 0.5 + 0.5) / 3, 0.5 / 3))
    assert (row.win, row.tie, row.loss) == pytest.approx((2 / 3, 1 / 3, 0))


def test_a_prompt_counts_once_however_many_answered() -> None:
    """Three votes on one prompt and one on another: the means of both weigh alike."""
    cast = [*votes("motion", "left", "left", "left"), *votes("motion", "right", prompt="q")]
    (row,) = compare(cast, "ours", "theirs", SIMPLE).criteria
    assert (row.win, row.loss, row.net, row.votes, row.prompts) == (0.5, 0.5, 0.0, 4, 2)
    assert (row.low, row.high) == (-1.0, 1.0)


def test_a_group_is_the_mean_of_percentages() -> None:
    """A question that was rarely asked weighs as much as the others of its group."""
    cast = [
        *(one for i in range(9) for one in votes("dynamism", "left", prompt=f"p{i}")),
        *votes("faces", "right", prompt="p0"),
    ]
    made = compare(cast, "ours", "theirs", KANDINSKY_5)
    (group,) = made.groups
    assert group.name == "dynamism and motion" and (group.win, group.loss, group.votes) == (0.5, 0.5, 10)


def test_both_views_of_a_comparison_mirror_each_other() -> None:
    cast = [
        *votes("motion", "left", "equal"),
        *votes("motion", "left", "right", left="theirs", right="ours", prompt="q"),
    ]
    ours, theirs = (compare(cast, a, b, SIMPLE).criteria[0] for a, b in (("ours", "theirs"), ("theirs", "ours")))
    assert (ours.win, ours.tie, ours.loss) == (theirs.loss, theirs.tie, theirs.win)
    assert ours.net == -theirs.net and ours.low == pytest.approx(-theirs.high)


def test_no_votes_are_said() -> None:
    with pytest.raises(RequestError, match="no vote compares `ours` with `other`"):
        compare(votes("motion", "left"), "ours", "other", SIMPLE)


def test_the_sign_test_is_exact() -> None:
    """Binomial tails: 2 * (C(10,0) + C(10,1)) / 2^10, and so on."""
    assert sign_test(9, 1) == pytest.approx(2 * 11 / 1024)
    assert sign_test(5, 0) == pytest.approx(2 / 32)
    assert sign_test(3, 3) == 1.0 and sign_test(0, 0) == 1.0
    assert 0 < sign_test(6000, 4000) < 1e-80


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for trial in range(60):
        drawn = generator.choice(["left", "equal", "right"], p=[0.5, 0.2, 0.3], size=80)
        cast = [one for i, choice in enumerate(drawn) for one in votes("motion", str(choice), prompt=str(i))]
        (row,) = compare(cast, "ours", "theirs", SIMPLE, seed=trial).criteria
        held += row.low <= 0.2 <= row.high
    assert held >= 52  # 57 of 60 are expected; fewer than 52 happen once in hundreds of runs


def test_alpha_equals_the_published_example() -> None:
    """Krippendorff (2011), example C: four observers, twelve units, missing answers."""
    table = [
        [1, 1, None, 1], [2, 2, 3, 2], [3, 3, 3, 3], [3, 3, 3, 3], [2, 2, 2, 2], [1, 2, 3, 4], [4, 4, 4, 4],
        [1, 1, 2, 1], [2, 2, 2, 2], [None, 5, 5, 5], [None, None, 1, 1], [None, None, 3, None],
    ]  # fmt: skip
    units = [[float(value) for value in row if value is not None] for row in table]
    assert agreement.alpha(units) == pytest.approx(0.743, abs=5e-4)
    assert agreement.alpha(units, level="ordinal") == pytest.approx(0.815, abs=5e-4)
    assert agreement.alpha(units, level="interval") == pytest.approx(0.849, abs=5e-4)


def test_agreement_counts_pairs_of_annotators() -> None:
    """Of five answers with four equal, six pairs of ten agree."""
    cast = votes("motion", "left", "left", "left", "left", "right")
    share, alpha = agreement.agreements(cast, SIMPLE)["motion"]
    assert share == pytest.approx(0.6) and alpha < 0.2
    alone = agreement.agreements(votes("motion", "left"), SIMPLE)["motion"]
    assert all(math.isnan(value) for value in alone)
    turned = [*votes("motion", "left"), Vote("p", "theirs", "ours", "someone", "motion", "right")]
    assert agreement.agreements(turned, SIMPLE)["motion"] == (1.0, 1.0)


def test_strengths_of_two_models_are_their_odds() -> None:
    wins = np.array([[0.0, 30.0], [10.0, 0.0]])
    found = ranking.strengths(wins, prior=0)
    assert found[0] / found[1] == pytest.approx(3.0, rel=1e-6)
    ratings = ranking.elo(found)
    assert ratings.mean() == pytest.approx(1000) and ranking.chance(*ratings) == pytest.approx(0.75)


def test_strengths_that_made_the_games_are_found_again() -> None:
    truth = np.array([4.0, 2.0, 1.0, 0.5])
    games = 4000.0
    wins = games * truth[:, None] / (truth[:, None] + truth[None, :])
    np.fill_diagonal(wins, 0)
    found = ranking.strengths(wins, prior=0)
    np.testing.assert_allclose(found, truth / np.exp(np.log(truth).mean()), rtol=1e-6)


def test_ranks_are_ordered_with_intervals_that_shrink() -> None:
    def cast(prompts: int) -> list[Vote]:
        generator = np.random.default_rng(1)
        return [
            Vote(str(i), a, b, "x", "motion", "left" if generator.random() < chance else "right")
            for i in range(prompts)
            for a, b, chance in (("good", "fair", 0.7), ("fair", "poor", 0.7), ("good", "poor", 0.85))
        ]

    few, many = ranking.ranks(cast(30), SIMPLE), ranking.ranks(cast(300), SIMPLE)
    assert [one.model for one in many] == ["good", "fair", "poor"] and many[0].games == 600
    assert all(one.low <= one.rating <= one.high for one in many)
    assert many[0].high - many[0].low < few[0].high - few[0].low
    assert ranking.ranks(cast(30), SIMPLE) == few


def test_a_model_that_always_won_has_a_finite_rating() -> None:
    first, last = ranking.ranks(votes("motion", *["left"] * 20), SIMPLE)
    assert first.model == "ours" and math.isfinite(first.rating) and first.rating > last.rating + 400


def test_models_that_never_met_are_not_ranked() -> None:
    cast = [*votes("motion", "left"), *votes("motion", "left", left="x", right="y")]
    with pytest.raises(RequestError, match="`x` was never compared with `ours`"):
        ranking.ranks(cast, SIMPLE)
    with pytest.raises(RequestError, match="no votes on `text alignment`"):
        ranking.ranks(cast, SIMPLE, criterion="text alignment")


def test_elo_game_by_game_moves_points_from_one_to_the_other() -> None:
    made = ranking.running_elo([("a", "b", 1.0), ("a", "b", 0.5)])
    assert made["a"] == pytest.approx(1008 + 16 * (0.5 - ranking.chance(1008, 992)))
    assert sum(made.values()) == pytest.approx(2000)
