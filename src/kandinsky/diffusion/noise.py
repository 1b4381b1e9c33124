"""Initial noise: one generator a sample, so that the batch cannot change a seed's result."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kandinsky.errors import RequestError
from kandinsky.types import LatentShape

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def draw(
    shape: LatentShape,
    seed: int | Sequence[int],
    dtype: str = "float32",
    *,
    batch: int = 1,
    device: str | torch.device | None = None,
) -> Tensor:
    """Standard normal noise for a batch of clips.

    Args:    seed: one seed for each sample, or one number: then sample i has seed + i.
             dtype: type it is drawn in, "bfloat16" (official, latest) or "float32", the card's ``sampling.noise``.
             batch: samples; ignored when a sequence of seeds is given.
             device: of the generator; None = the processor, which gives the same noise on every machine.
    Returns: [B, T, H, W, C] float32 on that device; the sampler's state stays float32 whatever it was drawn in.
    Raises:  RequestError for another dtype or a batch below 1.
    Source:  kandinskylab/kandinsky-5, kandinsky/generation_utils.py: one draw of [T, H, W, C] from a fresh generator.
    """
    if dtype not in DTYPES:
        raise RequestError(f"noise rule `{dtype}` is unknown: use {' or '.join(f'`{name}`' for name in DTYPES)}")
    seeds = [seed + i for i in range(batch)] if isinstance(seed, int) else list(seed)
    if not seeds:
        raise RequestError("a batch needs at least one sample")
    return torch.stack([_draw_one(shape, s, DTYPES[dtype], device) for s in seeds])


def _draw_one(shape: LatentShape, seed: int, dtype: torch.dtype, device: str | torch.device | None) -> Tensor:
    generator = torch.Generator() if device is None else torch.Generator(device)
    generator.manual_seed(seed)
    return torch.randn(shape.as_tuple(), generator=generator, device=generator.device, dtype=dtype).float()
