"""How the blocks of a network are split over processes; each family has its own rules (``Part.split``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from kandinsky.runtime.parallel.context import Context


@dataclass(frozen=True, slots=True)
class Cut:
    """Tensor parallelism of a block.

    Attributes:
        by_outputs: Dotted names of linear layers whose outputs are divided: heads, or hidden features.
        by_inputs: Those of the layers behind them, whose inputs are.
        fused: Layers of ``by_outputs`` that are several in one, as queries, keys and values, and how many: every
            process gets its part of each.
        per_head: Modules with the same weights for every head: a process knows their gradients of its own heads.
    """

    by_outputs: tuple[str, ...]
    by_inputs: tuple[str, ...]
    fused: Mapping[str, int] = field(default_factory=dict)
    per_head: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SplitRules:
    """How the blocks of a network are split.

    Attributes:
        blocks: Returns the blocks of a network, in order.
        arguments: Converts the arguments of a block's call for own tokens.
        cut: How each block is cut.
    """

    blocks: Callable[[Any], Iterable[nn.Module]]
    arguments: Callable[[Context, tuple[Any, ...]], tuple[Any, ...]]
    cut: Cut
