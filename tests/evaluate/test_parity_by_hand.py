"""Metrics and statistics against numbers that were worked out on paper or by another way, and written down here."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from kandinsky.errors import RequestError
from kandinsky.evaluate import dimensions, distance, ranking
from kandinsky.evaluate.clips import damaged
from kandinsky.evaluate.questions import SIMPLE
from kandinsky.evaluate.scores import compare, sign_test
from kandinsky.evaluate.studies import DAMAGED, ClipSet, attention, fitting_votes, plan_study, report, report_table
from kandinsky.evaluate.study_store import StudyStore
from kandinsky.evaluate.votes import Vote
from kandinsky.media.video import read_video, write_video
from kandinsky.model.values import Video


def test_frechet_distance_of_two_known_normal_distributions() -> None:
    """Corners of two rectangles: means (0, 0) and (3, 4), standard deviations (1, 2) and (3, 1) times √(4/3).

    |m - m'|² + Σ (σ - σ')² = 25 + 4/3·(4 + 1) = 31.666…
    """
    corners = np.array([[-1.0, -1], [-1, 1], [1, -1], [1, 1]])
    one, other = corners * [1, 2], corners * [3, 1] + [3, 4]
    assert distance.frechet(one, other) == pytest.approx(31.6666667, abs=1e-6)
    # turned by 45°, the second covariance does not commute with the first: tr √(C C') = √(t + 2√d) of a 2x2 product
    turn = np.array([[1, 1], [-1, 1]]) / math.sqrt(2)
    turned = corners * [3, 1] @ turn + [3, 4]
    first, second = np.diag([4 / 3, 16 / 3]), 4 / 3 * turn.T @ np.diag([9.0, 1.0]) @ turn
    product = first @ second
    root = math.sqrt(np.trace(product) + 2 * math.sqrt(np.linalg.det(product)))
    expected = 25 + np.trace(first) + np.trace(second) - 2 * root
    # 25 + 20/3 + 40/3 - 2·√(400/9 + 64/3)
    assert distance.frechet(one, turned) == pytest.approx(expected, abs=1e-9)
    assert expected == pytest.approx(28.7793, abs=1e-4)


def test_kernel_distance_term_by_term() -> None:
    """Rows (1, 0), (0, 2) against (1, 1), (2, 0), kernel (x·y/2 + 1)³: 1 + 8 - 2·(3.375 + 8 + 8 + 1)/4."""
    one, other = np.array([[1.0, 0], [0, 2]]), np.array([[1.0, 1], [2, 0]])
    assert distance.kernel(one, other) == pytest.approx(1 + 8 - 2 * (3.375 + 8 + 8 + 1) / 4) == pytest.approx(-1.1875)


def test_consistency_of_three_frames() -> None:
    """Angles 0°, 60°, 150°: frame 2 gives (0.5 + 0.5)/2, frame 3 (0 + 0)/2, since negative cosines count as 0."""
    angles = np.radians([0, 60, 150])
    features = 7.0 * np.stack([np.cos(angles), np.sin(angles)], 1)
    assert dimensions.consistency(features) == pytest.approx(0.25, abs=1e-12)


def test_flickering_and_smoothness_of_known_frames() -> None:
    """Grey 10, 20, 50: changes of 10 and 30, their mean 20 of 255."""
    clip = np.stack([np.full((4, 6, 3), level, np.uint8) for level in (10, 20, 50)])
    assert dimensions.flickering(clip) == pytest.approx(235 / 255) == pytest.approx(0.9215686, abs=1e-6)
    assert dimensions.smoothness(clip, clip + np.uint8(51)) == pytest.approx(0.8)


def test_the_strongest_flow_and_its_thresholds() -> None:
    """Of 100 pixels the 5 strongest are (3, 4)·k for k = 1 to 5: lengths 5 to 25, mean 15."""
    flow = np.zeros((10, 10, 2))
    flow[0, :5] = np.arange(1, 6)[:, None] * np.array([3.0, 4.0])
    assert dimensions.strongest(flow) == pytest.approx(15) and dimensions.strongest(flow, 0.02) == pytest.approx(22.5)
    # a side of 256 and 16 frames: 4 steps above 6 pixels are dynamic, 3 above 3 are not static
    assert dimensions.is_dynamic([6.1] * 4, 256, 16) and not dimensions.is_dynamic([6.1] * 3 + [6.0], 256, 16)
    assert dimensions.is_static([3.1] * 2, [0, 0], 256, 16) and not dimensions.is_static([3.1] * 3, [0, 0], 256, 16)


def test_places_of_boxes_that_overlap() -> None:
    """Boxes of 10x10, one 2 to the left: they share 80 of 120, and 0.1 / (2/3) = 0.15 is left."""
    one, other = dimensions.Box(0, 0, 10, 10), dimensions.Box(2, 0, 12, 10)
    assert dimensions.overlap(one, other) == pytest.approx(2 / 3)
    assert dimensions.placed(one, other, "left") == pytest.approx(0.15)
    assert dimensions.placed(one, other, "above") == dimensions.placed(one, other, "below") == 0


def test_bradley_terry_of_a_circle_of_three() -> None:
    """a beat b 3:1, b beat c 3:1, a beat c 9:1 are odds 9:3:1, and no others fit better: the gradient is 0 there."""
    wins = np.array([[0.0, 3, 9], [1, 0, 3], [1, 1, 0]])
    found = ranking.strengths(wins, prior=0)
    np.testing.assert_allclose(found / found[2], [9, 3, 1], rtol=1e-8)
    # on Elo's scale 400·log10(3) = 190.8485 lie between neighbours
    np.testing.assert_allclose(ranking.elo(found), [1190.8485, 1000, 809.1515], atol=1e-3)
    assert ranking.chance(1190.8485, 809.1515) == pytest.approx(0.9, abs=1e-6)


def test_ties_count_half_a_win_each() -> None:
    """Six wins, two losses and four ties are 8:4."""
    found = ranking.strengths(np.array([[0.0, 8], [4, 0]]), prior=0)
    assert found[0] / found[1] == pytest.approx(2)
    cast = [
        Vote(f"p{n}", "a", "b", "x", "motion", choice)
        for n, choice in enumerate(["left"] * 6 + ["right"] * 2 + ["equal"] * 4)
    ]
    first, second = ranking.ranks(cast, SIMPLE)
    with_prior = ranking.elo(ranking.strengths(np.array([[0.0, 8], [4, 0]])))
    assert (first.rating, second.rating) == pytest.approx(tuple(with_prior)) and first.games == 12


def test_the_interval_of_a_rating_is_that_of_resampled_prompts() -> None:
    """One vote a prompt, of which a share p are wins: the rating's spread is 400·log10(e)/2 · √(1/(n·p·(1 - p)))."""
    n, p = 400, 0.7
    cast = [Vote(f"p{i}", "a", "b", "x", "motion", "left" if i < n * p else "right") for i in range(n)]
    first, _ = ranking.ranks(cast, SIMPLE)
    spread = 200 / math.log(10) * math.sqrt(1 / (n * p * (1 - p)))
    assert (first.high - first.low) / (2 * 1.96) == pytest.approx(spread, rel=0.15)
    assert first.low < 1000 + 200 * math.log10(p / (1 - p)) < first.high


def test_elo_after_three_games() -> None:
    """K = 16: 8 points for the first win; then 0.5 - 1/(1 + 10^(16/400)); then a win of the weaker one."""
    games = [("a", "b", 1.0), ("a", "b", 0.5), ("b", "a", 1.0)]
    a = 1008.0
    a += 16 * (0.5 - 1 / (1 + 10 ** (-16 / 400)))
    a -= 16 * (1 - 1 / (1 + 10 ** ((2 * a - 2000) / 400)))
    assert ranking.running_elo(games) == pytest.approx({"a": a, "b": 2000 - a}) and a == pytest.approx(
        999.2806, abs=1e-3
    )


def test_the_sign_test_of_nine_to_one_and_its_net_win_rate() -> None:
    """2·(C(10, 0) + C(10, 1)) / 2^10 = 22/1024; (9 - 1) / 12 with two ties."""
    assert sign_test(9, 1) == pytest.approx(22 / 1024) == pytest.approx(0.0214844, abs=1e-7)
    choices = ["left"] * 9 + ["right"] + ["equal"] * 2
    cast = [Vote(f"p{n}", "a", "b", "x", "motion", choice) for n, choice in enumerate(choices)]
    (row,) = compare(cast, "a", "b", SIMPLE).criteria
    assert row.net == pytest.approx(8 / 12) and (row.win, row.tie, row.loss) == pytest.approx((9 / 12, 2 / 12, 1 / 12))


# -- attention checks --------------------------------------------------------------------------------------------------


@pytest.fixture
def clips(tmp_path: Path) -> list[ClipSet]:
    rng = np.random.default_rng(0)
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        files = {}
        for prompt in ("p0", "p1", "p2", "p3"):
            frames = rng.integers(0, 255, (4, 24, 32, 3), dtype=np.uint8)
            files[prompt] = write_video(Video(frames, fps=8.0, seed=0), tmp_path / name / f"{prompt}.mp4")
        made.append(ClipSet(name, files, {}))
    return made


def test_attention_checks_are_dealt_stored_and_kept_apart(clips: list[ClipSet], tmp_path: Path) -> None:
    study, files, _ = plan_study("s", "x", clips, overlap=2, seed=3, checks=2)
    pairs = study.pairs(0)
    checks = [one for one in pairs if DAMAGED in (one.left, one.right)]
    assert len(study.checks) == 2 and len(checks) == 1 and len(pairs) == 5 and study.count == 5
    assert {checks[0].left, checks[0].right} == {"a", DAMAGED} and checks[0].prompt in study.checks
    assert checks[0].expected == ("left" if checks[0].right == DAMAGED else "right")
    store = StudyStore(tmp_path)
    store.add(study, files)
    assert store.get("s") == study
    coarse = store.clip("s", store.token("s", study.checks[0], DAMAGED))
    assert coarse is not None and "coarse" not in coarse.name and len(read_video(coarse).frames) == 4
    whole = read_video(files[study.checks[0], "a"])
    seen, shown = (np.asarray(one.frames, float) for one in (read_video(coarse), whole))
    assert (
        np.abs(seen - shown).mean() > 20 and np.abs(seen[1] - seen[0]).mean() < 0.3 * np.abs(shown[1] - shown[0]).mean()
    )

    looks = [Vote(one.prompt, one.left, one.right, "keen", "motion", "left" if one.right == DAMAGED else "right")
             for one in checks]  # fmt: skip
    sleeps = [Vote(one.prompt, one.left, one.right, "tired", "motion", "right" if one.right == DAMAGED else "left")
              for one in checks]  # fmt: skip
    real = [Vote("p0", "a", "b", "keen", "motion", "left"), Vote("p0", "b", "a", "tired", "motion", "right")]
    cast = [*looks, *sleeps, *real]
    assert fitting_votes(study, cast) == cast
    told = report(study, cast)
    assert told["attention"] == {"keen": {"right": 1, "all": 1}, "tired": {"right": 0, "all": 1}}
    assert told["votes"] == 2 and told["annotators"] == {"keen": 1, "tired": 1}
    assert {one["model"] for one in told["ranking"]} == {"a", "b"}  # no copy is ranked
    assert "attention checks of tired: 0 of 1 answers preferred the whole clip" in report_table(study, told)
    other = next(prompt for prompt in study.prompts if prompt not in study.checks)
    with pytest.raises(RequestError, match="none of the study's models"):
        fitting_votes(study, [Vote(other, "a", DAMAGED, "x", "motion", "left")])
    plain, _, _ = plan_study("t", "x", clips, overlap=2, seed=3)
    assert not plain.checks and attention(plain, real) == {} and len(plain.pairs(0)) == 4
    with pytest.raises(RequestError, match="use 0 to 100"):
        plan_study("t", "x", clips, checks=101)
    with pytest.raises(RequestError, match="give it another name"):
        plan_study("t", "x", [clips[0], ClipSet(DAMAGED, clips[1].clips, {})])


def test_a_coarse_copy_is_of_blocks_and_of_half_the_frames() -> None:
    frames = np.random.default_rng(1).integers(0, 255, (6, 48, 96, 3), dtype=np.uint8)
    made = damaged(Video(frames, fps=8.0, seed=0)).frames
    assert made.shape == frames.shape and (made[1] == made[0]).all() and (made[2] != made[0]).any()
    assert (made[:, :4, :4] == made[:, :1, :1]).all()
