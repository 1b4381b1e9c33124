"""What is given of clips, and the times at which they are learned."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kandinsky.model.denoiser import VIDEO
from kandinsky.train.conditions import Conditions, joined, spans
from kandinsky.train.objective import Portion, Rng
from kandinsky.train.times import Times, to_levels

KINDS = ("first", "prefix", "last", "suffix", "between", "merge", "frames")


@settings(max_examples=200)
@given(st.sampled_from(KINDS), st.integers(2, 9), st.integers(0, 10**6))
def test_frames_that_are_given_leave_some_to_learn(kind: str, frames: int, seed: int) -> None:
    found = spans(kind, frames, torch.Generator().manual_seed(seed))
    marked = [any(span.start <= t < span.stop for span in found) for t in range(frames)]
    assert all(0 <= span.start < span.stop <= frames for span in found) and not all(marked)
    if kind in ("first", "prefix", "between", "merge"):
        assert marked[0]
    if kind in ("last", "suffix") or (kind in ("between", "merge") and frames > 2):
        assert marked[-1]
    if kind == "merge" and frames > 2:
        assert [a for a, b in itertools.pairwise(marked) if a != b] == [True, False]


def test_shares_are_those_asked_for() -> None:
    conditions = Conditions(first=0.25, region=0.5)
    clean = torch.randn(1, 4, 6, 6, 2)
    found = [conditions.known(clean, VIDEO, Rng(0, 0).example(n)) for n in range(2000)]
    shapes = [tuple(one.mask[VIDEO].shape[1:4]) if one.mask else None for one in found]
    assert abs(shapes.count((4, 1, 1)) / 2000 - 0.25) < 0.03 and abs(shapes.count((4, 6, 6)) / 2000 - 0.5) < 0.03
    together = joined(found[:8], clean.expand(8, -1, -1, -1, -1), VIDEO)
    for row, one in zip(together.mask[VIDEO], found[:8], strict=True):
        expected = one.mask[VIDEO][0].expand_as(row) if one.mask else torch.zeros_like(row)
        assert torch.equal(row, expected)
    # of a still, only a region can be given
    still = [Conditions(first=1.0).known(clean[:, :1], VIDEO, Rng(0, 0).example(0)).mask]
    assert still == [{}]


@pytest.mark.parametrize("kind", ["logit-normal", "uniform", "mode", "points"])
def test_times_follow_their_distribution_however_a_batch_is_divided(kind: str) -> None:
    points = (0.25, 0.5, 1.0) if kind == "points" else ()
    times = Times(kind=kind, points=points)  # type: ignore[arg-type]
    rng, total = Rng(7, 3), 512
    whole = times.draw(rng, range(total), total, shift=3.0)
    parts = [times.draw(rng, Portion(i, 4).of(range(total)), total, shift=3.0) for i in range(4)]
    assert torch.equal(whole, torch.cat(parts)) and whole.min() > 0 and whole.max() <= 1
    plain = Times(kind=kind, points=points, shift=1.0).draw(rng, range(total), total, shift=3.0)  # type: ignore[arg-type]
    torch.testing.assert_close(whole, 3 * plain / (1 + 2 * plain), atol=1e-5, rtol=1e-4)
    # equal parts of the distribution, one each: the quantiles are met to within one part
    ordered = plain.sort().values.double()
    match kind:
        case "logit-normal":
            ranks = torch.special.ndtr(torch.logit(ordered.clamp(1e-6, 1 - 1e-6)))
        case "uniform":
            ranks = ordered
        case "mode":
            grid = torch.linspace(0, 1, 20001)
            ranks = torch.tensor([(times.at(grid) <= t).double().mean() for t in ordered])
        case _:
            assert {round(float(t), 6) for t in plain} == {0.25, 0.5, 1.0}
            assert [int((plain == t).sum()) for t in (0.25, 0.5)] in ([170, 171], [171, 171], [171, 170])
            return
    expected = (torch.arange(total) + 0.5) / total
    assert float((ranks - expected).abs().max()) < 2 / total


def test_a_share_of_clips_has_times_by_chunk() -> None:
    times, numbers = Times(by_frame=0.5, chunk=2), range(400)
    rng = Rng(1, 1)
    t = times.draw(rng, numbers, 400, shift=5.0)
    spread = times.spread(t, 5, rng, numbers, shift=5.0)
    own = (spread != t[:, None]).any(1)
    assert 0.42 < float(own.double().mean()) < 0.58
    assert torch.equal(spread[~own], t[~own, None].expand(-1, 5))
    assert torch.equal(spread[own, 0], spread[own, 1]) and not torch.equal(spread[own, 1], spread[own, 2])


@settings(max_examples=50)
@given(st.floats(1e-6, 1.0))
def test_levels_are_the_next_thousandth(t: float) -> None:
    found = float(to_levels(torch.tensor(t, dtype=torch.float64)))
    assert found == pytest.approx(max(1, math.ceil(t * 1000 - 1e-9)) / 1000)
