"""Whether numbers are finite, cheaply enough to ask of every tensor that is read."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite: one pass over the memory, no copy.

    A sum is finite only where all its terms are. Where it is not, some term is not or the sum grew too large: then the
    smallest and the largest value tell, as NaN wins both comparisons.

    Args:
        tensor: Of any type and device. Whole numbers, empty tensors and those on the meta device count as finite.
    """
    if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
        return True
    tensor = tensor.detach()
    if tensor.dtype.itemsize == 1:
        tensor = tensor.half()  # holds every float8, and those types cannot be added
    if math.isfinite(float(tensor.sum())):
        return True
    return all(math.isfinite(float(value)) for value in torch.aminmax(tensor))
