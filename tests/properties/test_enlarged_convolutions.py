"""Convolutions of doubled pixels equal doubling, then convolving, in every decoder that has them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.families.parts.cogvideox import Doubling as FramesDoubled
from kandinsky.families.parts.hunyuan import HunyuanAutoencoder, HunyuanParams
from kandinsky.ops import enlarge
from kandinsky.ops.enlarge import convolve_doubled, convolve_doubled_image, pays


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 3)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_images_are_what_doubling_and_convolving_gives(size: tuple[int, int], layout: torch.memory_format) -> None:
    layer = nn.Conv2d(3, 4, 3, padding=1).double()
    x = numbers(2, 3, *size).to(memory_format=layout)
    with torch.no_grad():
        assert pays(x, layer)
        expected = layer(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        torch.testing.assert_close(convolve_doubled_image(x, layer), expected)
        half = layer.bfloat16()
        assert not pays(x.bfloat16(), half)
        plain = half(F.interpolate(x.bfloat16(), scale_factor=2.0, mode="nearest"))
        assert torch.equal(convolve_doubled_image(x.bfloat16(), half), plain)


@pytest.mark.parametrize(
    "axes", [("kept", "doubled", "doubled"), ("past", "doubled", "doubled"), ("past", "kept", "kept")]
)
def test_clips_are_what_doubling_and_convolving_gives(axes: tuple[enlarge.Axis, ...]) -> None:
    weight, bias, x = numbers(4, 3, 3, 3, 3), numbers(4, seed=1), numbers(1, 3, 3, 4, 2, seed=2)
    front = 1 if axes[0] == "past" else 2
    padded = F.pad(
        torch.cat((x[:, :, :1].expand(-1, -1, front, -1, -1), x), dim=2), (1, 1, 1, 1, 0, 0), mode="replicate"
    )
    wide = x
    for dim, axis in enumerate(axes, start=2):
        wide = wide if axis == "kept" else wide.repeat_interleave(2, dim=dim)
    wide = torch.cat((x.repeat_interleave(wide.shape[3] // 4, 3).repeat_interleave(wide.shape[4] // 2, 4)[:, :, :1]
                      .expand(-1, -1, 2, -1, -1), wide), dim=2)  # fmt: skip
    expected = F.conv3d(F.pad(wide, (1, 1, 1, 1, 0, 0), mode="replicate"), weight, bias)
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        found = convolve_doubled(padded.contiguous(memory_format=layout), weight, bias, axes)
        torch.testing.assert_close(found, expected)
        half = (tensor.bfloat16() for tensor in (padded.contiguous(memory_format=layout), weight, bias))
        rough = convolve_doubled(*half, axes)
        assert (rough - expected).norm() < 0.01 * expected.norm(), "sums of weights are rounded once more, no further"


def test_the_plain_way_is_taken_where_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = nn.Conv2d(3, 4, 3, padding=1), numbers(1, 3, 4, 4).float()
    assert not pays(x, layer), "gradients"
    convolve_doubled_image(x, layer).sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert not pays(x, layer)
    with torch.no_grad():
        assert not pays(x, nn.Sequential(layer)), "a layer that something replaced"


@pytest.mark.parametrize("temporal", [4, 8])
def test_a_decoder_gives_the_pixels_of_the_plain_layers(temporal: int, monkeypatch: pytest.MonkeyPatch) -> None:
    params = HunyuanParams(
        latent_channels=4, block_out_channels=(8, 8, 12, 16), layers_per_block=1, norm_num_groups=4,
        temporal_compression_ratio=temporal,
    )  # fmt: skip
    torch.manual_seed(0)
    coder = HunyuanAutoencoder(params).double().requires_grad_(False)
    for frames in (1, 3):
        z = numbers(1, frames, 2, 3, 4, seed=frames)
        with torch.no_grad():
            fast = coder.decode(z)
            memory, pieces = None, []
            for piece in z.split(1, dim=1):
                pixels, memory = coder.decode_piece(piece, memory)
                pieces.append(pixels)
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr("kandinsky.families.parts.hunyuan.pays", lambda *_: False)
            torch.testing.assert_close(fast, coder.decode(z), rtol=1e-9, atol=1e-9)
            memory = None
            for piece, found in zip(z.split(1, dim=1), pieces, strict=True):
                pixels, memory = coder.decode_piece(piece, memory)
                torch.testing.assert_close(found, pixels, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("in_time", [False, True])
def test_repeated_frames_are_convolved_once_and_equal(frames: int, in_time: bool) -> None:
    from diffusers.models.upsampling import CogVideoXUpsample3D

    theirs = CogVideoXUpsample3D(3, 4, compress_time=in_time).double()
    x = numbers(2, 3, frames, 3, 2)
    with torch.no_grad():
        torch.testing.assert_close(FramesDoubled(theirs.conv, in_time)(x), theirs(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolutions_by_onednn_are_the_plain_ones(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """A network's convolutions change by rounding alone, and those with few channels or gradients not at all."""
    from kandinsky.ops import convolution

    taken = []
    real = torch.mkldnn_convolution
    monkeypatch.setattr(torch, "mkldnn_convolution", lambda *given: taken.append(given[0].shape[1]) or real(*given))
    wide, narrow = (torch.nn.Conv3d(C, C, 3, padding=(0, 1, 1), stride=(1, 1, 2)).to(dtype) for C in (64, 32))
    x, few = torch.randn(1, 64, 4, 6, 8).to(dtype), torch.randn(1, 32, 4, 6, 8).to(dtype)
    with torch.no_grad():
        wanted, same = wide(x), narrow(few)
        net = torch.nn.ModuleList([wide, narrow])
        names = list(net.state_dict())
        convolution.use(net)
        found = wide(x)
        assert torch.equal(narrow(few), same)
    assert list(net.state_dict()) == names and found.dtype is dtype
    torch.testing.assert_close(found, wanted, rtol=1e-4 if dtype is torch.float32 else 2e-2, atol=1e-4)
    assert torch.equal(wide(x.requires_grad_()).detach(), wanted)
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        assert taken[:1] == [64] and 32 not in taken
