"""Runs a network's blocks one after another; replacements may skip some, or split their work."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

# (tokens [B, S, D], number of blocks, (block number, tokens) -> tokens) -> tokens
BlockRunner = Callable[[Tensor, int, Callable[[int, Tensor], Tensor]], Tensor]
# (queries, keys, values), each [B, S, N, K] -> what attention mixes of them
Mix = Callable[[Tensor, Tensor, Tensor], Tensor]


def run_all(x_BSD: Tensor, count: int, run: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Every block in order."""
    for number in range(count):
        x_BSD = run(number, x_BSD)
    return x_BSD
