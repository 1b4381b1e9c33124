"""Autoencoders that begin as one of a lower ratio: what is carried, what starts equal, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kandinsky.catalogue import part
from kandinsky.engine.build import bare_network
from kandinsky.errors import RequestError
from kandinsky.families.parts.params import HunyuanParams
from kandinsky.families.parts.progressive import check_grows, grown
from kandinsky.model.card import Component
from kandinsky.train.autoencoder import begin_as
from kandinsky.train.loop import seeded
from kandinsky.weights.keymaps import keymap_of
from kandinsky.weights.write import write_state


def network(temporal: int, levels: int, channels: int = 4, *, seed: int = 0, **more: Any) -> Any:
    params = {
        "down_block_types": ("HunyuanVideoDownBlock3D",) * levels,
        "up_block_types": ("HunyuanVideoUpBlock3D",) * levels, "block_out_channels": (4, *(8,) * (levels - 1)),
        "layers_per_block": 1, "latent_channels": channels, "norm_num_groups": 2,
        "temporal_compression_ratio": temporal, "spatial_compression_ratio": 2 ** (levels - 1),
    }  # fmt: skip
    with seeded(seed):
        return bare_network(part("hunyuan"), Component("hunyuan", (), params=params | more), Path()).eval()


def begun(higher: Any, lower: Any) -> Any:
    higher.begin_as(dataclasses.asdict(lower.params), lambda net: net.load_state_dict(lower.state_dict()))
    return higher


def through(net: Any, clip: Tensor) -> Tensor:
    made: Tensor = net.decode(net.encode(clip))
    return made


PICTURE = torch.rand(1, 1, 32, 48, 3, generator=torch.Generator().manual_seed(5)) * 2 - 1


@torch.no_grad()
def test_clips_without_motion_are_coded_as_before_where_time_is_new() -> None:
    lower = network(4, 4)
    higher = begun(network(8, 4, seed=1), lower)
    still = PICTURE.expand(-1, 17, -1, -1, -1)
    assert higher.encode(still).shape[1] == 3 and lower.encode(still).shape[1] == 5
    torch.testing.assert_close(higher.encode(still), lower.encode(still)[:, :3], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(through(higher, still), through(lower, still), rtol=1e-4, atol=1e-5)
    moving = torch.cat([PICTURE.roll(n, 3) for n in range(17)], 1)
    assert (through(higher, moving) - through(lower, moving)).abs().max() > 1e-3
    assert (through(network(8, 4, seed=1), still) - through(lower, still)).abs().max() > 0.01


@torch.no_grad()
def test_clips_of_one_colour_are_coded_as_before_where_space_is_new() -> None:
    """With more channels of latents too; the known ones come first."""
    lower = network(4, 3)
    higher = begun(network(8, 4, 6, seed=1), lower).double()
    lower.double()  # norms of constants enlarge what is rounded
    for colour in ((0.5, -0.2, 0.9), (-1.0, 1.0, 0.0)):
        clip = torch.tensor(colour).double().expand(1, 17, 32, 48, 3)
        assert higher.encode(clip).shape == (1, 3, 4, 6, 6)
        known = higher.encode(clip)[..., :4]
        torch.testing.assert_close(known, lower.encode(clip)[:, :3, ::2, ::2], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(through(higher, clip), through(lower, clip), rtol=1e-4, atol=1e-5)
        own, theirs = (net.posterior(clip)[1] for net in (higher, lower))
        torch.testing.assert_close(own[..., :4], theirs[:, :3, ::2, ::2], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_convolution_to_fewer_places_means_and_the_one_to_more_repeats() -> None:
    """From 8x8x8 to 8x16x16; time is halved by the outer levels alone, as before."""
    higher = begun(network(8, 5, seed=1), network(8, 4))
    x = torch.randn(1, 8, 5, 6, 8, generator=torch.Generator().manual_seed(0))
    fewer = higher.net.encoder.down_blocks[3].downsamplers[0](x)
    torch.testing.assert_close(fewer, x.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).mean((4, 6)))
    more = higher.net.decoder.up_blocks[0].upsamplers[0](fewer)
    torch.testing.assert_close(more, fewer.repeat_interleave(2, 3).repeat_interleave(2, 4))
    torch.testing.assert_close(higher.net.encoder.down_blocks[4](x), x)
    wide = begun(network(8, 4, 6, seed=2), network(4, 3))
    assert wide.net.decoder.conv_in.conv.weight[:, 4:].abs().max() == 0  # new channels are not listened to
    assert wide.net.encoder.conv_out.conv.weight[4:6].abs().max() > 0  # but they say something


def test_every_new_layer_learns() -> None:
    higher = begun(network(8, 4, 6, seed=1), network(4, 3))
    clip = torch.cat([PICTURE.roll(n, 3) for n in range(9)], 1)
    optimiser = torch.optim.Adam(higher.parameters(), 1e-3)
    before = {name: p.detach().clone() for name, p in higher.named_parameters()}
    for _ in range(3):  # what lies behind a zero learns from the second step on
        optimiser.zero_grad()
        mean, logvar, _ = higher.encode_piece(clip)
        z = mean + (logvar / 2).exp() * torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
        (higher.decode_piece(z)[0] - clip).abs().mean().backward()
        optimiser.step()
    still = {name for name, p in higher.named_parameters() if torch.equal(p, before[name])}
    assert not still, still


def test_all_tensors_of_the_lower_network_are_carried() -> None:
    lower, higher = network(4, 3), network(8, 5)
    made = grown(higher.net.state_dict(), lower.net.state_dict(), higher.params)
    assert made.keys() == higher.net.state_dict().keys()
    for name, old in lower.net.state_dict().items():
        new = name
        for number in range(3):
            if name.startswith(f"decoder.up_blocks.{number}."):
                new = name.replace(f"up_blocks.{number}.", f"up_blocks.{number + 2}.")
        assert torch.equal(made[new], old), name


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"block_out_channels": (4, 8, 8, 16)}, "`block_out_channels` [4, 8, 8, 16] do not go on from [4, 8, 8]"),
        ({"block_out_channels": (8, 8, 8, 8)}, "begin with these, and give further levels 8"),
        ({"latent_channels": 2}, "`latent_channels` 2 is less than 4"),
        ({"temporal_compression_ratio": 2}, "`temporal_compression_ratio` 2 is less than 4"),
        ({"layers_per_block": 2}, "`layers_per_block` is 2, and that of the lower autoencoder is 1"),
    ],
)
def test_what_does_not_go_on_is_refused(more: dict[str, Any], said: str) -> None:
    lower = HunyuanParams(block_out_channels=(4, 8, 8), latent_channels=4, layers_per_block=1)
    given: dict[str, Any] = {"block_out_channels": (4, 8, 8, 8), "temporal_compression_ratio": 8}
    higher = dataclasses.replace(lower, **given | more)
    with pytest.raises(RequestError) as refused:
        check_grows(higher, lower)
    assert said in str(refused.value)


def test_a_folder_that_training_wrote_is_the_lower_one(tmp_path: Path) -> None:
    lower, keymap = network(4, 3), keymap_of(part("hunyuan"))
    config = {"_class_name": "AutoencoderKLHunyuanVideo", **dataclasses.asdict(lower.params)}
    write_state(keymap.as_file(lower.state_dict()), tmp_path / "vae", layout="diffusers", config=config)
    higher = network(8, 4, 6, seed=1)
    begin_as(higher, str(tmp_path / "vae"), keymap)
    for name, tensor in begun(network(8, 4, 6, seed=1), lower).state_dict().items():
        assert torch.equal(tensor, higher.state_dict()[name]), name
    (tmp_path / "vae" / "config.json").unlink()
    with pytest.raises(RequestError, match=r"has no `config\.json`"):
        begin_as(higher, str(tmp_path / "vae"), keymap)
    with pytest.raises(RequestError, match="for networks of the kind `hunyuan`"):
        begin_as(nn.Linear(1, 1), str(tmp_path / "vae"), keymap)


def test_a_recipe_names_one_start(tmp_path: Path) -> None:
    from kandinsky.train.recipe import run_recipe

    values = {
        "kind": "autoencoder", "out": str(tmp_path / "run"),
        "network": {"kind": "hunyuan", "weights": "a", "lower": "b"},
        "data": {"source": str(tmp_path)}, "loop": {"steps": 1, "lr": 1e-3},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(values))
    with pytest.raises(RequestError, match="begins with `weights` or as a `lower` one"):
        run_recipe(tmp_path / "recipe.yaml")


def test_a_recipe_trains_on_from_a_lower_one(tmp_path: Path) -> None:
    import numpy as np

    import kandinsky
    from kandinsky.train.recipe import run_recipe
    from kandinsky.weights.read import read_state

    lower, keymap = network(4, 3), keymap_of(part("hunyuan"))
    config = {"_class_name": "AutoencoderKLHunyuanVideo", **dataclasses.asdict(lower.params)}
    write_state(keymap.as_file(lower.state_dict()), tmp_path / "lower", layout="diffusers", config=config)
    (tmp_path / "data").mkdir()
    frames = np.random.default_rng(0).integers(0, 255, (20, 16, 16, 3), np.uint8)
    kandinsky.Video(frames, fps=24.0, seed=0).save(tmp_path / "data" / "noise.mp4")
    params = {key: list(value) if isinstance(value, tuple) else value
              for key, value in dataclasses.asdict(network(8, 4, 6).params).items()}  # fmt: skip
    values = {
        "kind": "autoencoder", "out": str(tmp_path / "run"),
        "network": {"kind": "hunyuan", "lower": str(tmp_path / "lower"), "params": params},
        "data": {"source": str(tmp_path / "data"), "size": "16x16", "frames": 17, "piece": 16, "image_share": 0.0},
        "losses": {"perceptual": 0, "adversarial": 0, "equivariance": 0.25, "equivariance_share": 1.0},
        "loop": {"steps": 1, "lr": 1e-9, "warmup": 1, "bf16": False, "ema": 0},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(values))
    made = run_recipe(tmp_path / "recipe.yaml")
    told = json.loads((made / "config.json").read_text())
    assert told["temporal_compression_ratio"] == 8 and told["scaling_factor"] != lower.params.scaling_factor
    wanted, found = begun(network(8, 4, 6), lower), read_state(made)
    new = ("encoder.conv_out.", "quant_conv.", "down_blocks.3.", "up_blocks.0.")  # some of it is random
    carried = {name: tensor for name, tensor in keymap.as_file(wanted.state_dict()).items()
               if not any(one in name for one in new)}  # fmt: skip
    assert len(carried) > 80
    for name, tensor in carried.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5, msg=name)
