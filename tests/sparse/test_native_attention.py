"""Our own attention kernel against the definition: dense, masked keys, blocks, both types; and what falls back."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kandinsky.ops import attention as attention_module
from kandinsky.ops.attention import attention, backends
from kandinsky.ops.block_sparse import BlockMask
from kandinsky.ops.native import attention as native
from kandinsky.ops.native import library

needed = pytest.mark.skipif(library.missing() is not None, reason=f"no kernels: {library.missing()}")
CLOSE = {torch.float32: 3e-6, torch.bfloat16: 4e-3}


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def made(dtype: torch.dtype, B: int, S: int, L: int, N: int, K: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(S + L)
    q, k, v = (torch.randn(B, length, N, K, generator=generator).to(dtype) for length in (S, L, L))
    return q, k, v


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@needed
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize(
    ("B", "S", "L", "N", "K"),
    [(1, 64, 64, 1, 64), (2, 100, 77, 3, 64), (1, 333, 259, 2, 32), (1, 65, 130, 2, 128)]
    + [(1, 80, 90, 2, width) for width in (8, 20, 40, 80, 160)],  # no whole registers
)
def test_dense_is_the_definition(dtype: torch.dtype, B: int, S: int, L: int, N: int, K: int) -> None:
    q, k, v = made(dtype, B, S, L, N, K)
    assert distance(native.dense(q, k, v, None), attention(q, k, v, backend="plain")) < CLOSE[dtype]


@needed
@pytest.mark.parametrize("dtype", CLOSE)
def test_keys_that_do_not_count_are_left_out(dtype: torch.dtype) -> None:
    q, k, v = made(dtype, 2, 90, 200, 2, 64)
    mask = torch.rand(2, 200, generator=torch.Generator().manual_seed(0)) < 0.3
    mask[:, 0] = True
    poisoned = torch.where(mask[:, :, None, None], k, torch.nan), torch.where(mask[:, :, None, None], v, torch.nan)
    found = attention(q, *poisoned, mask=mask, backend="native")
    assert distance(found, attention(q, k, v, mask=mask, backend="plain")) < CLOSE[dtype]


@needed
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("size", [64, 128])
def test_blocks_are_those_of_the_mask(dtype: torch.dtype, is_padded: bool, size: int) -> None:
    B, N, Q = 2, 2, 5
    q, k, v = made(dtype, B, Q * size, Q * size, N, 64)
    generator = torch.Generator().manual_seed(1)
    kept = torch.rand(B, N, Q, Q, generator=generator) < 0.5
    kept |= torch.eye(Q, dtype=torch.bool)
    counts = torch.tensor([size, 1, size, size - 7, 33]) if is_padded else None
    mask = BlockMask(kept, size, counts)
    found = attention(q, k, v, blocks=mask, backend="native")
    assert distance(found, attention(q, k, v, blocks=mask, backend="plain")) < CLOSE[dtype]


@needed
def test_large_scores_and_far_keys_are_exact() -> None:
    """The largest score moves between stretches of keys by far more than the range of an exponential."""
    q, k, v = made(torch.float32, 1, 64, 512, 1, 64)
    k *= torch.linspace(0.1, 60, 512)[None, :, None, None]
    assert distance(native.dense(q, k, v, None), attention(q, k, v, backend="plain")) < 1e-5
    assert native.dense(q, k, v, None).isfinite().all()


@needed
def test_no_key_at_all_gives_zeros() -> None:
    q, k, v = made(torch.float32, 1, 64, 64, 1, 64)
    assert not native.dense(q, k, v, torch.zeros(1, 1, 1, 64, dtype=torch.bool)).any()


@needed
def test_strides_and_threads_change_nothing() -> None:
    q, k, v = made(torch.bfloat16, 2, 300, 300, 2, 64)
    wanted = native.dense(q, k, v, None)
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    assert torch.equal(native.dense(*turned, None), wanted)  # type: ignore[call-arg]
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(native.dense(q, k, v, None), wanted)
    finally:
        torch.set_num_threads(threads)


@needed
def test_auto_takes_it_for_much_work_only(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    real = native.dense

    def spy(*given: Tensor) -> Tensor:
        taken.append(given[0].shape[1])
        return real(*given)

    monkeypatch.setitem(attention_module._BACKENDS, "native", attention_module.Backend(spy))
    attention(*made(torch.float32, 1, 255, 256, 1, 64))
    attention(*made(torch.float32, 1, 511, 3, 1, 64))
    attention(*made(torch.float32, 1, 512, 512, 1, 12))
    every = torch.ones(1, 1, 256, 256, dtype=torch.bool)
    attention(*made(torch.float32, 1, 256, 256, 1, 64), mask=every)
    assert not taken
    attention(*made(torch.float32, 1, 256, 256, 1, 64))
    attention(*made(torch.float32, 1, 512, 3, 1, 64))
    attention(*made(torch.float32, 1, 1024, 512, 1, 40))
    assert library.told() == f"own {library.identity()}"
    assert taken == [256, 512, 1024]


def test_a_recipe_names_the_kernels_by_their_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for changed in (None, "kernels.cpp", "attention.py", "library.py"):
        folder = tmp_path / str(changed)
        shutil.copytree(library.SOURCE.parent, folder)
        if changed is not None:
            with (folder / changed).open("a") as file:
                file.write("\n")
        monkeypatch.setattr(library, "SOURCE", folder / "kernels.cpp")
        found[changed] = library.identity.__wrapped__()
    assert found[None] == library.identity() and len(set(found.values())) == len(found)


def test_what_it_cannot_do_is_done_by_another_and_said(caplog: pytest.LogCaptureFixture) -> None:
    if "native" not in backends("cpu"):
        pytest.skip("our kernels need a C++ compiler and a processor with AVX2")
    attention_module._instead.cache_clear()
    q, k, v = made(torch.float32, 1, 64, 64, 1, 64)
    with caplog.at_level(logging.INFO), torch.enable_grad():
        found = attention(q.requires_grad_(), k, v, backend="native")
        found.sum().backward()
        attention(q, k, v, backend="native")
    assert q.grad is not None
    assert sum("`sdpa` does" in message for message in caplog.messages) == 1


@pytest.mark.skipif(library.missing() is not None, reason="our kernels need a C++ compiler and AVX2")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", [0, 100, 1023])
def test_what_is_no_number_is_not_hidden(dtype: torch.dtype, which: int, value: float, key: int) -> None:
    given = [x.clone() for x in made(dtype, 1, 1024, 1024, 2, 64)]
    given[which][0, key, 1, 5] = value
    with torch.no_grad():
        found = attention(*given, backend="native").isfinite().all(-1)
        plain = attention(*(x.float() for x in given), backend="math").isfinite().all(-1)  # others hide some
    assert torch.equal(found, plain) and not plain.all()


@pytest.mark.skipif(library.missing() is not None, reason="our kernels need a C++ compiler and AVX2")
def test_work_that_is_left_to_pytorch_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    library._left.cache_clear()
    x = torch.ones(4, 64)
    with caplog.at_level(logging.INFO):
        with torch.enable_grad():
            assert not library.serves(x) and not library.serves(x)
        with torch.no_grad():
            assert library.serves(x)
            assert not library.serves(x.half()) and not library.serves(x, x.bfloat16())
            with torch.autocast("cpu"):
                assert not library.serves(x)
    said = [message.split("where ")[1] for message in caplog.messages if "compute what ours could" in message]
    assert [reason.split()[0] for reason in said] == ["gradients", "numbers", "tensors", "autocast"]


def test_without_a_compiler_pytorch_computes(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(library, "_compiler", lambda: None)
    monkeypatch.delenv(library.SWITCH, raising=False)
    library._found.cache_clear()
    try:
        with caplog.at_level(logging.INFO):
            q, k, v = made(torch.float32, 1, 300, 300, 1, 64)
            assert library.told() is None, "nobody asked yet"
            found = attention(q, k, v)
        assert library.told() == "torch"
        assert library.missing()
        assert "native" not in backends("cpu")
        assert sum("PyTorch's own kernels" in message for message in caplog.messages) == 1
        assert torch.equal(found, attention(q, k, v, backend="sdpa"))
    finally:
        library._found.cache_clear()


def test_a_library_with_wrong_numbers_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    if library.missing() is not None:
        pytest.skip("our kernels need a C++ compiler and a processor with AVX2")
    library._found.cache_clear()
    monkeypatch.setattr(library, "attend", lambda made, q, k, v: torch.zeros_like(q))
    try:
        assert "wrong" in str(library.missing())
    finally:
        library._found.cache_clear()
