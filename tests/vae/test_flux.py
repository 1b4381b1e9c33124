"""The image autoencoder: equal to Diffusers' class used directly, without the shift."""

import dataclasses
import json
from functools import partial

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from kandinsky import catalogue
from kandinsky.errors import RequestError
from kandinsky.families.parts.flux import FluxAutoencoder, FluxParams
from kandinsky.model.autoencoder import VideoAutoencoder
from kandinsky.weights.keymaps import keymap_of
from kandinsky.weights.read import load_into
from tiny.family import randomise

SMALL = {"latent_channels": 4, "block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 4}
close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module", params=[False, True], ids=["as released", "with 1x1 convolutions"])
def plain(request: pytest.FixtureRequest) -> AutoencoderKL:
    params = FluxParams.from_dict(SMALL | {"use_quant_conv": request.param, "use_post_quant_conv": request.param})
    return randomise(AutoencoderKL(**dataclasses.asdict(params)))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def ours(plain: AutoencoderKL, tmp_path_factory: pytest.TempPathFactory) -> FluxAutoencoder:
    """The same weights from a folder as the hub has it, read as ``load`` reads it."""
    folder = tmp_path_factory.mktemp("vae")
    plain.save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        net = FluxAutoencoder(FluxParams.from_dict(values))
    load_into(net, folder, keymap=keymap_of(catalogue.part("flux")))
    return net.eval().requires_grad_(False)


def images(batch: int = 2) -> Tensor:
    """[B, 1, 32, 48, 3]"""
    return torch.rand(batch, 1, 32, 48, 3, generator=torch.Generator().manual_seed(5)) * 2 - 1


def test_latents_are_the_scaled_mode(plain: AutoencoderKL, ours: FluxAutoencoder) -> None:
    x = images()
    latents = ours.encode(x)
    assert isinstance(ours, VideoAutoencoder) and latents.shape == (2, 1, 4, 6, 4)
    with torch.no_grad():
        theirs = plain.encode(x[:, 0].permute(0, 3, 1, 2)).latent_dist.mode()
    # no shift: (mode - 0.1159) · 0.3611 would be Diffusers' way for other models
    close(latents[:, 0].permute(0, 3, 1, 2), theirs * 0.3611)


def test_a_seed_gives_the_sample_that_diffusers_draws(plain: AutoencoderKL, ours: FluxAutoencoder) -> None:
    x = images()
    sample = ours.encode(x, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        posterior = plain.encode(x[:, 0].permute(0, 3, 1, 2)).latent_dist
    theirs = posterior.sample(generator=torch.Generator().manual_seed(3))
    close(sample[:, 0].permute(0, 3, 1, 2), theirs * 0.3611)
    assert (sample - ours.encode(x)).abs().max() > 0.01


def test_pixels_come_from_unshifted_latents(plain: AutoencoderKL, ours: FluxAutoencoder) -> None:
    latents = torch.randn(2, 1, 3, 5, 4, generator=torch.Generator().manual_seed(7))
    pixels = ours.decode(latents)
    assert pixels.shape == (2, 1, 24, 40, 3)
    with torch.no_grad():
        theirs = plain.decode(latents[:, 0].permute(0, 3, 1, 2) / 0.3611).sample
    close(pixels[:, 0].permute(0, 3, 1, 2), theirs)


def test_frames_are_images_of_their_own(ours: FluxAutoencoder) -> None:
    x = images(4)
    as_frames = ours.encode(x.reshape(2, 2, 32, 48, 3))
    close(as_frames.reshape(4, 1, 4, 6, 4), ours.encode(x))
    close(ours.decode(as_frames).reshape(4, 1, 32, 48, 3), ours.decode(ours.encode(x)))


def test_parameters_that_are_none() -> None:
    with pytest.raises(RequestError, match="unknown autoencoder parameter `scaling`"):
        FluxParams.from_dict({"scaling": 1.0})
    assert FluxParams.from_dict({"_class_name": "AutoencoderKL"}) == FluxParams()
