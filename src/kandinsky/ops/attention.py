"""The single entry point of attention, and its table of backends.

Legend: B batch, S query tokens, L key tokens, N heads, K head width.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kandinsky.errors import BackendError
from kandinsky.ops import block_sparse, triton_blocks
from kandinsky.ops.attention_spec import AttentionSpec, current_backend
from kandinsky.ops.block_sparse import BlockMask, DenseKernel
from kandinsky.ops.engines import ENGINES
from kandinsky.ops.native import attention as native
from kandinsky.ops.native import library

__all__ = ["AttentionSpec", "Backend", "BlockMask", "attention", "backends", "require"]

log = logging.getLogger(__name__)
# (q, k, v, blocks) -> [B, S, N, K]; to add a kernel, add an entry to the table
BlockKernel = Callable[[Tensor, Tensor, Tensor, BlockMask], Tensor]


@dataclass(frozen=True, slots=True)
class Backend:
    """An attention backend: its kernels, and whether they are available.

    Attributes:
        dense: Kernel for dense attention, or None.
        blocks: Kernel for block-sparse attention, or None.
        missing: Returns why it cannot run on a device type, or None where it can.
    """

    dense: DenseKernel | None = None
    blocks: BlockKernel | None = None
    missing: Callable[[str], str | None] = lambda device_type: None


def attention(
    q_BSNK: Tensor,
    k_BLNK: Tensor,
    v_BLNK: Tensor,
    *,
    mask: Tensor | None = None,
    blocks: BlockMask | None = None,
    backend: str = "auto",
) -> Tensor:
    """Compute softmax(q·kᵀ / √K)·v for each head.

    Args:
        q_BSNK: Queries.
        k_BLNK: Keys.
        v_BLNK: Values.
        mask: Boolean, True where a query may attend; [B, L] for keys, or broadcastable to [B, N, S, L].
        blocks: Which blocks of keys each block of queries attends to; replaces ``mask``.
        backend: A name from ``backends()``; "auto" selects the fastest exact one.

    Returns:
        [B, S, N, K] in the dtype of v.

    Raises:
        BackendError: The backend is not available, or has no kernel for dense or block-sparse attention.
    """
    if blocks is not None:
        assert mask is None, "a block mask stands alone"
        if backend == "auto":
            backend = _fastest_for_blocks(q_BSNK, k_BLNK, v_BLNK, blocks)
        elif backend == "native" and not native.fits(q_BSNK, k_BLNK, v_BLNK, None, blocks):
            backend = _instead("gathered")
        kernel = require(backend, q_BSNK.device.type, sparse=True).blocks
        assert kernel is not None
        return kernel(q_BSNK, k_BLNK, v_BLNK, blocks)
    if mask is not None and mask.dim() == 2:
        mask = mask[:, None, None, :]
    if backend == "auto":
        backend = _fastest(q_BSNK, k_BLNK, v_BLNK, mask)
    elif backend == "native" and not native.fits(q_BSNK, k_BLNK, v_BLNK, mask, None):
        backend = _instead("sdpa")
    dense = require(backend, q_BSNK.device.type).dense
    assert dense is not None
    return dense(q_BSNK, k_BLNK, v_BLNK, mask)


def leaves_open(mix: Callable[..., Tensor]) -> bool:
    """Whether a mix of tokens is dense attention to all of them, by our kernels or by whatever is fastest."""
    if not isinstance(mix, partial):
        return mix is attention
    is_dense = mix.func is attention and not mix.args and mix.keywords.keys() <= {"backend"}
    return is_dense and mix.keywords.get("backend", "auto") in ("auto", "native")


def backends(device_type: str | None = None, *, sparse: bool = False) -> tuple[str, ...]:
    """Names that ``attention`` accepts on this machine.

    Args:
        device_type: Such as `cuda`; None for PyTorch's default device.
        sparse: List those with a block-sparse kernel instead of a dense one.

    Returns:
        "auto" and the names of available backends.
    """
    device_type = device_type or torch.get_default_device().type
    return ("auto", *(name for name in _BACKENDS if _reason_against(name, device_type, sparse) is None))


def require(name: str, device_type: str, *, sparse: bool = False) -> Backend:
    """Look up an available backend.

    Args:
        name: A backend.
        device_type: Where it is to run, such as `cuda`.
        sparse: Whether a block-sparse kernel is needed.

    Returns:
        The backend.

    Raises:
        BackendError: It is not available there; the message names those that are.
    """
    name = current_backend(name)
    if reason := _reason_against(name, device_type, sparse):
        choices = ", ".join(f"`{choice}`" for choice in backends(device_type, sparse=sparse))
        raise BackendError(f"attention backend `{name}` is not available: {reason}; use one of {choices}")
    return _BACKENDS[name]


def _reason_against(name: str, device_type: str, sparse: bool) -> str | None:
    """Why a backend cannot be used; None where it can."""
    if name not in _BACKENDS:
        return "there is none of this name"
    entry = _BACKENDS[name]
    if (entry.blocks if sparse else entry.dense) is None:
        return f"it has no {'block-sparse' if sparse else 'dense'} kernel"
    return entry.missing(device_type)


def _fastest(q_BSNK: Tensor, k_BLNK: Tensor, v_BLNK: Tensor, mask: Tensor | None) -> str:
    """Our own kernel where it serves and pays, else PyTorch's."""
    if native.pays(q_BSNK, k_BLNK) and native.fits(q_BSNK, k_BLNK, v_BLNK, mask, None):
        return "native"
    return "math" if _math_is_faster(q_BSNK, k_BLNK) else "sdpa"


def _fastest_for_blocks(q_BSNK: Tensor, k_BLNK: Tensor, v_BLNK: Tensor, blocks: BlockMask) -> str:
    """Our own kernel, FlexAttention on CUDA only (on CPU, compiling takes longer than a small clip), else gathering."""
    if native.pays(q_BSNK, k_BLNK, in_blocks=True) and native.fits(q_BSNK, k_BLNK, v_BLNK, None, blocks):
        return "native"
    compiles = q_BSNK.is_cuda and q_BSNK.shape[-1] >= block_sparse.FLEX_MIN_WIDTH
    return "flex" if compiles and block_sparse.flex_missing(q_BSNK.device.type) is None else "gathered"


@functools.cache
def _instead(other: str) -> str:
    """Another backend, and one log line that says so."""
    log.info("attention `native` cannot compute some of this work (gradients, widths, masks): `%s` does", other)
    return other


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def _math(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Two matrix products and a softmax in the dtype of the inputs; keeps all scores in memory."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = (q * (1.0 / math.sqrt(q.shape[-1]))) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return (scores.softmax(dim=-1) @ v).transpose(1, 2)


def _math_is_faster(q: Tensor, k: Tensor) -> bool:
    """Whether ``math`` is faster: for training in bfloat16 on CPU, where the fused kernel's backward pass is slow.

    Generation is not affected (no gradients), nor are scores of more than 256 MB.
    """
    if not (q.is_cpu and q.dtype is torch.bfloat16 and torch.is_grad_enabled() and q.requires_grad):
        return False
    return 2 * q.shape[0] * q.shape[2] * q.shape[1] * k.shape[1] <= 2**28


def _plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The definition, in float32; the reference for every other backend."""
    scores = torch.einsum("bsnk,blnk->bnsl", q.float(), k.float()) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return torch.einsum("bnsl,blnk->bsnk", scores.softmax(dim=-1), v.float()).to(v.dtype)


_BACKENDS: dict[str, Backend] = {
    "sdpa": Backend(_sdpa, partial(block_sparse.expanded, _sdpa)),
    "math": Backend(_math),
    "plain": Backend(_plain, partial(block_sparse.expanded, _plain)),
    "native": Backend(native.dense, native.sparse, library.missing),
    "gathered": Backend(blocks=block_sparse.gathered),
    "triton": Backend(blocks=triton_blocks.sparse, missing=triton_blocks.missing),
    "flex": Backend(blocks=block_sparse.flex, missing=block_sparse.flex_missing),
    **{name: Backend(engine, missing=engine.missing) for name, engine in ENGINES.items()},
}
