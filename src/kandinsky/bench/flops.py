"""Floating-point operations, counted while they run; a multiply-add is two."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def count_flops(work: Callable[[], object]) -> int:
    """Count the floating-point operations of a call; PyTorch's counter does not see oneDNN's matrix products."""
    known = {torch.ops.mkldnn._linear_pointwise: _linear} if hasattr(torch.ops.mkldnn, "_linear_pointwise") else {}
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        work()
    return int(counter.get_total_flops())


def _linear(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * weight[0]
