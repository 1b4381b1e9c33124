"""Times at which the sampler evaluates the network. t is in [0, 1], 1 = noise."""

from __future__ import annotations

import torch
from torch import Tensor

from kandinsky.errors import RequestError


def flow_times(steps: int, shift: float) -> Tensor:
    """Falling times of a flow-matching run, more of them near noise.

    Source: kandinskylab/kandinsky-5, kandinsky/generation_utils.py, generate.
    Quirk: float32 from the start; a schedule made in double moves guided results by about 1e-4.

    Args:
        steps: Number of network steps, ≥ 1.
        shift: > 0; 1 spaces them evenly, cards give 5 or 10.

    Returns:
        float32 [steps + 1], from 1 to exactly 0 (for a shift that is not a binary fraction, 1 up to the last bit).

    Raises:
        RequestError: ``steps`` is below 1, or ``shift`` is 0 or less.
    """
    if steps < 1:
        raise RequestError(f"steps `{steps}` is too few: use at least 1")
    return shift_times(torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float32), shift)


def shift_times(t: Tensor, shift: float) -> Tensor:
    """Spend more steps near noise: shift·t / (1 + (shift − 1)·t). Keeps both ends.

    Raises:
        RequestError: ``shift`` is 0 or less.
    """
    if not shift > 0:
        raise RequestError(f"shift `{shift}` is not allowed: use a number above 0; 1 changes nothing")
    return shift * t / (1 + (shift - 1) * t)
