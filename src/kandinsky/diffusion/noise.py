"""Initial noise: one generator per sample, so that the batch cannot change a seed's result."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kandinsky.errors import RequestError
from kandinsky.model.values import LatentShape

# By the card's ``sampling.noise``: the type noise is drawn in, and the type it is rounded to.
RULES = {
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float32 rounded to bfloat16": (torch.float32, torch.bfloat16),
}


def draw(
    shape: LatentShape,
    seed: int | Sequence[int],
    dtype: str = "float32",
    *,
    batch: int = 1,
    device: str | torch.device | None = None,
) -> Tensor:
    """Standard normal noise for a batch of clips.

    Source:  kandinskylab/kandinsky-5, kandinsky/generation_utils.py: one draw of [T, H, W, C] from a fresh generator.

    Args:
        seed: One seed for each sample, or one number: then sample i has seed + i.
        dtype: A name of ``RULES``, the card's ``sampling.noise``: "bfloat16" (Kandinsky 5, latest), "float32", or
            "float32 rounded to bfloat16" (Kandinsky 4).
        batch: Samples; ignored when a sequence of seeds is given.
        device: Device of the generator; None = CPU, which gives the same noise on every machine.

    Returns:
        [B, T, H, W, C] float32 on that device; the sampler's state stays float32 whatever it was drawn in.

    Raises:
        RequestError: The dtype is unknown, or the batch is below 1.
    """
    return draw_series(shape, seed, dtype, count=1, batch=batch, device=device)[0]


def draw_again(
    shape: LatentShape,
    seeds: Sequence[int],
    dtype: str,
    *,
    number: int,
    device: str | torch.device | None = None,
) -> Tensor:
    """Noise of its own for each number, for steps that are taken again; otherwise as ``draw``.

    A seed is spread by the golden ratio of 2^63, so that neighbouring seeds and numbers share no generator.
    """
    spread = [(seed + (number + 1) * 0x4F1BBCDCBFA53E0B) % 2**63 for seed in seeds]
    return draw(shape, spread, dtype, device=device)


def draw_series(
    shape: LatentShape,
    seed: int | Sequence[int],
    dtype: str = "float32",
    *,
    count: int,
    batch: int = 1,
    device: str | torch.device | None = None,
) -> Tensor:
    """The first ``count`` draws of each sample's generator, [count, B, T, H, W, C]; otherwise as ``draw``."""
    if dtype not in RULES:
        raise RequestError(f"noise rule `{dtype}` is unknown: use {' or '.join(f'`{name}`' for name in RULES)}")
    seeds = [seed + i for i in range(batch)] if isinstance(seed, int) else list(seed)
    if not seeds:
        raise RequestError("a batch needs at least one sample")
    return torch.stack([_draw_one(shape, s, dtype, count, device) for s in seeds], dim=1)


def _draw_one(shape: LatentShape, seed: int, rule: str, count: int, device: str | torch.device | None) -> Tensor:
    generator = torch.Generator() if device is None else torch.Generator(device)
    generator.manual_seed(seed)
    drawn, rounded = RULES[rule]

    def one() -> Tensor:
        # one call per draw: one large call would not give the same numbers
        noise = torch.randn(shape.as_tuple(), generator=generator, device=generator.device, dtype=drawn)
        return noise.to(rounded).float()

    return torch.stack([one() for _ in range(count)])


def draw_uniform(shape: LatentShape, seeds: Sequence[int]) -> Tensor:
    """Uniform random numbers in [0, 1), [B, T, H, W, C] float32, with one CPU generator per sample."""
    made = [torch.rand(shape.as_tuple(), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(made)


def chunk_seed(seed: int, number: int) -> int:
    """The seed of a chunk of frames of a clip that is made along time: it depends on nothing but these two.

    Args:
        seed: Of the clip.
        number: Of the chunk, from 0.
    """
    name = f"{seed}/chunk {number}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1


def draw_along(
    shape: LatentShape,
    seeds: Sequence[int],
    dtype: str = "float32",
    *,
    begin: int,
    count: int,
    device: str | torch.device | None = None,
) -> Tensor:
    """Noise of a part of a clip: that of a frame depends on the seed and the frame's place in the whole clip alone.

    Args:
        shape: Of the part.
        seeds: Of each sample.
        dtype: As for ``draw``.
        begin: Place of its first frame in the whole clip.
        count: Draws of each frame.
        device: As for ``draw``.

    Returns:
        [count, B, T, H, W, C].
    """
    one = replace(shape, frames=1)
    frames = [
        draw_series(one, [chunk_seed(seed, begin + frame) for seed in seeds], dtype, count=count, device=device)
        for frame in range(shape.frames)
    ]
    return torch.cat(frames, dim=2)
