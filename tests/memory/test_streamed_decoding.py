"""Decoding in pieces: the same pixels, in memory that a clip's length does not change."""

import errno
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from kandinsky.errors import OutOfMemory
from kandinsky.families.nano.autoencoder import NanoAutoencoder, NanoAutoencoderParams
from kandinsky.families.parts import layered
from kandinsky.families.parts.hunyuan import HunyuanAutoencoder, HunyuanParams
from kandinsky.families.parts.tiling import Tiling
from kandinsky.model.autoencoder import decode_pieces
from kandinsky.runtime.spool import Spool
from tiny.family import randomise
from tiny.held import Held

PARAMS = HunyuanParams(
    latent_channels=4, block_out_channels=(8, 8, 12, 16), layers_per_block=1, norm_num_groups=4, scaling_factor=0.5
)


def autoencoder(**options) -> HunyuanAutoencoder:
    return randomise(HunyuanAutoencoder(PARAMS, **options), scale=0.2).requires_grad_(False)


def latents(frames: int, side: int = 2) -> torch.Tensor:
    return torch.randn(1, frames, side, side + 1, 4, generator=torch.Generator().manual_seed(frames))


@pytest.mark.parametrize("frames", [1, 2, 3, 9])
@pytest.mark.parametrize("chunk", [1, 2**13, 2**26], ids=["frame by frame", "some frames", "all at once"])
def test_layer_by_layer_is_the_whole_decode(frames: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64 only a mistake would show."""
    monkeypatch.setattr(layered, "CHUNK", chunk)
    whole, streamed = autoencoder().double(), autoencoder(layered=True).double()
    z = latents(frames).double()
    pieces = list(streamed.decode_pieces(z))
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole.decode(z), rtol=1e-5, atol=1e-6)
    at_once = {1: 1, 2**13: 2, 2**26: 33}[chunk]  # the last layer has 8 channels of 16 x 24 pixels
    assert len(pieces) == -(-(4 * frames - 3) // at_once)


def test_float32_rounding_only() -> None:
    z = latents(5)
    torch.testing.assert_close(autoencoder(layered=True).decode(z), autoencoder().decode(z), rtol=1e-4, atol=1e-5)


def test_a_batch_keeps_its_clips_apart() -> None:
    coder = autoencoder(layered=True).double()
    a, b = latents(3).double(), latents(3).double() * 2 + 1
    together = coder.decode(torch.cat([a, b]))
    torch.testing.assert_close(together, torch.cat([coder.decode(a), coder.decode(b)]), rtol=1e-5, atol=1e-5)


def test_layers_within_tiles() -> None:
    tiling = Tiling((9, 16, 24), (4, 16, 24))
    z = latents(7)
    plain, streamed = autoencoder(tiling=tiling), autoencoder(tiling=tiling, layered=True)
    torch.testing.assert_close(streamed.decode(z), plain.decode(z), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain.decode(z), autoencoder().decode(z), atol=1e-3), "tiles are another function"


def test_tiles_come_as_soon_as_they_are_final() -> None:
    coder = autoencoder(tiling=Tiling((9, 16, 24), (4, 16, 24)))
    lengths = [piece.shape[1] for piece in coder.decode_pieces(latents(9))]
    assert lengths[0] == 5 and set(lengths[1:-1]) == {4} and sum(lengths) == 33


def test_what_is_too_large_for_the_device_is_kept_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []

    def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        asked.append(shape)
        return torch.empty(shape, dtype=dtype)

    coder = autoencoder(layered=True, allocate=allocate)
    expected = coder.decode(latents(3))
    assert not asked
    monkeypatch.setattr(layered, "ON_DEVICE", 0)
    assert torch.equal(coder.decode(latents(3)), expected)
    assert max(asked, key=math.prod) == (1, 9, 16, 24, 8), "the widest that is kept: 8 channels of every pixel"


def test_frames_kept_in_a_file(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layered, "ON_DEVICE", 0)
    spool = Spool(in_memory=0, folder=tmp_path)
    coder = autoencoder(layered=True, allocate=spool)
    assert torch.equal(coder.decode(latents(3)), autoencoder(layered=True).decode(latents(3)))
    assert spool.on_disk > 0 and not list(tmp_path.iterdir()), "the files have no name, so nothing stays behind"


def consume(coder: HunyuanAutoencoder, frames: int) -> int:
    z = latents(frames, side=4)

    with Held(*coder.parameters()) as held, torch.no_grad():
        for piece in coder.decode_pieces(z):
            del piece
    return held.peak


def test_tiles_need_the_same_memory_for_any_length() -> None:
    coder = autoencoder(tiling=Tiling((9, 32, 40), (4, 32, 40)))
    short, long = consume(coder, 9), consume(coder, 33)
    assert long < 1.05 * short
    whole = autoencoder()
    assert consume(whole, 33) > 2.5 * consume(whole, 9), "without tiles it grows, so the measure can tell"


def test_layers_need_little_more_than_a_chunk(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside what is kept (here in a file) only the middle block's keys and values grow: 2·16 numbers a position."""
    monkeypatch.setattr(layered, "ON_DEVICE", 0)
    monkeypatch.setattr(layered, "CHUNK", 2**16)
    coder = autoencoder(layered=True, allocate=Spool(in_memory=0, folder=tmp_path))
    short, long = consume(coder, 9), consume(coder, 33)
    keys_and_values = 2 * 16 * 4 * (33 - 9) * 4 * 5
    assert long - short < 2.5 * keys_and_values
    assert long < 0.1 * consume(autoencoder(), 33)


def test_an_autoencoder_that_does_not_stream_gives_one_piece() -> None:
    coder = NanoAutoencoder(NanoAutoencoderParams(latent_channels=4, encoder_width=8, width=8, fine_width=8))
    pieces = [piece.detach().numpy() for piece in decode_pieces(coder, latents(2))]
    assert len(pieces) == 1 and np.isfinite(pieces[0]).all() and pieces[0].shape == (1, 5, 16, 24, 3)


def test_a_disk_without_room_is_an_error_and_not_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutOfMemory, match="fit neither into memory nor into") as caught:
        Spool(in_memory=0, folder=tmp_path)((4, 4), torch.float32)
    assert "TMPDIR" in str(caught.value.hint) and not list(tmp_path.iterdir())
