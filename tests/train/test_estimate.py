"""What a recipe takes, told before anything is read."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kandinsky import catalogue
from kandinsky.cli.main import main
from kandinsky.model.cost import PROMPT_TOKENS
from kandinsky.ops.attention_spec import AttentionSpec
from kandinsky.runtime.budget import gigabytes
from kandinsky.train.estimate import Estimate, Shape, bare, estimate, of_recipe
from kandinsky.train.loop import Learner, LoopSettings
from kandinsky.train.model_recipe import ModelRecipe
from kandinsky.train.objective import Update
from kandinsky.train.recipe import read_settings
from kandinsky.train.scale import Scale, Scaling

CARD = catalogue.find("nano-t2v")
LATENT = (3, 12, 12, 48)


@cache
def of_nano(**more: Any) -> Estimate:
    shape = more.pop("shape", Shape(LATENT))
    return estimate(CARD, shape, attention=AttentionSpec(), condition="coordinates", **more)


def test_parameters_and_operations_are_those_of_the_network() -> None:
    found = of_nano(bf16=False)
    with torch.device("meta"):
        count = sum(p.numel() for p in bare(CARD).parameters())
    assert found.parameters == found.trained == count and found.weights == 4 * count and found.states == 8 * count
    flops = CARD.part("dit").flops
    assert flops is not None
    with torch.device("meta"):
        params = bare(CARD).params
    once = flops()(params, LATENT[:3], PROMPT_TOKENS)
    assert 2.5 * once < found.flops < 3.3 * once  # forwards, and twice as much backwards but for inputs
    assert found.tokens == 3 * 12 * 12 // 4  # patches of 2 x 2


def test_what_is_kept_for_the_way_back_is_what_autograd_keeps() -> None:
    """Against a real pass: bytes of what the graph holds, weights left out."""
    net = bare(CARD).requires_grad_(True)
    from kandinsky.families.kandinsky5.denoiser import bind
    from kandinsky.model.denoiser import VIDEO, Known, Pass
    from kandinsky.model.values import TextEmbeddings

    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    widths = net.params.text_widths
    text = TextEmbeddings(torch.randn(1, PROMPT_TOKENS, widths[0]), torch.randn(1, widths[1]))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = bind(net, Known(), Pass(text, condition="coordinates"))({VIDEO: torch.randn(1, *LATENT)}, torch.rand(1))
        out[VIDEO].pow(2).mean()
    assert of_nano(bf16=False).activations == pytest.approx(sum(kept.values()), rel=0.1)


@pytest.mark.parametrize(
    ("model", "activations", "blocks"),
    [
        ("nano-t2v", "kept", 4),
        ("nano-t2v", "full", 4),
        ("nano-t2v", "blocks", 7),
        ("nano-t2v", "operations", 4),
        ("kandinsky4-t2v-flash", "kept", 3),
    ],
)
@pytest.mark.slow
def test_blocks_that_are_alike_need_not_all_be_traced(
    model: str, activations: str, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = catalogue.find(model)
    part, small = (
        card.part("dit"),
        {"model_dim": 32, "ff_dim": 48, "time_dim": 16, "axes_dims": (4, 6, 6), "in_text_dim": 24},
    )
    assert part.depth is not None
    params = {**card.dit.params, **(small if model.startswith("kandinsky4") else {}), part.depth.name: blocks}
    card = dataclasses.replace(card, dit=dataclasses.replace(card.dit, params=params))

    def trained(net: torch.nn.Module) -> None:
        scale = Scale(activations=activations, every=2)
        assert part.split is not None
        Scaling(scale).spare(list(part.split.rules().blocks(net)))

    def of(every: int) -> Estimate:
        latent = (2, 4, 4, int(card.dit.params["in_visual_dim"]))
        return estimate(card, Shape(latent), attention=AttentionSpec(), trained=trained, every=every)

    every = 2 if activations == "blocks" else 1
    few = of(every)
    monkeypatch.setattr("kandinsky.train.estimate.traced_in_depth", lambda traced_with, *_: traced_with(None))
    assert of(every) == few


@pytest.mark.slow
def test_memory_grows_with_the_batch_and_falls_with_shards() -> None:
    one, many = of_nano(), of_nano(shape=Shape(LATENT, batch=8, at_once=4, processes=2, shards=2))
    assert many.activations == 4 * one.activations and many.weights == one.weights // 2
    assert of_nano(shape=Shape(LATENT, context=2)).activations == one.activations // 2
    assert many.flops == 8 * one.flops and many.seconds == pytest.approx(4 * one.seconds)
    short = of_nano(memory=one.weights // 2)
    assert short.runs_out is not None and "weights" in short.runs_out and of_nano(memory=10**12).runs_out is None


@pytest.mark.slow
def test_a_recipe_is_checked_and_nothing_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    values: dict[str, Any] = {
        "kind": "denoiser", "model": "nano-t2v", "out": str(tmp_path / "run"),
        "data": {"source": str(tmp_path / "absent"), "batch": 4}, "loop": {"steps": 10, "lr": 1e-3},
    }  # fmt: skip

    def activations(**more: Any) -> float:
        recipe.write_text(yaml.safe_dump(values | more))
        assert main(["train", str(recipe), "--check", "--memory", "24GB"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == [
            "recipe", "parameters", "tokens", "operations", "memory", "time", "fits",
        ]  # fmt: skip
        assert lines[-1].endswith("yes")
        return float(lines[4].split("activations ")[1].split()[0])

    whole = activations()
    assert activations(scale={"activations": "full"}) < whole / 2
    assert activations(adapter={"rank": 4}) <= whole * 1.1
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]
    for wrong in (["--memory", "much"], ["--processes", "0"]):
        assert main(["train", str(recipe), "--check", *wrong]) == 2
    assert main(["train", str(recipe), "--memory", "24GB"]) == 2
    assert "belong to `--check`" in capsys.readouterr().err


@pytest.mark.slow
def test_an_average_of_no_decay_is_neither_kept_nor_counted(tmp_path: Path) -> None:
    learner = Learner(Update("network", torch.nn.Linear(2, 2)), LoopSettings(steps=1, lr=0.1, ema=0), "cpu")
    assert not learner.ema and torch.equal(learner.result()["weight"], learner.weights["weight"])
    values = {"model": "nano-t2v", "out": "run", "data": {"source": "absent"}}
    path = tmp_path / "recipe.yaml"

    def found(kind: str, ema: float, **more: Any) -> Estimate:
        settings = read_settings({"kind": kind, **values, "loop": {"steps": 1, "lr": 0.1, "ema": ema}, **more}, path)
        assert isinstance(settings, ModelRecipe)
        return of_recipe(settings, memory=10**12)

    plain, none, ladd = found("denoiser", 0.9), found("denoiser", 0), found("ladd", 0.9)
    sampled = found("denoiser", 0.9, samples={"prompts": ["a cat"], "every": 5})
    assert plain.average == 4 * plain.trained and none.average == 0
    # of the encoders of a folder the larger, before; of the autoencoder where it decodes while the network learns
    assert plain.encoding > 0 and f"before it {gigabytes(plain.encoding)} for encoders" in plain.lines()[3]
    assert "encode the data before" in (dataclasses.replace(plain, encoding=10**13).runs_out or "")
    assert plain.autoencoder == 0 and sampled.autoencoder > 0 and sampled.total == plain.total + sampled.autoencoder
    assert plain.lines()[-1].endswith(" yes") and ladd.lines()[-1].endswith("alone, without teacher, discriminator")
