"""Planners of batches: every example once an epoch, from (seed, step) alone, for any data."""

from __future__ import annotations

import pickle
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kandinsky.errors import RequestError
from kandinsky.train.data.batches import (
    IMAGE_TO_VIDEO,
    TEXT_TO_IMAGE,
    TEXT_TO_VIDEO,
    Buckets,
    Mixture,
    Packing,
    Sequences,
    images_and_videos,
    tokens_of,
)
from kandinsky.train.data.captions import Caption, CaptionChoice, column

SHAPES = st.lists(
    st.tuples(st.integers(1, 9), st.sampled_from([4, 6, 8]), st.sampled_from([4, 7]), st.just(4)),
    min_size=1,
    max_size=60,
)
SEEDS = st.integers(0, 2**32 - 1)
quick = settings(max_examples=40)


@quick
@given(SHAPES, SEEDS, st.integers(1, 7))
def test_full_batches_show_no_example_more_often_than_its_share(
    shapes: list[tuple[int, int, int, int]], seed: int, batch: int
) -> None:
    """After any number of epochs, also where a shape has fewer examples than a batch."""
    plan = Buckets(shapes, batch=batch, seed=seed)
    sizes = Counter(shapes)
    counts, step = Counter[int](), 0
    for epochs in range(1, 2 * batch + 1):
        steps = sum(epochs * count // batch for count in sizes.values())
        for step in range(step, steps):  # noqa: B020
            numbers = plan(step)
            assert len(numbers) == batch and len({shapes[i] for i in numbers}) == 1
            counts.update(numbers)
        step = steps
        assert max(counts.values(), default=0) <= epochs
        for number, shape in enumerate(shapes):  # what waits is less than a batch
            assert counts[number] >= epochs - 1 - batch // sizes[shape]
    assert all(counts[number] >= batch for number in range(len(shapes)))  # after so many epochs nothing waits
    again = pickle.loads(pickle.dumps(plan))
    assert [again(step) for step in (5, 0, 5)] == [plan(step) for step in (5, 0, 5)]
    with pytest.raises(RequestError, match="the first is 0"):
        plan(-1)


def test_of_full_batches_that_divide_an_epoch_shows_all_once() -> None:
    shapes = [(1, 2, 2, 4)] * 6 + [(3, 2, 2, 4)] * 4
    plan = Buckets(shapes, batch=2, seed=3)
    assert plan.steps_per_epoch == 5
    for epoch in range(3):
        seen = [plan(step) for step in range(5 * epoch, 5 * epoch + 5)]
        assert sorted(i for batch in seen for i in batch) == list(range(10))
    assert Buckets(shapes, tokens=2, seed=0).steps_per_epoch == 7  # clips of 3 tokens go alone


@quick
@given(SHAPES, SEEDS, st.integers(1, 400))
def test_batches_of_a_budget_are_as_large_as_it_allows(
    shapes: list[tuple[int, int, int, int]], seed: int, tokens: int
) -> None:
    plan = Buckets(shapes, tokens=tokens, seed=seed)
    for step in range(plan.steps_per_epoch):
        numbers = plan(step)
        assert len(numbers) == max(1, tokens // tokens_of(shapes[numbers[0]]))


@quick
@given(SHAPES, SEEDS, st.integers(9, 30), st.integers(0, 3))
def test_packed_sequences_keep_their_budget_and_use_it(
    shapes: list[tuple[int, int, int, int]], seed: int, frames: int, epoch: int
) -> None:
    plan = Packing(shapes, frames=frames, seed=seed)
    start = epoch * plan.steps_per_epoch
    seen = [plan(step) for step in range(start, start + plan.steps_per_epoch)]
    assert sorted(i for numbers in seen for i in numbers) == list(range(len(shapes)))
    loads: dict[tuple[int, ...], list[int]] = {}
    for numbers in seen:
        (area,) = {shapes[i][1:] for i in numbers}
        loads.setdefault(area, []).append(sum(shapes[i][0] for i in numbers))
    for found in loads.values():
        assert max(found) <= frames
        assert sum(load <= frames / 2 for load in found) <= 1  # else two of them would have been joined


@quick
@given(SHAPES, SEEDS)
def test_packing_by_tokens_takes_clips_of_any_size(shapes: list[tuple[int, int, int, int]], seed: int) -> None:
    budget = 9 * tokens_of((1, 8, 7, 4))
    plan = Packing(shapes, tokens=budget, seed=seed)
    loads = [sum(tokens_of(shapes[i]) for i in plan(step)) for step in range(plan.steps_per_epoch)]
    assert max(loads) <= budget
    assert sum(load <= budget / 2 for load in loads) <= 1  # clips of all sizes share sequences


@quick
@given(SHAPES, SEEDS, st.integers(1, 4))
def test_steps_of_several_sequences_keep_them_whole(
    shapes: list[tuple[int, int, int, int]], seed: int, count: int
) -> None:
    packing = Packing(shapes, tokens=9 * tokens_of((1, 8, 7, 4)), seed=seed)
    plan = Sequences(packing, count)
    for step in range(plan.steps_per_epoch):
        parts = plan.parts(step)
        assert list(parts) == [packing(step * count + place) for place in range(count)]
        assert plan(step) == tuple(number for part in parts for number in part)
    seen = {number for step in range(plan.steps_per_epoch) for number in plan(step)}
    assert seen == set(range(len(shapes)))


def test_epochs_and_seeds_differ() -> None:
    shapes = [(1 + i % 3, 4, 4, 4) for i in range(50)]
    for make in (lambda seed: Buckets(shapes, batch=4, seed=seed), lambda seed: Packing(shapes, frames=7, seed=seed)):
        plan = make(1)
        epochs = [[plan(e * plan.steps_per_epoch + i) for i in range(plan.steps_per_epoch)] for e in range(3)] + [
            [make(2)(i) for i in range(plan.steps_per_epoch)]
        ]
        assert len({str(epoch) for epoch in epochs}) == 4


@quick
@given(SEEDS, st.integers(1, 8), st.integers(1, 8), st.integers(0, 20_000))
def test_mixtures_show_each_kind_in_the_order_of_its_own_plan(seed: int, images: int, videos: int, start: int) -> None:
    shapes = [(1, 4, 4, 4)] * images + [(3, 4, 4, 4)] * videos
    still, moving = images_and_videos(shapes)
    plans = Buckets(shapes, batch=2, only=still, seed=seed), Buckets(shapes, batch=1, only=moving, seed=seed)
    weights = {TEXT_TO_IMAGE: 0.3, TEXT_TO_VIDEO: 0.5, IMAGE_TO_VIDEO: 0.2}
    one, other = (Mixture(*plans, weights, seed=seed) for _ in range(2))
    turns = [0, 0]
    for step in range(start):  # what a run from the beginning would have counted
        turns[one.task(step) != TEXT_TO_IMAGE] += 1
    for step in range(start, start + 20):  # and one that begins here
        is_video = other.task(step) != TEXT_TO_IMAGE
        assert other(step) == plans[is_video](turns[is_video])
        assert {shapes[i][0] > 1 for i in other(step)} == {is_video}
        turns[is_video] += 1


def test_tasks_come_as_often_as_their_weights_say() -> None:
    plan = Buckets([(1, 4, 4, 4), (2, 4, 4, 4)], batch=1)
    mixture = Mixture(plan, plan, {TEXT_TO_IMAGE: 1, TEXT_TO_VIDEO: 79, IMAGE_TO_VIDEO: 20})
    counts = Counter(mixture.task(step) for step in range(20_000))
    for task, share in ((TEXT_TO_IMAGE, 0.01), (TEXT_TO_VIDEO, 0.79), (IMAGE_TO_VIDEO, 0.2)):
        assert abs(counts[task] / 20_000 - share) < 4 * (share * (1 - share) / 20_000) ** 0.5
    only = Mixture(plan, None, {TEXT_TO_IMAGE: 1, TEXT_TO_VIDEO: 0})
    assert {only.task(step) for step in range(9000)} == {TEXT_TO_IMAGE} and only(8999) == plan(8999)
    assert only.steps_per_epoch == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Buckets([], batch=1), "no examples"),
        (lambda: Buckets([(1, 2, 2, 4)]), "either as `batch` or as `tokens`"),
        (lambda: Buckets([(1, 2, 2, 4)], batch=1, tokens=1), "either"),
        (lambda: Buckets([(1, 2, 2, 4)], batch=0), "`batch` must be a whole number"),
        (lambda: Buckets([(1, 2, 2, 4)], batch=True), "`batch` must be a whole number"),
        (lambda: Buckets([(1, 2, 2, 4)], batch={(2, 2, 2, 4): 1}), "names no size for latents of shape 1x2x2x4"),
        (lambda: Buckets([(1, 2, 2, 4)], batch=1)(-1), "no step -1"),
        (lambda: Packing([(9, 2, 2, 4)], frames=8), "example 0 .* does not fit into sequences of 8 latent frames"),
        (lambda: Packing([(1, 2, 2, 4)]), "either as `frames` or as `tokens`"),
        (lambda: Mixture(None, None, {"text-to-vidoe": 1}), "unknown"),
        (lambda: Mixture(None, None, {TEXT_TO_VIDEO: 1}), "no video"),
        (lambda: Mixture(None, None, {TEXT_TO_VIDEO: -1}), "0 or more"),
        (lambda: Mixture(None, None, {TEXT_TO_VIDEO: float("nan")}), "0 or more"),
        (lambda: Mixture(None, None, {}), "no task has a weight"),
        (lambda: CaptionChoice(drop=1.5), "from 0 to 1"),
        (lambda: CaptionChoice(languages={"en": -1}), "0 or more"),
    ],
)
def test_plans_that_cannot_be_are_refused(make: object, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make()  # type: ignore[operator]


def test_captions_are_drawn_by_their_weights() -> None:
    captions = [Caption("a", "en", "short"), Caption("b", "ru", "short"), Caption("c", "en", "long"), Caption("d")]
    choice = CaptionChoice(drop=0.25, languages={"ru": 0.5}, lengths={"long": 0})
    generator = torch.Generator().manual_seed(0)
    counts = Counter(choice.choose(captions, generator) for _ in range(8000))
    assert set(counts) == {None, 0, 1, 3}
    for number, share in ((None, 0.25), (0, 0.3), (1, 0.15), (3, 0.3)):
        assert abs(counts[number] / 8000 - share) < 0.02
    assert CaptionChoice(drop=0, languages={"": 0}).choose([Caption("x")], generator) == 0
    assert CaptionChoice(drop=0).choose([], generator) is None


def test_the_same_numbers_are_drawn_whatever_the_captions() -> None:
    after = set()
    for drop, captions in ((0.0, []), (1.0, [Caption("a")]), (0.5, [Caption("a"), Caption("b")])):
        generator = torch.Generator().manual_seed(3)
        CaptionChoice(drop=drop).choose(captions, generator)
        after.add(float(torch.rand((), generator=generator)))
    assert len(after) == 1


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("caption", ("", "")), ("Text", ("", "")), ("caption_en", ("en", "")), ("long_caption_ru", ("ru", "long")),
        ("prompt_short", ("", "short")), ("caption_text", None), ("fps", None), ("caption_score", None),
        ("caption_en_ru", None), ("", None),
    ],
)  # fmt: skip
def test_columns_of_captions_are_known_by_their_words(name: str, kind: tuple[str, str] | None) -> None:
    assert column(name) == kind
