"""LoRAs with random numbers for any network."""

import torch
from torch import nn

from kandinsky.ops.lora import LowRank, layer_shapes
from kandinsky.weights.lora import Lora


def lora(net: nn.Module, *, name: str = "random", rank: int = 3, seed: int = 0, only: str = "", size: float = 0.3,
         trigger: str = "", scale: float = 0.5) -> Lora:  # fmt: skip
    """Updates of every linear layer whose name holds ``only``."""
    generator = torch.Generator().manual_seed(seed)
    updates = {
        layer: LowRank(
            size * torch.randn(rank, inputs, generator=generator) / inputs**0.5,
            torch.randn(outputs, rank, generator=generator),
            scale,
        )
        for layer, (outputs, inputs) in layer_shapes(net).items()
        if only in layer
    }
    return Lora(updates, name, trigger)
