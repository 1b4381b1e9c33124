"""Convolutions in time and space by oneDNN where PyTorch would not ask it.

PyTorch keeps small convolutions on one thread (at most 20,480 for batch · channels · frames · rows) from oneDNN and
goes through a matrix of patches instead. On a processor with AVX-512 that was 45 % of a small HunyuanVideo decode. Few
channels stay where they are: there is little to win, and their numbers stay. The result is the same up to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.ops.linear import computes, linear

LEAST_CHANNELS = 64
LEAST_NUMBERS = 2**16


class Conv3d(nn.Conv3d):
    """A convolution that computes by ``convolve``; parameters and names are those of ``nn.Conv3d``."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros" or isinstance(self.padding, str) or self.groups != 1:
            out: Tensor = super()._conv_forward(x, weight, bias)
            return out
        return convolve(x, weight, bias, self.stride, self.padding, self.dilation)


class Conv2d(nn.Conv2d):
    """A convolution that with a kernel of one is a product of pixels, whose channels lie last, and weights.

    PyTorch goes through MKL there in float32 (see ``ops/linear.py``), and lays the weights out anew at each call.
    Parameters and names are those of ``nn.Conv2d``; gradients, autocast and compilation keep to it.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self._is_product(x, weight):
            out: Tensor = super()._conv_forward(x, weight, bias)
            return out
        return linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)

    def _is_product(self, x: Tensor, weight: Tensor) -> bool:
        return (
            self.kernel_size == self.stride == (1, 1)
            and self.padding == (0, 0)
            and self.groups == 1
            and x.is_cpu
            and x.dim() == 4
            and x.stride(1) == 1
            and x.dtype is weight.dtype
            and type(weight) in (Tensor, nn.Parameter)
            and not torch.compiler.is_compiling()
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled(x.device.type)
        )


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...] = (1, 1, 1),
    padding: tuple[int, ...] = (0, 0, 0),
    dilation: tuple[int, ...] = (1, 1, 1),
) -> Tensor:
    """As ``F.conv3d`` without groups, of [B, C, T, H, W]."""
    if not _is_for_onednn(x, weight):
        return F.conv3d(x, weight, bias, stride, padding, dilation)
    if tuple(weight.shape[2:]) == stride == (1, 1, 1) and not any(padding) and x.stride(1) == 1:
        pixels = x.permute(0, 2, 3, 4, 1)  # a product of matrices
        return linear(pixels, weight.flatten(1), bias).permute(0, 4, 1, 2, 3)
    out: Tensor = torch.mkldnn_convolution(x, weight, bias, padding, stride, dilation, 1)
    return out


def use(net: nn.Module) -> None:
    """Let the plain convolutions of a network compute by ``convolve``; they keep their parameters and names."""
    for layer in net.modules():
        if type(layer) is nn.Conv3d:
            layer.__class__ = Conv3d


def _are_large(x: Tensor, weight: Tensor) -> bool:
    """Whether few channels are worth it: of many pixels whose channels lie last, as they do behind our own kernels."""
    return min(weight.shape[:2]) >= LEAST_CHANNELS // 2 and x.stride(1) == 1 and x.numel() >= LEAST_NUMBERS


def _is_for_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        x.is_cpu
        and x.dim() == 5
        and x.dtype is weight.dtype
        and not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and (min(weight.shape[:2]) >= LEAST_CHANNELS or _are_large(x, weight))
        and min(weight.shape[2:]) >= 1
        and type(weight) in (Tensor, nn.Parameter)
        and not torch.is_autocast_enabled(x.device.type)
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and computes(x.dtype)
        and torch._C._len_torch_dispatch_stack() == 0
    )
