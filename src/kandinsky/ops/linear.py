"""Matrix products with weights, by the faster of two libraries.

On processors PyTorch hands products to MKL in float32, and to oneDNN behind a conversion in bfloat16. oneDNN's own
linear layer does the same, and can compute an activation on the way out. Which is faster depends on the processor:
``LIBRARY`` says which is taken, by type. Gradients, autocast and compilation keep to ``F.linear``.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

Library = Literal["onednn", "torch"]
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_MKL_IS_SLOW_ON = "AuthenticAMD"
# What is taken for products of a type, where somebody measured; else ``usual``.
LIBRARY: dict[torch.dtype, Library] = {}


class Linear(nn.Linear):
    """A linear layer that computes by ``linear``; parameters and names are those of ``nn.Linear``."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x·weightᵀ + bias over the last axis, as ``F.linear``; equal up to the order of sums."""
    return _onednn(x, weight, bias, "none") if _is_for_onednn(x, weight) else F.linear(x, weight, bias)


def linear_gelu(layer: nn.Linear, x: Tensor) -> Tensor:
    """GELU of what a layer answers, in one pass where the library can."""
    is_bare = type(layer) is Linear and not (layer._forward_hooks or layer._forward_pre_hooks)
    if is_bare and _is_for_onednn(x, layer.weight):
        return _onednn(x, layer.weight, layer.bias, "gelu")
    return F.gelu(layer(x))


def usual(dtype: torch.dtype) -> Library:
    """What is taken where nobody measured: MKL runs at half its rate on AMD's processors, and well on Intel's."""
    if dtype is torch.float32:
        return "onednn" if _processor_is(_MKL_IS_SLOW_ON) else "torch"
    return "onednn"


@functools.cache
def _processor_is(vendor: str) -> bool:
    table = Path("/proc/cpuinfo")
    return table.exists() and vendor in table.read_text(errors="replace")


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, activation, [], "none")
    return out.view(*x.shape[:-1], len(weight))


def _is_for_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        _ONEDNN
        and x.is_cpu
        and x.dtype is weight.dtype
        and x.dtype in (torch.float32, torch.bfloat16)
        and type(weight) in (Tensor, nn.Parameter)  # cut and quantised weights have products of their own
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled(x.device.type)  # which rounds what goes through F.linear
        and not torch.compiler.is_compiling()
        and (LIBRARY.get(x.dtype) or usual(x.dtype)) == "onednn"
    )
