"""Training of autoencoders: pieces with memory, every ratio, each loss, from files to weights that are read again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import kandinsky
from kandinsky.catalogue import part
from kandinsky.engine.build import bare_network
from kandinsky.errors import RequestError, WeightsError
from kandinsky.model.card import Component
from kandinsky.train.autoencoder import AutoencoderLosses, AutoencoderObjective, Fragments, decoded, encoded
from kandinsky.train.loop import seeded
from kandinsky.train.objective import Portion, Rng
from kandinsky.train.perceptual import PerceptualDistance
from kandinsky.train.recipe import run_recipe
from kandinsky.weights.keymaps import keymap_of
from kandinsky.weights.read import load_into
from tiny.tune_tasks import learned

# (kind, frames, rows and columns of a latent place)
RATIOS = [(kind, t, s) for kind in ("hunyuan", "cogvideox") for t, s in ((4, 8), (8, 8), (8, 16))]


def params(kind: str, temporal: int, spatial: int) -> dict[str, Any]:
    levels = int(math.log2(spatial)) + 1
    names = {"hunyuan": "HunyuanVideo", "cogvideox": "CogVideoX"}[kind]
    values: dict[str, Any] = {
        "down_block_types": [f"{names}DownBlock3D"] * levels,
        "up_block_types": [f"{names}UpBlock3D"] * levels,
        "block_out_channels": [8] * levels,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 2,
        "temporal_compression_ratio": temporal,
    }
    return values | ({"spatial_compression_ratio": spatial} if kind == "hunyuan" else {})


def network(kind: str, temporal: int = 4, spatial: int = 8) -> nn.Module:
    given = params(kind, temporal, spatial)
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    with seeded(0):
        return bare_network(part(kind), Component(kind, (), params=given), Path())


def clip(frames: int, height: int, width: int) -> torch.Tensor:
    """A square that moves over a gradient."""
    t = torch.linspace(-1, 1, frames)[:, None, None]
    rows, columns = torch.linspace(-1, 1, height)[None, :, None], torch.linspace(-1, 1, width)[None, None]
    inside = ((rows - 0.5 * t).abs() < 0.4) & (columns.abs() < 0.4)
    plain = (rows + columns + 0 * t) / 2
    return torch.stack((plain, inside.float() * 2 - 1, -plain), -1)[None]


@pytest.mark.parametrize(("kind", "temporal", "spatial"), RATIOS)
def test_gradients_go_through_all_pieces(kind: str, temporal: int, spatial: int) -> None:
    net, piece = network(kind, temporal, spatial), 2 * temporal
    video = clip(1 + 2 * piece, spatial * 2, spatial * 2).requires_grad_(True)
    mean, logvar = encoded(net, video, piece)  # type: ignore[arg-type]
    assert mean.shape == logvar.shape == (1, 5, 2, 2, 4)
    made = decoded(net, mean, piece // temporal)  # type: ignore[arg-type]
    assert made.shape == video.shape
    made[:, -1].sum().backward()  # the last frame depends on the first piece
    assert video.grad is not None and video.grad[:, 0].abs().max() > 0
    assert all(p.grad is not None for name, p in net.named_parameters() if "decoder" in name)
    before = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    net.zero_grad()
    memory, found = None, []  # without computing pieces twice
    for start, stop in ((0, 1 + piece), (1 + piece, 1 + 2 * piece)):
        one, _, memory = net.encode_piece(video.detach()[:, start:stop], memory)
        found.append(one)
    latents, memory, last = torch.cat(found, 1), None, None
    for start, stop in ((0, 3), (3, 5)):
        last, memory = net.decode_piece(latents[:, start:stop], memory)
    last[:, -1].sum().backward()
    after = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["hunyuan", "cogvideox"])
def test_a_clip_of_one_piece_is_coded_as_in_generation(kind: str) -> None:
    net = network(kind).eval()
    video = clip(9, 16, 16)
    with torch.no_grad():
        mean, logvar = encoded(net, video, 8)  # type: ignore[arg-type]
        expected = net.posterior(video)
        torch.testing.assert_close((mean, logvar), expected, rtol=1e-4, atol=1e-5)
        pixels = net.decode(mean * net.params.scaling_factor)
        torch.testing.assert_close(decoded(net, mean, 2), pixels, rtol=1e-3, atol=1e-4)  # type: ignore[arg-type]


def test_pieces_of_the_hunyuan_kind_differ_from_the_whole_by_norms_alone() -> None:
    """With norms that look at one place only, convolutions with a memory give what they give of the whole clip."""
    net = network("hunyuan")
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    for coder in (net.net.encoder, net.net.decoder):
        coder.mid_block.attentions = nn.ModuleList([None] * len(coder.mid_block.attentions))
    video = clip(25, 16, 16)
    with torch.no_grad():
        mean, _ = encoded(net, video, 8)  # type: ignore[arg-type]
        torch.testing.assert_close(mean, net.posterior(video)[0], rtol=1e-4, atol=1e-5)
        whole = net.decode(mean * net.params.scaling_factor)
        torch.testing.assert_close(decoded(net, mean, 2), whole, rtol=1e-4, atol=1e-5)  # type: ignore[arg-type]


class Same:
    """Batches of one clip."""

    def __init__(self, video: torch.Tensor) -> None:
        self.video = video

    def __call__(self, step: int, rng: Rng, portion: Portion) -> Fragments:
        return Fragments(self.video, [0])


def objective(losses: AutoencoderLosses, kind: str = "hunyuan") -> AutoencoderObjective:
    return AutoencoderObjective(network(kind), 4, Same(clip(17, 16, 16)), losses, 8)


@pytest.mark.parametrize("kind", ["hunyuan", "cogvideox"])
def test_a_clip_is_learned_with_all_losses(kind: str, tmp_path: Path) -> None:
    losses = AutoencoderLosses(
        reconstruction="charbonnier", perceptual=0.05, kl=1e-5, temporal=0.1, outlier=0.01, adversarial=0.01,
        adversarial_from=15, width=4,
    )  # fmt: skip
    weights, look = learned(objective(losses, kind), tmp_path, 40, lr=1e-2)
    assert look("reconstruction")[-1] < 0.7 * look("reconstruction")[0], look("reconstruction")
    assert look("psnr")[-1] > look("psnr")[0] + 3
    for name in ("perceptual", "kl", "temporal", "outlier"):
        assert math.isfinite(look(name)[-1])
    assert len(look("adversarial")) == 25 and set(weights) == {"autoencoder", "discriminator"}


def test_each_term_is_what_it_says() -> None:
    made = objective(AutoencoderLosses(perceptual=0, kl=2.0, temporal=3.0, outlier=5.0, adversarial=0))
    video, shift = clip(5, 8, 8), torch.zeros(1, 5, 8, 8, 3)
    shift[:, 2] = 0.5
    latents = torch.randn(1, 4, 30, 30, 2, generator=torch.Generator().manual_seed(0))
    zeros = torch.zeros_like(latents)
    terms = made.terms(video, video + shift, zeros, zeros, latents)
    assert float(terms["reconstruction"]) == pytest.approx(0.1) and float(terms["kl"]) == 0
    assert float(terms["temporal"]) == pytest.approx(3 * 0.25)
    far = latents.clone()
    far[0, 0, 0, 0] = 50.0
    more = made.terms(video, video, zeros + 1, zeros, far)
    assert float(more["kl"]) == pytest.approx(1.0) and float(more["outlier"]) > 10 * float(terms["outlier"])
    assert float(more["reconstruction"]) == 0


def test_perceptual_distance_sees_what_pixels_do_not(tmp_path: Path) -> None:
    net = PerceptualDistance()
    video = clip(2, 32, 32)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(video.shape, generator=generator) * 0.1
    brighter = video + noise.square().mean().sqrt()
    assert float(net(video, video)) == 0
    assert float(net(video, video + noise)) > float(net(video, brighter))
    assert torch.equal(PerceptualDistance().stages[0][0].weight, net.stages[0][0].weight)
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "vgg.pt")
    with pytest.raises(WeightsError, match=r"`features.0.weight` of shape \[64, 3, 3, 3\]"):
        PerceptualDistance(tmp_path / "vgg.pt")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    frames = ((clip(40, 32, 48)[0] + 1) * 127).round().to(torch.uint8).numpy()
    kandinsky.Video(np.ascontiguousarray(frames), fps=24.0, seed=0).save(folder / "square.mp4")
    return folder


def recipe(tmp_path: Path, data: Path, **more: Any) -> Path:
    values: dict[str, Any] = {
        "kind": "autoencoder", "out": str(tmp_path / "run"),
        "network": {"kind": "cogvideox", "params": params("cogvideox", 8, 16)},
        "data": {"source": str(data), "size": "32x32", "frames": 33, "piece": 16, "most_stride": 2, "image_share": 0.3},
        "losses": {"perceptual": 0, "width": 4},
        "loop": {"steps": 2, "lr": 1e-3, "warmup": 1, "bf16": False, "log_every": 1},
    }  # fmt: skip
    for key, value in more.items():
        table, _, name = key.partition("__")
        values[table] = values[table] | {name: value}
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(values))
    return path


def test_from_files_to_weights_that_are_read_again(tmp_path: Path, data: Path) -> None:
    written = run_recipe(recipe(tmp_path, data))
    config = json.loads((written / "config.json").read_text())
    assert config["_class_name"] == "AutoencoderKLCogVideoX" and config["temporal_compression_ratio"] == 8
    net = network("cogvideox", 8, 16)
    load_into(net, written, keymap=keymap_of(part("cogvideox")))
    from diffusers import AutoencoderKLCogVideoX

    theirs = AutoencoderKLCogVideoX.from_pretrained(written)
    for name, p in theirs.state_dict().items():
        assert torch.equal(p, net.net.state_dict()[name])
    (tmp_path / "again").mkdir()
    again = recipe(tmp_path / "again", data, network__weights=str(written), loop__steps=1)
    assert run_recipe(again) == tmp_path / "again" / "run" / "vae"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"data__size": "40x32"}, "multiples of 16"),
        ({"data__piece": 8, "data__frames": 33}, "multiple of 16"),
        ({"data__frames": 40}, "1 + a multiple of 16"),
        ({"data__source": "absent"}, "does not exist"),
        ({"network__kind": "vqgan"}, "`hunyuan` or `cogvideox`"),
        ({"network__params": {"latent_chanels": 3}}, "latent_channels"),
        ({"losses__kl": -1}, "0 or more"),
    ],
)
def test_what_does_not_fit_is_refused(more: dict[str, Any], said: str, tmp_path: Path, data: Path) -> None:
    with pytest.raises(RequestError) as refused:
        run_recipe(recipe(tmp_path, data, **more))
    assert said in str(refused.value) and not [*(tmp_path / "run").glob("checkpoint-*")]
