"""Each kind of training learns a problem of seconds, below a bound; the table is that of ``lab/learning.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from kandinsky.lab import learning
from kandinsky.train.recipe import KINDS

LONG = ("dmd2", "autoencoder", "self-forcing")
AGAIN = ", v"  # ends the names of what was learned as a flow before
OWN = ("nano-", "package")  # begin the names of Nano's recipes, see tests/nano


@pytest.mark.parametrize(
    "problem",
    [
        pytest.param(one, marks=pytest.mark.slow) if one.kind in LONG or one.name.endswith(AGAIN) else one
        for one in learning.PROBLEMS
    ],
    ids=lambda one: f"{one.kind}: {one.name}",
)
def test_it_is_learned(problem: learning.Problem, tmp_path: Path) -> None:
    row = learning.learned(problem, tmp_path)
    assert row.is_learned, str(row)


def test_there_is_a_problem_for_every_kind() -> None:
    assert {one.kind for one in learning.PROBLEMS} == {kind for kind in KINDS if not kind.startswith(OWN)}
