"""Builders and readers of the networks that several families share, as ``Part`` refers to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from kandinsky.errors import RequestError
from kandinsky.model.card import Component
from kandinsky.model.family import Files
from kandinsky.runtime.placement import Precision
from kandinsky.weights.untrusted import read_table


def config_beside(folder: Path) -> dict[str, Any]:
    """`config.json` beside the weights; the card's own values take precedence."""
    config = folder / "config.json"
    return read_table(config) if config.is_file() else {}


def unet(component: Component, path: Path) -> nn.Module:
    from kandinsky.families.parts.unet.params import UNetParams
    from kandinsky.families.parts.unet.unet import UNet

    params = UNetParams.from_dict(component.params)
    if params.kind != component.kind:
        raise RequestError(f"the parameters are those of a `{params.kind}`, not of a `{component.kind}`")
    return UNet(params)


def movq(component: Component, path: Path) -> nn.Module:
    from kandinsky.families.parts.movq import MovqAutoencoder
    from kandinsky.families.parts.params import MovqParams

    return MovqAutoencoder(MovqParams.from_dict(component.params))


def hunyuan(component: Component, path: Path) -> nn.Module:
    from kandinsky.families.parts.hunyuan import HunyuanAutoencoder
    from kandinsky.families.parts.params import HunyuanParams

    given = dict(component.params)
    tiling = given.pop("tiling", "auto")
    return HunyuanAutoencoder(HunyuanParams.from_dict(config_beside(path) | given), tiling=tiling)


def stable_diffusion(component: Component, path: Path) -> nn.Module:
    from kandinsky.families.parts.flux import FluxAutoencoder
    from kandinsky.families.parts.params import STABLE_DIFFUSION, FluxParams

    return FluxAutoencoder(FluxParams.from_dict(STABLE_DIFFUSION | config_beside(path) | component.params))


def flux(component: Component, path: Path) -> nn.Module:
    from kandinsky.families.parts.flux import FluxAutoencoder
    from kandinsky.families.parts.params import FluxParams

    return FluxAutoencoder(FluxParams.from_dict(config_beside(path) | component.params))


def cogvideox(component: Component, path: Path) -> nn.Module:
    from kandinsky.families.parts.cogvideox import CogVideoXAutoencoder
    from kandinsky.families.parts.params import CogVideoXParams

    return CogVideoXAutoencoder(CogVideoXParams.from_dict(config_beside(path) | component.params))


def t5(component: Component, files: Files, precision: Precision) -> nn.Module:
    from kandinsky.text.t5 import T5Params, read_t5

    params = T5Params.from_dict(component.params)
    return read_t5(files["t5"], files["tokenizer"], params=params, dtype=precision.compute)


def t5_projected(component: Component, files: Files, precision: Precision) -> nn.Module:
    from kandinsky.families.parts.projected import ProjectedParams, read_projected_t5

    params = ProjectedParams.from_dict(component.params)
    return read_projected_t5(
        files["t5"], files["tokenizer"], files["projection"], params=params, dtype=precision.compute
    )
