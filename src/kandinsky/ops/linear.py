"""Matrix products with weights, on the faster of two libraries.

On processors PyTorch hands float32 products to MKL, which on some of them (AMD's above all) runs at half the rate of
oneDNN; without gradients oneDNN's is taken. Everywhere else this is ``F.linear``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

# What is taken for products of a type, where it was chosen (``runtime/tuning.py``): `onednn` or `torch`.
LIBRARY: dict[torch.dtype, str] = {}
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Linear(nn.Linear):
    """A linear layer that computes by ``linear``; parameters and names are those of ``nn.Linear``."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x·weightᵀ + bias over the last axis, as ``F.linear``; equal up to the order of sums."""
    if not _is_for_onednn(x, weight):
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "").view(
        *x.shape[:-1], len(weight)
    )
    return out


def _is_for_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        _ONEDNN
        and x.is_cpu
        and x.dtype is weight.dtype is torch.float32
        and type(weight) in (Tensor, nn.Parameter)  # cut and quantised weights have products of their own
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled(x.device.type)  # which rounds what goes through F.linear
        and not torch.compiler.is_compiling()
        and LIBRARY.get(x.dtype, "onednn") == "onednn"
    )
