"""From a real clip to a LoRA that `generate` and Diffusers load; and the gradients of a step against Diffusers'."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

import kandinsky
from kandinsky import catalogue
from kandinsky.cli.main import main
from kandinsky.engine.build import build
from kandinsky.engine.options import RunOptions
from kandinsky.engine.request import resolve
from kandinsky.media.video import read_video
from kandinsky.model.denoiser import Known
from kandinsky.model.values import Request, TextEmbeddings
from kandinsky.train.denoiser import DenoiserObjective
from kandinsky.train.denoising import Denoising, Given
from kandinsky.train.model_recipe import Batch
from kandinsky.train.objective import Rng
from kandinsky.train.recipe import run_recipe
from kandinsky.train.times import Times
from tiny import catalogue as tiny_catalogue
from tiny import family
from tiny.alignment import OurTimes, exact_rotation

__all__ = ["exact_rotation"]
CLIP = Path(__file__).parents[3] / "shared" / "media" / "kandinsky4_v2a_input.mp4"


@pytest.fixture
def model(folder_of: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The tiny Kandinsky 5 at sizes that take milliseconds; the same weights lie in the folders of Diffusers."""
    cards = tmp_path / "cards"
    cards.mkdir()
    kind, base, more = tiny_catalogue.KANDINSKY5["tiny-t2v"]
    weights = folder_of("t2v", "official") / "weights"
    (cards / "tiny-t2v.toml").write_text(tiny_catalogue.card5("tiny-t2v", kind, base, more, weights))
    monkeypatch.setenv("KANDINSKY_CARDS", str(cards))
    return "tiny-t2v"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    if not CLIP.is_file():
        pytest.skip("the shared folder is not beside this checkout")
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copy(CLIP, folder / "clip.mp4")
    (folder / "clip.txt").write_text("a train passes through a station")
    return folder


def recipe(data: Path, model: str, out: Path, **more: object) -> Path:
    values = {
        "kind": "denoiser",
        "model": model,
        "out": str(out),
        "data": {"source": str(data), "size": "96x64", "seconds": 0.4, "batch": 2},
        "adapter": {"rank": 4, "trigger": "tr41n, ", "formats": ["official", "diffusers", "peft"]},
        "loop": {"steps": 30, "lr": 1e-2, "warmup": 1, "bf16": False, "log_every": 1, "ema": 0.5},
        **more,
    }
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_captioned_clip_becomes_a_lora_for_both_libraries(
    data: Path, model: str, tmp_path: Path, diffusers_folder: Path
) -> None:
    written = run_recipe(recipe(data, model, tmp_path / "run"))
    assert written == tmp_path / "run" / "lora" / "lora.safetensors" and written.with_name("config_lora.json").is_file()
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.85 * losses[0], losses

    def frames(*loras: str) -> np.ndarray:
        target = tmp_path / "clip.mp4"
        words = ["generate", "a train", "-m", model, "--size", "64x64", "--seconds", "0.2", "--steps", "2"]
        words += ["--seed", "3", "-o", str(target), "--device", "cpu"]
        for one in loras:
            words += ["--lora", one]
        assert main(words) == 0
        return read_video(target).frames

    plain, tuned = frames(), frames(str(written.parent))
    assert not np.array_equal(plain, tuned)
    assert np.array_equal(tuned, frames(str(tmp_path / "run" / "peft")))
    pipe = kandinsky.load(model, device="cpu")
    pipe.load_lora(written.parent)
    assert pipe.adapters.trigger == "tr41n, "

    from diffusers import Kandinsky5T2VPipeline, Kandinsky5Transformer3DModel

    theirs = Kandinsky5T2VPipeline(
        transformer=Kandinsky5Transformer3DModel.from_pretrained(diffusers_folder / "transformer"),
        vae=family.vae(),
        text_encoder=family.qwen(),
        tokenizer=None,
        text_encoder_2=family.clip(),
        tokenizer_2=None,
        scheduler=OurTimes(),
    )
    theirs.load_lora_weights(tmp_path / "run" / "diffusers")
    state = load_file(written)
    ours = {name: tensor.float() for name, tensor in state.items()}
    layer = "visual_transformer_blocks.1.cross_attention.to_value"
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    key = f"base_model.model.{layer}.lora_{{}}.default.weight"
    base = family.dit().get_submodule(layer)(x)
    expected = base + x @ ours[key.format("A")].T @ ours[key.format("B")].T
    torch.testing.assert_close(theirs.transformer.get_submodule(layer)(x), expected, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_the_same_loss_around_diffusers(
    exact_rotation: None, model: str, diffusers_folder: Path
) -> None:
    """Our objective with a given first frame, batch and times drawn by it, against ten lines around Diffusers."""
    source = catalogue.source_of(model)
    context = build(source.card, RunOptions(device="cpu", dtype="float32", only=("dit",)), root=source.root)
    job = resolve(
        Request(source.card.id, "any", seconds=0.4, width=96, height=64, seed=0), source.card, needs_image=False
    )
    denoising = Denoising(context, job)
    network = family.dit().requires_grad_(True)
    generator = torch.Generator().manual_seed(7)
    clean = torch.randn(2, 3, 8, 12, 4, generator=generator)
    text = TextEmbeddings(torch.randn(2, 6, 32, generator=generator), torch.randn(2, 24, generator=generator))
    mask = torch.zeros(2, 3, 1, 1, 1, dtype=torch.bool)
    mask[1, 0] = True
    batch = Batch(clean, Given(text, Known({"video": clean}, {"video": mask})), range(2), 2)
    objective = DenoiserObjective(denoising, network, lambda *_: batch, Times())  # type: ignore[arg-type]
    rng = Rng(1, 5)
    network.zero_grad(set_to_none=True)
    ours = objective.loss("network", batch, rng).value
    ours.backward()

    from diffusers import Kandinsky5Transformer3DModel

    theirs = Kandinsky5Transformer3DModel.from_pretrained(diffusers_folder / "transformer")
    noise, t = batch.noise(rng), Times().draw(rng, range(2), 2, shift=job.shift)
    losses = []
    for i in range(2):
        x = (1 - t[i]) * clean[i : i + 1] + t[i] * noise[i : i + 1]
        x = torch.where(mask[i : i + 1], clean[i : i + 1], x)
        channels = torch.cat((x, torch.zeros_like(x), mask[i : i + 1].expand(1, 3, 8, 12, 1).float()), dim=-1)
        places = [torch.arange(3), torch.arange(4), torch.arange(6)]
        v = theirs(channels, text.tokens_BLC[i : i + 1], t[i : i + 1] * 1000, text.pooled_BC[i : i + 1], places,
                   torch.arange(6), scale_factor=job.sampling.rope_scale, return_dict=False)  # fmt: skip
        error = ((v[0] if isinstance(v, tuple) else v) - (noise - clean)[i : i + 1]).square()
        losses.append(error[(~mask[i : i + 1]).expand_as(error)].mean())
    loss = torch.stack(losses).mean()
    loss.backward()
    torch.testing.assert_close(ours, loss, rtol=1e-5, atol=1e-6)
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    found: dict[str, Tensor | None] = {name: p.grad for name, p in network.named_parameters()}
    network.requires_grad_(False)
    assert expected.keys() == found.keys()
    norm = torch.stack([g.norm() for g in expected.values() if g is not None]).norm()
    for name, gradient in expected.items():
        mine = found[name]
        assert gradient is not None and mine is not None and gradient.abs().max() > 0, name
        assert (mine - gradient).norm() <= 2e-4 * gradient.norm() + 1e-6 * norm, name
