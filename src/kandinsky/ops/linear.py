"""Matrix products with weights, on the faster of two libraries.

On processors PyTorch hands float32 products to MKL, which on some of them (AMD's above all) runs at half the rate of
oneDNN; without gradients oneDNN's is taken. Everywhere else this is ``F.linear``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x·weightᵀ + bias over the last axis, as ``F.linear``; equal up to the order of sums."""
    if not _ONEDNN or not x.is_cpu or x.dtype is not torch.float32 or torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "").view(*x.shape[:-1], -1)
