"""Makes libraries that draw from the global generators reproducible, without a trace in those generators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Start the global generators of the host and of one device from ``seed``, and restore them afterwards."""
    accelerated = device.type != "cpu"
    with torch.random.fork_rng(
        devices=[device] if accelerated else [], device_type=device.type if accelerated else "cuda"
    ):
        torch.default_generator.manual_seed(seed)
        if accelerated:
            module = torch.get_device_module(device)
            with module.device(device):
                module.manual_seed(seed)
        yield


SEED_STEP = 0x9E3779B97F4A7C15  # apart as 64-bit numbers can be, so that stages never share a generator


def stage_seed(seed: int, number: int) -> int:
    """The seed of one of several stages or windows of a request: its own for the first, far apart for the others."""
    return (seed + number * SEED_STEP) % 2**63
