"""The training loop and nano's objectives: resuming, schedule, averages, curriculum."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from kandinsky.errors import RequestError
from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D, DiTParams
from kandinsky.families.nano.autoencoder import NanoAutoencoder
from kandinsky.families.nano.text import NanoTextNetwork
from kandinsky.lab.nano.flow import FlowObjective, Stage
from kandinsky.lab.nano.train import DenoiserRecipe, PackageRecipe, Packed, TextRecipe, package
from kandinsky.train import loop
from kandinsky.train.curve import read_journals
from kandinsky.train.objective import One, Rng
from kandinsky.train.optimisers import Optimiser
from kandinsky.train.recipe import Run, read_recipe, read_settings, run_recipe
from kandinsky.weights.read import load_into, read_state
from kandinsky.weights.untrusted import read_table
from kandinsky.weights.write import write_state
from tiny.training import WORDS, latents

DIT = DiTParams(
    in_visual_dim=4, out_visual_dim=4, in_text_dim=8, in_text_dim2=8, time_dim=16, model_dim=16, ff_dim=32,
    num_text_blocks=1, num_visual_blocks=1, axes_dims=(4, 6, 6),
)  # fmt: skip


def objective(folder: Path, steps: int) -> FlowObjective:
    torch.manual_seed(3)
    stages = [Stage(0.5, 1, 4), Stage(1.0, 3, 2)]
    return FlowObjective(latents(folder), NanoTextNetwork(WORDS), DIT, stages, steps=steps, drop_text=0.3)


def settings(steps: int) -> loop.LoopSettings:
    return loop.LoopSettings(steps=steps, lr=1e-2, warmup=2, bf16=False, log_every=1)


def test_a_resumed_run_is_bit_equal_to_one_that_never_stopped(tmp_path: Path) -> None:
    whole = loop.run(One(objective(tmp_path, 8)), settings(8), tmp_path / "whole")["network"]
    first = objective(tmp_path, 8)
    with pytest.raises(KeyboardInterrupt):

        def stop(line: dict[str, float]) -> None:
            if line["step"] == 5:
                raise KeyboardInterrupt

        every_step = loop.LoopSettings(steps=8, lr=1e-2, warmup=2, bf16=False, log_every=1, checkpoint_minutes=0)
        loop.run(One(first), every_step, tmp_path / "cut", on_log=stop)
    again = loop.run(One(objective(tmp_path, 8)), settings(8), tmp_path / "cut")["network"]
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut/log.jsonl").read_text().splitlines()]
    assert steps[-1] == 8 and len(steps) >= 8


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    lines: list[dict[str, float]] = []
    loop.run(One(objective(tmp_path, 120)), settings(120), tmp_path / "run", on_log=lines.append)
    losses = [line["loss"] for line in lines]
    assert np.mean(losses[-10:]) < 0.95 * np.mean(losses[:10])


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    loop.run(One(objective(tmp_path, 1)), settings(1), tmp_path / "run")
    other = objective(tmp_path, 2)
    other.network = torch.nn.Linear(2, 2)  # type: ignore[assignment]
    with pytest.raises(RequestError, match="another network"):
        loop.run(One(other), settings(2), tmp_path / "run")


def test_curriculum_and_dropped_text(tmp_path: Path) -> None:
    made = objective(tmp_path, 10)
    early, late = made.batch(0, Rng(0, 0).generator(0)), made.batch(9, Rng(0, 9).generator(0))
    assert early.latents_BTHWC.shape == (4, 1, 4, 4, 4)
    assert late.latents_BTHWC.shape == (2, 3, 4, 4, 4)
    assert early.text.tokens_BLC.shape == (4, 6, 8)
    assert not early.given_B.any() and not late.given_B.any()
    nothing = made.words.memories["concept"].tokens_VC[-1]
    silent = made.states(made.slots_MR[:1], torch.tensor([True]), still=False)
    assert torch.equal(silent.tokens_BLC[0, 0], nothing)


def test_a_given_first_frame_is_clean_marked_and_not_learned(tmp_path: Path) -> None:
    """The network sees the first frame as it is; what it says about that frame does not count."""
    path = latents(tmp_path)
    params = dataclasses.replace(DIT, visual_cond=True)
    words = NanoTextNetwork(WORDS)
    made = FlowObjective(path, words, params, [Stage(1.0, 3, 8)], steps=1, image_share=0.5, condition="coordinates")
    batch = made.batch(0, Rng(0, 0).generator(0))
    assert 0 < batch.given_B.sum() < 8
    seen: list[torch.Tensor] = []

    def network(x: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        seen.append(x)
        wrong = torch.zeros_like(x[..., :4])
        wrong[batch.given_B, 0] = 1e6
        return wrong

    with mock.patch.object(made.network, "forward", network):
        loss = made.loss(batch, Rng(0, 0).generator(1))
    (x,) = seen
    assert torch.equal(x[batch.given_B, 0, ..., :4], batch.latents_BTHWC[batch.given_B, 0])
    assert not torch.equal(x[~batch.given_B, 0, ..., :4], batch.latents_BTHWC[~batch.given_B, 0])
    assert torch.equal(x[:, 0, 0, 0, -1] == 1, batch.given_B) and not x[:, 1:, ..., -1].any()
    assert loss.value < 100
    spread = sum(one.error * one.weight for one in loss.timed) / len(batch.given_B)
    assert spread == pytest.approx(float(loss.value.detach()), rel=1e-5)
    assert len({one.weight for one in loss.timed}) == 2  # of clips that begin with a given frame less is learned


def test_rate_rises_stays_and_falls() -> None:
    rates = [Optimiser(lr=1.0, warmup=10, decay=0.2).factor(k, 100) for k in range(100)]
    assert rates[0] == 0.1 and rates[10:80] == [1.0] * 70
    assert rates[-1] == pytest.approx(0.05) and sorted(rates[80:], reverse=True) == rates[80:]


def test_memory_is_the_same_in_every_network() -> None:
    a, b = NanoTextNetwork(WORDS), NanoTextNetwork(WORDS)
    assert torch.equal(a.memories["concept"].tokens_VC, b.memories["concept"].tokens_VC)
    assert a.memories["concept"].tokens_VC.std() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: nonsense", "nano-denoiser"),
        ("a: [", "not valid YAML"),
        ("just words", "is no table"),
        ("out: x", "kind `None`"),
        ("base: no.yaml", "no.yaml` does not"),
    ],
)
def test_bad_recipes(tmp_path: Path, text: str, message: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    with pytest.raises(RequestError, match=message):
        run_recipe(recipe)
    with pytest.raises(RequestError, match="does not exist"):
        run_recipe(tmp_path / "absent.yaml")
    with pytest.raises(RequestError, match="unknown loop setting"):
        loop.LoopSettings.from_dict({"stpes": 3})


def test_shipped_recipes_are_read() -> None:
    root = Path(__file__).parents[2]
    for path in root.joinpath("recipes").glob("*.yaml"):
        values = read_recipe(path)
        settings = read_settings(values, path)
        if isinstance(settings, DenoiserRecipe):
            assert settings.network.in_visual_dim == 48
            # the shipped parts it is trained beside
            load_into(NanoTextNetwork(settings.text.params), root / settings.text.weights)
            assert settings.autoencoder is not None
            load_into(NanoAutoencoder(settings.autoencoder.params), root / settings.autoencoder.weights)
        if isinstance(settings, TextRecipe):
            assert settings.words and (root / settings.words).is_file()


def test_a_recipe_says_what_differs_from_its_base(tmp_path: Path) -> None:
    (tmp_path / "first.yaml").write_text("kind: package\nout: a\nloop: {steps: 3, lr: 1}\n")
    (tmp_path / "second.yaml").write_text("base: first.yaml\nloop: {steps: 5}\n")
    (tmp_path / "third.yaml").write_text("base: second.yaml\nout: c\n")
    assert read_recipe(tmp_path / "third.yaml") == {"kind": "package", "out": "c", "loop": {"steps": 5}}


def test_packaging_stores_what_the_recipe_names_as_int8_and_draws_all_parts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {"matrix": torch.randn(8, 8), "kernel": torch.randn(8, 8, 3, 3), "thin": torch.randn(2, 8)}
    write_state(state, tmp_path / "trained.safetensors")
    for name, steps in (("one", (1, 2, 3, 2, 3, 4)), ("two", (1, 2))):  # the first was resumed at step 1
        lines = [json.dumps({"step": step, "loss": 1 / step}) for step in steps]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    source = {"from": str(tmp_path / "trained.safetensors"), "int8_from": 4}
    journals = [str(tmp_path / f"{name}.jsonl") for name in ("one", "two")]
    values = {
        "kind": "package",
        "out": str(tmp_path / "out"),
        "weights": {"plain": source, "small": source | {"kernels": True}},
        "curves": {"loss.png": {"from": journals, "names": ["loss"], "title": "loss"}},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    out = run_recipe(tmp_path / "recipe.yaml")
    kinds = {name: set(load_file(out / f"{name}.safetensors")) for name in ("plain", "small")}
    assert kinds["plain"] == {*state, "matrix.int8_scale"}
    assert kinds["small"] == {*state, "matrix.int8_scale", "kernel.int8_scale"}
    for name, tensor in read_state(out / "small.safetensors").items():
        torch.testing.assert_close(tensor.float(), state[name], atol=0.02, rtol=0)
    lines = read_journals([Path(journal) for journal in journals])
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in lines] == [1, 1 / 2, 1 / 3, 1 / 4, 1, 1 / 2]
    assert (out / "loss.png").stat().st_size > 500


def test_a_recipe_trains_resumes_and_starts_from_weights(tmp_path: Path) -> None:
    words = write_state(NanoTextNetwork(WORDS).state_dict(), tmp_path / "words.safetensors")
    out = tmp_path / "run"
    out.mkdir()
    latents(out)
    network = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(DIT).items()}
    values = {
        "kind": "nano-denoiser",
        "cache": str(tmp_path),
        "out": str(out),
        "text": {"weights": str(words), "params": asdict(WORDS)},
        "data": {"side": 32, "extras": 0},
        "network": network,
        "stages": [{"until": 1.0, "frames": 3, "batch": 2}],
        "objective": {},
        "loop": {"steps": 3, "lr": 1e-3, "bf16": False, "log_every": 1},
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values))
    first = read_state(run_recipe(recipe))
    assert set(first) == set(DiffusionTransformer3D(DIT).state_dict())
    more = read_state(run_recipe(recipe, steps=5))
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert not torch.equal(first["out_layer.out_layer.weight"], more["out_layer.out_layer.weight"])

    values |= {"start": str(out / "dit.safetensors"), "out": str(tmp_path / "again")}
    values["loop"] = {"steps": 1, "lr": 0.0, "bf16": False, "log_every": 1}
    recipe.write_text(yaml.safe_dump(values))
    (tmp_path / "again").mkdir()
    latents(tmp_path / "again")
    again = read_state(run_recipe(recipe))
    assert all(torch.equal(again[name], more[name]) for name in more)


def test_a_package_recipe_compresses_what_it_names_so(tmp_path: Path) -> None:
    source = tmp_path / "words.json"
    source.write_text('{"a": 1}')
    copies = {"words.json": str(source), "words.json.xz": str(source)}
    out = package(PackageRecipe(out=str(tmp_path / "out"), weights={}, copy=copies), Run(tmp_path / "out"))
    assert (out / "words.json").read_bytes() == source.read_bytes() != (out / "words.json.xz").read_bytes()
    assert read_table(out / "words.json.xz") == {"a": 1}


@pytest.mark.parametrize("kind", ["copy", "weights"])
@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "a/../../escaped", "./escaped"])
def test_a_package_recipe_writes_nothing_outside_its_folder(tmp_path: Path, kind: str, name: str) -> None:
    source = tmp_path / "source.safetensors"
    save_file({"a": torch.ones(2)}, source)
    copies, weights = {"copy": ({name: str(source)}, {}), "weights": ({}, {name: Packed(str(source))})}[kind]
    recipe = PackageRecipe(out=str(tmp_path / "out"), weights=weights, copy=copies)
    with pytest.raises(RequestError, match="plain relative path"):
        package(recipe, Run(tmp_path / "out"))
    assert not [path for path in tmp_path.rglob("*") if "escaped" in path.name]
