"""Full-size checkpoints by name and shape only: the network is built on the meta device."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from kandinsky.conformance.cases import NotBuilt, Result, Status
from kandinsky.errors import KandinskyError
from kandinsky.nets.kandinsky5.dit import DiffusionTransformer3D, DiTParams
from kandinsky.nets.vae.hunyuan import HunyuanAutoencoder, HunyuanParams
from kandinsky.weights import keymaps
from kandinsky.weights.read import check_shapes

COMPONENT = "manifest"


def check_manifest(file: Path, shown: str) -> Result:
    """Exactly the manifest's tensors, through the key map, with exactly their shapes."""
    values = json.loads(file.read_text(encoding="utf-8"))
    try:
        net, keymap = _build(values)
        shapes = {keymap.to_ours(name): tuple(shape) for name, shape in values["tensors"].items()}
        check_shapes(net, shapes, keymap=keymap, where=str(file))
    except NotBuilt as error:
        return Result(Status.SKIP, COMPONENT, shown, reason=str(error))
    except KandinskyError as error:
        return Result(Status.FAIL, COMPONENT, shown, reason=str(error))
    count = sum(p.numel() for p in net.parameters())
    if count != values.get("parameters", count):
        reason = f"{count} parameters, expected {values['parameters']}"
        return Result(Status.FAIL, COMPONENT, shown, reason=reason)
    return Result(Status.PASS, COMPONENT, shown, output=f"{len(shapes)} tensors")


def _build(values: dict[str, object]) -> tuple[nn.Module, keymaps.KeyMap]:
    config = values.get("config")
    with torch.device("meta"):
        if isinstance(params := values.get("dit_params"), dict):
            return DiffusionTransformer3D(DiTParams.from_dict(params)), keymaps.KANDINSKY5_DIT
        if isinstance(config, dict) and "HunyuanVideo" in str(config.get("down_block_types")):
            return HunyuanAutoencoder(HunyuanParams.from_dict(config)), keymaps.HUNYUAN_VAE
    raise NotBuilt("this network is not built yet")
