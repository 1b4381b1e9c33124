"""The U-Net of Kandinsky 3 in Diffusers, on our tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kandinsky.engine.rival import Side, Unavailable
from kandinsky.families.kandinsky3 import folder
from kandinsky.families.parts.rivals import share
from kandinsky.model.values import TextEmbeddings


def unet(
    side: Side, noise_BTHWC: Tensor, text: TextEmbeddings, negative: TextEmbeddings | None
) -> Callable[[], Tensor]:
    """The U-Net without its projection, since embeddings are already projected; its scheduler costs almost nothing."""
    scale = side.job.guidance - 1
    if negative is not None and scale <= 1:
        raise Unavailable(f"Diffusers' pipeline runs no second pass at guidance {side.job.guidance:g}: use above 2")
    with side.pipe.placement.hold("dit") as ours:
        if ours.params.num_channels != ours.params.out_channels:
            raise Unavailable("Diffusers has no U-Net of Kandinsky 3 with condition channels")
        width = ours.params.context_dim
        config = folder.unet_config(dataclasses.asdict(ours.params), width)
        config.pop("_class_name")
        tensors = folder.UNET.as_file(ours.state_dict())
        null = tensors.pop("null_embedding")
        tensors |= {
            f"{folder.PROJECTION['table']}.{name}": null.new_zeros(shape)
            for name, shape in (
                ("projection_linear.weight", (width, width)),
                ("projection_norm.weight", width),
                ("projection_norm.bias", width),
            )
        }
        net = share(lambda: side.library.Kandinsky3UNet(**config), tensors)
        net.encoder_hid_proj = torch.nn.Identity()
    theirs = side.pipeline(
        "Kandinsky3Pipeline", unet=net, scheduler=side.library.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    )
    device, shape = side.pipe.placement.device("dit"), side.job.shape
    tokens_BLC = text.tokens_BLC.to(device, null.dtype)
    mask_BL = torch.ones(tokens_BLC.shape[:2]) if text.mask_BL is None else text.mask_BL.float()
    states: dict[str, Any] = {"prompt_embeds": tokens_BLC, "attention_mask": mask_BL.to(device)}
    if negative is not None:  # the learned state for no text, in as many rows
        nothing, first = torch.zeros_like(tokens_BLC), torch.zeros_like(states["attention_mask"])
        nothing[:, 0], first[:, 0] = null, 1
        states |= {"negative_prompt_embeds": nothing, "negative_attention_mask": first}
    # the network computes in the type of what it is given
    latents = noise_BTHWC[:, 0].permute(0, 3, 1, 2).to(device, null.dtype)

    def work() -> Tensor:
        done = theirs(
            height=shape.height,
            width=shape.width,
            num_inference_steps=side.job.steps,
            guidance_scale=1.0 if negative is None else scale,
            latents=latents,
            output_type="latent",
            **states,
        )
        out: Tensor = done.images
        return out

    return work
