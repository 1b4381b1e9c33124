"""Evaluation of autoencoders: figures and spectra by hand, of a catalogue id, and of a folder that training writes."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import kandinsky
from kandinsky.cli.main import main
from kandinsky.errors import RequestError, WeightsError
from kandinsky.evaluate import autoencoders
from kandinsky.evaluate.autoencoders import Coder, coded, evaluate, prepared
from kandinsky.evaluate.extractors import Tools, find_tools
from kandinsky.evaluate.latents import LatentStatistics, by_frequency, cosines, frequencies, high_share, power

RNG = np.random.default_rng(0)


def waves(frames: int, height: int, width: int, *, speed: float = 0.3) -> np.ndarray:
    """Smooth waves that move, uint8."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    one = np.sin(y / 7 + speed * t) * np.cos(x / 9 - speed * t)
    return np.stack([127 + 100 * one, 127 - 100 * one, 90 + 60 * one], -1).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "clips"
    place.mkdir()
    for name, speed in (("a", 0.3), ("b", 0.5)):
        kandinsky.Video(waves(18, 64, 80, speed=speed), fps=8.0, seed=0).save(place / f"{name}.mp4")
    return place


class Shifted(nn.Module):
    """A coder that changes every second frame by so many levels; latents are the pixels, in 4x4 times the channels."""

    def __init__(self, levels: float = 0.0) -> None:
        super().__init__()
        self.levels = levels

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        z: torch.Tensor = x.unflatten(3, (-1, 4)).unflatten(2, (-1, 4)).movedim(3, 4).flatten(4)
        return z

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = z.unflatten(4, (4, 4, 3)).movedim(4, 3).flatten(4, 5).flatten(2, 3).clone()
        x[:, 1::2] += self.levels / 127.5
        return x


class Means:
    """Features of a set of clips: mean and spread."""

    def clip(self, frames: np.ndarray) -> np.ndarray:
        return np.asarray([frames.mean(), frames.std()], dtype=np.float64)


class Mean:
    def distance(self, one: np.ndarray, other: np.ndarray) -> float:
        return float(np.abs(one.astype(float) - other).mean()) / 100


def test_the_cosine_transform_keeps_power_and_finds_waves() -> None:
    np.testing.assert_allclose(cosines(12) @ cosines(12).T, np.eye(12), atol=1e-12)
    x = RNG.normal(size=(3, 8, 12, 2))
    np.testing.assert_allclose(power(x).sum((0, 1)), np.square(x).sum((0, 1, 2)) / 3)
    wave = np.cos(np.pi / 12 * (np.arange(12) + 0.5) * 9)[None, None, :, None] + np.zeros((1, 8, 12, 1)) + 5
    found = power(wave)
    assert by_frequency(found).argmax() == int(16 * 9 / 12) and high_share(found) == pytest.approx(1.0)
    assert by_frequency(found).sum() == pytest.approx(8 * 12 / 2)  # the constant is left out
    assert frequencies(8, 12)[0, 9] == 0.75 and high_share(power(np.full((2, 4, 4, 1), 3.0))) == 0.0
    # what the spectrum of noise says: the share of places at a half and more
    flat = high_share(power(RNG.normal(size=(400, 16, 16, 3))))
    assert flat == pytest.approx((frequencies(16, 16) >= 0.5).sum() / 255, abs=0.02)


def test_latents_like_small_pixels_have_no_excess_and_noise_has() -> None:
    clip = waves(5, 64, 64)
    small = clip.reshape(5, 16, 4, 16, 4, 3).mean((2, 4))
    same = LatentStatistics()
    same.add(small, clip)
    found = same.result()
    assert found["excess_db"] == pytest.approx(0, abs=1e-6) and len(found["spectra"]["latents"]) == 16
    assert sum(found["spectra"]["pixels"]) == pytest.approx(1.0)
    noisy = LatentStatistics()
    noise = small + 20 * RNG.normal(size=small.shape)
    noisy.add(noise[:2], clip[:2])
    noisy.add(noise[2:], clip[2:])
    told = noisy.result()
    assert told["excess_db"] > 10 and told["high_share"]["latents"] > 5 * told["high_share"]["pixels made as small"]
    np.testing.assert_allclose([c["mean"] for c in told["channels"]], noise.mean((0, 1, 2)))
    np.testing.assert_allclose([c["deviation"] for c in told["channels"]], noise.std((0, 1, 2)))
    np.testing.assert_allclose([c["most"] for c in told["channels"]], noise.max((0, 1, 2)))


def test_channels_that_say_the_same_count_once() -> None:
    one = RNG.normal(size=(4, 8, 8, 1))
    for latents, count in ((one.repeat(6, -1), 1.0), (RNG.normal(size=(40, 16, 16, 6)), 6.0)):
        gathered = LatentStatistics()
        gathered.add(latents, np.zeros((len(latents), 64, 64, 3), np.uint8))
        assert gathered.result()["effective_channels"] == pytest.approx(count, rel=0.01)
    with pytest.raises(RequestError, match="of 3 channels do not go with those of 6"):
        gathered.add(one.repeat(3, -1), np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(RequestError, match="latents are not finite"):
        gathered.add(one.repeat(6, -1) * np.nan, np.zeros((4, 8, 8, 3), np.uint8))


def test_figures_of_a_known_loss(folder: Path) -> None:
    files = {name: folder / f"{name}.mp4" for name in ("a", "b")}
    tools = Tools({"i3d": Means(), "lpips": Mean()})
    exact = evaluate(Coder(Shifted(), 1, 4, "cpu"), files, tools, frames=6)
    assert exact["unavailable"] == {} and exact["clips"][0]["frames"] == 6 and exact["clips"][0]["size"] == "80x64"
    values = {name: one["value"] for name, one in exact["metrics"].items()}
    assert values == pytest.approx(
        {"psnr": 99, "lowest frame": 99, "ssim": 1, "lpips": 0, "temporal error": 0, "flicker ratio": 1, "rfvd": 0},
        abs=1e-6,
    )
    assert len(exact["latents"]["channels"]) == 48
    lost = evaluate(Coder(Shifted(8.0), 1, 4, "cpu"), files, tools, frames=6)["metrics"]
    assert lost["psnr"]["value"] == pytest.approx(20 * np.log10(255 / 8) + 10 * np.log10(2), abs=0.1)
    assert lost["lowest frame"]["value"] == pytest.approx(20 * np.log10(255 / 8), abs=0.1)
    assert lost["temporal error"]["value"] == pytest.approx(8, abs=0.2) and lost["lpips"]["value"] < 0.05
    assert lost["flicker ratio"]["value"] > 1.2 and lost["rfvd"]["value"] > 10 and lost["psnr"]["clips"] == 2
    # one clip is no set, and clips of 1 frame have no time
    alone = evaluate(Coder(Shifted(), 1, 4, "cpu", most_frames=1), {"a": files["a"]}, tools)
    assert "needs two" in alone["unavailable"]["rfvd"] and "temporal error" not in alone["metrics"]
    bare = evaluate(Coder(Shifted(), 1, 4, "cpu"), files, Tools(), frames=3)
    assert "alexnet" in bare["unavailable"]["lpips"] and "I3D" in bare["unavailable"]["rfvd"]
    assert "rfvd is unavailable" in autoencoders.table(bare) and "excess" in autoencoders.table(bare)


def test_clips_are_cut_to_what_the_coder_takes() -> None:
    coder = Coder(Shifted(), 4, 8, "cpu")
    clip = waves(12, 30, 45)
    assert prepared(clip, coder, size=None, frames=17).shape == (9, 24, 40, 3)
    np.testing.assert_array_equal(prepared(clip, coder, size=None, frames=5), clip[:5, 3:27, 2:42])
    assert prepared(clip, coder, size=(16, 32), frames=99).shape == (9, 32, 16, 3)
    for size in ((20, 16), (16, 20)):
        with pytest.raises(RequestError, match="multiples of 8"):
            prepared(clip, coder, size=size, frames=5)
    with pytest.raises(RequestError, match="7x30 does not fit"):
        prepared(clip[:, :, :7], coder, size=None, frames=5)
    _, made = coded(Coder(Shifted(300.0), 1, 4, "cpu"), clip[:, :28, :44])
    assert made[1].min() == 255 and made.dtype == np.uint8  # clamped


def test_a_model_of_the_catalogue_by_the_command(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    target = folder.parent / "result.json"
    command = ["evaluate", "autoencoder", "nano-t2v", "--clips", str(folder), "--size", "64x64", "--frames", "9"]
    assert main([*command, "-o", str(target)]) == 0
    out = capfd.readouterr().out
    told = json.loads(target.read_text())
    assert out.rstrip().endswith(str(target)) and "nano-t2v, 4x8x8: 2 clips" in out and "psnr" in out
    assert told["ratio"] == "4x8x8" and told["metrics"]["psnr"]["value"] > 20
    assert told["machine"]["cores"] >= 1 and told["latents"]["deviation"] > 0.1
    assert main([*command, "--limit", "1", "--json"]) == 0
    assert len(json.loads(capfd.readouterr().out)["clips"]) == 1


def test_a_folder_that_training_writes(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from kandinsky.catalogue import part
    from kandinsky.engine.build import bare_network
    from kandinsky.model.card import Component
    from kandinsky.weights.keymaps import keymap_of
    from kandinsky.weights.write import write_state

    levels = 4
    params = {
        "down_block_types": ("HunyuanVideoDownBlock3D",) * levels,
        "up_block_types": ("HunyuanVideoUpBlock3D",) * levels,
        "block_out_channels": (8,) * levels, "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 2,
        "temporal_compression_ratio": 8,
    }  # fmt: skip
    net: Any = bare_network(part("hunyuan"), Component("hunyuan", (), params=params), Path())
    place, config = folder.parent / "vae", {"_class_name": "AutoencoderKLHunyuanVideo"}
    state = keymap_of(part("hunyuan")).as_file(net.state_dict())
    write_state(state, place, layout="diffusers", config=config | dataclasses.asdict(net.params))
    given = ["--clips", str(folder), "--size", "32x32", "--frames", "9", "--json"]
    assert main(["evaluate", "autoencoder", str(place), *given]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["ratio"] == "8x8x8" and len(told["latents"]["channels"]) == 4
    (place / "config.json").write_text('{"_class_name": "AutoencoderKLWan"}')
    assert main(["evaluate", "autoencoder", str(place), *given]) == 2
    assert "of the class `AutoencoderKLWan`" in capfd.readouterr().err


def test_lpips_reads_alexnet_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a package of that name whose network has the real one's names."""

    class Slices(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slice1, self.slice2 = nn.Sequential(), nn.Sequential()
            self.slice1.add_module("0", nn.Conv2d(3, 2, 3))
            self.slice2.add_module("3", nn.Conv2d(2, 2, 3))

    class Distance(nn.Module):
        def __init__(self, *, net: str, pnet_rand: bool, verbose: bool) -> None:
            super().__init__()
            assert net == "alex" and pnet_rand and not verbose
            self.net = Slices()

        def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            assert one.min() >= -1 and one.max() <= 1
            first, second = (self.net.slice2(self.net.slice1(x)) for x in (one, other))
            apart: torch.Tensor = (first - second).square().mean((1, 2, 3), keepdim=True)
            return apart

    package = ModuleType("lpips")
    package.LPIPS = Distance  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", package)
    second = nn.Conv2d(2, 2, 3)
    features = Slices().slice1
    features.add_module("3", second)
    state = {f"features.{name}": value for name, value in features.state_dict().items()}
    torch.save(state | {"classifier.1.bias": torch.zeros(2)}, tmp_path / "alexnet.pth")
    tools = find_tools(["lpips"], {"lpips": str(tmp_path / "alexnet.pth")}, device="cpu")
    read = tools.loaded["lpips"]
    assert torch.equal(read.model.net.slice2[0].weight, second.weight)
    clip = waves(20, 16, 16)
    assert read.distance(clip, clip) == 0 and read.distance(clip, 255 - clip) > 0
    each = [read.distance(clip[n : n + 1], 255 - clip[n : n + 1]) for n in range(20)]
    assert read.distance(clip, 255 - clip) == pytest.approx(np.mean(each))
    torch.save({"features.0.weight": torch.zeros(2, 3, 3, 3)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"holds no `features\.0\.bias`"):
        find_tools(["lpips"], {"lpips": str(tmp_path / "other.pth")}, device="cpu")
