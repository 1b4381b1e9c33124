"""Builders of the family's own networks, as ``family.py`` refers to them."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from kandinsky.families.parts.branch_params import beneath, check_count
from kandinsky.model.card import Component


def transformer(component: Component, path: Path) -> nn.Module:
    from kandinsky.families.kandinsky4.dit import DiffusionTransformer3D
    from kandinsky.families.kandinsky4.params import DiTParams

    return DiffusionTransformer3D(DiTParams.from_dict(component.params))


def control(component: Component, path: Path) -> nn.Module:
    from kandinsky.families.kandinsky4.dit import Block
    from kandinsky.families.kandinsky4.params import DiTParams
    from kandinsky.families.parts.branch_params import ControlParams
    from kandinsky.families.parts.branches import ControlBranch, SlimControlBranch

    base, own = beneath(DiTParams, component)
    params, count = ControlParams.from_dict(own), 2 * base.num_blocks
    check_count(params.blocks, count)
    if params.slim:
        return SlimControlBranch(base, params.blocks, params.slim)
    return ControlBranch(
        base, [Block(base, "local" if number % 2 == 0 else "global") for number in range(params.blocks)]
    )


def reference(component: Component, path: Path) -> nn.Module:
    from kandinsky.families.kandinsky4.params import DiTParams
    from kandinsky.families.parts.branch_params import ReferenceParams
    from kandinsky.families.parts.branches import ReferenceBranch

    base, own = beneath(DiTParams, component)
    return ReferenceBranch(ReferenceParams.from_dict(own), base, 2 * base.num_blocks)
