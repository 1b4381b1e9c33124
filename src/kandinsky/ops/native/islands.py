"""What stands between products, by our own kernels: one pass each, float32 arithmetic inside; see ``kernels.cpp``.

Each takes what its plain form in ``ops/fused.py`` takes, and answers None where that form has to do it.

Legend: B batch; S tokens; D width; N heads; K head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kandinsky.ops.native import library

LANES = 16
# least numbers: below, calling takes longer, and results stay what PyTorch's operations give
LEAST = 2**15


def modulated(x_BSD: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor | None:
    """LayerNorm(x)·scale + shift; shift and scale hold D numbers."""
    D = x_BSD.shape[-1]
    if not _fits(x_BSD, D) or not _are_vectors(D, shift, scale):
        return None
    made = library.kernels()
    assert made is not None
    out = torch.empty_like(x_BSD)
    rows, is_half = x_BSD.numel() // D, x_BSD.dtype is torch.bfloat16
    made.modulated(
        x_BSD.data_ptr(),
        scale.data_ptr(),
        shift.data_ptr(),
        out.data_ptr(),
        rows,
        D,
        eps,
        is_half,
        torch.get_num_threads(),
    )
    return out


def gated(x_BSD: Tensor, gate: Tensor, update_BSD: Tensor) -> Tensor | None:
    """The sum x + gate·update, written over the update; the gate holds D numbers."""
    D = x_BSD.shape[-1]
    if x_BSD.shape != update_BSD.shape or not _are_vectors(D, gate):
        return None
    if not (_fits(x_BSD, D) and _fits(update_BSD, D) and x_BSD.dtype is update_BSD.dtype):
        return None
    made = library.kernels()
    assert made is not None
    rows, is_half = x_BSD.numel() // D, x_BSD.dtype is torch.bfloat16
    made.gated(x_BSD.data_ptr(), gate.data_ptr(), update_BSD.data_ptr(), rows, D, is_half, torch.get_num_threads())
    return update_BSD


def normed_heads(x_BSNK: Tensor, weight_K: Tensor, eps: float, table: Tensor | None) -> Tensor | None:
    """RMSNorm over each head and its turn, written over x.

    Args:
        x_BSNK: Heads.
        weight_K: Of the norm.
        eps: Of the norm.
        table: Cosine and sine of each pair of channels, [S or B·S, 1, K/2, 2]; None for no turn.
    """
    *_, S, N, K = x_BSNK.shape
    if not _fits(x_BSNK, K) or x_BSNK.dim() < 3:
        return None
    tokens = x_BSNK.numel() // (N * K)
    if table is not None:
        table = table.flatten(0, -4)
        whole = (len(table) in (S, tokens), tuple(table.shape[1:]) == (1, K // 2, 2), table.dtype is torch.float32)
        if not (all(whole) and table.is_contiguous() and table.is_cpu):
            return None
    made = library.kernels()
    assert made is not None
    weight = weight_K.detach().float().contiguous()
    each = tokens if table is None else len(table)
    is_half = x_BSNK.dtype is torch.bfloat16
    for start in range(0, tokens, each):
        at = x_BSNK.data_ptr() + start * N * K * x_BSNK.element_size()
        turns = None if table is None else table.data_ptr()
        made.normed_heads(at, weight.data_ptr(), turns, each, N, K, eps, is_half, torch.get_num_threads())
    return x_BSNK


def _fits(x: Tensor, width: int) -> bool:
    return x.numel() >= LEAST and width % LANES == 0 and x.is_contiguous() and library.serves(x)


def _are_vectors(width: int, *found: Tensor) -> bool:
    return all(x.numel() == width and x.dtype is torch.float32 and x.is_contiguous() and x.is_cpu for x in found)
