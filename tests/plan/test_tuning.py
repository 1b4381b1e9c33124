"""Backends chosen by measuring: asked for, kept, forgotten, within the contract of determinism."""

import json
import logging
import shlex
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import kandinsky
from kandinsky.catalogue import find
from kandinsky.cli.main import main
from kandinsky.engine import probe
from kandinsky.engine.attention import attention_for
from kandinsky.engine.build import _choices, shape_of, ways_of
from kandinsky.engine.options import RunOptions
from kandinsky.errors import RequestError
from kandinsky.media import recipe as recipes
from kandinsky.model.values import Request
from kandinsky.ops import linear
from kandinsky.ops.native import products
from kandinsky.runtime import tuning
from kandinsky.runtime.parallel.team import Team
from kandinsky.runtime.placement import Precision
from kandinsky.runtime.tuning import Choices, Shape

SHAPE = Shape(tokens=40, width=60, heads=4, dtype="float32", device="cpu")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KANDINSKY_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What each way seems to take; nothing is measured."""
    taken = {"onednn": 1.0, "torch": 1.0, "sdpa": 1.0, "math": 1.0}

    def in_turns(ways: dict[str, Callable[[], object]], *_: Any, **__: Any) -> dict[str, float]:
        return {way: taken.get(way, 1.0) for way in ways}

    monkeypatch.setattr(tuning, "_in_turns", in_turns)
    return taken


@pytest.mark.parametrize("text", ["linear=torch", "attention=math", "linear=onednn,attention=sdpa"])
def test_choices_are_written_as_they_are_read(text: str) -> None:
    assert str(Choices.parse(text)) == text
    tuning.check(text)


@pytest.mark.parametrize("text", ["", "fast", "linear", "linear=mkl", "linear=torch,linear=torch", "threads=2"])
def test_other_choices_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="backends"):
        RunOptions(backends=text).check()


def test_nothing_is_chosen_or_measured_by_default(cache: Path, seconds: dict[str, float]) -> None:
    seconds["torch"] = 0.1
    assert RunOptions().backends == tuning.DEFAULT and tuning.settle(tuning.DEFAULT, lambda: SHAPE) == Choices()
    assert list(cache.iterdir()) == []


def test_an_answer_is_kept_for_its_class_of_work(cache: Path, seconds: dict[str, float]) -> None:
    seconds["torch"] = 0.5
    assert tuning.settle(tuning.TUNED, lambda: SHAPE) == Choices(linear="torch")
    seconds["torch"] = 2.0  # it is not measured again
    alike = Shape(tokens=64, width=64, heads=4, dtype="float32", device="cpu")
    assert tuning.settle(tuning.TUNED, lambda: alike) == Choices(linear="torch")
    larger = Shape(tokens=65, width=64, heads=4, dtype="float32", device="cpu")
    assert tuning.settle(tuning.TUNED, lambda: larger) == Choices()
    assert set(tuning.answers()) == {alike.name, larger.name}
    assert tuning.forget() and not tuning.forget() and tuning.answers() == {}


def test_networks_that_differ_in_what_can_be_measured_share_no_answer(cache: Path, seconds: dict[str, float]) -> None:
    precision, cpu = Precision.choose("float32", torch.device("cpu")), torch.device("cpu")

    def of(name: str) -> tuple[Shape, dict[str, Any]]:
        card = find(name)
        shape = shape_of(card, precision, cpu)
        if shape.name not in tuning.answers():
            tuning.settle(tuning.TUNED, lambda: shape, partial(ways_of, card, precision, cpu))
        return shape, tuning.answers()[shape.name]["seconds"]

    # of one class of sizes; the second generation runs one pass and Nano two
    (second, few), (first, more) = of("nano2-t2v"), of("nano-t2v")
    assert (second.width, tuning._power(second.tokens)) == (first.width, tuning._power(first.tokens))
    assert "guidance" in more and "guidance" not in few


def test_networks_that_differ_in_depth_alone_share_an_answer() -> None:
    card = find("nano-t2v")
    depth = card.part("dit").depth
    assert depth is not None

    def by(**params: int) -> str:
        return probe.measured(replace(card, dit=replace(card.dit, params={**card.dit.params, **params})))

    usual = probe.measured(card)
    assert by(**{depth.name: 2}) == usual and by(ff_dim=64) != usual
    unguided = replace(card, sampling=replace(card.sampling, guidance=1.0))
    assert probe.measured(unguided) != usual


def test_a_way_must_be_clearly_faster(cache: Path, seconds: dict[str, float]) -> None:
    seconds |= {"torch": 0.97, "math": 0.9}
    assert tuning.settle(tuning.TUNED, lambda: SHAPE) == Choices(attention="math")


@pytest.mark.parametrize("text", ["", "[]", '{"x": {"chosen": {"linear": "rm -rf"}}}', '{"x": 1}'])
def test_a_damaged_file_is_as_none(cache: Path, text: str) -> None:
    place = tuning.path()
    assert place is not None
    place.parent.mkdir()
    place.write_text(text)
    assert tuning.answers() == {}


def test_without_a_cache_nothing_is_kept(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> None:
    monkeypatch.setenv("KANDINSKY_CACHE", "off")
    seconds["torch"] = 0.5
    assert tuning.settle(tuning.TUNED, lambda: SHAPE) == Choices(linear="torch")
    assert tuning.path() is None and tuning.answers() == {} and not tuning.forget()


def test_every_way_is_measured_and_gives_the_same_up_to_rounding() -> None:
    works = tuning._works(SHAPE)
    assert [way for way in works["attention"] if way != "native"] == ["sdpa", "math"] and set(works["linear"]) == {
        "onednn",
        "torch",
    }
    for ways in works.values():
        first, *others = (work() for work in ways.values())
        for other in others:
            torch.testing.assert_close(other, first, rtol=1e-4, atol=1e-5)
    taken = tuning._in_turns(works["linear"], torch.device("cpu"), is_alone=True)
    assert all(one >= 0 for one in taken.values()) and linear.library(torch.float32) == linear.usual(torch.float32)


def test_a_choice_is_in_the_recipe_and_the_recipes_command_repeats_it(
    cache: Path, seconds: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds["torch"] = 0.5
    request = {"prompt": "a panda", "seed": 3, "steps": 2, "seconds": 0, "progress": False}
    seen: list[str] = []
    plain = linear._is_for_onednn

    def noted(x: torch.Tensor, weight: torch.Tensor) -> bool:
        seen.append(linear.library(torch.float32))
        return plain(x, weight)

    monkeypatch.setattr(linear, "_is_for_onednn", noted)
    monkeypatch.setattr(linear, "usual", lambda dtype: "onednn")
    usual = kandinsky.load("nano-t2v", device="cpu")(**request)
    assert "backends" not in usual.recipe and set(seen) == {"onednn"}
    seen.clear()
    tuned = kandinsky.load("nano-t2v", device="cpu", backends="tuned")(**request)
    assert tuned.recipe["backends"] == "linear=torch" and "torch" in seen
    words = shlex.split(recipes.command(tuned.recipe))
    assert words[words.index("--backends") + 1] == "linear=torch"
    seconds["torch"] = 2.0
    tuning.forget()  # another machine would choose otherwise; a replay does as the recipe says
    again = kandinsky.load("nano-t2v", device="cpu", backends="linear=torch")(**request)
    assert (again.frames == tuned.frames).all() and again.recipe == tuned.recipe
    assert linear.library(torch.float32) == "onednn", "the choice ends with the run"
    gap = abs(usual.frames.astype(int) - tuned.frames.astype(int))
    assert gap.max() <= 3


def test_pipelines_in_turns_keep_to_their_own(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    plain = linear._is_for_onednn

    def noted(x: torch.Tensor, weight: torch.Tensor) -> bool:
        seen.append(linear.library(torch.float32))
        return plain(x, weight)

    monkeypatch.setattr(products, "block", lambda *given, **named: None)  # layer by layer, so that each is counted
    monkeypatch.setattr(linear, "_is_for_onednn", noted)
    monkeypatch.setattr(linear, "usual", lambda dtype: "usual")
    request = Request("nano-t2v", "a panda", seed=3, steps=2, seconds=0)
    ways = ("torch", "onednn")
    pipes = [kandinsky.load("nano-t2v", device="cpu", backends=f"linear={way}") for way in ways]
    running = [pipe.engine.run([pipe.resolve(request)]) for pipe in pipes]
    used, ended = dict.fromkeys(ways, 0), False
    while not ended:
        for way, one in zip(ways, running, strict=True):
            seen.clear()
            ended = next(one, None) is None
            assert set(seen) <= {way}, "each keeps to its own"
            used[way] += len(seen)
            assert linear.library(torch.float32) == "usual", "and leaves nothing behind"
    assert used["torch"] == used["onednn"] > 0


def test_a_chosen_attention_is_that_of_the_recipe(cache: Path, seconds: dict[str, float]) -> None:
    seconds["math"] = 0.5
    pipe = kandinsky.load("nano-t2v", device="cpu", backends="tuned")
    job = pipe.resolve(Request("nano-t2v", "a panda"))
    assert pipe.attention_of(job).backend == "math" and "backends" not in pipe.context.settings
    assert pipe.recipe(job)["attention"] == "dense:backend=math"
    pipe = kandinsky.load("nano-t2v", device="cpu", backends="tuned", attention="sdpa")
    assert pipe.attention_of(job).backend == "sdpa", "what was asked for stays"


@pytest.mark.parametrize("way", ["math", "sdpa"])
def test_a_chosen_attention_is_for_sizes_with_dense_attention_alone(way: str) -> None:
    card = find("kandinsky5-pro-t2v-sft-5s")
    sparse = attention_for(card, card.sampling_for(1280, 768), "auto", dense_backend=way)
    assert (sparse.type, sparse.backend) == ("nabla", "auto")
    dense = attention_for(card, card.sampling_for(768, 512), "auto", dense_backend=way)
    assert (dense.type, dense.backend) == ("dense", way)


@pytest.mark.parametrize(("told", "choices"), [("linear=torch", Choices(linear="torch")), ("", Choices())])
def test_a_team_takes_what_its_first_process_found(
    cache: Path, seconds: dict[str, float], told: str, choices: Choices
) -> None:
    seconds["onednn" if told else "torch"] = 0.1  # this process would choose otherwise
    asked: list[str | None] = []

    class Told(Team):
        is_first = False

        def agree(self, value: Any) -> Any:
            asked.append(value)
            return told

    team, device = Told(), torch.device("cpu")
    team.size = 2
    assert _choices(find("nano-t2v"), "tuned", Precision.choose(None, device), device, team) == choices
    assert asked == [None] and tuning.answers() == {}, "it measures nothing"


def test_a_model_of_audio_is_refused(cache: Path, seconds: dict[str, float]) -> None:
    with pytest.raises(RequestError, match="makes audio"):
        kandinsky.load("nano-v2a", device="cpu", backends="tuned")


def test_the_command_measures_shows_and_forgets(
    cache: Path, seconds: dict[str, float], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    seconds["torch"] = 0.5
    assert main(["tune", "nano-t2v", "--device", "cpu"]) == 0
    assert "→ torch" in capfd.readouterr().out
    assert main(["tune", "--show", "--json"]) == 0
    (answer,) = json.loads(capfd.readouterr().out).values()
    assert answer["chosen"] == {"linear": "torch"}
    assert main(["tune", "--clear"]) == 0 and "forgotten" in capfd.readouterr().out
    assert tuning.answers() == {}
