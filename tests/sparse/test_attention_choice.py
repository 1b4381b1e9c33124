"""What somebody asks of attention: words, numbers, kernels of other packages."""

from __future__ import annotations

import importlib.machinery
import sys
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kandinsky.errors import BackendError, RequestError
from kandinsky.ops import attention as entry
from kandinsky.ops.attention import attention, backends
from kandinsky.ops.attention_spec import BACKENDS, BLOCK_BACKENDS, DENSE_BACKENDS, AttentionSpec
from kandinsky.ops.engines import ENGINES

SPARSE = AttentionSpec(type="nabla", P=0.8, wT=7)


@pytest.mark.parametrize(
    ("card", "choice", "expected"),
    [
        (AttentionSpec(), "auto", AttentionSpec()),
        (SPARSE, "auto", SPARSE),
        (AttentionSpec(), "sdpa", AttentionSpec(backend="sdpa")),
        (SPARSE, "gathered", AttentionSpec(type="nabla", P=0.8, wT=7, backend="gathered")),
        (SPARSE, "dense", AttentionSpec(P=0.8, wT=7)),
        (SPARSE, "flash", AttentionSpec(P=0.8, wT=7)),
        (AttentionSpec(), "nabla", AttentionSpec(type="nabla")),
        (SPARSE, "nabla:P=0.5", AttentionSpec(type="nabla", P=0.5, wT=7)),
        (AttentionSpec(), "nabla:P=0.5, wH=5,backend=plain", AttentionSpec("nabla", "plain", 0.5, 11, 5, 3)),
        (SPARSE, "dense:backend=sdpa", AttentionSpec(backend="sdpa", P=0.8, wT=7)),
    ],
)
def test_a_choice_changes_a_cards_attention(card, choice, expected):
    assert card.chosen(choice) == expected


@pytest.mark.parametrize(
    ("choice", "error", "words"),
    [
        (
            "spiral",
            BackendError,
            "attention `spiral` is not available: use a type, `dense`, `nabla`, `causal`, or a backend",
        ),
        ("flex", BackendError, "`flex` has no dense attention: use `auto` or one of `sdpa`"),
        ("nabla:backend=sage", BackendError, "`sage` has no nabla attention: use `auto` or one of `native`"),
        ("nabla:backend=warp", BackendError, "attention backend `warp` is not available"),
        ("nabla:p=0.8", RequestError, "attention option `p=0.8` is not known"),
        ("nabla:P=0.8,P=0.7", RequestError, "each once"),
        ("nabla:P=much", RequestError, "`P=much` needs a number"),
        ("nabla:wT=2.5", RequestError, "`wT=2.5` needs a whole number"),
        ("nabla:P=1.5", RequestError, "P `1.5` must be a number from 0 to 1"),
        ("nabla:P=nan", RequestError, "from 0 to 1"),
        ("nabla:wH=0", RequestError, "wH `0` must be a whole number from 1 on"),
        ("dense:P=0.8", RequestError, "`P` has no effect on dense attention: use `nabla:P=0.8`"),
        ("", BackendError, "attention `` is not available"),
    ],
)
def test_bad_choices_get_one_clear_line(choice, error, words):
    with pytest.raises(error) as caught:
        AttentionSpec().chosen(choice)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@settings(max_examples=50)
@given(
    type=st.sampled_from(["dense", "nabla"]),
    backend=st.sampled_from(["auto", "sdpa", "plain"]),
    P=st.integers(0, 100),
    widths=st.tuples(*[st.integers(1, 99)] * 3),
)
def test_a_recipes_words_make_the_same_attention(type, backend, P, widths):
    numbers = dict(zip(("P", "wT", "wH", "wW"), (P / 100, *widths), strict=True)) if type == "nabla" else {}
    spec = AttentionSpec(type=type, backend=backend, **numbers)
    assert AttentionSpec().chosen(str(spec)) == spec


def test_names_and_table_are_the_same():
    table = entry._BACKENDS
    assert {name for name, one in table.items() if one.dense} == set(DENSE_BACKENDS)
    assert {name for name, one in table.items() if one.blocks} == set(BLOCK_BACKENDS)
    assert {"auto", *table} == set(BACKENDS)


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_absent_packages_are_named(name):
    x = torch.zeros(1, 2, 1, 8, dtype=torch.bfloat16)
    assert name not in backends()
    with pytest.raises(BackendError, match=rf"`{name}` is not available: \w+ ?\d? is not installed.*; use one of"):
        attention(x, x, x, backend=name)


@pytest.mark.parametrize("name", sorted(ENGINES))
@pytest.mark.parametrize("with_sums", [False, True])
def test_kernels_of_other_packages(name, with_sums, monkeypatch):
    """A stand-in for the package: what it is given, and both forms of what it returns."""
    engine = ENGINES[name]
    calls = []

    def kernel(q, k, v, **options):
        calls.append(options)
        out = attention(q, k, v, backend="plain")
        return (out, out.sum(-1)) if with_sums else out

    module = types.ModuleType(engine.module)
    module.__spec__ = importlib.machinery.ModuleSpec(engine.module, None)
    setattr(module, engine.function, kernel)
    monkeypatch.setitem(sys.modules, engine.module, module)
    q, k, v = (torch.randn(2, 5, 3, 8).bfloat16() for _ in range(3))
    assert "CUDA devices only" in engine.missing("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, fits in (((7, 5), False), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda capability=capability: capability)
        assert (engine.missing("cuda") is None) is fits
        assert (name in backends("cuda")) is fits
    # the processor's own refusal aside, the call is the device's
    torch.testing.assert_close(engine(q, k, v, None), attention(q, k, v, backend="plain"))
    assert calls == [dict(engine.options)]
    with pytest.raises(BackendError, match="float32"):
        engine(q.float(), k.float(), v.float(), None)
    with pytest.raises(BackendError, match="takes no mask"):
        engine(q, k, v, torch.ones(5, dtype=torch.bool))
    delattr(module, engine.function)
    with pytest.raises(BackendError, match="cannot be imported"):
        engine(q, k, v, None)


@pytest.mark.parametrize("choice", ["products", "dense:backend=products"])
def test_a_former_name_of_a_backend_is_accepted_with_a_warning(choice: str) -> None:
    with pytest.warns(FutureWarning, match="`products` is now called `math`"):
        assert AttentionSpec().chosen(choice) == AttentionSpec(backend="math")
    q, k, v = torch.randn(3, 1, 5, 2, 8)
    with pytest.warns(FutureWarning, match="`math`"):
        mixed = attention(q, k, v, backend="products")
    assert torch.equal(mixed, attention(q, k, v, backend="math"))
