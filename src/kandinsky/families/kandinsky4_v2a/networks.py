"""Builders and readers of the family's own networks, as ``family.py`` refers to them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from kandinsky.families.parts.networks import config_beside
from kandinsky.model.card import Component
from kandinsky.model.family import Files
from kandinsky.runtime.placement import Precision


def unet(component: Component, path: Path) -> nn.Module:
    from kandinsky.families.kandinsky4_v2a.params import V2AParams
    from kandinsky.families.kandinsky4_v2a.unet import V2AUNet

    return V2AUNet(V2AParams.from_dict(config_beside(path) | component.params))


def cogvlm2(component: Component, files: Files, precision: Precision) -> nn.Module:
    from kandinsky.families.kandinsky4_v2a.cogvlm2 import CogVlm2Params, read_cogvlm2

    (folder,) = files.values()
    # twelve billion numbers, which are bfloat16 in the file and in the official run
    return read_cogvlm2(folder, params=CogVlm2Params.from_dict(component.params), dtype=torch.bfloat16)
