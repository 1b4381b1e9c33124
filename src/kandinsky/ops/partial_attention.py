"""Attention to a part of the keys, and how parts become the whole: an online softmax over parts.

Legend: B batch, S query tokens, L key tokens, N heads, K head width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Part:
    """Attention to a part of the keys, which can be merged with that to other parts.

    Attributes:
        out_BNSK: Attention to the keys seen so far.
        log_BNS: Logarithm of the sum of their weights. Both float32.
    """

    out_BNSK: Tensor
    log_BNS: Tensor

    def joined(self, other: Part) -> Part:
        """As if the keys of both had been seen at once."""
        # of the weight, the share of the other part; where neither has seen a key nothing is added
        share = torch.sigmoid(other.log_BNS - self.log_BNS).nan_to_num(0.0).unsqueeze(-1)
        return Part(torch.lerp(self.out_BNSK, other.out_BNSK, share), torch.logaddexp(self.log_BNS, other.log_BNS))

    def finished(self, dtype: torch.dtype) -> Tensor:
        """[B, S, N, K]."""
        return self.out_BNSK.transpose(1, 2).to(dtype)


def attend_part(q_BSNK: Tensor, k_BLNK: Tensor, v_BLNK: Tensor, mask_BL: Tensor | None = None) -> Part:
    """softmax(q·kᵀ / √K)·v over these keys, with the logarithm of the weights' sum.

    Args:
        mask_BL: Keys that may be seen. Where none may, the part weighs nothing.
    """
    q, k, v = (x.transpose(1, 2) for x in (q_BSNK, k_BLNK, v_BLNK))
    bias = None
    if mask_BL is not None:
        bias = torch.zeros_like(mask_BL, dtype=q.dtype).masked_fill(~mask_BL, -math.inf)[:, None, None, :]
    if q.is_cuda and bias is None and q.dtype in HALF and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256:
        out, log = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[:2]
    elif q.is_cpu and q.dtype is not torch.float64:
        if bias is not None:
            bias = bias.expand(-1, q.shape[1], q.shape[2], -1)
        out, log = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=bias)
    else:
        out, log = _by_definition(q, k, v, bias)
    if mask_BL is None:
        return Part(out.float(), log.float())
    sees = mask_BL.any(-1)[:, None, None]
    return Part(torch.where(sees[..., None], out.float(), 0.0), torch.where(sees, log.float(), -math.inf))


ROWS = 2**26  # most scores held at once


def _by_definition(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """In float32, a stretch of queries at a time: for devices whose fused kernels keep the sums to themselves."""
    k, v = k.float(), v.float()
    outs, logs = [], []
    for rows in q.float().split(max(1, ROWS // (q.shape[0] * q.shape[1] * k.shape[2])), dim=2):
        scores = rows @ k.mT / math.sqrt(q.shape[-1])
        scores = scores if bias is None else scores + bias.float()
        log = scores.logsumexp(-1)
        outs.append((scores - log.unsqueeze(-1)).exp() @ v)
        logs.append(log)
    return torch.cat(outs, dim=2), torch.cat(logs, dim=2)


class Backward:
    """The gradients of attention, a part of the keys at a time.

    Attributes:
        of_queries: Those of the queries, [B, S, N, K] float32, of the parts so far.

    Args:
        grad_BSNK: Of what attention gave.
        q_BSNK: The queries.
        out_BSNK: What attention gave, to all keys.
        log_BNS: Logarithm of the sum of all weights.
    """

    def __init__(self, grad_BSNK: Tensor, q_BSNK: Tensor, out_BSNK: Tensor, log_BNS: Tensor) -> None:
        self._grad, self._q, self._out = (x.transpose(1, 2) for x in (grad_BSNK, q_BSNK, out_BSNK))
        self._log = log_BNS
        self.of_queries = torch.zeros(q_BSNK.shape, dtype=torch.float32, device=q_BSNK.device)

    def of(self, k_BLNK: Tensor, v_BLNK: Tensor, mask_BL: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Gradients of these keys and values, [B, L, N, K] float32."""
        k, v = k_BLNK.transpose(1, 2), v_BLNK.transpose(1, 2)
        bias = None
        if mask_BL is not None:
            bias = torch.zeros_like(mask_BL, dtype=k.dtype).masked_fill(~mask_BL, -math.inf)[:, None, None, :]
        made = self._fused(k, v, bias) or self._by_definition(k, v, bias)
        of_q, of_k, of_v = (x.float().transpose(1, 2) for x in made)
        self.of_queries += of_q
        return of_k, of_v

    def _fused(self, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor] | None:
        """By the kernel whose counterpart ``attend_part`` takes; it is told the weights' sum over all keys."""
        q = self._q
        if not (q.is_cuda and bias is None and q.dtype in HALF and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256):
            return None
        none = torch.zeros((), dtype=torch.int64, device=q.device)
        made: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_backward(
            self._grad, q, k, v, self._out, self._log, None, None, q.shape[2], k.shape[2], 0.0, False, none, none
        )
        return made

    def _by_definition(self, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """In float32, a stretch of queries at a time."""
        k, v, scale = k.float(), v.float(), 1 / math.sqrt(k.shape[-1])
        of_q, of_k, of_v = [], torch.zeros_like(k), torch.zeros_like(v)
        rows = max(1, ROWS // (k.shape[0] * k.shape[1] * max(1, k.shape[2])))
        for q, grad, out, log in zip(
            *(x.float().split(rows, dim=2) for x in (self._q, self._grad, self._out, self._log)), strict=True
        ):
            scores = q @ k.mT * scale
            scores = scores if bias is None else scores + bias.float()
            weights = (scores - log.unsqueeze(-1)).exp()
            of_v += weights.mT @ grad
            of_scores = weights * (grad @ v.mT - (grad * out).sum(-1, keepdim=True)) * scale
            of_q.append(of_scores @ k)
            of_k += of_scores.mT @ q
        return torch.cat(of_q, dim=2), of_k, of_v
