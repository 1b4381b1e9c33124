"""Block-sparse attention in Triton: a program for each block of queries walks through its kept blocks of keys.

The lists of kept blocks are made on the device from the mask, without waiting for it; padding behind a block's last
real key is left out inside the kernel. Nothing is compared with the definition on a GPU here: the interpreter of Triton
runs the same kernel on a processor for the tests (`TRITON_INTERPRET=1`).

Legend: B batch, S tokens, N heads, K head width; Q, K (as axes of a mask) blocks of queries and of keys.
"""

from __future__ import annotations

import importlib.util
import math
import os

import torch
from torch import Tensor

from kandinsky.errors import BackendError
from kandinsky.ops.block_sparse import BlockMask, kept_lists

WIDTHS = SIZES = (16, 32, 64, 128)
LOG2_E = 1.4426950408889634


def missing(device_type: str) -> str | None:
    """Why the kernel cannot run on a kind of device; None where it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install triton"
    if device_type != "cuda" and not (device_type == "cpu" and _interprets()):
        return "Triton runs on CUDA devices only (on a processor through its interpreter, TRITON_INTERPRET=1)"
    return None


def sparse(q_BSNK: Tensor, k_BSNK: Tensor, v_BSNK: Tensor, blocks: BlockMask) -> Tensor:
    """Attend from each query block to the keys it sees.

    Raises:
        BackendError: Gradients are wanted, or the kernel has no such heads or blocks.
    """
    (B, _, N, K), size = q_BSNK.shape, blocks.size
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q_BSNK, k_BSNK, v_BSNK)):
        raise BackendError("attention `triton` has no gradients: use `flex` or `gathered`")
    if K not in WIDTHS or size not in SIZES:
        raise BackendError(f"attention `triton` takes heads and blocks of {WIDTHS}, not {K} and {size}: use `flex`")
    counts_BNQ, columns_BNQK = kept_lists(blocks.kept_BNQK)
    Q, most = columns_BNQK.shape[-2:]
    out = torch.empty_like(q_BSNK, memory_format=torch.contiguous_format)
    real = counts_BNQ if blocks.counts_K is None else blocks.counts_K.to(torch.int32)
    from kandinsky.ops.triton_kernel import attend

    attend[(Q, B * N)](
        q_BSNK, k_BSNK, v_BSNK, out, counts_BNQ.contiguous(), columns_BNQK, real,
        *q_BSNK.stride(), *k_BSNK.stride(), *v_BSNK.stride(), *out.stride(),
        N, Q, most, LOG2_E / math.sqrt(K), WIDTH=K, SIZE=size, PADDED=blocks.counts_K is not None,
    )  # fmt: skip
    return out


def _interprets() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") == "1"
