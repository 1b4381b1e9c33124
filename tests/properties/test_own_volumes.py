"""Norm, activation and edges of volumes by our own kernels, and the HunyuanVideo decoder that is made of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.families.parts.params import HunyuanParams
from kandinsky.ops import convolution
from kandinsky.ops.native import library, volumes

needed = pytest.mark.skipif(library.missing() is not None, reason=f"no kernels: {library.missing()}")


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@needed
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("C", "groups", "front", "side"), [(32, 8, 2, 1), (48, 3, 0, 1), (32, 32, 1, 0), (64, 2, 0, 0)]
)
@pytest.mark.parametrize("has_norm", [True, False])
def test_one_pass_is_the_three_operations(
    dtype: torch.dtype, threads: int, C: int, groups: int, front: int, side: int, has_norm: bool
) -> None:
    x = (numbers(2, C, 3, 29, 31) * torch.linspace(0.1, 3, C)[None, :, None, None, None] + 7).to(dtype)
    norm = nn.GroupNorm(groups, C, eps=1e-6)
    norm.weight.copy_(numbers(C, seed=1))
    norm.bias.copy_(numbers(C, seed=2))
    norm.to(dtype)
    wanted = F.silu(norm.double()(x.double()) if has_norm else x.double())
    wanted = F.pad(wanted, (side, side, side, side, front, 0), mode="replicate")
    norm.to(dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = volumes.normed(x, norm if has_norm else None, activates=True, front=front, side=side)
    finally:
        torch.set_num_threads(before)
    rounding = {"rtol": 1e-4, "atol": 2e-5} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(found.double(), wanted, **rounding)
    assert found.is_contiguous(memory_format=torch.channels_last_3d) and found.dtype is dtype


@needed
def test_edges_alone_and_large_numbers() -> None:
    x = numbers(1, 32, 4, 24, 24)
    found = volumes.normed(x, None, activates=False, front=2, side=1)
    assert torch.equal(found, F.pad(x, (1, 1, 1, 1, 2, 0), mode="replicate"))
    far = torch.tensor([-1e30, -200.0, -80.0, 0.0, 80.0, 1e30]).repeat(16 * 32 * 32 * 4 // 6 + 6)[: 16 * 4 * 32 * 32]
    x = far.view(1, 16, 4, 32, 32)
    found = volumes.normed(x, None, activates=True)
    torch.testing.assert_close(found, F.silu(x), rtol=1e-6, atol=1e-7)


@needed
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_decoder_of_them_is_the_plain_one(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    pytest.importorskip("diffusers")
    from kandinsky.families.parts.hunyuan import HunyuanAutoencoder

    params = HunyuanParams(latent_channels=4, block_out_channels=(32, 32, 64, 64), norm_num_groups=16)
    torch.manual_seed(0)
    coder = HunyuanAutoencoder(params).eval().to(dtype)
    latents, taken = numbers(1, 3, 6, 8, 4).to(dtype), []
    real = volumes.normed

    def spy(x: Tensor, norm: nn.GroupNorm | None, **options: int) -> Tensor:
        taken.append(norm is not None)
        return real(x, norm, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(volumes, "normed", spy)
    fast, (piece, _) = coder.decode(latents), coder.decode_piece(latents / params.scaling_factor)
    count = len(taken)
    assert any(taken) and (not all(taken) or dtype is torch.bfloat16)
    pixels = numbers(1, 5, 32, 48, 3, seed=4).to(dtype)
    seen = coder.encode(pixels)
    assert len(taken) > count, "the encoder's blocks too"
    monkeypatch.setattr(volumes, "serves", lambda *given: False)
    close = 3e-5 if dtype is torch.float32 else 4e-2
    for found, wanted in (
        (fast, coder.decode(latents)),
        (piece, coder.decode_piece(latents / params.scaling_factor)[0]),
        (seen, coder.encode(pixels)),
    ):
        assert float((found - wanted).float().norm() / wanted.float().norm()) < close
        assert found.dtype is dtype


@needed
def test_what_carries_its_past_keeps_its_own_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces remember the frames before them: a block may not look past the convolutions that do."""
    pytest.importorskip("diffusers")
    from kandinsky.families.parts.hunyuan import HunyuanAutoencoder

    params = HunyuanParams(latent_channels=4, block_out_channels=(32, 32, 64, 64), norm_num_groups=16)
    coder = HunyuanAutoencoder(params).eval()
    monkeypatch.setattr(volumes, "normed", lambda *given, **options: pytest.fail("taken within a piece"))
    _, memory = coder.decode_piece(numbers(1, 2, 6, 8, 4))
    coder.decode_piece(numbers(1, 1, 6, 8, 4), memory)


def test_a_kernel_of_one_is_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = convolution.Conv3d(64, 96, 1)
    x = numbers(2, 64, 3, 20, 20).contiguous(memory_format=torch.channels_last_3d)
    found = layer(x)
    monkeypatch.setattr(convolution, "_is_for_onednn", lambda x, weight: False)
    torch.testing.assert_close(found, layer(x), rtol=1e-4, atol=1e-5)
