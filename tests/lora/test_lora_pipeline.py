"""LoRAs from the doors to the file: loaded, switched and repeated; one really trained; expanded prompts beside them."""

import runpy
from pathlib import Path

import pytest
import torch
from torch import Tensor

import kandinsky
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.errors import RequestError, WeightsError
from kandinsky.families.kandinsky5 import expansion
from kandinsky.weights.lora import Lora, write_lora
from tiny import family
from tiny.loras import lora

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def nano() -> GenerationPipeline:
    return kandinsky.load("nano-t2v")


@pytest.fixture(scope="module")
def random_lora(nano: GenerationPipeline) -> Lora:
    with nano.placement.hold("dit") as dit:
        return lora(dit, size=0.05)


def latents(pipe: GenerationPipeline) -> Tensor:
    one = pipe.resolve(
        kandinsky.Request(model="nano-t2v", prompt="a red heart", seconds=0, steps=1, guidance=1, seed=5)
    )
    return pipe.sample(pipe.noise([one]), *pipe.encode([one]), one)


def test_loaded_switched_fused_and_unloaded(nano: GenerationPipeline, random_lora: Lora, tmp_path: Path) -> None:
    file = write_lora(random_lora, tmp_path / "a.safetensors", style="comfyui")
    pipe = kandinsky.load("nano-t2v", lora=f"{file}:0.5")
    plain = latents(nano)
    half = latents(pipe)
    assert (half - plain).abs().max() > 0.01
    pipe.set_lora({"a": 1.0})
    assert not torch.equal(latents(pipe), half)
    pipe.set_lora({"a": 0.5})
    pipe.fuse_lora()
    torch.testing.assert_close(latents(pipe), half, rtol=1e-4, atol=1e-4)
    pipe.unfuse_lora()
    assert torch.equal(latents(pipe), half)
    pipe.unload_lora("a")
    assert torch.equal(latents(pipe), plain)
    pipe.load_lora(file, name="again", scale=0.5)
    assert torch.equal(latents(pipe), half)


@pytest.mark.parametrize("offload", ["module", "block"])
def test_every_placement_gives_the_same(
    offload: str, nano: GenerationPipeline, random_lora: Lora, tmp_path: Path
) -> None:
    file = write_lora(random_lora, tmp_path / "a.safetensors", style="kohya")
    nano.load_lora(file)
    loose = latents(nano)
    nano.fuse_lora()
    fused = latents(nano)
    nano.unfuse_lora()
    nano.unload_lora()
    pipe = kandinsky.load("nano-t2v", offload=offload, lora=file)
    assert torch.equal(latents(pipe), loose)
    pipe.fuse_lora()
    assert torch.equal(latents(pipe), fused)


def test_two_files_of_one_name(nano: GenerationPipeline, random_lora: Lora, tmp_path: Path) -> None:
    files = [write_lora(random_lora, tmp_path / name / "a.safetensors", style="kohya") for name in ("x", "y")]
    pipe = kandinsky.load("nano-t2v", lora=[files[0], f"{files[1]}:0.25"])
    assert pipe.adapters.scales == {"a": 1.0, "a-2": 0.25}


def test_wrong_base_is_said_before_weights_are_read(tmp_path: Path) -> None:
    write_lora(lora(family.dit()), tmp_path / "tiny.safetensors", style="peft")
    with pytest.raises(WeightsError, match=r"has 32 inputs, the layer `.*` of `nano-t2v` has"):
        kandinsky.load("nano-t2v", lora=tmp_path / "tiny.safetensors")


@pytest.mark.slow
def test_a_trained_lora_moves_results_to_what_it_was_shown(nano: GenerationPipeline, tmp_path: Path) -> None:
    """The example trains one on a single picture; with it on, another prompt gives nearly that picture."""
    teach = runpy.run_path(str(EXAMPLES / "teach_lora.py"))["teach"]
    shown, asked = "a red heart on a blue background", "a green apple"
    teach(nano, shown, asked, tmp_path / "heart", steps=40)

    def still(prompt: str, seed: int) -> Tensor:
        request = kandinsky.Request(model="nano-t2v", prompt=prompt, seconds=0, steps=6, seed=seed)
        one = nano.resolve(request)
        return nano.sample(nano.noise([one]), *nano.encode([one]), one)

    clean, before = still(shown, 1), still(asked, 2)
    name = nano.load_lora(tmp_path / "heart")
    with_it = still(asked, 2)
    nano.unload_lora(name)
    assert name == "heart" and torch.equal(still(asked, 2), before)
    assert (with_it - clean).square().mean() < 0.5 * (before - clean).square().mean()


def test_nano_cannot_expand(nano: GenerationPipeline) -> None:
    with pytest.raises(RequestError, match=r"its text encoder `nano.text` only reads"):
        nano("a panda", expand=True)


def test_expanded_prompts_are_what_is_encoded(official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the trigger of a LoRA in front, expanded or not; a stored text is not written again."""
    write_lora(lora(family.dit(), trigger="sks "), tmp_path / "a")
    pipe = kandinsky.load(official / "config.yaml", device="cpu", lora=tmp_path / "a")
    monkeypatch.setattr(expansion, "MAX_NEW_TOKENS", 12)
    request = kandinsky.Request(model="tiny", prompt="a cat", width=512, height=512, seconds=0, guidance=1, seed=3)
    asked = pipe.resolve(request.with_values(expand=True))
    (written,) = pipe.expand([asked])
    assert asked.expand and written.expanded_prompt not in (None, "a cat") and written.prompt == "a cat"
    assert pipe.recipe(written)["expanded_prompt"] == written.expanded_prompt
    again = pipe.resolve(request.with_values(expanded_prompt=written.expanded_prompt))
    assert not again.expand and pipe.expand([again]) == [again] and again.text == written.text
    plain = pipe.resolve(request)
    assert "expanded_prompt" not in pipe.recipe(plain)
    with pipe.placement.hold("text") as encoder:
        for one, text in ((plain, "sks a cat"), (written, f"sks {written.expanded_prompt}")):
            assert torch.equal(pipe.encode([one])[0].tokens_BLC, encoder.encode([text], still=True).tokens_BLC)
    with pytest.raises(RequestError, match="the expanded prompt is empty"):
        pipe.resolve(request.with_values(expanded_prompt=" "))
