"""Norm, scale, shift and activation of images by our own kernels, and MoVQ, which is made of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.families.parts.movq import MovqAutoencoder
from kandinsky.families.parts.params import MovqParams
from kandinsky.ops.native import images, library

needed = pytest.mark.skipif(library.missing() is not None, reason=f"no kernels: {library.missing()}")


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def norm_of(C: int, groups: int) -> nn.GroupNorm:
    norm = nn.GroupNorm(groups, C, eps=1e-6)
    norm.weight.copy_(numbers(C, seed=1))
    norm.bias.copy_(numbers(C, seed=2))
    return norm


@needed
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("C", "groups"), [(32, 8), (48, 3), (64, 64)])
@pytest.mark.parametrize("sides", [None, (7, 11), (42, 66), (1, 1)])
@pytest.mark.parametrize("activates", [True, False])
def test_one_pass_is_the_operations(
    dtype: torch.dtype, threads: int, C: int, groups: int, sides: tuple[int, int] | None, activates: bool
) -> None:
    x = (numbers(2, C, 42, 66) * torch.linspace(0.1, 3, C)[:, None, None] + 7).to(dtype)
    norm = norm_of(C, groups).to(dtype)
    pieces = (
        None if sides is None else (numbers(2, C, *sides, seed=3).to(dtype), numbers(2, C, *sides, seed=4).to(dtype))
    )
    wanted = F.group_norm(x.double(), groups, norm.weight.double(), norm.bias.double(), norm.eps)
    if pieces is not None:
        scale, shift = (F.interpolate(one.double(), x.shape[2:], mode="nearest") for one in pieces)
        wanted = wanted * scale + shift
    wanted = F.silu(wanted) if activates else wanted
    assert images.serves(x, norm, sides)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = images.normed(x, norm, pieces, activates=activates)
    finally:
        torch.set_num_threads(before)
    rounding = {"rtol": 1e-4, "atol": 5e-5} if dtype is torch.float32 else {"rtol": 3e-2, "atol": 5e-2}
    torch.testing.assert_close(found.double(), wanted, **rounding)
    assert found.is_contiguous(memory_format=torch.channels_last) and found.dtype is dtype


@needed
def test_what_the_kernels_do_not_take() -> None:
    x, norm = numbers(1, 32, 64, 64), norm_of(32, 8)
    assert images.serves(x, norm, (32, 16))
    assert not images.serves(x, norm, (32, 15)), "pixels that are no whole pieces"
    assert not images.serves(numbers(1, 32, 16, 16), norm), "little work"
    assert not images.serves(numbers(1, 40, 64, 64), norm_of(40, 8)), "channels that fill no registers"
    assert not images.serves(x, norm.bfloat16()), "weights of another type"
    assert not images.serves(x, nn.Identity())
    norm = norm_of(32, 8)
    with torch.enable_grad():
        assert not images.serves(x, norm)


@needed
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 5e-5), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize("temporal", [False, True])
def test_movq_of_them_is_the_plain_one(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, close: float, temporal: bool
) -> None:
    torch.manual_seed(0)
    coder = MovqAutoencoder(MovqParams(ch=32, num_res_blocks=1, temporal=temporal)).eval().to(dtype)
    latents, pixels = numbers(1, 2, 6, 8, 4).to(dtype), numbers(1, 2, 48, 64, 3, seed=4).to(dtype)
    taken = []
    real = images.normed

    def spy(x: Tensor, norm: nn.GroupNorm, pieces: tuple[Tensor, Tensor] | None = None, *, activates: bool) -> Tensor:
        taken.append((pieces is not None, activates))
        return real(x, norm, pieces, activates=activates)

    monkeypatch.setattr(images, "normed", spy)
    fast, seen = coder.decode(latents), coder.encode(pixels)
    assert {(True, True), (False, True)} <= set(taken)
    monkeypatch.setattr(images, "serves", lambda *given: False)
    for found, wanted in ((fast, coder.decode(latents)), (seen, coder.encode(pixels))):
        assert float((found - wanted).float().norm() / wanted.float().norm()) < close
        assert found.dtype is dtype
