"""bfloat16 on processors that multiply it number by number: a layer at a time in float32, rounded once.

Without AVX-512 PyTorch's products in bfloat16 reach a sixth of the rate of those in float32, its convolutions a
thirtieth (AMD EPYC of family 25, model 1). Weights keep their two bytes in memory, and are widened while they are at
work; sums are those of the definition. Gradients, autocast and compilation keep to PyTorch.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.ops import linear

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def widens(x: Tensor, weight: Tensor) -> bool:
    """Whether a layer with such an input and such weights is to compute in float32."""
    return (
        x.dtype is torch.bfloat16
        and weight.dtype is torch.bfloat16
        and x.is_cpu
        and not torch.compiler.is_compiling()
        and not linear.computes(torch.bfloat16)
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled(x.device.type)
        and type(weight) in (Tensor, nn.Parameter)
    )


def use(net: nn.Module, compute: torch.dtype | None = None) -> None:
    """Let the plain layers of a network that compute in bfloat16 widen; they keep their parameters and names.

    Args:
        net: The network.
        compute: What it computes in, where its weights may be of another type until then.
    """
    if linear.computes(torch.bfloat16):
        return
    for layer in net.modules():
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, Tensor) or (compute or weight.dtype) is not torch.bfloat16:
            continue
        if type(layer) is nn.Linear:
            layer.__class__ = linear.Linear
        elif isinstance(layer, CONVOLUTIONS) and not isinstance(layer, _Widening):
            layer.__class__ = _widening(cast(Any, type(layer)))
        elif type(layer) is nn.ConvTranspose2d:
            layer.__class__ = WideningTransposed


class _Widening:
    """A convolution of any kind; see the module."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        plain = cast(Any, super())._conv_forward
        if not widens(x, weight):
            return cast(Tensor, plain(x, weight, bias))
        return cast(Tensor, plain(x.float(), weight.float(), _wide(bias)).to(x.dtype))


@functools.cache
def _widening(kind: Any) -> Any:
    return type(f"Widening{kind.__name__}", (_Widening, kind), {})


class WideningTransposed(nn.ConvTranspose2d):
    """The same of a transposed one."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is not None or not widens(x, self.weight):
            return super().forward(x, output_size)
        out = F.conv_transpose2d(
            x.float(), self.weight.float(), _wide(self.bias),
            self.stride, self.padding, self.output_padding, self.groups, self.dilation,  # type: ignore[arg-type]
        )  # fmt: skip
        return out.to(x.dtype)


def _wide(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float()
