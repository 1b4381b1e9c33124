"""Products with weights by our own kernels: few rows in float32, whole blocks of a transformer; see ``kernels.cpp``.

Alone, oneDNN's products are as fast. What a block saves is the rest: one call in place of a hundred, tokens that are
packed once for several layers, and what lies between two products stays in the cache. Each function answers None where
its plain form, that of the layers, has to do it. Weights are read as they lie: nothing is copied or kept.

Legend: B batch; S tokens; L tokens of a text; D width; E width of the time vector; K head width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.ops.linear import Linear, library
from kandinsky.ops.native import library as kernels
from kandinsky.ops.rope import Rotation

LANES = 16
LEAST = 2**14  # numbers of a layer: below, results stay what PyTorch's operations give
MOST_ROWS = 16  # that are taken for few
# widest tokens of a block: of the time of the layers it took 0.87 and 0.89 at width 1,024 (bfloat16, float32; 1,024
# tokens), 0.93 and 0.95 at 1,792; wider ones were not measured
WIDEST = 2048


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
    L = S
    if cross is not None:
        assert text_BLD is not None
        L = text_BLD.shape[1]
        if text_BLD.shape != (B, L, D) or not L or not _is_ready(text_BLD, (x_BSD, text_BLD)):
            return None
    if mask is not None and not (tuple(mask.shape) == (B, L) and mask.dtype is torch.bool and mask.is_contiguous()):
        return None
    read = _read(x_BSD, e_BE.shape[1], (modulation, own, feed_forward, cross), (norm_eps, heads_eps))
    if read is None:
        return None
    e, out = F.silu(e_BE.float()).contiguous(), torch.empty_like(x_BSD)
    work = Work(
        x_BSD.data_ptr(), _at(text_BLD), e.data_ptr(), table.data_ptr(), _at(mask), out.data_ptr(),
        B, S, L, torch.get_num_threads(),
    )  # fmt: skip
    found = kernels.kernels()
    assert found is not None
    found.block(ctypes.byref(read.block), ctypes.byref(work), dtype is torch.bfloat16)
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
    if x.dtype is torch.bfloat16 and not kernels.blocks_of_bfloat16():
        return False
    return library(x.dtype) == "onednn" and kernels.serves(*found)


class Reading:
    """Places of a block's weights, and all that was seen when they were found: while it is so, they hold.

    Asking whether it is takes a tenth of the time of asking a hundred things of twenty modules anew.
    """

    def __init__(self, asked: tuple[object, ...], block: Block) -> None:
        self.asked = asked
        self.block = block
        self._children: list[tuple[dict[str, nn.Module | None], str, nn.Module | None]] = []
        self._empty: list[Mapping[Any, Any]] = []  # hooks, which must run, and parts of a layer, such as updates
        self._weights: list[tuple[dict[str, nn.Parameter | None], str, nn.Parameter | None, int]] = []

    def holds(self, asked: tuple[object, ...]) -> bool:
        """Whether the same is asked of the same modules, weights and places of these."""
        return (
            asked == self.asked
            and not any(self._empty)
            and all(held.get(name) is child for held, name, child in self._children)
            and all(
                held.get(name) is weight and (weight is None or weight.data_ptr() == place)
                for held, name, weight, place in self._weights
            )
        )

    def heard(self, *modules: nn.Module) -> bool:
        """Whether some module has hooks."""
        found: list[Mapping[Any, Any]] = []
        for one in modules:
            found += [one._forward_hooks, one._forward_pre_hooks]
        self._empty += found
        return any(found)

    def part(self, of: nn.Module, name: str) -> nn.Module | None:
        """A child without hooks; None where there is none."""
        child = of._modules.get(name)
        self._children.append((of._modules, name, child))
        return None if child is None or self.heard(child) else child

    def weight(self, of: nn.Module, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> int | None:
        """The place of plain numbers of a shape; None if they are others."""
        weight = of._parameters.get(name)
        if weight is None or not _is_plain(weight, dtype) or tuple(weight.shape) != shape:
            return None
        self._weights.append((of._parameters, name, weight, weight.data_ptr()))
        return weight.data_ptr()

    def layer(self, to: Weights, of: nn.Module, name: str, dtype: torch.dtype, shape: tuple[int, int]) -> bool:
        """Write the places of a layer's weights; False if it has to be called: it has hooks or updates, or others."""
        layer = self.part(of, name)
        if type(layer) is not Linear or layer._modules or shape[0] * shape[1] < LEAST:
            return False
        self._empty.append(layer._modules)
        weight = self.weight(layer, "weight", dtype, shape)
        if weight is None:
            return False
        to.weight = weight
        if layer._parameters.get("bias") is None:
            self._weights.append((layer._parameters, "bias", None, 0))
            return True
        to.bias = self.weight(layer, "bias", dtype, shape[:1])
        return to.bias is not None

    def heads(self, to: Heads, of: nn.Module, dtype: torch.dtype, D: int, K: int) -> bool:
        """Write the places of an attention's weights; False if its layers have to be called."""
        if self.heard(of) or D % K:
            return False
        layers = ((to.query, "to_query"), (to.key, "to_key"), (to.value, "to_value"), (to.out, "out_layer"))
        if not all(self.layer(place, of, name, dtype, (D, D)) for place, name in layers):
            return False
        places = []
        for name in ("query_norm", "key_norm"):
            norm = self.part(of, name)
            places.append(None if norm is None else self.weight(norm, "weight", dtype, (K,)))
        to.query_norm, to.key_norm = places
        return None not in places


# by the module of a block that is its own alone
_READ: WeakKeyDictionary[nn.Module, Reading] = WeakKeyDictionary()


def _read(
    x_BSD: Tensor,
    E: int,
    parts: tuple[Modulating, Attending, Feeding, Attending | None],
    eps: tuple[float, float],
) -> Reading | None:
    """Where a block's weights lie; None if its layers have to be called."""
    modulation, own, feed_forward, cross = parts
    if not isinstance(modulation, nn.Module):
        return None
    dtype, D = x_BSD.dtype, x_BSD.shape[-1]
    asked = dtype, D, E, eps, own, feed_forward, cross  # not the first, which it would keep for ever
    if (known := _READ.get(modulation)) is not None and known.holds(asked):
        return known
    if not (isinstance(own, nn.Module) and isinstance(feed_forward, nn.Module) and E % LANES == 0):
        return None
    inner, K = feed_forward.in_layer, own.head_dim
    if not isinstance(inner, Linear) or inner.out_features % LANES:
        return None
    H, count = inner.out_features, 6 if cross is None else 9
    to = Block(D=D, E=E, H=H, K=K, norm_eps=eps[0], heads_eps=eps[1])
    made = Reading(asked, to)
    fits = (
        not made.heard(modulation, feed_forward)
        and made.layer(to.modulation, modulation, "out_layer", dtype, (count * D, E))
        and made.layer(to.inner, feed_forward, "in_layer", dtype, (H, D))
        and made.layer(to.outer, feed_forward, "out_layer", dtype, (D, H))
        and made.heads(to.own, own, dtype, D, K)
    )
    if cross is not None:
        fits = (
            fits and isinstance(cross, nn.Module) and cross.head_dim == K and made.heads(to.cross, cross, dtype, D, K)
        )
    if not fits:
        return None
    _READ[modulation] = made
    return made


def _is_plain(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether weights are numbers of a type that can be read as they lie."""
    return type(weight) in (Tensor, nn.Parameter) and weight.dtype is dtype and weight.is_cpu and weight.is_contiguous()


def _at(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()
