"""Blocks and few rows by our own kernels: what the layers give, wherever the layers may be left out."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D, VisualBlock
from kandinsky.families.kandinsky5.params import DiTParams
from kandinsky.families.parts.transformer import Modulation
from kandinsky.model.values import TextEmbeddings
from kandinsky.ops.attention import AttentionSpec
from kandinsky.ops.linear import taking
from kandinsky.ops.native import library, products

needed = pytest.mark.skipif(library.missing() is not None, reason=f"no kernels: {library.missing()}")
D, TEXT = 128, 9
CLOSE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}


@pytest.fixture(autouse=True)
def onednn_without_gradients() -> Iterator[None]:
    with torch.no_grad(), taking(torch.float32, "onednn"), taking(torch.bfloat16, "onednn"):
        yield


def network(dtype: torch.dtype = torch.float32) -> DiffusionTransformer3D:
    params = DiTParams(
        in_visual_dim=4, out_visual_dim=4, model_dim=D, ff_dim=5 * 48 * 2, time_dim=128, num_text_blocks=1,
        num_visual_blocks=2, axes_dims=(8, 12, 12), in_text_dim=64, in_text_dim2=64, visual_cond=False,
    )  # fmt: skip
    net = DiffusionTransformer3D(params)
    made = torch.Generator().manual_seed(0)
    for weight in net.parameters():
        noise = torch.randn(weight.shape, generator=made)
        weight.copy_(noise * 0.08 if weight.ndim > 1 else weight + 0.1 * noise)
    return net.eval().to(dtype)


def numbers(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ask(net: DiffusionTransformer3D, *, B: int = 1, mask: Tensor | None = None, **options: object) -> Tensor:
    x = numbers(B, 3, 12, 14, net.params.input_channels)  # 126 tokens: a tile and most of another
    text = TextEmbeddings(numbers(B, TEXT, 64, seed=2), numbers(B, 64, seed=3), mask)
    time = torch.linspace(900.0, 100.0, B)
    dtype = next(net.parameters()).dtype
    return net(x.to(dtype), time, text, **options)  # type: ignore[no-any-return]


def both(run: Callable[[], Tensor], monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor, int]:
    """What is made with our blocks and without them, and how many of them there were."""
    taken = []
    real = products.block

    def spy(*given: object, **named: object) -> Tensor | None:
        found = real(*given, **named)  # type: ignore[arg-type]
        taken.append(found is not None)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(products, "block", spy)
        fast = run()
        patch.setattr(products, "block", lambda *given, **named: None)
        patch.setattr(products, "few_rows", lambda *given: None)
        return fast, run(), sum(taken)


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@needed
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_blocks_are_the_layers(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, masked: bool, threads: int) -> None:
    if dtype is torch.bfloat16 and not library.blocks_of_bfloat16():
        pytest.skip("blocks in bfloat16 are PyTorch's with AMX, and with AVX-512 without avx512_bf16")
    net = network(dtype)
    mask = None
    if masked:
        mask = torch.ones(2, TEXT, dtype=torch.bool)
        mask[0, 5:] = False
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        fast, plain, count = both(lambda: ask(net, B=2, mask=mask), monkeypatch)
    finally:
        torch.set_num_threads(before)
    assert count == 3
    assert distance(fast, plain) < CLOSE[dtype]
    assert fast.dtype is dtype
    if dtype is torch.bfloat16:  # as far from the network in float32 as the layers are
        with monkeypatch.context() as patch:
            patch.setattr(products, "block", lambda *given, **named: None)
            wanted = ask(net.float(), B=2, mask=mask)
        assert distance(fast, wanted) < 1.1 * distance(plain, wanted)


@needed
def test_clips_and_threads_change_nothing() -> None:
    net = network()
    two, threads = ask(net, B=2), torch.get_num_threads()
    alone = net(
        numbers(2, 3, 12, 14, net.params.input_channels)[1:],
        torch.tensor([100.0]),
        TextEmbeddings(numbers(2, TEXT, 64, seed=2)[1:], numbers(2, 64, seed=3)[1:], None),
    )
    torch.testing.assert_close(two[1:], alone, rtol=1e-5, atol=1e-5)
    torch.set_num_threads(4)
    try:
        torch.testing.assert_close(ask(net, B=2), two, rtol=1e-5, atol=1e-5)
    finally:
        torch.set_num_threads(threads)


def second(net: DiffusionTransformer3D) -> VisualBlock:
    block = net.visual_transformer_blocks[1]
    assert isinstance(block, VisualBlock)
    return block


def hooked(net: DiffusionTransformer3D) -> None:
    second(net).feed_forward.in_layer.register_forward_hook(lambda module, given, out: out)


def heard(net: DiffusionTransformer3D) -> None:
    second(net).self_attention.register_forward_pre_hook(lambda module, given: None)


def updated(net: DiffusionTransformer3D) -> None:
    layer = second(net).cross_attention.to_value
    layer.add_module("low_rank", nn.Identity())
    layer.register_forward_hook(lambda module, given, out: 2 * out)


def replaced(net: DiffusionTransformer3D) -> None:
    old = second(net).self_attention.to_key
    new: Any = nn.Linear(D, D)
    new.load_state_dict(old.state_dict())
    second(net).self_attention.to_key = new


@needed
@pytest.mark.parametrize("change", [hooked, heard, updated, replaced])
def test_what_needs_its_layers_gets_them(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[DiffusionTransformer3D], None]
) -> None:
    net = network()
    change(net)
    fast, plain, count = both(lambda: ask(net), monkeypatch)
    assert count == 2, "the text's block and the other visual one"
    assert distance(fast, plain) < CLOSE[torch.float32]


def moved(net: DiffusionTransformer3D) -> None:
    weight = second(net).feed_forward.in_layer.weight
    weight.data = weight.data * 1.5


def scaled(net: DiffusionTransformer3D) -> None:
    second(net).self_attention.key_norm.weight = nn.Parameter(torch.full((32,), 0.5))


@needed
@pytest.mark.parametrize(
    ("change", "blocks"), [(hooked, 2), (heard, 2), (updated, 2), (replaced, 2), (moved, 3), (scaled, 3)]
)
def test_what_changes_between_two_passes_is_seen(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[DiffusionTransformer3D], None], blocks: int
) -> None:
    net = network()
    before = ask(net)
    change(net)
    fast, plain, count = both(lambda: ask(net), monkeypatch)
    assert count == blocks
    assert distance(fast, plain) < CLOSE[torch.float32]
    assert change in (hooked, heard, replaced) or distance(fast, before) > 1e-3


@needed
def test_places_of_weights_are_forgotten_with_their_network() -> None:
    ask(network())
    gc.collect()
    before = len(products._READ)
    ask(net := network())
    assert len(products._READ) == before + 3
    del net
    gc.collect()
    assert len(products._READ) == before


@needed
def test_other_attention_libraries_and_times_keep_to_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()
    for backend, visual in {"auto": 2, "native": 2, "sdpa": 0, "math": 0}.items():
        *_, count = both(partial(ask, net, attention=AttentionSpec(backend=backend)), monkeypatch)
        assert count == 1 + visual
    with taking(torch.float32, "torch"):
        assert both(lambda: ask(net), monkeypatch)[2] == 0
    by_frame = torch.tensor([[900.0, 500.0, 100.0]])
    text = TextEmbeddings(numbers(1, TEXT, 64, seed=2), numbers(1, 64, seed=3), None)
    x = numbers(1, 3, 12, 14, net.params.input_channels)
    assert both(lambda: net(x, by_frame, text), monkeypatch)[2] == 1, "the text's alone"
    with torch.enable_grad():
        ask(net).sum().backward()
    assert next(net.parameters()).grad is not None


@needed
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("rows", [1, 5, products.MOST_ROWS + 1])
def test_few_rows_are_cast_weights(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, rows: int) -> None:
    layer = Modulation(128, D, 6).to(dtype)
    layer.out_layer.weight.copy_(numbers(6 * D, 128) * 0.1)
    layer.out_layer.bias.copy_(numbers(6 * D, seed=2))
    real, taken = products.few_rows, []

    def spy(*given: Tensor) -> Tensor | None:
        found = real(*given)
        taken.append(found is not None)
        return found

    monkeypatch.setattr(products, "few_rows", spy)
    found = torch.cat(layer(numbers(rows, 128)), -1)
    monkeypatch.setattr(products, "few_rows", lambda *given: None)
    assert distance(found, torch.cat(layer(numbers(rows, 128)), -1)) < 1e-6
    assert found.dtype is torch.float32 and taken == [rows <= products.MOST_ROWS]
