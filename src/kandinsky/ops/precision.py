"""Where the mathematics stays in float32 whatever the compute type is.

The official GPU run computes in bfloat16 under autocast, but keeps a few steps in float32: the time embedding, every
modulation, normalisation, rotation and gated residual sum. Those are the *islands*. A network here has one compute
type, the type of its weights; the helpers below do an island's work in float32 and leave the rounding to the caller.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.ops.native import products

# Name of the child of a linear layer that holds its low-rank updates (see ``ops/lora.py``).
LOW_RANK = "low_rank"


def island(x: Tensor) -> AbstractContextManager[object]:
    """A context in which autocast does not touch float32 arithmetic on the device of ``x``."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def linear_float32(layer: nn.Linear, x: Tensor) -> Tensor:
    """``layer(x)`` in float32, even where its weights are stored in a smaller type. Call inside ``island``."""
    x = x.float()
    if hasattr(layer, "base_layer"):  # a layer that is trained through an adapter must be called
        answer: Tensor = layer(x)
        return answer
    bias = None if layer.bias is None else layer.bias.float()
    out = products.few_rows(x, layer.weight, layer.bias)
    if out is None:
        out = F.linear(x, layer.weight.float(), bias)
    update = getattr(layer, LOW_RANK, None)  # the layer is not called, so its hooks do not run
    return out if update is None else out + update(x, out, bias)


def rms_norm_float32(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise: x / √(mean(x²) + eps) · weight over the last axis, in float32. Call inside ``island``.

    Written out, because PyTorch's own function is slower on CPU.
    """
    x, weight = x.float(), weight.float()
    if x.is_cpu:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight
    return F.rms_norm(x, weight.shape, weight, eps)
