"""Who compares what: balanced, blind, repeatable."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kandinsky.errors import RequestError
from kandinsky.evaluate.assign import Pair, assign


@settings(max_examples=60)
@given(
    prompts=st.integers(1, 12), models=st.integers(2, 4), annotators=st.integers(1, 7), seed=st.integers(0, 99),
    data=st.data(),
)  # fmt: skip
def test_work_is_shared_evenly(prompts: int, models: int, annotators: int, seed: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(1, annotators))
    names = [f"annotator {i}" for i in range(annotators)]
    made = assign(
        [f"p{i}" for i in range(prompts)], [f"m{i}" for i in range(models)], names, overlap=overlap, seed=seed
    )
    numbers = [len(pairs) for pairs in made.values()]
    assert list(made) == names and max(numbers) - min(numbers) <= 1
    seen = Counter((one.prompt, frozenset((one.left, one.right))) for pairs in made.values() for one in pairs)
    assert set(seen.values()) == {overlap} and len(seen) == prompts * models * (models - 1) // 2
    for pairs in made.values():
        assert len({(one.prompt, frozenset((one.left, one.right))) for one in pairs}) == len(pairs)


def test_sides_are_balanced_for_every_two_models() -> None:
    made = assign([f"p{i}" for i in range(40)], ["a", "b", "c"], ["x", "y"], overlap=1)
    left = Counter((one.left, one.right) for pairs in made.values() for one in pairs)
    for one, other in (("a", "b"), ("a", "c"), ("b", "c")):
        assert left[(one, other)] == left[(other, one)] == 20


def test_one_seed_is_one_deal() -> None:
    def deal(seed: int) -> dict[str, list[Pair]]:
        return assign([f"p{i}" for i in range(20)], ["a", "b"], ["x", "y"], overlap=2, seed=seed)

    assert deal(1) == deal(1) != deal(2)


def test_attention_checks_come_at_intervals() -> None:
    check = Pair("check", "whole", "damaged", expected="left")
    made = assign([f"p{i}" for i in range(10)], ["a", "b"], ["x"], overlap=1, checks=[check], every=4)["x"]
    assert [i for i, one in enumerate(made) if one.expected] == [4, 9] and len(made) == 12


@pytest.mark.parametrize(
    ("prompts", "models", "annotators", "options", "said"),
    [
        ([], ["a", "b"], ["x"], {}, "no prompts"),
        (["p"], ["a"], ["x"], {}, "at least two"),
        (["p", "p"], ["a", "b"], ["x"], {}, "prompt `p` is given twice"),
        (["p"], ["a", "a"], ["x"], {}, "model `a` is given twice"),
        (["p"], ["a", "b"], ["x"], {}, "overlap 5 with 1 annotators"),
        (["p"], ["a", "b"], ["x"], {"overlap": 0}, "overlap 0"),
        (["p"], ["a", "b"], ["x"], {"overlap": 1, "every": 0}, "use 1 or more"),
    ],
)
def test_wrong_plans_are_refused(
    prompts: list[str], models: list[str], annotators: list[str], options: dict[str, int], said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        assign(prompts, models, annotators, **options)  # type: ignore[arg-type]
