"""Attention, rotation, patches and the transformer as a whole."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kandinsky.errors import BackendError, RequestError
from kandinsky.families.kandinsky5.denoiser import VelocityDenoiser
from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D, DiTParams
from kandinsky.families.parts.condition_channels import join_condition
from kandinsky.families.parts.transformer import patchify, unpatchify
from kandinsky.model.values import TextEmbeddings
from kandinsky.ops.attention import AttentionSpec, attention, backends
from kandinsky.ops.rope import Rotation, axis_angles, frequencies, grid_angles
from tiny.transformer import TINY as PARAMS

quick = settings(max_examples=25)
small = st.integers(1, 3)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = DiffusionTransformer3D(PARAMS).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.2)
    return net.requires_grad_(False)


def inputs(batch=2, tokens=5, seed=1, grid=(3, 4, 6)):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, *grid, PARAMS.input_channels, generator=g)
    text = TextEmbeddings(torch.randn(batch, tokens, 12, generator=g), torch.randn(batch, 10, generator=g))
    return x, torch.rand(batch, generator=g) * 1000, text


@quick
@given(grid=st.tuples(small, small, small), patch=st.tuples(small, small, small), channels=st.integers(1, 4))
def test_patches_are_undone(grid, patch, channels):
    t, h, w = (g * p for g, p in zip(grid, patch, strict=True))
    x = torch.randn(2, t, h, w, channels)
    patches = patchify(x, patch)
    assert patches.shape == (2, *grid, math.prod(patch) * channels)
    # in: (pt, ph, pw, C); out: (C, pt, ph, pw)
    turned = patches.unflatten(-1, (math.prod(patch), channels)).transpose(-1, -2).flatten(-2)
    assert torch.equal(unpatchify(turned, patch), x)
    # the orders differ as soon as there is more than one channel and one cell
    if channels > 1 and math.prod(patch) > 1:
        assert not torch.equal(unpatchify(patches, patch), x)


def test_a_latent_off_the_patch_grid_is_refused():
    with pytest.raises(RequestError, match="3x5x6"):
        patchify(torch.zeros(1, 3, 5, 6, 2), (1, 2, 2))


@quick
@given(half=st.integers(1, 16), scale=st.floats(1.0, 4.0))
def test_rotation_keeps_lengths_and_relative_angles(half, scale):
    width = 2 * half
    rotation = Rotation(axis_angles(torch.arange(9), width, scale))
    q, k = torch.randn(1, 1, 1, width).expand(1, 9, 1, width), torch.randn(1, 1, 1, width).expand(1, 9, 1, width)
    rq, rk = rotation(q.contiguous()), rotation(k.contiguous())
    torch.testing.assert_close(rq.norm(dim=-1), q.norm(dim=-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rq[:, 0], q[:, 0])
    scores = torch.einsum("bsnk,blnk->sl", rq, rk)
    for offset in (1, 3):  # only the distance counts
        diagonal = scores.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-3, atol=1e-3)


def test_compiled_form_of_the_rotation_is_the_same(monkeypatch):
    rotation = Rotation(axis_angles(torch.arange(7), 8))
    x = torch.randn(2, 7, 3, 8)
    product = rotation(x)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(rotation(x), product, rtol=1e-6, atol=1e-6)


def test_grid_angles_follow_the_definition():
    angles = grid_angles([torch.arange(2), torch.arange(3), torch.arange(4)], (4, 6, 8), (1.0, 2.0, 3.16))
    assert angles.shape == (24, 9)
    t, h, w = 1, 2, 3
    expected = torch.cat((t * frequencies(2, angles.device), h * frequencies(3, angles.device) / 2.0))
    expected = torch.cat((expected, w * frequencies(4, angles.device) / 3.16))
    torch.testing.assert_close(angles[t * 12 + h * 4 + w], expected)


@pytest.mark.parametrize("backend", [name for name in backends() if name != "plain"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_backends_agree_with_the_definition(backend, masked, dtype):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 9, 3, 8), torch.randn(2, 7, 3, 8), torch.randn(2, 7, 3, 8)
    q, k, v = (x.to(dtype).requires_grad_() for x in (q, k, v))
    mask = torch.arange(7)[None] < torch.tensor([[4], [7]]) if masked else None
    out = attention(q, k, v, mask=mask, backend=backend)
    plain = attention(q, k, v, mask=mask, backend="plain")
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(out, plain, **tolerance)
    grads = [torch.autograd.grad(y.float().square().sum(), (q, k, v)) for y in (out, plain)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=10 * tolerance["rtol"], atol=5 * tolerance["atol"])


def test_unknown_attention_is_refused():
    x = torch.zeros(1, 2, 1, 4)
    with pytest.raises(BackendError, match="telepathy"):
        attention(x, x, x, backend="telepathy")
    assert AttentionSpec.from_dict({"type": "flash", "causal": False, "window": 3}) == AttentionSpec()
    for values in ({"type": "spiral"}, {"causal": True}, {"p": 0.9}):
        with pytest.raises(RequestError):
            AttentionSpec.from_dict(values)


def test_a_batch_equals_single_runs(net):
    x, time, text = inputs(batch=3)
    together = net(x, time, text)
    for i in range(3):
        one = TextEmbeddings(text.tokens_BLC[i : i + 1], text.pooled_BC[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], net(x[i : i + 1], time[i : i + 1], one), rtol=1e-5, atol=1e-5)


@settings(max_examples=8)
@given(kept=st.integers(1, 7), padding=st.floats(-5, 5))
def test_masked_text_equals_dropped_text(net, kept, padding):
    x, time, text = inputs(batch=1, tokens=8)
    tokens = text.tokens_BLC.clone()
    tokens[:, kept:] = padding
    masked = net(x, time, TextEmbeddings(tokens, text.pooled_BC, torch.arange(8)[None] < kept))
    dropped = net(x, time, TextEmbeddings(tokens[:, :kept], text.pooled_BC))
    torch.testing.assert_close(masked, dropped, rtol=1e-5, atol=1e-5)


def test_masks_differ_within_a_batch(net):
    x, time, text = inputs(batch=2, tokens=6)
    mask = torch.arange(6)[None] < torch.tensor([[2], [6]])
    together = net(x, time, TextEmbeddings(text.tokens_BLC, text.pooled_BC, mask))
    alone = net(x[:1], time[:1], TextEmbeddings(text.tokens_BLC[:1, :2], text.pooled_BC[:1]))
    torch.testing.assert_close(together[:1], alone, rtol=1e-5, atol=1e-5)


def test_given_positions_are_used(net):
    x, time, text = inputs(batch=1)
    t, h, w = torch.arange(3), torch.arange(2), torch.arange(3)
    usual = net(x, time, text)
    assert torch.equal(net(x, time, text, positions=(t, h, w), text_positions=torch.arange(5)), usual)
    # only distances between tokens count, and a common offset changes none
    torch.testing.assert_close(net(x, time, text, positions=(t + 5, h + 1, w)), usual, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(net(x, time, text, positions=(3 * t, h, w)), usual, atol=1e-4)


def test_fresh_blocks_are_the_identity():
    torch.manual_seed(0)
    fresh = DiffusionTransformer3D(PARAMS)
    x, time, text = inputs()
    seen = []
    hook = fresh.out_layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    fresh(x, time, text)
    hook.remove()
    assert torch.equal(seen[0], fresh.visual_embeddings(x).flatten(1, 3))


@pytest.mark.parametrize("bf16_weights", [False, True])
def test_bfloat16_is_near_float32_and_islands_stay(net, bf16_weights):
    x, time, text = inputs()
    exact = net(x, time, text)
    if bf16_weights:
        twin = DiffusionTransformer3D(PARAMS).requires_grad_(False)
        twin.load_state_dict(net.state_dict())
        rough = twin.bfloat16()(x, time, text)
        assert rough.dtype is torch.bfloat16
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = net(x, time, text)
            assert net.time_embeddings(time).dtype is torch.float32
            assert torch.equal(net.time_embeddings(time), net.time_embeddings(time.clone()))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=False):
            plain = net.time_embeddings(time)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(net.time_embeddings(time), plain)
    assert (rough.float() - exact).norm() < 0.05 * exact.norm()


def test_training_under_autocast_reaches_every_parameter():
    torch.manual_seed(0)
    fresh = DiffusionTransformer3D(PARAMS)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.normal_(std=0.2)
    x, time, text = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = fresh(x, time, text).float().square().mean()
    loss.backward()
    for name, parameter in fresh.named_parameters():
        assert parameter.grad is not None and parameter.grad.dtype is torch.float32, name
        # a key bias shifts all scores of a query alike only without the norm; here every weight counts
        assert parameter.grad.abs().sum() > 0, name


def test_it_runs_on_the_meta_device():
    with torch.device("meta"):
        ghost = DiffusionTransformer3D(DiTParams(**{f: getattr(PARAMS, f) for f in PARAMS.__slots__}))
        x, time, text = (
            torch.empty(2, 3, 4, 6, 9),
            torch.empty(2),
            TextEmbeddings(torch.empty(2, 5, 12), torch.empty(2, 10)),
        )
        assert ghost(x, time, text).shape == (2, 3, 4, 6, 4)
    assert not list(ghost.buffers())


def test_condition_channels():
    x = torch.randn(1, 2, 2, 2, 4)
    joined = join_condition(x, PARAMS)
    assert joined.shape[-1] == 9 and torch.equal(joined[..., :4], x) and not joined[..., 4:].any()
    condition = torch.ones(1, 2, 2, 2, 5)
    assert torch.equal(join_condition(x, PARAMS, condition)[..., 4:], condition)
    plain = DiTParams(in_visual_dim=4, model_dim=64)
    assert join_condition(x, plain) is x
    with pytest.raises(RequestError):
        join_condition(x, plain, condition)
    with pytest.raises(RequestError):
        join_condition(x, PARAMS, condition[..., :3])


def test_denoiser_serves_a_batch_from_one_prompt(net):
    x, _, text = inputs(batch=2)
    one = TextEmbeddings(text.tokens_BLC[:1], text.pooled_BC[:1], torch.ones(1, 5, dtype=torch.bool))
    velocity = VelocityDenoiser(net, one, rope_scale=(1.0, 2.0, 2.0))(x[..., :4], torch.tensor(0.5))
    twice = TextEmbeddings(one.tokens_BLC.repeat(2, 1, 1), one.pooled_BC.repeat(2, 1))
    direct = net(join_condition(x[..., :4], PARAMS), torch.tensor([500.0, 500.0]), twice, rope_scale=(1.0, 2.0, 2.0))
    torch.testing.assert_close(velocity, direct)
    with pytest.raises(RequestError, match="2 prompts"):
        VelocityDenoiser(net, text)(x[:1, ..., :4].repeat(3, 1, 1, 1, 1), torch.tensor(0.5))


def test_parameters_are_checked():
    assert DiTParams.from_dict({"axes_dims": [4, 6, 6], "model_dim": 32}).num_heads == 2
    for values in ({"model_dims": 32}, {"axes_dims": [4, 6]}, {"model_dim": 33}, {"instruct_type": "dance"}):
        with pytest.raises(RequestError):
            DiTParams.from_dict(values)
