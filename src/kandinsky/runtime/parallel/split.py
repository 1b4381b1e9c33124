"""How the blocks of a network are shared by processes; each family gives the rules of its own (``Part.split``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from kandinsky.runtime.parallel.context import Context


@dataclass(frozen=True, slots=True)
class Cut:
    """Tensor parallelism of a block.

    by_outputs, by_inputs: dotted names of linear layers that are cut so.   prepare: called before, with the block and
    the number of parts.
    """

    by_outputs: tuple[str, ...]
    by_inputs: tuple[str, ...]
    prepare: Callable[[nn.Module, int], None] | None = None


@dataclass(frozen=True, slots=True)
class SplitRules:
    """blocks: of a network, in order.   arguments: of a block's call, for own tokens.   cut: of each block."""

    blocks: Callable[[Any], Iterable[nn.Module]]
    arguments: Callable[[Context, tuple[Any, ...]], tuple[Any, ...]]
    cut: Cut
