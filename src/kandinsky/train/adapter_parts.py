"""Adapters of layers that tensor parallelism cuts: each process has a part of the frozen weight and the whole adapter.

An adapter is small. So it stays whole, of which a pass takes what belongs to the own part of the layer, and its
gradients, of that part alone, are added up over the processes (``Scaling.add_up``). The numbers are those of PEFT's own
passes.

Legend: O I outputs and inputs of a layer; R rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.errors import RequestError
from kandinsky.runtime.parallel.exchange import Group, enter_parts, leave_parts
from kandinsky.runtime.parallel.places import Split
from kandinsky.train.adapter import NAME


def is_adapted(layer: nn.Module) -> bool:
    """Whether PEFT has wrapped a linear layer."""
    return hasattr(layer, "base_layer")


def cut(layer: Any, split: Split, part: int, group: Group) -> None:
    """Keep this process' part of the weight below an adapter, and pass what comes through that part.

    Args:
        layer: Of PEFT; changed in place.
        split: Of its frozen weight [O, I], along axis 0 or 1.
        part: Of this process.
        group: The processes that have the others.

    Raises:
        RequestError: The weight is no plain tensor.
    """
    base = layer.base_layer
    if not isinstance(base, nn.Linear) or type(base.weight) is not nn.Parameter or type(base.weight.data) is not Tensor:
        raise RequestError("`scale`: `tp` divides plain weights: use the adapter's `base_dtype` `bfloat16`")
    place = split.place(0, part)
    weight = base.weight.new_empty(place.size)
    place.take(base.weight.data, weight)
    base.weight = nn.Parameter(weight, requires_grad=False)
    if base.bias is not None and split.axis == 0:
        base.bias = nn.Parameter(_rows(base.bias.data, place.rows), requires_grad=False)
    layer.forward = _Pass(layer, place.rows, place.columns, group)


class _Pass:
    """The pass of an adapted layer of which this process has some rows, or some columns."""

    def __init__(
        self, layer: Any, rows: tuple[tuple[int, int], ...], columns: tuple[int, int] | None, group: Group
    ) -> None:
        self.layer, self.rows, self.columns, self.group = layer, rows, columns, group

    def __call__(self, x: Tensor) -> Tensor:
        layer, base = self.layer, self.layer.base_layer
        by_inputs = self.columns is not None
        if not by_inputs:
            x = enter_parts(x, self.group)
        out = F.linear(x, base.weight)
        if not layer.disable_adapters:
            out = self._adapted(x, out).to(out.dtype)
        if by_inputs:
            out = leave_parts(out, self.group)
        return out if base.bias is None else out + base.bias.to(out.dtype)

    def _adapted(self, x: Tensor, out: Tensor) -> Tensor:
        layer = self.layer
        if hasattr(layer, "lokr_w1"):
            update = self._kronecker()
            return out + F.linear(x.to(update.dtype), update)
        down, up, scale = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight, layer.scaling[NAME]
        down, up = self._of_columns(down), self._of_rows(up)
        out = out + scale * F.linear(F.linear(layer.lora_dropout[NAME](x.to(down.dtype)), down), up)
        if NAME not in layer.lora_variant:
            return out
        with torch.no_grad():  # the norm counts as a constant (arXiv 2402.09353, section 4.3)
            squares = (layer.base_layer.weight + scale * up @ down).float().square().sum(1)
            if self.columns is not None:
                dist.all_reduce(squares, group=self.group)
        scaled: Tensor = out * (self._of_rows(layer.lora_magnitude_vector[NAME].weight) / squares.sqrt())
        return scaled

    def _kronecker(self) -> Tensor:
        """The own part of the update of a LoKr."""
        layer = self.layer
        first, second = (
            getattr(layer, name)[NAME]
            if NAME in getattr(layer, name)
            else getattr(layer, f"{name}_a")[NAME] @ getattr(layer, f"{name}_b")[NAME]
            for name in ("lokr_w1", "lokr_w2")
        )
        return self._of_columns(self._of_rows(layer.scaling[NAME] * torch.kron(first, second)))

    def _of_rows(self, x: Tensor) -> Tensor:
        return x if self.columns is not None else _rows(x, self.rows)

    def _of_columns(self, x: Tensor) -> Tensor:
        return x if self.columns is None else x[:, slice(*self.columns)]


def _rows(x: Tensor, rows: tuple[tuple[int, int], ...]) -> Tensor:
    return torch.cat([x[start:stop] for start, stop in rows])
