"""Builders and readers of the family's own networks, as ``family.py`` refers to them."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from kandinsky.families.parts.branch_params import beneath, check_count
from kandinsky.model.card import Component
from kandinsky.model.family import Files
from kandinsky.runtime.placement import Precision


def transformer(component: Component, path: Path) -> nn.Module:
    from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D
    from kandinsky.families.kandinsky5.params import DiTParams

    return DiffusionTransformer3D(DiTParams.from_dict(component.params))


def qwen_clip(component: Component, files: Files, precision: Precision) -> nn.Module:
    from kandinsky.families.kandinsky5.qwen_clip import QwenClipFiles, QwenClipParams, read_qwen_clip

    given = dict(component.params)
    padding = given.pop("padding", "trimmed")
    return read_qwen_clip(
        QwenClipFiles(**files), params=QwenClipParams.from_dict(given), dtype=precision.compute, padding=padding
    )


def control(component: Component, path: Path) -> nn.Module:
    from kandinsky.families.kandinsky5.dit import VisualBlock
    from kandinsky.families.kandinsky5.params import DiTParams
    from kandinsky.families.parts.branch_params import ControlParams
    from kandinsky.families.parts.branches import ControlBranch, SlimControlBranch

    base, own = beneath(DiTParams, component)
    params, count = ControlParams.from_dict(own), base.num_visual_blocks
    check_count(params.blocks, count)
    if params.slim:
        return SlimControlBranch(base, params.blocks, params.slim)
    return ControlBranch(base, [VisualBlock(base) for _ in range(params.blocks)])


def reference(component: Component, path: Path) -> nn.Module:
    from kandinsky.families.kandinsky5.params import DiTParams
    from kandinsky.families.parts.branch_params import ReferenceParams
    from kandinsky.families.parts.branches import ReferenceBranch

    base, own = beneath(DiTParams, component)
    return ReferenceBranch(ReferenceParams.from_dict(own), base, base.num_visual_blocks)
