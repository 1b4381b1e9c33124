"""Runs cases of block-sparse attention through the functions the transformer uses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kandinsky.conformance.cases import Case, NotBuilt
from kandinsky.ops.attention_spec import AttentionSpec
from kandinsky.ops.nabla import BLOCK, TILE, Nabla, TileOrder, block_means, block_probability, top_cdf, window_mask


def run_nabla_mask(case: Case) -> dict[str, Tensor]:
    """Blocks kept for given queries and keys, [B, N, S, K] in tile order."""
    case.refuse_other_calls("P", "thr", "sta", "block_size")
    if case.call["block_size"] != BLOCK:
        raise NotBuilt(f"blocks of {case.call['block_size']} tokens: only {BLOCK} are built")
    sta, inputs = case.call["sta"], case.inputs()
    spec = AttentionSpec(type="nabla", P=case.call["thr"], **{name: sta[name] for name in ("wT", "wH", "wW")})
    q_BSNK, k_BSNK = inputs["q"].transpose(1, 2), inputs["k"].transpose(1, 2)
    window = inputs.get("sta_mask")
    tiles = (sta["T"], sta["H"], sta["W"])
    nabla = Nabla.of((sta["T"], sta["H"] * TILE, sta["W"] * TILE), spec)
    rebuilt = window_mask(tiles, (spec.wT, spec.wH, spec.wW))[None, None]
    if window is not None and not torch.equal(window, rebuilt):
        raise ValueError("the case's window is not the one its widths describe")
    kept = nabla.select(q_BSNK, k_BSNK).kept_BNQK
    probability = block_probability(block_means(q_BSNK), block_means(k_BSNK))
    return {
        "block_mask": kept,
        "block_probability": probability,
        "cdf_mask": top_cdf(probability, spec.P),
        "kv_num_blocks": kept.sum(-1),
        "sta_mask": rebuilt,
    }


def run_fractal(case: Case) -> dict[str, Tensor]:
    """Token order, and the way back."""
    case.refuse_other_calls("shape", "pixel_size")
    if case.call["pixel_size"] != TILE:
        raise NotBuilt(f"tiles of {case.call['pixel_size']} tokens a side: only {TILE} are built")
    x, grid = case.inputs()["x"], _grid(case.call["shape"])
    order = TileOrder.of(grid)
    rows = x.flatten(0, 2)[None]
    flat = order.arrange(rows)
    if not torch.equal(order.restore(flat), rows):
        raise ValueError("the inverse does not restore the order")
    return {"flat": flat[0], "flat_dense": rows[0], "permutation": order.order_S}


def _grid(shape: list[Any]) -> tuple[int, int, int]:
    frames, height, width = (int(size) for size in shape)
    return (frames, height, width)
