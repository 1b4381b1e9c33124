"""Norm and modulation, gate and sum, heads' norm and turn: the forms for processors equal the plain ones."""

import pytest
import torch

from kandinsky.ops import fused
from kandinsky.ops import linear as products
from kandinsky.ops.linear import Linear, linear_gelu
from kandinsky.ops.native import islands, library
from kandinsky.ops.rope import Rotation

B, S, D, N = 2, 700, 96, 3  # more tokens than a stretch has


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def own_kernels_stand_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(islands, "LEAST", 2**40)


def of_both(monkeypatch: pytest.MonkeyPatch, run) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        fast = run()
        with monkeypatch.context() as patch:
            patch.setattr(fused, "in_place", lambda x: False)
            return fast, run()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("clips", [1, B])
def test_equal_to_the_plain_forms(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, rows: int, clips: int) -> None:
    x, update = numbers(clips, S, D).to(dtype), numbers(clips, S, D, seed=1).to(dtype)
    shift, scale = numbers(clips, rows, D, seed=2), numbers(clips, rows, D, seed=3)
    rounding = {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 8e-3, "atol": 1e-3}
    fast, plain = of_both(monkeypatch, lambda: fused.modulated(x, shift, scale, 1e-5))
    assert fast.dtype is dtype
    torch.testing.assert_close(fast, plain, **rounding)
    before = x.clone()
    fast, plain = of_both(monkeypatch, lambda: fused.gated(x, shift, update.clone()))
    assert torch.equal(fast, plain) and fast.dtype is dtype
    assert torch.equal(x, before), "only the update may be written over"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("clips", [1, B])
@pytest.mark.parametrize("turned", [False, True])
def test_heads_are_normalised_and_turned(monkeypatch, dtype: torch.dtype, clips: int, turned: bool) -> None:
    x, weight = numbers(clips, S, D).to(dtype), numbers(D // N, seed=1)
    rotation = Rotation(numbers(S, D // N // 2, seed=2)) if turned else None
    fast, plain = of_both(
        monkeypatch, lambda: fused.normed_heads(x.clone().unflatten(-1, (N, -1)), weight, 1e-6, rotation)
    )
    assert torch.equal(fast, plain) and fast.dtype is dtype


def test_gradients_take_the_plain_forms() -> None:
    x, gate = numbers(1, 5, D).requires_grad_(), numbers(1, 1, D, seed=1)
    assert not fused.in_place(x)
    update = numbers(1, 5, D, seed=2)
    fused.gated(fused.modulated(x, gate, gate, 1e-5), gate, update).sum().backward()
    assert torch.equal(update, numbers(1, 5, D, seed=2)) and x.grad is not None


def test_an_activation_in_place_and_behind_a_hook() -> None:
    layer, x = Linear(D, 32), numbers(4, D)
    with torch.no_grad():
        expected = torch.nn.functional.gelu(layer(x))
        assert torch.equal(linear_gelu(layer, x), expected)
        held = []
        layer.register_forward_hook(lambda module, given, out: held.append(out))
        assert torch.equal(linear_gelu(layer, x), expected)
        assert torch.equal(held[0], layer(x)), "what a hook holds is not written over"


def test_the_library_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Linear(D, 32), numbers(4, D)
    with torch.no_grad():
        with products.taking(torch.float32, "torch"):
            assert not products._is_for_onednn(x, layer.weight)
            plain = layer(x)
        with products.taking(torch.float32, "onednn"):
            torch.testing.assert_close(layer(x), plain, rtol=1e-5, atol=1e-5)
    for vendor, by_type in {True: ("onednn", "onednn"), False: ("torch", "onednn")}.items():
        monkeypatch.setattr(products, "_processor_is", lambda name, answer=vendor: answer)
        assert (products.usual(torch.float32), products.usual(torch.bfloat16)) == by_type


@pytest.mark.skipif(library.missing() is not None, reason=f"no kernels: {library.missing()}")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("clips", [1, B])
def test_own_kernels_are_the_plain_forms(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, clips: int, threads: int
) -> None:
    monkeypatch.setattr(islands, "LEAST", 1)
    x, update = numbers(clips, 4 * S, D).to(dtype), numbers(clips, 4 * S, D, seed=1).to(dtype)
    shift, scale = numbers(1, 1, D, seed=2), numbers(1, 1, D, seed=3)
    weight, turns = numbers(D // N, seed=1), Rotation(numbers(4 * S, D // N // 2, seed=2))
    taken = []
    for name in ("modulated", "gated", "normed_heads"):
        real = getattr(islands, name)
        monkeypatch.setattr(islands, name, lambda *given, name=name, real=real: taken.append(name) or real(*given))
    rounding = {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 8e-3, "atol": 1e-3}
    before, own = x.clone(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for run in (
            lambda: fused.modulated(x, shift, scale, 1e-5),
            lambda: fused.gated(x, shift, update.clone()),
            lambda: fused.normed_heads(x.clone().unflatten(-1, (N, -1)), weight, 1e-6, turns),
            lambda: fused.normed_heads(x.clone().unflatten(-1, (N, -1)), weight, 1e-6),
        ):
            fast, plain = of_both(monkeypatch, run)
            assert fast.dtype is dtype
            torch.testing.assert_close(fast, plain, **rounding)
            assert torch.equal(x, before)
    finally:
        torch.set_num_threads(own)
    assert taken == ["modulated", "gated", "normed_heads", "normed_heads"]
    monkeypatch.setattr(library, "kernels", lambda: None)
    assert islands.gated(x, shift, update) is None
