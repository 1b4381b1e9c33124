"""How the blocks of a network are split over processes; each family has its own rules (``Part.split``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from kandinsky.runtime.parallel.context import Context


@dataclass(frozen=True, slots=True)
class Cut:
    """Tensor parallelism of a block.

    Attributes:
        by_outputs: Dotted names of linear layers that are cut by their outputs.
        by_inputs: Dotted names of linear layers that are cut by their inputs.
        prepare: Called before with the block and the number of parts.
    """

    by_outputs: tuple[str, ...]
    by_inputs: tuple[str, ...]
    prepare: Callable[[nn.Module, int], None] | None = None


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
