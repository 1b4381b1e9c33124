"""Weights without files: noise of the scale that a fresh initialisation has."""

from __future__ import annotations

import torch
from torch import nn

SEED = 0


def fill(net: nn.Module) -> nn.Module:
    """Set weights as a fresh initialisation would scale them; no zeros, which would make whole layers idle."""
    device = next(net.parameters()).device
    generator = torch.Generator(device).manual_seed(SEED)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
            else:
                parameter.uniform_(0.5, 1.5, generator=generator)
    return net
