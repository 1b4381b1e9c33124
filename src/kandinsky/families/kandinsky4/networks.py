"""Builders of the family's own networks, as ``family.py`` refers to them."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from kandinsky.model.card import Component


def transformer(component: Component, path: Path) -> nn.Module:
    from kandinsky.families.kandinsky4.dit import DiffusionTransformer3D
    from kandinsky.families.kandinsky4.params import DiTParams

    return DiffusionTransformer3D(DiTParams.from_dict(component.params))
