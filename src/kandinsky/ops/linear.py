"""Matrix products with weights, by the faster of two libraries.

On processors PyTorch hands products to MKL in float32, and to oneDNN behind a conversion in bfloat16. oneDNN's own
linear layer does the same. Which is faster depends on the processor: ``library`` says which is taken, by type. Where
neither multiplies bfloat16, PyTorch does so number by number, at a sixth of the rate of float32: there weights are
widened, a piece at a time. Gradients, autocast and compilation keep to ``F.linear``.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

Library = Literal["onednn", "torch"]
log = logging.getLogger(__name__)
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
WIDENED_ROWS, WIDENED = 8, 2**21
"""From how many rows on weights of bfloat16 are widened, and how many numbers of them at once: 8 MB, which stay in the
cache and in memory that is used again."""
_TAKEN: ContextVar[Mapping[torch.dtype, Library]] = ContextVar("taken", default=MappingProxyType({}))


class Linear(nn.Linear):
    """A linear layer that computes by ``linear``; parameters and names are those of ``nn.Linear``."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x·weightᵀ + bias over the last axis, as ``F.linear``; equal up to the order of sums."""
    if _is_for_onednn(x, weight):
        rows = x.reshape(-1, x.shape[-1])
        out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    elif x.dtype is torch.bfloat16 and _is_ours(x, weight) and not computes(torch.bfloat16):
        out = _widened(x.reshape(-1, x.shape[-1]), weight, bias)
    else:
        return F.linear(x, weight, bias)
    return out.view(*x.shape[:-1], len(weight))


def _widened(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A product of bfloat16 in float32, rounded once; of few rows PyTorch's own, which reads less."""
    if len(rows) < WIDENED_ROWS:
        return F.linear(rows, weight, bias)
    out, wide = rows.new_empty(len(rows), len(weight)), rows.float()
    each = max(1, WIDENED // weight.shape[1])
    for at in range(0, len(weight), each):
        part = slice(at, at + each)
        out[:, part] = linear(wide, weight[part].float(), None if bias is None else bias[part].float())
    return out


def linear_gelu(layer: nn.Linear, x: Tensor) -> Tensor:
    """GELU of what a layer answers, written over it where nothing else has it."""
    out: Tensor = layer(x)
    is_fresh = type(layer) is Linear and not (layer._forward_hooks or layer._forward_pre_hooks)
    if is_fresh and out.is_cpu and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
        made: Tensor = torch.ops.aten.gelu_(out)
        return made
    return F.gelu(out)


@contextmanager
def taking(dtype: torch.dtype, way: Library) -> Iterator[None]:
    """Within the block, and in its thread alone, products of a type are computed by a library; never around a yield."""
    before = _TAKEN.set({**_TAKEN.get(), dtype: way})
    try:
        yield
    finally:
        _TAKEN.reset(before)


def library(dtype: torch.dtype) -> Library:
    """What is taken for products of a type: what was chosen (``taking``), else the usual one."""
    return _TAKEN.get().get(dtype) or usual(dtype)


def usual(dtype: torch.dtype) -> Library:
    """What is taken where nobody measured.

    In float32 oneDNN took 0.5 of MKL's time on an AMD with vectors of 512 bits, which MKL does not use there, 0.67 to
    1.08 of it on others without them, and 1.12 to 1.18 on an Intel. In bfloat16, where PyTorch itself ends at oneDNN
    and the bits are the same, it took 0.72 to 0.83 of PyTorch's time on that Intel and 0.89 to 0.99 on that AMD.
    """
    return "onednn" if dtype is torch.bfloat16 or _processor_is("AuthenticAMD") else "torch"


def products(a: Tensor) -> list[Callable[[], Tensor]]:
    """A square matrix times itself by each library that there is for it, to measure them."""
    found: list[Callable[[], Tensor]] = [lambda: a @ a]
    if _ONEDNN and a.is_cpu and computes(a.dtype):
        found.append(lambda: torch.ops.mkldnn._linear_pointwise(a, a, None, "none", [], ""))
    return found


@functools.cache
def computes(dtype: torch.dtype) -> bool:
    """Whether oneDNN has products and convolutions of a type here; of bfloat16 only with vectors of 512 bits."""
    known = dtype is torch.float32 or (dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if not known:
        log.info("products of %s are made in float32, or by PyTorch: oneDNN has none on this processor", dtype)
    return known


@functools.cache
def _processor_is(vendor: str) -> bool:
    table = Path("/proc/cpuinfo")
    return table.exists() and vendor in table.read_text(errors="replace")


def _is_for_onednn(x: Tensor, weight: Tensor) -> bool:
    return _is_ours(x, weight) and library(x.dtype) == "onednn" and computes(x.dtype)


def _is_ours(x: Tensor, weight: Tensor) -> bool:
    """Whether nothing else has a say in a product."""
    return (
        _ONEDNN
        and x.is_cpu
        and x.dtype is weight.dtype
        and not torch.compiler.is_compiling()  # asked before what a compiler need not see
        and type(weight) in (Tensor, nn.Parameter)  # cut and quantised weights have products of their own
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled(x.device.type)  # which rounds what goes through F.linear
    )
