"""The one entry to attention, with a table of backends.

Legend: B batch, S query tokens, L key tokens, N heads, K head width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kandinsky.errors import BackendError, RequestError

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """How the visual self attention is computed.

    type:    "dense" or "nabla" (block-sparse; not built yet, see ``DiffusionTransformer3D.forward``).
    backend: a name of ``backends()`` or "auto".
    P, wT, wH, wW: NABLA's probability mass and window in blocks, the official names.
    """

    type: str = "dense"
    backend: str = "auto"
    P: float = 0.9
    wT: int = 11
    wH: int = 3
    wW: int = 3

    def __post_init__(self) -> None:
        if self.type not in ("dense", "nabla"):
            raise RequestError(f"unknown attention type `{self.type}`: use `dense` or `nabla`")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AttentionSpec:
        """Read the `attention` table of a card or an official YAML file, in which dense attention is called "flash".

        Official keys that no official code reads (causal, local, glob, window, chunk, add_sta, method) are accepted
        at their only meaningful values. Raises: RequestError for any other key or value.
        """
        inert: dict[str, Any] = {"causal": False, "local": False, "glob": False, "chunk": False, "window": 3}
        inert |= {"add_sta": True, "method": "topcdf"}
        known = {f.name for f in dataclasses.fields(cls)}
        chosen: dict[str, Any] = {}
        for key, value in values.items():
            if key in known:
                chosen[key] = "dense" if key == "type" and value == "flash" else value
            elif key not in inert:
                raise RequestError(f"unknown attention key `{key}`: use one of {', '.join(sorted(known))}")
            elif value != inert[key]:
                raise RequestError(f"attention key `{key}` = `{value}` has no effect in any Kandinsky 5: remove it")
        return cls(**chosen)


def attention(
    q_BSNK: Tensor, k_BLNK: Tensor, v_BLNK: Tensor, *, mask: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """softmax(q·kᵀ / √K)·v per head.

    Args:    mask: bool, True = may be seen; [B, L] for keys, or anything that broadcasts to [B, N, S, L].
             backend: a name of ``backends()``; "auto" takes the fastest that is exact.
    Returns: [B, S, N, K] in the type of v.
    Raises:  BackendError for a backend that is not there.
    """
    if mask is not None and mask.dim() == 2:
        mask = mask[:, None, None, :]
    if backend == "auto":
        backend = "products" if _products_are_faster(q_BSNK, k_BLNK) else "sdpa"
    return _kernel(backend)(q_BSNK, k_BLNK, v_BLNK, mask)


def backends() -> tuple[str, ...]:
    """Names that ``attention`` accepts on this machine."""
    return ("auto", *_KERNELS)


def _kernel(backend: str) -> Kernel:
    try:
        return _KERNELS[backend]
    except KeyError:
        choices = ", ".join(f"`{name}`" for name in backends())
        raise BackendError(f"attention backend `{backend}` is not available: use one of {choices}") from None


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def _products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Two matrix products and a softmax in the inputs' own type; holds all scores in memory."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = (q * (1.0 / math.sqrt(q.shape[-1]))) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return (scores.softmax(dim=-1) @ v).transpose(1, 2)


def _products_are_faster(q: Tensor, k: Tensor) -> bool:
    """Training in bfloat16 on a processor: the backward pass of PyTorch's fused kernel takes 2 to 10 times as long.

    Generation is not concerned (no gradients), nor are scores of more than 256 MB.
    """
    if not (q.is_cpu and q.dtype is torch.bfloat16 and torch.is_grad_enabled() and q.requires_grad):
        return False
    return 2 * q.shape[0] * q.shape[2] * q.shape[1] * k.shape[1] <= 2**28


def _plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The definition, in float32; the yardstick of every other backend."""
    scores = torch.einsum("bsnk,blnk->bnsl", q.float(), k.float()) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return torch.einsum("bnsl,blnk->bsnk", scores.softmax(dim=-1), v.float()).to(v.dtype)


_KERNELS: dict[str, Kernel] = {"sdpa": _sdpa, "products": _products, "plain": _plain}
