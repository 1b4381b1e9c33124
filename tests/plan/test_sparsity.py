"""The share of blocks that block-sparse attention is expected to compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import kandinsky
from kandinsky.engine.plan import Plan
from kandinsky.ops.attention_spec import AttentionSpec
from kandinsky.ops.nabla import TileOrder, window_mask


@pytest.mark.parametrize("grid", [(61, 32, 48), (31, 48, 80), (5, 9, 17), (1, 8, 8), (3, 200, 8)])
@pytest.mark.parametrize("widths", [(11, 3, 3), (1, 1, 1), (3, 5, 2)])
def test_the_window_alone_is_counted_exactly(grid: tuple[int, int, int], widths: tuple[int, int, int]) -> None:
    spec = AttentionSpec("nabla", P=0.0, wT=widths[0], wH=widths[1], wW=widths[2])
    tiles = TileOrder.of(grid).tiles
    window = float(window_mask(tiles, widths).float().mean())
    blocks = torch.tensor(tiles).prod().item()
    # besides, each row keeps its largest block
    assert window <= spec.expected_share(grid) <= window + 1 / blocks


def test_more_mass_keeps_more() -> None:
    shares = [AttentionSpec("nabla", P=p / 20).expected_share((61, 32, 48)) for p in range(21)]
    assert shares == sorted(shares) and shares[-1] == 1.0 and 0 < shares[0] < 0.1
    assert AttentionSpec("dense").expected_share((61, 32, 48)) == 1.0


def test_the_plan_counts_it_by_card_and_by_what_is_asked_for() -> None:
    def plan(model: str, **asked: Any) -> Plan:
        return kandinsky.plan(model, memory="80GB", offload="none", **asked)

    long = plan("kandinsky5-lite-t2v-sft-10s")
    assert 0.15 < long.attention_kept < 0.35
    dense = plan("kandinsky5-lite-t2v-sft-10s", attention="dense")
    assert dense.attention_kept == 1.0 and dense.seconds > 2 * long.seconds, "2.7 times, says the report of attention"
    sparser = plan("kandinsky5-lite-t2v-sft-10s", attention="nabla:P=0.5")
    assert sparser.attention_kept < long.attention_kept and sparser.seconds < long.seconds
    pro = "kandinsky5-pro-t2v-sft-5s"
    assert plan(pro).attention_kept == 1.0 > plan(pro, width=1280, height=768).attention_kept
