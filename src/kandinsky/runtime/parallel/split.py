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

    the number of parts.

    Attributes:
        by_outputs: Dotted names of linear layers that are cut so.
        by_inputs: Dotted names of linear layers that are cut so.
        prepare: Called before, with the block and.
    """

    by_outputs: tuple[str, ...]
    by_inputs: tuple[str, ...]
    prepare: Callable[[nn.Module, int], None] | None = None


@dataclass(frozen=True, slots=True)
class SplitRules:
    """How the blocks of a network are split.

    Attributes:
        blocks: Of a network, in order.
        arguments: Of a block's call, for own tokens.
        cut: Of each block.
    """

    blocks: Callable[[Any], Iterable[nn.Module]]
    arguments: Callable[[Context, tuple[Any, ...]], tuple[Any, ...]]
    cut: Cut
