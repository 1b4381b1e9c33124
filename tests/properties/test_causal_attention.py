"""Times of single frames and causal attention: what a network does with them follows from what it does without."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kandinsky.errors import RequestError
from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D
from kandinsky.families.kandinsky5.params import DiTParams
from kandinsky.model.values import TextEmbeddings
from kandinsky.ops.attention import attention
from kandinsky.ops.attention_spec import AttentionSpec
from kandinsky.ops.causal import ChunkTexts, causal_attention
from kandinsky.ops.packed import laid, taken

PARAMS = DiTParams(
    in_visual_dim=4, out_visual_dim=4, in_text_dim=12, in_text_dim2=8, time_dim=16, patch_size=(1, 2, 2),
    model_dim=32, ff_dim=64, num_text_blocks=1, num_visual_blocks=2, axes_dims=(4, 6, 6),
)  # fmt: skip


def dit() -> DiffusionTransformer3D:
    generator = torch.Generator().manual_seed(3)
    net = DiffusionTransformer3D(PARAMS).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    return net


def inputs(frames: int, seed: int = 1) -> tuple[torch.Tensor, TextEmbeddings]:
    generator = torch.Generator().manual_seed(seed)
    text = TextEmbeddings(torch.randn(2, 5, 12, generator=generator), torch.randn(2, 8, generator=generator))
    return torch.randn(2, frames, 4, 6, 4, generator=generator), text


def test_equal_times_of_all_frames_are_one_time() -> None:
    net, (x, text) = dit(), inputs(3)
    t = torch.tensor([300.0, 800.0])
    with torch.no_grad():
        torch.testing.assert_close(net(x, t[:, None].expand(2, 3), text), net(x, t, text), atol=1e-5, rtol=1e-5)


def test_a_frames_time_is_felt_by_that_frame_before_any_attention() -> None:
    net, (x, text) = dit(), inputs(3)
    net.visual_transformer_blocks = net.visual_transformer_blocks[:0]
    t = torch.full((2, 3), 900.0)
    other = t.clone()
    other[:, 1] = 100.0
    with torch.no_grad():
        moved = (net(x, t, text) - net(x, other, text)).abs().amax((0, 2, 3, 4))
    assert moved[1] > 1e-3 and moved[0] == moved[2] == 0


@settings(max_examples=25)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 3), st.integers(1, 5))
def test_chunks_are_dense_attention_under_a_mask(frames: int, chunk: int, reach: int, frame: int) -> None:
    spec = AttentionSpec(type="causal", frames=chunk, reach=reach)
    q, k, v = torch.randn(3, 2, frames * frame, 2, 8, generator=torch.Generator().manual_seed(frames)).double()
    part = torch.arange(frames * frame) // frame // chunk
    mask = (part[None] <= part[:, None]) & ((part[None] >= part[:, None] - reach) | (reach == 0))
    expected = attention(q, k, v, mask=mask[None, None], backend="plain")
    torch.testing.assert_close(causal_attention(q, k, v, spec=spec, frames=frames), expected, atol=1e-6, rtol=1e-5)
    assert spec.expected_share((frames, 8, 8)) == pytest.approx(mask.double().mean().item())


def test_no_frame_sees_a_later_chunk() -> None:
    net, (x, text) = dit(), inputs(4)
    spec = AttentionSpec(type="causal", frames=2)
    other = x.clone()
    other[:, 2:] += 1.0
    t = torch.full((2,), 500.0)
    with torch.no_grad():
        a, b = net(x, t, text, attention=spec), net(other, t, text, attention=spec)
        dense = net(other, t, text) - net(x, t, text)
    assert torch.equal(a[:, :2], b[:, :2]) and not torch.equal(a[:, 2:], b[:, 2:])
    assert dense[:, :2].abs().amax() > 1e-4


def test_times_of_later_chunks_are_not_felt_either() -> None:
    """Each chunk is told its prompt at its own time; so are clips of a packed sequence."""
    net, (x, text) = dit(), inputs(5)
    spec = AttentionSpec(type="causal", frames=2)
    t = torch.tensor([[100.0, 100, 500, 500, 900], [300.0, 200, 700, 700, 50]])
    later = t.clone()
    later[:, 4] = 999.0
    with torch.no_grad():
        a, b = net(x, t, text, attention=spec), net(x, later, text, attention=spec)
        sizes, packed = [(5, 4, 6), (4, 4, 6)], [x[:1], x[1:, :4]]
        both = net(laid(packed), torch.cat((t[:1], t[1:, :4]), 1), text, attention=spec, lengths=sizes)
        cut = net(x[:, :4], t[:, :4], text, attention=spec)
    assert torch.equal(a[:, :4], b[:, :4]) and not torch.equal(a[:, 4:], b[:, 4:])
    one, other = taken(both, sizes)
    torch.testing.assert_close(one, a[:1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(other, cut[1:], atol=1e-5, rtol=1e-5)


def test_texts_of_chunks_serve_a_part_of_the_tokens() -> None:
    q, k = torch.randn(1, 14, 2, 8), torch.randn(1, 9, 2, 8)
    told = ChunkTexts(3, 6)
    whole = told(q, k, k)
    for cut in (1, 5, 6, 7, 12):
        parts = [told(q[:, :cut], k, k), told.part(cut)(q[:, cut:], k, k)]
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(whole[:, 6:12], attention(q[:, 6:12], k[:, 3:6], k[:, 3:6]), atol=1e-6, rtol=1e-5)


def test_words_for_it() -> None:
    spec = AttentionSpec().chosen("causal:frames=3,reach=4")
    assert (spec.type, spec.frames, spec.reach) == ("causal", 3, 4) and AttentionSpec().chosen(str(spec)) == spec
    for word in ("causal:P=0.5", "dense:frames=3", "causal:frames=0", "causal:reach=-1", "nabla:reach=2"):
        with pytest.raises(RequestError):
            AttentionSpec().chosen(word)
