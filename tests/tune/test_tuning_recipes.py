"""The recipes of fine-tuning, run at tiny size: the shipped files with the model, the data and the length changed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

import kandinsky
from kandinsky.errors import RequestError, WeightsError
from kandinsky.train.recipe import read_recipe, run_recipe
from kandinsky.weights import soup
from tiny import catalogue as tiny_catalogue
from tiny import sound

RECIPES = Path(__file__).parents[2] / "recipes"
STEPS = {"steps": 2, "log_every": 1, "warmup": 1, "accumulate": 1, "bf16": False}


def changed(name: str, out: Path, **tables: Any) -> Path:
    """A shipped recipe with some values of its tables in the place of its own."""
    values = read_recipe(RECIPES / name)
    for key, value in ({"out": str(out), "loop": STEPS} | tables).items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(values))
    return path


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.fixture
def model(folder_of: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    cards = tmp_path / "cards"
    cards.mkdir()
    kind, base, more = tiny_catalogue.KANDINSKY5["tiny-t2v"]
    weights = folder_of("t2v", "official") / "weights"
    (cards / "tiny-t2v.toml").write_text(tiny_catalogue.card5("tiny-t2v", kind, base, more, weights))
    monkeypatch.setenv("KANDINSKY_CARDS", str(cards))
    return "tiny-t2v"


def folder(place: Path, seed: int) -> Path:
    place.mkdir()
    frames = np.random.default_rng(seed).integers(0, 255, (20, 64, 96, 3), dtype=np.uint8)
    kandinsky.Video(frames, fps=24.0, seed=0).save(place / "a.mp4")
    (place / "a.txt").write_text(f"noise {seed}")
    return place


def test_the_lora_of_kandinsky5_lite(model: str, tmp_path: Path) -> None:
    data = {"source": str(folder(tmp_path / "data", 0)), "size": "96x64", "seconds": 0.4}
    written = run_recipe(changed("kandinsky5-lite-lora.yaml", tmp_path / "run", model=model, data=data))
    config = json.loads(written.with_name("config_lora.json").read_text())
    assert (config["r"], config["lora_alpha"], len(config["target_modules"])) == (32, 32, 26)
    assert (tmp_path / "run" / "diffusers" / "pytorch_lora_weights.safetensors").is_file()


def test_domains_of_kandinsky5_lite_become_a_soup(model: str, tmp_path: Path) -> None:
    written = []
    for seed, domain in enumerate(("animals", "food")):
        data = {"source": str(folder(tmp_path / domain, seed)), "size": "96x64", "seconds": 0.2, "batch": 1}
        out = tmp_path / f"run-{domain}"
        written.append(run_recipe(changed("kandinsky5-lite-sft.yaml", out, model=model, data=data)))
        assert all(math.isfinite(loss) for loss in losses(out))
    soup.make(written, tmp_path / "soup.safetensors")
    pipe = kandinsky.load(model, device="cpu")
    video = pipe("noise", seed=1, steps=1, seconds=0.2, width=64, height=64)
    assert video.frames.shape[0] == 5


@pytest.mark.parametrize("name", ["4x8x8", "8x8x8", "8x16x16"])
def test_autoencoders_of_every_ratio(name: str, tmp_path: Path) -> None:
    recipe = read_recipe(RECIPES / f"autoencoder-{name}.yaml")
    params = recipe["network"]["params"]
    params |= {"block_out_channels": [4] * len(params["block_out_channels"]), "norm_num_groups": 2,
               "layers_per_block": 1, "latent_channels": 4}  # fmt: skip
    data = {"source": str(folder(tmp_path / "data", 0)), "size": "32x32", "frames": 17, "batch": 1, "image_share": 0.0}
    path = changed(f"autoencoder-{name}.yaml", tmp_path / "run", network={"params": params}, data=data,
                   losses={"width": 4, "adversarial_from": 1})  # fmt: skip
    written = run_recipe(path)
    assert json.loads((written / "config.json").read_text())["temporal_compression_ratio"] == int(name[0])
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "run"))


def states(file: Path, *, count: int = 3, **changes: torch.Tensor) -> Path:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    width = sound.WIDTH
    tensors = {
        "latents": drawn(count, 4, 8, 4),
        "image_embeds": drawn(count, 3, width),
        "prompt_embeds": drawn(count, 6, width),
        "negative_image_embeds": drawn(1, 3, width),
        "negative_prompt_embeds": drawn(1, 6, width),
    }
    save_file(tensors | changes, file)
    return file


@pytest.mark.parametrize("adapter", [None, {"rank": 4, "dtype": "float32"}])
def test_sound_of_kandinsky4_learns_what_it_is_given(adapter: object, tmp_path: Path) -> None:
    folder_ = sound.write(tmp_path / "v2a")
    data = {"source": str(states(tmp_path / "data.safetensors", count=1)), "batch": 8}
    loop = STEPS | {"steps": 40, "lr": 1e-2 if adapter else 3e-3, "ema": 0.5}
    recipe = changed("kandinsky4-v2a.yaml", tmp_path / "run", model=str(folder_), data=data, loop=loop, adapter=adapter)
    written = run_recipe(recipe)
    found = losses(tmp_path / "run")
    assert sum(found[-5:]) < (0.95 if adapter else 0.8) * sum(found[:5]), found
    assert written.name == ("lora.safetensors" if adapter else "dit.safetensors")


def test_data_of_sound_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    folder_ = sound.write(tmp_path / "v2a")
    file = tmp_path / "data.safetensors"
    recipe = changed(
        "kandinsky4-v2a.yaml", tmp_path / "run", model=str(folder_), data={"source": str(file), "batch": 1}
    )
    for changes, said in (
        ({"latents": torch.zeros(3, 4)}, "`latents` of 4 axes"),
        ({"prompt_embeds": torch.zeros(2, 6, 8)}, "one for each latent"),
        ({"negative_image_embeds": torch.zeros(1, 4, 8)}, "as large as `negative_image_embeds`"),
        ({"latents": torch.full((3, 4, 8, 4), float("nan"))}, "NaN"),
    ):
        states(file, **changes)
        with pytest.raises(WeightsError, match=said):
            run_recipe(recipe)
    with pytest.raises(RequestError, match="makes no sound"):
        run_recipe(changed("kandinsky4-v2a.yaml", tmp_path / "other", model="nano-t2v", data={"source": str(file)}))
    with pytest.raises(RequestError, match=r"add up to 1.2"):
        run_recipe(changed("kandinsky4-v2a.yaml", tmp_path / "more", data={"drop_text": 1.0}))
