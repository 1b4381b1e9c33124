"""What a training says of itself while it runs, and that saying it changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kandinsky.bench.flops import count_flops
from kandinsky.errors import BackendError, RequestError
from kandinsky.lab import distil
from kandinsky.model.denoiser import VIDEO, Known
from kandinsky.model.values import TextEmbeddings
from kandinsky.train import journal, loop, work
from kandinsky.train.denoising import Given
from kandinsky.train.model_recipe import Batch, by_time, errors_of
from kandinsky.train.objective import Loss, Objective, Portion, Rng, Timed, Update
from kandinsky.train.record import Record
from kandinsky.train.times import Times

CLIPS = 6


class Noisy(Objective):
    """Noise of six clips is guessed, each at a time of its own."""

    def __init__(self) -> None:
        with loop.seeded(1):
            self.network = nn.Linear(5, 4)

    @property
    def updates(self) -> tuple[Update, ...]:
        return (Update("network", self.network),)

    def batch(self, step: int, rng: Rng, portion: Portion) -> list[int]:
        numbers = list(portion.of(range(CLIPS)))
        work.done(samples=len(numbers), tokens=4 * len(numbers))
        return numbers

    def loss(self, update: str, batch: list[int], rng: Rng) -> Loss:
        t = Times().draw(rng, batch, CLIPS, shift=2.0)
        x = torch.stack([torch.randn(4, generator=rng.example(n)) for n in batch])
        errors = (self.network(torch.cat([x, t[:, None]], 1)) - x * t[:, None]).pow(2).mean(1)
        timed = [Timed(*pair) for pair in zip(t.tolist(), errors.tolist(), strict=True)]
        return Loss(errors.mean(), len(batch), {"size": float(errors.numel())}, timed)


def settings(**more: Any) -> loop.LoopSettings:
    return loop.LoopSettings.from_dict({"steps": 12, "lr": 0.01, "warmup": 1, "bf16": False, **more})


def lines_of(out: Path, **more: Any) -> list[dict[str, float]]:
    loop.run(Noisy(), settings(**more), out)
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def bins(line: dict[str, float], what: str) -> dict[str, float]:
    return {name.split()[1]: value for name, value in line.items() if name.startswith(f"{what} 0")}


@pytest.mark.parametrize("portions", [2, 3, 4, 6])
def test_the_loss_by_time_is_that_of_the_batch_however_it_is_divided(tmp_path: Path, portions: int) -> None:
    whole, parts = lines_of(tmp_path / "whole"), lines_of(tmp_path / "parts", accumulate=portions)
    for one, other in zip(whole, parts, strict=True):
        assert bins(one, "count") == bins(other, "count") and sum(bins(one, "count").values()) == CLIPS
        assert bins(one, "loss").keys() == bins(one, "count").keys() == bins(other, "loss").keys()
        for name, value in bins(one, "loss").items():
            assert bins(other, "loss")[name] == pytest.approx(value, rel=1e-5)
        mean = sum(value * bins(one, "count")[name] for name, value in bins(one, "loss").items()) / CLIPS
        assert mean == pytest.approx(one["loss"], rel=1e-6)
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert any(len(bins(line, "count")) < 10 for line in whole)  # none is written that nothing was drawn of


def test_a_line_holds_the_means_of_its_steps(tmp_path: Path) -> None:
    each, some = lines_of(tmp_path / "each"), lines_of(tmp_path / "some", log_every=5)
    assert [line["step"] for line in some] == [5, 10, 12]
    for line, (first, last) in zip(some, [(0, 5), (5, 10), (10, 12)], strict=True):
        for name in ("loss", "norm"):
            values = [one[name] for one in each[first:last]]
            assert line[name] == pytest.approx(sum(values) / len(values), rel=1e-6)
        counts = [bins(one, "count") for one in each[first:last]]
        assert bins(line, "count") == {
            name: sum(one.get(name, 0) for one in counts) for name in sorted({n for one in counts for n in one})
        }


def test_speed_is_what_was_done_in_the_time_it_took() -> None:
    seconds = iter([0.0, 4.0, 10.0, 12.0])
    record = Record(processes=2, now=lambda: next(seconds))
    for _ in range(2):
        record.add({"loss": 1.0})
        record.learned([], work.Work(samples=3, tokens=300, flops=4e12))
    record.waited = 0.5
    record.pause(2.0)  # samples were made
    line = record.line()
    assert (line["samples per second"], line["tokens per second"], line["TFLOP/s"]) == (3.0, 300.0, 4.0)
    assert (line["seconds per step"], line["seconds of waiting"]) == (1.0, 0.25)
    assert line["MFU"] > 0 and line["memory GB"] > 0.05
    record.add({"loss": 1.0})
    assert "MFU" not in record.line()  # what is not known is not told


def test_the_log_says_the_same_after_a_resume(tmp_path: Path) -> None:
    whole = lines_of(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        loop.run(Noisy(), settings(), tmp_path / "cut", on_log=_stopped_at(7))
    found = lines_of(tmp_path / "cut")
    told = ("step", "lr", "loss", "norm", *(f"{what} {name}" for what in ("loss", "count") for name in BINS))
    assert [{k: line.get(k) for k in told} for line in found] == [{k: line.get(k) for k in told} for line in whole]


BINS = [f"{k / 10:.1f}-{(k + 1) / 10:.1f}" for k in range(10)]


def _stopped_at(step: int) -> Any:
    def stop(line: dict[str, float]) -> None:
        if line["step"] == step:
            raise KeyboardInterrupt

    return stop


def test_errors_by_time_are_the_loss() -> None:
    generator = torch.Generator().manual_seed(1)
    predicted, target = torch.randn(2, 2, 3, 4, 4, 2, generator=generator)
    known = Given(TextEmbeddings(torch.zeros(2, 1, 4), torch.zeros(2, 4)))
    mask = torch.zeros(2, 3, 1, 1, 1, dtype=torch.bool)
    mask[1, 0] = True
    given = Given(known.text, Known({VIDEO: target}, {VIDEO: mask}))
    batch = Batch(target, given, [0, 1], 2)
    errors = errors_of(predicted, target, batch)
    by_clip = by_time(predicted, target, torch.tensor([0.2, 0.7]), batch)
    assert [one.error for one in by_clip] == errors.tolist() and [one.weight for one in by_clip] == [1.0, 1.0]
    by_frame = by_time(predicted, target, torch.rand(2, 3, generator=generator), batch)
    assert len(by_frame) == 5  # the given frame is not learned
    assert sum(one.error * one.weight for one in by_frame) / 2 == pytest.approx(float(errors.mean()))


def test_tensorboard_gets_the_same_figures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="it is an extra")
    lines = lines_of(tmp_path, log="tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    losses = {event.step: event.value for event in events.Scalars("training/loss")}
    assert losses == {line["step"]: pytest.approx(line["loss"]) for line in lines}
    assert any(name.startswith("loss by time/") for name in events.Tags()["scalars"])


def test_tensorboard_shows_no_step_twice(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="it is an extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(KeyboardInterrupt):  # without a checkpoint: from the first step again
        loop.run(Noisy(), settings(log="tensorboard"), tmp_path, on_log=_stopped_at(7))
    lines_of(tmp_path, log="tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("training/loss")] == list(range(1, 13))


def test_tensorboard_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"needs the package tensorboard: pip install 'kandinsky-video\[train\]'"):
        loop.run(Noisy(), settings(log="tensorboard"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    loop.run(Noisy(), settings(steps=1), tmp_path / "run")
    with pytest.raises(RequestError, match="`log` must be `jsonl` or `tensorboard`"):
        settings(log="wandb")


def test_logging_changes_no_weight(tmp_path: Path) -> None:
    made = []
    for number, more in enumerate(({"log_every": 1}, {"log_every": 100})):
        made.append(loop.run(Noisy(), settings(**more), tmp_path / str(number))["network"])
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_who_tells_of_work_needs_nobody_who_listens() -> None:
    work.done(samples=3)
    with work.counted() as outer:
        work.done(1, 2, 3.0)
        with work.counted() as inner:
            work.done(samples=5)
    assert (outer.samples, outer.tokens, outer.flops, inner.samples) == (1, 2, 3.0, 5)


def test_operations_are_counted_where_networks_are_entered() -> None:
    denoising, network = distil.bare(distil.SETTINGS["flow"])
    batch = distil.World(clips=4)(0, Rng(0, 0), Portion())
    t = torch.full((4,), 0.5)

    def flops() -> float:
        with work.counted() as found:
            denoising.predict(network, batch.clean_BTHWC, t, batch.given)
        return found.flops

    both = flops()
    with torch.no_grad():
        forwards = flops()
    assert forwards > 0 and both == pytest.approx(3 * forwards)
    network.requires_grad_(False)
    assert flops() == forwards
    with torch.no_grad():
        measured = count_flops(lambda: denoising.predict(network, batch.clean_BTHWC, t, batch.given))
    assert forwards == pytest.approx(measured, rel=0.02)


def test_a_figure_hides_nothing_that_the_loop_says(tmp_path: Path) -> None:
    class Clashing(Noisy):
        def loss(self, update: str, batch: list[int], rng: Rng) -> Loss:
            made = super().loss(update, batch, rng)
            return Loss(made.value, made.weight, {"steps": 4.0}, made.timed)

    with pytest.raises(TypeError, match="steps"):
        loop.run(Clashing(), settings(), tmp_path / "run")
