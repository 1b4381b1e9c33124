"""Runs cases of Kandinsky 4's video to audio through the public networks, samplers and media functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kandinsky.conformance.cases import Case
from kandinsky.nets.v2a.layers import Conditions
from kandinsky.nets.v2a.params import V2AParams
from kandinsky.nets.v2a.unet import V2AUNet
from kandinsky.weights.read import load_into

INSIDE = "inter."


def run_unet(case: Case) -> dict[str, Tensor]:
    """One pass, with what single layers give."""
    case.refuse_other_calls("timestep")
    net, inputs = _unet(case, case.config), case.inputs()
    names = [name.removeprefix(INSIDE) for name in case.required_outputs() if name.startswith(INSIDE)]
    outputs = _listen(net, names)
    level = torch.tensor([int(case.call["timestep"])] * len(inputs["sample"]))
    conditions = Conditions(inputs["encoder_hidden_states"], inputs["image_embeds"])
    outputs["output"] = net(inputs["sample"].movedim(1, -1), level, conditions).movedim(-1, 1)
    return outputs


def _unet(case: Case, config: dict[str, Any]) -> V2AUNet:
    with torch.device("meta"):
        net = V2AUNet(V2AParams.from_dict(config))
    load_into(net, case.weights, dtype=case.dtype)
    return net


def _listen(net: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """A table that fills with the outputs of these modules."""
    heard: dict[str, Tensor] = {}
    for name in names:

        def hook(_module: nn.Module, _inputs: Any, output: Tensor, name: str = name) -> None:
            heard[INSIDE + name] = output

        net.get_submodule(name).register_forward_hook(hook)
    return heard
