"""The shared networks in Diffusers, on our tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kandinsky.engine.rival import Side, Unavailable
from kandinsky.families.kandinsky3 import folder


def hunyuan(side: Side, latents_BTHWC: Tensor) -> Callable[[], Tensor]:
    """Decodes as its autoencoder does, without tiles."""
    with side.pipe.placement.hold("vae") as ours:
        config = dataclasses.asdict(ours.params)
        net = share(lambda: side.library.AutoencoderKLHunyuanVideo(**config), ours.net.state_dict())
        scale = ours.params.scaling_factor
        compute = next(net.parameters()).dtype
    latents = latents_BTHWC.to(side.pipe.placement.device("vae"), compute).permute(0, 4, 1, 2, 3)

    def work() -> Tensor:
        with torch.no_grad():
            out: Tensor = net.decode(latents / scale).sample
            return out

    return work


def movq(side: Side, latents_BTHWC: Tensor) -> Callable[[], Tensor]:
    """Decodes images.

    Raises:
        Unavailable: The decoder has temporal layers, which Diffusers does not have.
    """
    with side.pipe.placement.hold("vae") as ours:
        if ours.params.temporal:
            raise Unavailable("Diffusers has no MoVQ that looks along time")
        config = folder.movq_config(dataclasses.asdict(ours.params)) | {"num_vq_embeddings": 1}
        config.pop("_class_name")
        tensors = folder.movq(len(ours.params.ch_mult)).as_file(ours.state_dict())
        tensors["quantize.embedding.weight"] = next(ours.parameters()).new_zeros(1, ours.params.z_channels)
        net = share(lambda: side.library.VQModel(**config), tensors)
        compute = next(net.parameters()).dtype
    latents = latents_BTHWC[:, 0].permute(0, 3, 1, 2).to(side.pipe.placement.device("vae"), compute)

    def work() -> Tensor:
        with torch.no_grad():
            out: Tensor = net.decode(latents, force_not_quantize=True).sample
            return out

    return work


def share(make: Callable[[], Any], tensors: dict[str, Tensor]) -> Any:
    """Build a network on our tensors, not copies of them, except those that the library keeps in float32.

    It is built on their device and not on the meta device, as its tables of frequencies are values too.
    """
    with torch.device(next(iter(tensors.values())).device):
        net = make()
    exact = set(getattr(net, "_keep_in_fp32_modules", None) or ())
    given = {name: tensor.float() if exact & set(name.split(".")) else tensor for name, tensor in tensors.items()}
    net.load_state_dict(given, strict=True, assign=True)
    return net.eval().requires_grad_(False)
