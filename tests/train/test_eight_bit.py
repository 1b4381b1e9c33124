"""8-bit optimiser states: blocks of numbers of one row, so that they follow weights into shards."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kandinsky.errors import RequestError
from kandinsky.runtime.parallel.places import Split
from kandinsky.train import loop
from kandinsky.train.checkpoint import State
from kandinsky.train.objective import Loss, Objective, Portion, Rng, Update
from kandinsky.train.optimisers import Optimiser, Optimisers

SETTINGS = Optimiser(lr=1e-2, optimiser="adamw8bit")
ROWS, COLUMNS = 8, 512


class Cut:
    """Says the shape of the whole of each part."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.of = shape

    def shape(self, p: Tensor) -> tuple[int, ...]:
        return self.of


def test_shards_have_the_states_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(ROWS, COLUMNS, generator=generator)
    cuts = [slice(0, ROWS), slice(0, 3), slice(3, ROWS), slice(ROWS, ROWS)]  # the whole, then shards, one of no rows
    weights = [nn.Parameter(start[cut].clone()) for cut in cuts]
    made = [
        Optimisers({"weight": p}, SETTINGS, Cut((ROWS, COLUMNS)) if number else None)  # type: ignore[arg-type]
        for number, p in enumerate(weights)
    ]
    with torch.compiler.set_stance("force_eager"):
        for _ in range(3):
            grad = torch.randn(ROWS, COLUMNS, generator=generator)
            for optimisers, p, cut in zip(made, weights, cuts, strict=True):
                p.grad = grad[cut].clone()
                optimisers.step()
    assert torch.equal(torch.cat([p.detach() for p in weights[1:]]), weights[0])
    whole, *parts = (one.state()["weight"] for one in made)
    assert whole["exp_avg.codes"].dtype == torch.uint8 and whole["exp_avg.scale"].shape == (ROWS, COLUMNS // 256)
    for name in ("exp_avg.codes", "exp_avg.scale", "exp_avg_sq.codes", "exp_avg_sq.scale"):
        assert torch.equal(torch.cat([part[name] for part in parts[:2]]), whole[name])
    split = Split((ROWS, COLUMNS), shards=2)
    learner: Any = SimpleNamespace(update=SimpleNamespace(name="net"), held={"w": weights[1]}, splits={"w": split})
    state = State([learner], {})
    assert state.split_like("net", "w", parts[0]["exp_avg.codes"]) == split
    assert state.split_like("net", "w", parts[0]["exp_avg.scale"]) == Split((ROWS, 2), shards=2)
    assert state.split_like("net", "w", parts[0]["step"]) == Split(())


def test_rows_that_are_no_blocks_keep_plain_states_and_are_not_cut() -> None:
    weights = {"norm": nn.Parameter(torch.zeros(8192)), "odd": nn.Parameter(torch.zeros(64, 100))}
    made = Optimisers(weights, SETTINGS)
    assert made.begin("norm").keys() == made.begin("odd").keys() == {"step", "exp_avg", "exp_avg_sq"}
    with pytest.raises(RequestError, match="blocks of 256 numbers of a row, and `tp` cuts the rows of `wide` into 128"):
        Optimisers({"wide": nn.Parameter(torch.zeros(64, 128))}, SETTINGS, Cut((64, 256)))  # type: ignore[arg-type]


class Line(Objective):
    """A wide layer."""

    def __init__(self) -> None:
        with loop.seeded(0):
            self.network = nn.Linear(COLUMNS, ROWS)

    @property
    def updates(self) -> tuple[Update, ...]:
        return (Update("network", self.network),)

    def batch(self, step: int, rng: Rng, portion: Portion) -> Tensor:
        return torch.randn(4, COLUMNS, generator=rng.generator(0))

    def loss(self, update: str, batch: Tensor, rng: Rng) -> Loss:
        return Loss((self.network(batch) - 1).square().mean())


def test_a_run_that_goes_on_is_one_that_never_stopped(tmp_path: Path) -> None:
    def run(out: Path, steps: int) -> dict[str, Tensor]:
        values = {"steps": steps, "lr": 1e-2, "warmup": 0, "decay": 0.0, "optimiser": "adamw8bit", "bf16": False}
        return loop.run(Line(), loop.LoopSettings.from_dict(values), out)["network"]

    with torch.compiler.set_stance("force_eager"):
        expected = run(tmp_path / "whole", 6)
        run(tmp_path / "parts", 3)
        made = run(tmp_path / "parts", 6)
    assert all(torch.equal(made[name], expected[name]) for name in expected)
