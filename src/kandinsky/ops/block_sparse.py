"""Attention over selected blocks of keys: block masks, and the kernels that support them.

Tokens come in blocks of ``size``; a query block sees a key block whole or not at all. Where the last tokens of a block
are only padding, ``counts_K`` says how many are real; padding is never seen as a key.

Legend: B batch, S tokens (a multiple of the block size), N heads, K head width; Q, K (as axes of a mask) blocks of
queries and of keys.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kandinsky.errors import BackendError

DenseKernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
MASK_ENTRIES = 2**26  # most entries of an expanded mask
# most numbers of the keys gathered at once: what stays in a core's cache, and elsewhere what fills a device
CORE_ENTRIES, DEVICE_ENTRIES = 2**17, 2**26
# the compiled kernel takes no narrower heads
FLEX_MIN_WIDTH = 16


@dataclass(frozen=True, slots=True)
class BlockMask:
    """Which key blocks a query block sees.

    Attributes:
        kept_BNQK: Bool, True = seen; every query block sees at least one real key.
        size: Tokens of a block.
        counts_K: Real keys of each key block, the first ones; None where all are real.
    """

    kept_BNQK: Tensor
    size: int
    counts_K: Tensor | None = None

    def real_keys(self) -> Tensor | None:
        """[K, size] bool: True for keys that are not padding; None if none is."""
        if self.counts_K is None:
            return None
        return torch.arange(self.size, device=self.counts_K.device) < self.counts_K[:, None]

    def expanded(self, rows: slice = slice(None)) -> Tensor:
        """The same mask token by token, bool [B, N, rows · size, K · size]; ``rows`` picks query blocks."""
        columns = self.kept_BNQK[:, :, rows].repeat_interleave(self.size, dim=-1)
        real = self.real_keys()
        if real is not None:
            columns = columns & real.flatten()
        return columns.repeat_interleave(self.size, dim=-2)


def expanded(dense: DenseKernel, q_BSNK: Tensor, k_BSNK: Tensor, v_BSNK: Tensor, blocks: BlockMask) -> Tensor:
    """Run a dense kernel under the expanded mask, a range of query blocks at a time: exact, but saves nothing."""
    B, N, Q, K = blocks.kept_BNQK.shape
    step = max(1, MASK_ENTRIES // (B * N * K * blocks.size**2))
    if step >= Q:
        return dense(q_BSNK, k_BSNK, v_BSNK, blocks.expanded())
    parts = []
    for start in range(0, Q, step):
        rows = slice(start, min(start + step, Q))
        tokens = slice(rows.start * blocks.size, rows.stop * blocks.size)
        parts.append(dense(q_BSNK[:, tokens], k_BSNK, v_BSNK, blocks.expanded(rows)))
    return torch.cat(parts, dim=1)


def gathered(q_BSNK: Tensor, k_BSNK: Tensor, v_BSNK: Tensor, blocks: BlockMask) -> Tensor:
    """Attend from each query block to the keys it sees, and no others: exact, on any device.

    Query blocks that see equally many key blocks are processed together, so that no mask is needed except for padding.
    """
    B, N, Q, K = blocks.kept_BNQK.shape
    size, width = blocks.size, q_BSNK.shape[-1]

    def to_blocks(x_BSNK: Tensor) -> Tensor:
        out: Tensor = x_BSNK.unflatten(1, (-1, size)).permute(0, 3, 1, 2, 4).reshape(-1, size, x_BSNK.shape[-1])
        return out

    q, k, v = to_blocks(q_BSNK), to_blocks(k_BSNK), to_blocks(v_BSNK)
    kept = blocks.kept_BNQK.flatten(0, 2)
    counts = kept.sum(-1)
    order = counts.argsort(stable=True)
    counts, kept = counts[order], kept[order]
    key_blocks = kept.nonzero()[:, 1]  # row after row
    # the row's head and clip, as a place in k and v
    firsts = torch.div(order, Q, rounding_mode="floor") * K
    real = blocks.real_keys()

    limit = CORE_ENTRIES * torch.get_num_threads() if q_BSNK.is_cpu else DEVICE_ENTRIES
    gather: Callable[[Tensor, int, Tensor], Tensor] = torch.index_select
    if not torch.is_grad_enabled():
        gather = _Gatherer()
    parts = []
    row = place = 0
    for count, rows in zip(*(x.tolist() for x in counts.unique_consecutive(return_counts=True)), strict=True):
        step = max(1, limit // (count * size * width))
        for start in range(row, row + rows, step):
            stop = min(start + step, row + rows)
            columns = key_blocks[place : place + (stop - start) * count].view(stop - start, count)
            place += columns.numel()
            index = (columns + firsts[start:stop, None]).flatten()
            keys, values = (gather(x, 0, index).view(stop - start, 1, count * size, -1) for x in (k, v))
            mask = None if real is None else real[columns].view(stop - start, 1, 1, count * size)
            queries = q.index_select(0, order[start:stop])[:, None]
            parts.append(F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)[:, 0])
        row += rows
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    out = torch.cat(parts).index_select(0, back)
    return out.view(B, N, Q, size, -1).permute(0, 2, 3, 1, 4).flatten(1, 2)


class _Gatherer:
    """``index_select`` of keys and values in turn, into memory used again: new memory costs more than a copy."""

    def __init__(self) -> None:
        self._held: list[Tensor | None] = [None, None]

    def __call__(self, x: Tensor, dim: int, index: Tensor) -> Tensor:
        held = self._held.pop(0)
        shape = (len(index), *x.shape[1:])
        if held is None or len(held) < len(index):
            held = x.new_empty(shape)
        self._held.append(held)
        return torch.index_select(x, dim, index, out=held[: len(index)])


def flex(q_BSNK: Tensor, k_BSNK: Tensor, v_BSNK: Tensor, blocks: BlockMask) -> Tensor:
    """PyTorch's FlexAttention, compiled: tens of seconds at the first size.

    Uncompiled it silently ignores a mask of whole blocks and computes dense attention, so the first result of each kind
    is compared with the definition.

    Raises:
        BackendError: The kernel computes dense attention, or does not compile.
    """
    q, k, v = (x.transpose(1, 2) for x in (q_BSNK, k_BSNK, v_BSNK))
    try:
        out = _compiled_flex()(q, k, v, block_mask=flex_mask(blocks)).transpose(1, 2)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # the compiler's errors have no class in common
        cause = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise BackendError(f"FlexAttention does not run here ({cause}): use `gathered`") from error
    kind = (q.device, q.dtype, q.shape)
    if kind not in _HELD_AGAINST_DEFINITION:
        _refuse_dense(q_BSNK, k_BSNK, v_BSNK, blocks, out)
        _HELD_AGAINST_DEFINITION.add(kind)
    return out


def flex_missing(device_type: str) -> str | None:
    """Why FlexAttention cannot run there; None if it can."""
    if device_type not in ("cuda", "cpu"):
        return "FlexAttention with whole blocks compiles for CUDA devices and processors only"
    if device_type == "cuda" and importlib.util.find_spec("triton") is None:
        return "FlexAttention is compiled through Triton, which is not installed"
    from torch import _dynamo

    if _dynamo.config.suppress_errors or _dynamo.config.disable:
        return "FlexAttention must be compiled, and the compiler is switched off (TORCHDYNAMO settings)"
    return None


def flex_mask(blocks: BlockMask) -> Any:
    """The same mask as FlexAttention's own value; of blocks with padding, every key is checked."""
    from torch.nn.attention import flex_attention as torch_flex

    full = partial = blocks.kept_BNQK
    mask_mod = None
    if blocks.counts_K is None:
        partial = torch.zeros_like(partial)
    else:
        size, counts = blocks.size, blocks.counts_K
        is_full = counts == size
        full, partial = full & is_full, partial & ~is_full

        def mask_mod(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return key % size < counts[key // size]

    (counts_partial, partial_BNQK), (counts_full, full_BNQK) = kept_lists(partial), kept_lists(full)
    return torch_flex.BlockMask.from_kv_blocks(
        counts_partial, partial_BNQK, counts_full, full_BNQK, BLOCK_SIZE=blocks.size, mask_mod=mask_mod
    )


def kept_lists(kept_BNQK: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks each row keeps, and which, at the head of a row as long as the mask's; int32."""
    K = kept_BNQK.shape[-1]
    # one column more takes what is not kept
    places = torch.where(kept_BNQK, kept_BNQK.cumsum(-1) - 1, K)
    columns = torch.arange(K, device=kept_BNQK.device, dtype=torch.int32).expand_as(kept_BNQK)
    listed = columns.new_zeros(*kept_BNQK.shape[:-1], K + 1).scatter_(-1, places, columns)
    return kept_BNQK.sum(-1, dtype=torch.int32), listed[..., :K].contiguous()


@functools.cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    # fullgraph: what cannot be compiled is an error instead of a silent return to the uncompiled, dense form
    return torch.compile(flex_attention, fullgraph=True)


# What has been compared already; it changes no result.
_HELD_AGAINST_DEFINITION: set[tuple[torch.device, torch.dtype, torch.Size]] = set()


def _refuse_dense(q_BSNK: Tensor, k_BSNK: Tensor, v_BSNK: Tensor, blocks: BlockMask, out_BSNK: Tensor) -> None:
    """Recompute the query block that sees least, and compare.

    Raises:
        BackendError: The results differ.
    """
    _, N, Q, _ = blocks.kept_BNQK.shape
    clip, rest = divmod(int(blocks.kept_BNQK.sum(-1).argmin()), N * Q)
    head, row = divmod(rest, Q)
    tokens = slice(row * blocks.size, (row + 1) * blocks.size)
    q, k, v = (x[clip, :, head].detach().float() for x in (q_BSNK[:, tokens], k_BSNK, v_BSNK))
    mask = blocks.expanded(slice(row, row + 1))[clip, head]
    expected = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask)[0]
    found = out_BSNK[clip, tokens, head].detach().float()
    # the rounding of 16-bit numbers passes; a dense result is another mean of the values
    if (found - expected).norm() > 0.03 * expected.norm():
        raise BackendError("FlexAttention ignores the block mask here and would be dense: use `gathered`")
