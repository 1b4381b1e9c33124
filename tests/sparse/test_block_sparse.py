"""NABLA: token order, block masks, kernels, padding, and what is reported; each against its definition."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kandinsky.errors import BackendError
from kandinsky.ops import block_sparse
from kandinsky.ops.attention import attention, backends
from kandinsky.ops.attention_spec import BLOCK_BACKENDS, AttentionSpec
from kandinsky.ops.block_sparse import BlockMask
from kandinsky.ops.nabla import BLOCK, TILE, KeptBlocks, Nabla, TileOrder, block_means, top_cdf, window_mask

quick = settings(max_examples=15)
grids = st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20))
# a kernel that is compiled costs many seconds: it has a test of its own
KERNELS = [name for name in backends(sparse=True) if name not in ("auto", "flex", "plain")]


def tokens(grid, heads=2, width=4, batch=1, seed=0, count=3):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, math.prod(grid), heads, width, generator=g) for _ in range(count)]


def tile_numbers(grid):
    """Tile of each token, row-major, from the definition."""
    _, height, width = grid
    rows, columns = -(-height // TILE), -(-width // TILE)
    return torch.tensor(
        [
            (t * rows + y // TILE) * columns + x // TILE
            for t in range(grid[0])
            for y in range(height)
            for x in range(width)
        ]
    )


@quick
@given(grid=grids)
def test_tokens_go_to_tiles_and_back(grid):
    order = TileOrder.of(grid)
    (x,) = tokens(grid, count=1)
    assert torch.equal(order.restore(order.arrange(x)), x)
    assert torch.equal(order.unpad(order.pad(x)), x)
    assert sorted(order.order_S.tolist()) == list(range(math.prod(grid)))
    numbers = tile_numbers(grid)[order.order_S]
    assert torch.equal(numbers, numbers.sort().values)
    counts = torch.bincount(numbers, minlength=order.num_blocks)
    assert counts.min() > 0 and counts.max() <= BLOCK
    if order.counts_K is None:
        assert grid[1] % TILE == grid[2] % TILE == 0 and order.slots_S is None
    else:
        assert torch.equal(order.counts_K, counts)
        # real tokens lie at the head of each padded tile
        padded = order.pad(torch.ones(1, math.prod(grid), 1, 1)).view(-1, BLOCK)
        assert torch.equal(padded, (torch.arange(BLOCK) < counts[:, None]).float())


def test_tokens_of_a_tile_are_row_major():
    order = TileOrder.of((1, 9, 17))
    assert order.tiles == (1, 2, 3)
    assert order.order_S[:10].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 17, 18]
    assert order.order_S[128:136].tolist() == [16 + 17 * row for row in range(8)]  # a tile of one column
    assert order.order_S[-1] == 9 * 17 - 1 and order.counts_K.tolist() == [64, 64, 8, 8, 8, 1]


@quick
@given(tiles=st.tuples(*[st.integers(1, 4)] * 3), widths=st.tuples(*[st.integers(1, 7)] * 3))
def test_the_window_follows_the_definition(tiles, widths):
    places = torch.cartesian_prod(*(torch.arange(size) for size in tiles)).view(-1, 3)
    apart = (places[:, None] - places).abs()
    assert torch.equal(window_mask(tiles, widths), (apart <= torch.tensor(widths) // 2).all(-1))


@quick
@given(P=st.floats(0.0, 1.0), seed=st.integers(0, 99), columns=st.integers(1, 40))
def test_kept_blocks_hold_the_mass(P, seed, columns):
    scores = torch.randn(1, 2, 3, columns, generator=torch.Generator().manual_seed(seed)) * 3
    p = scores.softmax(-1)
    kept = top_cdf(p, P)
    # the official way: sort, running sum, sort the places to undo
    values, places = p.sort(-1)
    assert torch.equal(kept, (values.cumsum(-1) >= 1 - P).gather(-1, places.argsort(-1)))
    # no block that is left out outweighs one that is kept, and those left out hold less than 1 − P
    left_out, least = p.masked_fill(kept, -1).amax(-1), p.masked_fill(~kept, 2).amin(-1)
    assert (left_out <= least).all()
    assert (p.masked_fill(kept, 0).sum(-1) <= 1 - P + 1e-5).all()


def random_blocks(q_blocks, k_blocks, heads, batch, seed, share=0.4, counts=None):
    g = torch.Generator().manual_seed(seed)
    kept = torch.rand(batch, heads, q_blocks, k_blocks, generator=g) < share
    kept.diagonal(dim1=-2, dim2=-1)[:] = True
    return BlockMask(kept, BLOCK, counts)


@pytest.mark.parametrize("backend", KERNELS)
@quick
@given(
    blocks=st.integers(1, 5),
    batch=st.integers(1, 2),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
    ragged=st.booleans(),
)
def test_kernels_equal_dense_attention_under_the_expanded_mask(backend, blocks, batch, share, seed, ragged):
    q, k, v = tokens((blocks, TILE, TILE), heads=3, width=8, batch=batch, seed=seed)
    counts = torch.randint(1, BLOCK + 1, (blocks,), generator=torch.Generator().manual_seed(seed)) if ragged else None
    mask = random_blocks(blocks, blocks, 3, batch, seed, share, counts)
    out = attention(q, k, v, blocks=mask, backend=backend)
    torch.testing.assert_close(out, attention(q, k, v, mask=mask.expanded(), backend="plain"), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("backend", KERNELS)
def test_work_in_parts_changes_nothing(backend, monkeypatch):
    q, k, v = tokens((5, TILE, TILE), heads=3, width=8)
    mask = random_blocks(5, 5, 3, 1, seed=3)
    whole = attention(q, k, v, blocks=mask, backend=backend)
    monkeypatch.setattr(block_sparse, "MASK_ENTRIES", 1)
    monkeypatch.setattr(block_sparse, "CORE_ENTRIES", 1)
    torch.testing.assert_close(attention(q, k, v, blocks=mask, backend=backend), whole, rtol=1e-6, atol=1e-6)
    monkeypatch.setattr("kandinsky.ops.nabla.SORTED_ENTRIES", 1)
    nabla = Nabla.of((5, 8, 8), AttentionSpec(type="nabla", P=0.5, wT=1))
    in_parts = nabla.select(q, k).kept_BNQK
    monkeypatch.undo()
    assert torch.equal(in_parts, nabla.select(q, k).kept_BNQK) and not in_parts.all()


def test_gradients_pass_through_the_gathered_kernel():
    q, k, v = (x.requires_grad_() for x in tokens((4, TILE, TILE), width=8))
    mask = random_blocks(4, 4, 2, 1, seed=1, counts=torch.tensor([64, 10, 64, 3]))
    grads = [
        torch.autograd.grad(attention(q, k, v, blocks=mask, backend=name).square().sum(), (q, k, v))
        for name in ("gathered", "plain")
    ]
    for ours, plain in zip(*grads, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", KERNELS)
@quick
@given(grid=grids, seed=st.integers(0, 9))
def test_everything_kept_is_dense_attention(backend, grid, seed):
    q, k, v = tokens(grid, seed=seed)
    wide = AttentionSpec(type="nabla", P=1.0, wT=99, wH=99, wW=99, backend=backend)
    for spec in (wide, AttentionSpec(type="nabla", P=0.0, wT=99, wH=99, wW=99, backend=backend)):
        nabla = Nabla.of(grid, spec)
        out = nabla.order.restore(nabla.attend(*(nabla.order.arrange(x) for x in (q, k, v))))
        torch.testing.assert_close(out, attention(q, k, v, backend="plain"), rtol=1e-5, atol=2e-6)


@quick
@given(grid=grids, P=st.floats(0.05, 0.95), width=st.integers(1, 3), seed=st.integers(0, 99))
def test_padding_to_tiles_equals_a_mask_computed_token_by_token(grid, P, width, seed):
    """No tile order and no padding here: token pairs are masked by the tiles they lie in."""
    q, k, v = (3 * x for x in tokens(grid, width=6, seed=seed))
    nabla = Nabla.of(grid, AttentionSpec(type="nabla", P=P, wT=width, wH=1, wW=width))
    numbers, order = tile_numbers(grid), nabla.order
    member = torch.nn.functional.one_hot(numbers).float()
    means = [torch.einsum("bsnk,sj->bnjk", x, member) / member.sum(0)[:, None] for x in (q, k)]
    probability = (means[0] @ means[1].mT / math.sqrt(6)).softmax(-1)
    # a decision at the very edge may fall either way
    running = probability.sort(-1).values.cumsum(-1)
    assume((running - (1 - P)).abs().min() > 1e-5)
    kept = top_cdf(probability, P) | nabla.window_QK
    expected = attention(q, k, v, mask=kept[:, :, numbers][..., numbers], backend="plain")
    noted = []
    out = order.restore(nabla.attend(*(order.arrange(x) for x in (q, k, v)), note=noted.append))
    assert torch.equal(noted[0], kept)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_means_leave_padding_out():
    x = torch.zeros(1, 2 * BLOCK, 1, 1)
    x[0, :3] = 6.0
    x[0, BLOCK:] = 2.0
    assert block_means(x, torch.tensor([3, BLOCK])).flatten().tolist() == [6.0, 2.0]


def test_a_batch_selects_for_each_clip_alone():
    q, k, v = tokens((3, 12, 9), batch=3, width=8)
    nabla = Nabla.of((3, 12, 9), AttentionSpec(type="nabla", P=0.5, wT=1, wH=1, wW=1))
    together = nabla.attend(q, k, v)
    for i in range(3):
        one = slice(i, i + 1)
        assert torch.equal(nabla.attend(q[one], k[one], v[one]), together[one])


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler for the compiled kernel")
def test_the_compiled_kernel_honours_the_mask():
    """FlexAttention, with and without padding; eager it would be dense, and that is noticed."""
    q, k, v = tokens((4, TILE, TILE), heads=2, width=16)
    for counts in (None, torch.tensor([64, 20, 64, 1])):
        mask = random_blocks(4, 4, 2, 1, seed=5, share=0.2, counts=counts)
        assert torch.equal(block_sparse.flex_mask(mask).to_dense().bool(), mask.kept_BNQK)
    out = attention(q, k, v, blocks=mask, backend="flex")
    torch.testing.assert_close(out, attention(q, k, v, blocks=mask, backend="plain"), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_kernel_that_would_be_dense_is_refused(monkeypatch):
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(block_sparse, "_compiled_flex", lambda: flex_attention)
    monkeypatch.setattr(block_sparse, "_HELD_AGAINST_DEFINITION", set())
    q, k, v = tokens((3, TILE, TILE), width=16)
    mask = random_blocks(3, 3, 2, 1, seed=0, share=0.1)
    with pytest.raises(BackendError, match="would be dense: use `gathered`"):
        attention(q, k, v, blocks=mask, backend="flex")

    def broken(*args, **kwargs):
        raise NotImplementedError("no such luck\nand more lines")

    monkeypatch.setattr(block_sparse, "_compiled_flex", lambda: broken)
    with pytest.raises(BackendError, match=r"does not run here \(no such luck\): use `gathered`"):
        attention(q, k, v, blocks=mask, backend="flex")
    switched_off = torch._dynamo.config.patch(suppress_errors=True)
    with switched_off, pytest.raises(BackendError, match="the compiler is switched off"):
        attention(q, k, v, blocks=mask, backend="flex")


def test_backends_without_such_a_kernel_are_refused():
    q, k, v = tokens((2, TILE, TILE))
    mask = random_blocks(2, 2, 2, 1, seed=0)
    with pytest.raises(BackendError, match="`math` is not available: it has no block-sparse kernel; use one of"):
        attention(q, k, v, blocks=mask, backend="math")
    with pytest.raises(BackendError, match="`gathered` is not available: it has no dense kernel"):
        attention(q, k, v, backend="gathered")
    assert set(backends(sparse=True)) <= {"auto", *BLOCK_BACKENDS}
    assert "flex" not in backends("mps", sparse=True) and "gathered" in backends("mps", sparse=True)


def test_the_report_counts_by_pass_layer_and_clip():
    report = KeptBlocks()
    assert report.mean() is None and report.layers() == {} and report.passes() == []
    kept = torch.zeros(2, 1, 2, 4, dtype=torch.bool)
    kept[0, :, :, 0] = True  # a quarter; the second clip keeps all
    kept[1] = True
    report.begin()
    report.note(0, kept)
    report.note(1, torch.ones_like(kept))
    report.begin()  # a pass whose layers were left out, as by a cache
    report.begin()
    report.note(1, kept)
    assert report.passes() == [{0: [0.25, 1.0], 1: [1.0, 1.0]}, {1: [0.25, 1.0]}]
    assert report.layers() == {0: 0.625, 1: 0.8125}
    assert report.mean(0) == 0.5 and report.mean(1) == 1.0 and report.mean() == 0.75


def test_selection_is_the_same_below_float32_inputs_and_autocast():
    q, k, v = tokens((3, TILE, 2 * TILE), width=16)
    nabla = Nabla.of((3, 8, 16), AttentionSpec(type="nabla", P=0.5, wT=1, wH=1, wW=1))
    kept = nabla.select(q, k).kept_BNQK
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nabla.select(q, k).kept_BNQK, kept)
    half = [x.bfloat16() for x in (q, k, v)]
    out = nabla.attend(*half)
    assert out.dtype is torch.bfloat16
    exact = attention(*half, blocks=nabla.select(*half[:2]), backend="plain")
    torch.testing.assert_close(out, exact, rtol=2e-2, atol=2e-2)
