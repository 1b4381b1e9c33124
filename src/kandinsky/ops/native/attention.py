"""Attention by our own kernels, dense and over blocks of keys; see ``kernels.cpp``.

Legend: B batch, S query tokens, L key tokens, N heads, K head width; Q blocks of queries.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kandinsky.ops.block_sparse import BlockMask
from kandinsky.ops.native import library

TILE = 64  # tokens that the kernel takes at once: blocks are a multiple of it
WIDEST = 512
# least multiplications of queries and keys: what is smaller takes as long to call as to compute
LEAST = 2**22
LEAST_QUERIES = 2**15  # numbers of the queries from which on any keys will do: PyTorch's kernel is slow with few
LEAST_IN_BLOCKS = 2**27  # as if none were left out


def fits(q_BSNK: Tensor, k_BLNK: Tensor, v_BLNK: Tensor, mask: Tensor | None, blocks: BlockMask | None) -> bool:
    """Whether the kernels can compute an attention here: its types, widths and mask. Compiles them at the first use."""
    if q_BSNK.dim() != 4 or q_BSNK.shape[1] == 0 or k_BLNK.shape[1] == 0 or 0 in (q_BSNK.shape[0], q_BSNK.shape[2]):
        return False
    width = q_BSNK.shape[-1]
    if not 0 < width <= WIDEST or v_BLNK.shape[-1] != width:
        return False
    if mask is not None and (mask.dtype is not torch.bool or not _is_of_keys(mask, k_BLNK)):
        return False
    if blocks is not None and (blocks.size % TILE or not q_BSNK.shape[1] == k_BLNK.shape[1] == _tokens(blocks)):
        return False
    heads = q_BSNK.shape[0], q_BSNK.shape[2]
    if (k_BLNK.shape[0], k_BLNK.shape[2]) != heads or (v_BLNK.shape[0], v_BLNK.shape[2]) != heads:
        return False
    return all(x.stride(-1) == 1 for x in (q_BSNK, k_BLNK, v_BLNK)) and library.serves(q_BSNK, k_BLNK, v_BLNK)


def pays(q_BSNK: Tensor, k_BLNK: Tensor, *, in_blocks: bool = False) -> bool:
    """Whether the kernels are taken where nobody chose: for much work, and where they were measured to be faster.

    In bfloat16 PyTorch's kernel has the tiles of AMX, which ours has not; there `kandinsky tune` may find either.
    """
    if torch.compiler.is_compiling() or (q_BSNK.dtype is torch.bfloat16 and library.has_tiles()):
        return False
    numbers = q_BSNK.numel()
    if not in_blocks and numbers >= LEAST_QUERIES:
        return q_BSNK.is_cpu
    return q_BSNK.is_cpu and numbers * k_BLNK.shape[1] >= (LEAST_IN_BLOCKS if in_blocks else LEAST)


def dense(q_BSNK: Tensor, k_BLNK: Tensor, v_BLNK: Tensor, mask: Tensor | None) -> Tensor:
    """Attend to all keys, or to those of ``mask``, [B or 1, 1, 1, L]; what ``fits`` holds."""
    made = library.kernels()
    assert made is not None
    counted = None if mask is None else mask.reshape(mask.shape[0], mask.shape[-1])
    return library.attend(made, q_BSNK, k_BLNK, v_BLNK, counted_BL=counted)


def sparse(q_BSNK: Tensor, k_BSNK: Tensor, v_BSNK: Tensor, blocks: BlockMask) -> Tensor:
    """Attend to the kept blocks alone; what ``fits`` holds."""
    made = library.kernels()
    assert made is not None
    kept = blocks.kept_BNQK.flatten(0, 2)
    firsts = torch.zeros(len(kept) + 1, dtype=torch.int64)
    torch.cumsum(kept.sum(-1), 0, out=firsts[1:])
    columns = kept.nonzero()[:, 1].to(torch.int32)
    counts = None if blocks.counts_K is None else blocks.counts_K.to(torch.int32).contiguous()
    return library.attend(made, q_BSNK, k_BSNK, v_BSNK, lists=(firsts, columns, counts, blocks.size))


def _is_of_keys(mask: Tensor, k_BLNK: Tensor) -> bool:
    B, L = k_BLNK.shape[:2]
    return mask.dim() == 4 and tuple(mask.shape[1:]) == (1, 1, L) and mask.shape[0] in (1, B)


def _tokens(blocks: BlockMask) -> int:
    Q, K = blocks.kept_BNQK.shape[-2:]
    return Q * blocks.size if Q == K else -1
