"""Training of autoencoders: pieces with memory, every ratio, each loss, from files to weights that are read again."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import kandinsky
from kandinsky.catalogue import part
from kandinsky.engine.build import bare_network
from kandinsky.errors import RequestError, WeightsError
from kandinsky.model.card import Component
from kandinsky.train.autoencoder import (
    AutoencoderLosses,
    AutoencoderObjective,
    FragmentBatches,
    Fragments,
    PixelSettings,
    decoded,
    encoded,
)
from kandinsky.train.data.sources import find
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
@pytest.mark.slow
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


@pytest.mark.slow
def test_from_files_to_weights_that_are_read_again(tmp_path: Path, data: Path) -> None:
    written = run_recipe(recipe(tmp_path, data))
    config = json.loads((written / "config.json").read_text())
    assert config["_class_name"] == "AutoencoderKLCogVideoX" and config["temporal_compression_ratio"] == 8
    net = network("cogvideox", 8, 16)
    load_into(net, written, keymap=keymap_of(part("cogvideox")))
    # the factor is that of its latents
    batches = FragmentBatches(find(data, captions="optional"), PixelSettings(source=str(data), size="32x32", frames=33))
    with torch.no_grad():
        coded = [encoded(net, batches(n, Rng(0, n), Portion()).clip_BTHWC, 16) for n in range(2, 18)]  # type: ignore[arg-type]
    spread = math.sqrt(float(torch.cat([(m.square() + v.exp()).flatten() for m, v in coded]).mean()))
    assert config["scaling_factor"] == pytest.approx(1 / spread, rel=0.05)
    from diffusers import AutoencoderKLCogVideoX

    theirs = AutoencoderKLCogVideoX.from_pretrained(written)
    for name, p in theirs.state_dict().items():
        assert torch.equal(p, net.net.state_dict()[name])
    (tmp_path / "again").mkdir()
    again = recipe(tmp_path / "again", data, network__weights=str(written), loop__steps=1)
    assert run_recipe(again) == tmp_path / "again" / "run" / "vae"
    kept = json.loads((tmp_path / "again" / "run" / "vae" / "config.json").read_text())
    assert kept["scaling_factor"] == 0.7  # denoisers may know it


def film(path: Path, count: int, *, fps: float = 24.0) -> None:
    """A video whose frame k is k grey."""
    frames = np.repeat(np.arange(count, dtype=np.uint8)[:, None, None, None], 32 * 32 * 3).reshape(count, 32, 32, 3)
    kandinsky.Video(2 * frames, fps=fps, seed=0).save(path)


def test_windows_are_read_by_time_and_what_cannot_be_used_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    film(tmp_path / "long.mp4", 120)
    film(tmp_path / "short.mp4", 16)
    (tmp_path / "broken.mp4").write_bytes((tmp_path / "long.mp4").read_bytes()[:900])
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "still.png")
    files = find(tmp_path, captions="optional")
    settings = PixelSettings(source=str(tmp_path), size="32x32", frames=17, batch=3, image_share=0.0)
    batches = FragmentBatches(files, settings)
    assert {fault.name for fault in batches.faults} == {"short.mp4", "broken.mp4"}
    assert "2 of 4 files cannot be used" in caplog.text
    assert "17 frames at 24 a second need 0.67 s" in caplog.text and "broken.mp4" in caplog.text

    def shades(**more: Any) -> list[list[int]]:
        made = FragmentBatches(files, dataclasses.replace(settings, **more))
        clips = [made(step, Rng(0, step), Portion()).clip_BTHWC for step in range(4)]
        assert {tuple(one.shape) for one in clips} == {(3, 17, 32, 32, 3)}  # none is shortened
        return [((c.mean((1, 2, 3)) + 1) * 127.5 / 2).round().int().tolist() for one in clips for c in one]

    for one in shades():
        assert all(abs(b - a - 1) <= 1 for a, b in itertools.pairwise(one)) and 14 <= one[-1] - one[0] <= 18
    assert len({one[0] for one in shades()}) > 6 and max(one[0] for one in shades()) > 60
    for one in shades(fps=12.0):
        assert 30 <= one[-1] - one[0] <= 34
    portion = batches(0, Rng(0, 0), Portion(1, 3))
    assert list(portion.numbers) == [1] and torch.equal(
        portion.clip_BTHWC, batches(0, Rng(0, 0), Portion()).clip_BTHWC[1:2]
    )
    with pytest.raises(RequestError, match=r"no video has 129 frames: `broken\.mp4`|no video has 129 frames: video"):
        FragmentBatches(files, dataclasses.replace(settings, frames=129))


def test_a_file_that_can_no_longer_be_read_is_named_and_another_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b"):
        film(tmp_path / f"{name}.mp4", 20)
    settings = PixelSettings(source=str(tmp_path), size="32x32", frames=17, batch=4, image_share=0.0)
    batches = FragmentBatches(find(tmp_path, captions="optional"), settings)
    (tmp_path / "a.mp4").unlink()
    for step in range(3):
        assert len(batches(step, Rng(0, step), Portion()).clip_BTHWC) == 4
    assert [fault.name for fault in batches.faults] == ["a.mp4"] and caplog.text.count("left out") == 1
    (tmp_path / "b.mp4").unlink()
    batches._probed.cache_clear()
    with pytest.raises(RequestError, match=r"does not exist|cannot be read"):
        batches(9, Rng(0, 9), Portion())


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
        ({"loop__accumulate": 2}, "`loop.accumulate` is 2, and a batch has 1 clip"),
        ({"data__frames": 49}, "nothing is left of the data: `square.mp4` shows its last frame at 1.62 s"),
    ],
)
def test_what_does_not_fit_is_refused(more: dict[str, Any], said: str, tmp_path: Path, data: Path) -> None:
    with pytest.raises(RequestError) as refused:
        run_recipe(recipe(tmp_path, data, **more))
    assert said in str(refused.value) and not [*(tmp_path / "run").glob("checkpoint-*")]


def test_the_gradients_of_a_long_clip_in_pieces_are_those_of_the_whole() -> None:
    """Of 128 frames after the first, with norms that look at one place, and no attention along time."""
    net = network("hunyuan")
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    for coder in (net.net.encoder, net.net.decoder):
        coder.mid_block.attentions = nn.ModuleList([None] * len(coder.mid_block.attentions))
    net.double()
    video = clip(129, 8, 8).double()
    found = []
    for way in ("pieces", "whole"):
        net.zero_grad()
        if way == "pieces":
            made = decoded(net, encoded(net, video, 16)[0], 4)  # type: ignore[arg-type]
        else:
            made = net.net.decoder(net.net.post_quant_conv(_mean(net, video))).movedim(1, -1)
        (made - video).abs().mean().backward()
        found.append({name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and len(found[0]) > 40
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-6, atol=1e-9, msg=name)


def _mean(net: Any, video: torch.Tensor) -> torch.Tensor:
    """Of the latents' distribution, of the clip at once, [B, C, T, H, W]."""
    moments = net.net.quant_conv(net.net.encoder(video.movedim(-1, 1)))
    mean: torch.Tensor = moments.chunk(2, dim=1)[0]
    return mean
