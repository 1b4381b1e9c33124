"""The second Nano's autoencoder: linear where it must be, causal, and learned on top."""

from __future__ import annotations

import pytest
import torch
from scenes_for_tests import DrawnSources

from kandinsky.families.nano.decoder import NanoDecoder, NanoDecoderParams
from kandinsky.families.nano.linear import LinearMap, LinearPatches, LinearPatchParams

SMALL = LinearPatchParams(latent_channels=24, temporal=8, spatial=4)


@pytest.fixture
def linear() -> LinearPatches:
    """Fitted to noise of few directions, so that the components can hold all of it."""
    torch.manual_seed(0)
    network = LinearPatches(SMALL)
    for part in (network.still, network.moving):
        features = part.basis.shape[1]
        spread = torch.randn(features, 24) * 0.9 ** torch.arange(24)
        part.fit(spread @ spread.T, torch.full((features,), 0.1))
    return network


def test_a_fit_keeps_all_that_lies_in_its_components() -> None:
    torch.manual_seed(1)
    spread, mean = torch.randn(60, 10), torch.randn(60)
    network = LinearMap(60, 10)
    assert network.fit(spread @ spread.T, mean) == pytest.approx(1, abs=1e-4)
    x = torch.randn(500, 10) @ spread.T + mean
    latents = network.encode(x)
    assert torch.allclose(network.decode(latents), x, atol=1e-3)
    assert float(latents.var(0).mean()) == pytest.approx(1, rel=0.15)
    variances = latents.var(0)
    assert float(variances[0]) > float(variances[-1])  # ordered, and only partly whitened


def test_a_clip_over_a_background_is_the_sum_of_its_parts(linear: LinearPatches) -> None:
    video = torch.rand(1, 9, 16, 16, 3)
    share, colour = torch.rand(1, 9, 16, 16, 1), torch.tensor([0.2, -0.4, 0.9])
    nothing = linear.encode(torch.zeros_like(video))
    parts = linear.encode(video * share) - nothing + linear.encode((1 - share) * colour)
    assert torch.allclose(linear.encode(video * share + (1 - share) * colour), parts, atol=1e-4)


def test_shapes_and_the_first_frame_alone(linear: LinearPatches) -> None:
    video = torch.rand(2, 25, 16, 24, 3)
    latents = linear.encode(video)
    assert latents.shape == (2, 4, 4, 6, 24) and linear.decode(latents).shape == video.shape
    assert torch.allclose(linear.encode(video[:, :1])[:, 0], latents[:, 0], atol=1e-5)
    patches = linear.patchify(video[:, 1:])
    assert torch.equal(linear.unpatchify(patches), video[:, 1:])


def test_the_decoder_starts_linear_and_is_causal() -> None:
    torch.manual_seed(0)
    linear = LinearPatches(LinearPatchParams(latent_channels=8))
    for part in (linear.still, linear.moving):
        part.basis.copy_(torch.randn(part.basis.shape))
    decoder = NanoDecoder(linear, NanoDecoderParams(widths=(16, 8, 8, 8), blocks=(1, 1, 1, 1)))
    latents = torch.randn(1, 4, 2, 2, 8)
    with torch.no_grad():
        assert torch.allclose(decoder(latents), linear.decode(latents), atol=1e-5)
        for p in decoder.parameters():
            p.copy_(torch.randn_like(p) * 0.1)
        before = decoder(latents)
        latents[:, 3] += 1
        after = decoder(latents)
    assert before.shape == (1, 25, 32, 32, 3)
    assert torch.equal(before[:, :17], after[:, :17]) and not torch.equal(before[:, 17:], after[:, 17:])


def test_the_decoders_objective_falls() -> None:
    from kandinsky.lab.nano2.decoder import DecoderObjective

    torch.manual_seed(0)
    linear = LinearPatches(LinearPatchParams(latent_channels=4))
    for part in (linear.still, linear.moving):
        part.basis.copy_(torch.linalg.qr(torch.randn(part.basis.shape).T)[0].T)
    objective = DecoderObjective(DrawnSources(), linear, noise=0.1, clips=1, side=64)  # type: ignore[arg-type]
    objective.network = NanoDecoder(linear, NanoDecoderParams(widths=(8, 8, 8, 8), blocks=(1, 1, 1, 1)))
    optimiser = torch.optim.Adam(objective.network.parameters(), lr=5e-3)
    batch = objective.batch(0, torch.Generator().manual_seed(0))
    losses = []
    for _ in range(8):
        loss = objective.loss(batch, torch.Generator().manual_seed(0)).value
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
