"""Our transformer and autoencoder against Diffusers' on tiny random weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from kandinsky.errors import RequestError
from kandinsky.families.kandinsky5.convert import diffusers_config
from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D
from kandinsky.families.parts.hunyuan import HunyuanAutoencoder, HunyuanParams
from kandinsky.model.values import TextEmbeddings
from kandinsky.ops.attention import AttentionSpec
from tiny.alignment import exact_rotation
from tiny.transformer import TINY

diffusers = pytest.importorskip("diffusers")

__all__ = ["exact_rotation"]
PARAMS = dataclasses.replace(TINY, num_text_blocks=2)


@pytest.fixture
def pair():
    torch.manual_seed(0)
    ours = DiffusionTransformer3D(PARAMS).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(std=0.2)
    config = {k: v for k, v in diffusers_config(PARAMS, AttentionSpec()).items() if not k.startswith("_")}
    theirs = diffusers.Kandinsky5Transformer3DModel(**config).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


@torch.no_grad()
def both(pair, batch=2, rope_scale=(1.0, 2.0, 2.0)):
    ours, theirs = pair
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, 4, 6, 9, generator=generator)
    text = TextEmbeddings(torch.randn(batch, 5, 12, generator=generator), torch.randn(batch, 10, generator=generator))
    time = torch.tensor([731.25, 120.5])[:batch]
    a = ours(x, time, text, rope_scale=rope_scale)
    b = theirs(
        hidden_states=x,
        encoder_hidden_states=text.tokens_BLC,
        timestep=time,
        pooled_projections=text.pooled_BC,
        visual_rope_pos=[torch.arange(3), torch.arange(2), torch.arange(3)],
        text_rope_pos=torch.arange(5),
        scale_factor=rope_scale,
        return_dict=False,
    )
    b = b[0] if isinstance(b, tuple) else b
    return a, b


@pytest.mark.parametrize("rope_scale", [(1.0, 2.0, 2.0), (1.0, 3.16, 3.16)])
def test_equal_with_the_rotary_rounding_lifted(pair, exact_rotation, rope_scale):
    a, b = both(pair, rope_scale=rope_scale)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


def test_near_with_the_rotary_rounding_as_it_is(pair):
    a, b = both(pair)
    torch.testing.assert_close(a, b, rtol=2e-2, atol=3e-2)


@torch.no_grad()
def test_autoencoder_equals_diffusers_untiled():
    torch.manual_seed(0)
    params = HunyuanParams(
        latent_channels=4, block_out_channels=(4, 4, 8, 8), layers_per_block=1, norm_num_groups=2, scaling_factor=0.5
    )
    ours = HunyuanAutoencoder(params).eval()
    video = torch.rand(1, 21, 16, 24, 3) * 2 - 1  # beyond 16 frames, where Diffusers tiles unless told not to
    theirs = diffusers.AutoencoderKLHunyuanVideo(**dataclasses.asdict(params)).eval()
    theirs.load_state_dict(ours.net.state_dict(), strict=True)
    theirs.use_framewise_encoding = theirs.use_framewise_decoding = False
    mode = theirs.encode(video.permute(0, 4, 1, 2, 3)).latent_dist.mode() * 0.5
    latents = ours.encode(video)
    assert latents.shape == (1, 6, 2, 3, 4)
    torch.testing.assert_close(latents.permute(0, 4, 1, 2, 3), mode, rtol=1e-4, atol=1e-5)
    pixels = theirs.decode(mode / 0.5).sample
    torch.testing.assert_close(ours.decode(latents).permute(0, 4, 1, 2, 3), pixels, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_official_tiling_covers_sizes_the_official_grid_leaves_open():
    from kandinsky.families.parts.tiling import Tiling

    torch.manual_seed(0)
    params = HunyuanParams(latent_channels=4, block_out_channels=(4, 4, 8, 8), layers_per_block=1, norm_num_groups=2)
    whole = HunyuanAutoencoder(params).eval()
    tiled = HunyuanAutoencoder(params, tiling=Tiling((17, 32, 24), (8, 16, 16))).eval()
    tiled.load_state_dict(whole.state_dict())
    video = torch.rand(1, 21, 56, 48, 3) * 2 - 1
    latents = tiled.encode(video)
    assert latents.shape == whole.encode(video).shape
    assert tiled.decode(latents).shape == video.shape


def test_official_tile_rule():
    from kandinsky.families.parts.tiling import Tiling

    assert Tiling.official(768, 1280) == Tiling((17, 400, 448), (8, 368, 416))
    assert Tiling.official(512, 768) == Tiling((17, 512, 768), (8, 512, 768))
    assert Tiling.official(1024, 1024) == Tiling((17, 528, 528), (8, 496, 496))


@torch.no_grad()
def test_tiling_is_chosen_by_size_and_never_by_the_machine(monkeypatch):
    torch.manual_seed(0)
    params = HunyuanParams(latent_channels=4, block_out_channels=(4, 4, 8, 8), layers_per_block=1, norm_num_groups=2)
    nets = {tiling: HunyuanAutoencoder(params, tiling=tiling).eval() for tiling in ("none", "auto", "official")}
    for net in nets.values():
        net.load_state_dict(nets["none"].state_dict())
    latents = torch.randn(1, 7, 2, 2, 4)
    clips = {tiling: net.decode(latents) for tiling, net in nets.items()}
    assert torch.equal(clips["auto"], clips["none"]) and not torch.equal(clips["official"], clips["none"])
    monkeypatch.setattr("kandinsky.families.parts.hunyuan.WHOLE_VOXELS", 25 * 16 * 16 - 1)
    assert torch.equal(nets["auto"].decode(latents), clips["official"])
    with pytest.raises(RequestError, match="clever"):
        HunyuanAutoencoder(params, tiling="clever")
