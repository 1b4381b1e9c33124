"""Nano's autoencoder: geometry, causality, and the start from PCA."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kandinsky.families.nano.autoencoder import NanoAutoencoder, NanoAutoencoderParams

SMALL = NanoAutoencoderParams(latent_channels=12, encoder_width=16, width=16, fine_width=8)


def small(seed: int = 0) -> NanoAutoencoder:
    torch.manual_seed(seed)
    net = NanoAutoencoder(SMALL)
    for p in net.parameters():  # the last layers start at zero; give every layer something to say
        torch.nn.init.normal_(p, std=0.05)
    return net


@settings(max_examples=15)
@given(more=st.integers(0, 3), rows=st.integers(1, 3), columns=st.integers(1, 3))
def test_unpatchify_inverts_patchify(more: int, rows: int, columns: int) -> None:
    net = NanoAutoencoder(SMALL)
    video = torch.randn(2, 1 + 4 * more, 8 * rows, 8 * columns, 3)
    patches = net.patchify(video)
    assert patches.shape == (2, more + 1, rows, columns, 768)
    assert torch.equal(net.unpatchify(patches), video)


def test_shapes_of_a_clip_and_of_a_still() -> None:
    net = small()
    for frames in (1, 9):
        latents = net.encode(torch.rand(1, frames, 16, 24, 3))
        assert latents.shape == (1, (frames - 1) // 4 + 1, 2, 3, 12)
        assert net.decode(latents).shape == (1, frames, 16, 24, 3)


@torch.no_grad()
def test_later_frames_do_not_change_earlier_latents_or_frames() -> None:
    net = small()
    video = torch.rand(1, 9, 16, 16, 3)
    changed = video.clone()
    changed[:, 5:] = 0
    a, b = net.encode(video), net.encode(changed)
    assert torch.equal(a[:, :2], b[:, :2])
    assert not torch.equal(a[:, 2], b[:, 2])
    assert torch.allclose(net.decode(a)[:, :5], net.decode(a[:, :2]), atol=1e-6)


@torch.no_grad()
def test_pieces_of_a_clip_that_goes_on_are_those_of_the_whole() -> None:
    net, latents = small(), torch.randn(2, 7, 2, 2, 12)
    pieces, carried, sizes = [], None, set()
    for part in latents.split((1, 2, 3, 1), dim=1):
        pixels, carried = net.decode_more(part, carried)
        pieces.append(pixels)
        sizes.add(sum(x.nbytes for x in carried))
    assert [piece.shape[1] for piece in pieces] == [1, 8, 12, 4] and len(sizes) == 1
    torch.testing.assert_close(torch.cat(pieces, dim=1), net.decode(latents), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_start_is_the_best_linear_code() -> None:
    torch.manual_seed(0)
    net = NanoAutoencoder(SMALL)
    patches = torch.randn(400, 12) @ torch.randn(12, 768) + 0.3
    assert net.start_from_pca(patches) > 0.999
    assert torch.allclose(net.from_latent(net.to_latent(patches)), patches, atol=1e-2)
    assert abs(float(net.to_latent(patches).pow(2).mean()) - 1) < 1e-3
    video = net.unpatchify(patches[:12].reshape(1, 3, 2, 2, 768))
    again = net(video)
    # the first latent holds a frame that is repeated in front, which these random patches do not obey
    assert torch.allclose(again[:, 1:], video[:, 1:], atol=1e-2)
