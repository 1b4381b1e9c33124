"""Products with weights by our own kernels: few rows in float32, whole blocks of a transformer; see ``kernels.cpp``.

Alone, oneDNN's products are as fast. What a block saves is the rest: one call in place of a hundred, tokens that are
packed once for several layers, and what lies between two products stays in the cache. Each function answers None where
its plain form, that of the layers, has to do it. Weights are read as they lie: nothing is copied or kept.

Legend: B batch; S tokens; L tokens of a text; D width; E width of the time vector; K head width.
"""

from __future__ import annotations

import ctypes
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.ops.linear import Linear, library
from kandinsky.ops.native import library as kernels
from kandinsky.ops.rope import Rotation

LANES = 16
LEAST = 2**14  # numbers of a layer: below, results stay what PyTorch's operations give
MOST_ROWS = 16  # that are taken for few
# widest tokens of a block: of the time of the layers it took 0.78 and 0.90 at width 128 (bfloat16, float32; 1,024
# tokens), 0.95 at 512, 1.07 at 1024, where weights leave the cache between two tiles of tokens
WIDEST = 512


class Norm(Protocol):
    """A norm of heads."""

    @property
    def weight(self) -> Tensor: ...


class Attending(Protocol):
    """An attention: its layers, and the norms of its queries and keys."""

    @property
    def head_dim(self) -> int: ...
    @property
    def to_query(self) -> nn.Module: ...
    @property
    def to_key(self) -> nn.Module: ...
    @property
    def to_value(self) -> nn.Module: ...
    @property
    def out_layer(self) -> nn.Module: ...
    @property
    def query_norm(self) -> Norm: ...
    @property
    def key_norm(self) -> Norm: ...


class Modulating(Protocol):
    """Gives shift, scale and gate of each part from the activated time vector."""

    @property
    def out_layer(self) -> nn.Module: ...


class Feeding(Protocol):
    """A feed-forward: two layers with a GELU between."""

    @property
    def in_layer(self) -> nn.Module: ...
    @property
    def out_layer(self) -> nn.Module: ...


class Weights(ctypes.Structure):
    """A layer's; as all here see the structures of the same names in ``kernels.cpp``."""

    _fields_ = [("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p)]


class Heads(ctypes.Structure):
    _fields_ = [
        *((name, Weights) for name in ("query", "key", "value", "out")),
        *((name, ctypes.c_void_p) for name in ("query_norm", "key_norm")),
    ]


class Block(ctypes.Structure):
    _fields_ = [
        ("modulation", Weights),
        *((name, Heads) for name in ("own", "cross")),
        *((name, Weights) for name in ("inner", "outer")),
        *((name, ctypes.c_int64) for name in "DEHK"),
        *((name, ctypes.c_float) for name in ("norm_eps", "heads_eps")),
    ]


class Work(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "text", "e", "turns", "counted", "out")),
        *((name, ctypes.c_int64) for name in ("B", "S", "L", "threads")),
    ]


def block(
    x_BSD: Tensor,
    e_BE: Tensor,
    modulation: Modulating,
    own: Attending,
    feed_forward: Feeding,
    *,
    rotation: Rotation,
    norm_eps: float,
    heads_eps: float,
    cross: Attending | None = None,
    text_BLD: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor | None:
    """A block: attention, attention to a text, feed-forward, each behind a modulated norm and before a gated sum.

    Args:
        x_BSD: Tokens.
        e_BE: The conditioning vector, before its activation.
        modulation: Of all parts.
        own: Attention among the tokens, dense.
        feed_forward: The last part.
        rotation: Turns queries and keys of ``own``.
        norm_eps: Of the norms of tokens.
        heads_eps: Of the norms of heads.
        cross: Attention to the text; None for none.
        text_BLD: The text.
        mask: Bool, which tokens count: of the text [B, L], or without one of the tokens [B, S]; None for all.

    Returns:
        New tokens; None if the layers have to be called.
    """
    if torch.compiler.is_compiling():  # asked before what a compiler need not see
        return None
    if e_BE.dim() != 2 or type(rotation) is not Rotation or not _is_ready(x_BSD, (x_BSD,)):
        return None
    (B, S, D), K, dtype = x_BSD.shape, own.head_dim, x_BSD.dtype
    table = rotation.table
    if table.shape != (S, 1, K // 2, 2) or table.dtype is not torch.float32 or not table.is_contiguous():
        return None
    if D % 32 or K % 32 or D > WIDEST or not 0 < B == e_BE.shape[0] or not S:
        return None
    L, parts = S, 2
    if cross is not None:
        assert text_BLD is not None
        L, parts = text_BLD.shape[1], 3
        if text_BLD.shape != (B, L, D) or not L or not _is_ready(text_BLD, (x_BSD, text_BLD)):
            return None
    if mask is not None and not (tuple(mask.shape) == (B, L) and mask.dtype is torch.bool and mask.is_contiguous()):
        return None
    made = Block(D=D, E=e_BE.shape[1], K=K, norm_eps=norm_eps, heads_eps=heads_eps)
    inner, outer = feed_forward.in_layer, feed_forward.out_layer
    if made.E % LANES or _is_heard(modulation, feed_forward) or not isinstance(inner, Linear):
        return None
    made.H = inner.out_features
    fits = made.H % LANES == 0 and _taken(made.modulation, modulation.out_layer, dtype, parts * 3 * D, made.E)
    fits = fits and _taken(made.inner, inner, dtype, made.H, D) and _taken(made.outer, outer, dtype, D, made.H)
    fits = fits and _heads_taken(made.own, own, dtype, D)
    if not fits or (cross is not None and not _heads_taken(made.cross, cross, dtype, D)):
        return None
    e, out = F.silu(e_BE.float()).contiguous(), torch.empty_like(x_BSD)
    work = Work(
        x_BSD.data_ptr(), _at(text_BLD), e.data_ptr(), table.data_ptr(), _at(mask), out.data_ptr(),
        B, S, L, torch.get_num_threads(),
    )  # fmt: skip
    found = kernels.kernels()
    assert found is not None
    found.block(ctypes.byref(made), ctypes.byref(work), dtype is torch.bfloat16)
    return out


def few_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """x·weightᵀ + bias of few rows in float32, without casting the weights as a whole."""
    if torch.compiler.is_compiling():
        return None
    D = x.shape[-1]
    rows = x.numel() // D if D else 0
    if not 0 < rows <= MOST_ROWS or D % LANES or weight.numel() < LEAST or not (x.is_cpu and x.is_contiguous()):
        return None
    if x.dtype is not torch.float32 or weight.dtype not in (torch.float32, torch.bfloat16) or not kernels.serves(x):
        return None
    if not _is_plain(weight, weight.dtype) or not (bias is None or _is_plain(bias, weight.dtype)):
        return None
    made = kernels.kernels()
    assert made is not None
    count = weight.shape[0]
    out = x.new_empty(*x.shape[:-1], count)
    is_half = weight.dtype is torch.bfloat16
    made.few_rows(x.data_ptr(), rows, D, weight.data_ptr(), _at(bias), out.data_ptr(), count, is_half)
    return out


def _is_ready(x: Tensor, found: tuple[Tensor, ...]) -> bool:
    """Whether blocks compute with such tokens: by the library that was chosen, and without tiles, which are faster."""
    if not x.is_contiguous() or x.dtype not in (torch.float32, torch.bfloat16):
        return False
    if x.dtype is torch.bfloat16 and (kernels.has_tiles() or not kernels.has_halves()):
        return False
    return library(x.dtype) == "onednn" and kernels.serves(*found)


def _is_heard(*modules: object) -> bool:
    """Whether some module has hooks, which must run."""
    return any(
        isinstance(one, nn.Module) and (len(one._forward_hooks) or len(one._forward_pre_hooks)) for one in modules
    )


def _heads_taken(to: Heads, of: Attending, dtype: torch.dtype, D: int) -> bool:
    """Write the places of an attention's weights; False if its layers have to be called."""
    if _is_heard(of, of.query_norm, of.key_norm):
        return False
    for place, layer in ((to.query, of.to_query), (to.key, of.to_key), (to.value, of.to_value), (to.out, of.out_layer)):
        if not _taken(place, layer, dtype, D, D):
            return False
    query, key = of.query_norm.weight, of.key_norm.weight
    if not (_is_plain(query, dtype) and _is_plain(key, dtype)) or of.head_dim * (D // of.head_dim) != D:
        return False
    to.query_norm, to.key_norm = query.data_ptr(), key.data_ptr()
    return True


def _taken(to: Weights, layer: nn.Module, dtype: torch.dtype, rows: int, columns: int) -> bool:
    """Write the places of a layer's weights; False if it has to be called: it has hooks, updates or other weights."""
    if type(layer) is not Linear or layer._modules or _is_heard(layer):
        return False
    weight, bias = layer.weight, layer.bias
    if tuple(weight.shape) != (rows, columns) or weight.numel() < LEAST or not _is_plain(weight, dtype):
        return False
    to.weight = weight.data_ptr()
    if bias is not None:
        if not _is_plain(bias, dtype):
            return False
        to.bias = bias.data_ptr()
    return True


def _is_plain(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether weights are numbers of a type that can be read as they lie."""
    return type(weight) in (Tensor, nn.Parameter) and weight.dtype is dtype and weight.is_cpu and weight.is_contiguous()


def _at(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()
