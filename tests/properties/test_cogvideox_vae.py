"""The CogVideoX autoencoder against Diffusers' own driver, and piece by piece."""

from __future__ import annotations

import pytest
import torch

from kandinsky.errors import RequestError
from kandinsky.families.parts.cogvideox import CogVideoXAutoencoder, CogVideoXParams
from kandinsky.families.parts.keymaps import DIFFUSERS_INSIDE
from kandinsky.model.autoencoder import StreamingAutoencoder, VideoAutoencoder
from kandinsky.weights.read import assign_state
from tiny import kandinsky4 as tiny


@pytest.fixture(scope="module")
def vae() -> CogVideoXAutoencoder:
    with torch.device("meta"):
        net = CogVideoXAutoencoder(CogVideoXParams.from_dict(tiny.VAE_CONFIG))
    assign_state(net, tiny.vae().state_dict(), keymap=DIFFUSERS_INSIDE)
    return net.requires_grad_(False).eval()


@pytest.mark.parametrize(("frames", "pieces"), [(1, [1]), (3, [9]), (5, [9, 8]), (7, [9, 8, 8])])
def test_decoding_is_diffusers(vae: CogVideoXAutoencoder, frames: int, pieces: list[int]) -> None:
    latents = torch.randn(1, frames, 3, 4, tiny.CHANNELS, generator=torch.Generator().manual_seed(frames))
    with torch.no_grad():
        theirs = tiny.vae().decode(latents.permute(0, 4, 1, 2, 3) / 0.7).sample
    ours = vae.decode(latents)
    assert ours.shape == (1, 1 + 4 * (frames - 1), 24, 32, 3)
    torch.testing.assert_close(ours.permute(0, 4, 1, 2, 3), theirs)
    assert [piece.shape[1] for piece in vae.decode_pieces(latents)] == pieces


@pytest.mark.parametrize("frames", [2, 4])
def test_an_even_number_of_latent_frames_is_refused(vae: CogVideoXAutoencoder, frames: int) -> None:
    with pytest.raises(RequestError, match=f"{frames} latent frames cannot be decoded"):
        vae.decode(torch.zeros(1, frames, 3, 4, tiny.CHANNELS))


@pytest.mark.parametrize("frames", [1, 5, 9, 17, 21])
def test_encoding_is_diffusers(vae: CogVideoXAutoencoder, frames: int) -> None:
    video = torch.rand(1, frames, 16, 24, 3, generator=torch.Generator().manual_seed(frames)) * 2 - 1
    with torch.no_grad():
        theirs = tiny.vae().encode(video.permute(0, 4, 1, 2, 3)).latent_dist.mode() * 0.7
    ours = vae.encode(video)
    assert ours.shape == (1, 1 + (frames - 1) // 4, 2, 3, tiny.CHANNELS)
    torch.testing.assert_close(ours.permute(0, 4, 1, 2, 3), theirs)


def test_a_batch_is_its_clips(vae: CogVideoXAutoencoder) -> None:
    latents = torch.randn(2, 3, 2, 2, tiny.CHANNELS, generator=torch.Generator().manual_seed(8))
    together = vae.decode(latents)
    for i in range(2):
        torch.testing.assert_close(together[i : i + 1], vae.decode(latents[i : i + 1]), rtol=1e-4, atol=1e-5)


def test_it_is_what_the_pipeline_expects(vae: CogVideoXAutoencoder) -> None:
    assert isinstance(vae, VideoAutoencoder) and isinstance(vae, StreamingAutoencoder)


def test_parameters_of_other_models_are_refused() -> None:
    official = {"_class_name": "AutoencoderKLCogVideoX", "sample_height": 480, "shift_factor": None}
    assert CogVideoXParams.from_dict(official) == CogVideoXParams()
    for key, value in (("use_quant_conv", True), ("latents_mean", [0.1]), ("block_channels", 3)):
        with pytest.raises(RequestError, match=key):
            CogVideoXParams.from_dict({key: value})
