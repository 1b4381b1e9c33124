"""Kandinsky 5 in Diffusers, on our tensors: its pipeline's own text encoding and sampling loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kandinsky.diffusion.guidance import Guidance
from kandinsky.engine.rival import Side
from kandinsky.families.kandinsky5.convert import diffusers_config
from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D
from kandinsky.families.parts.rivals import share
from kandinsky.model.values import TextEmbeddings
from kandinsky.ops.attention import AttentionSpec


def qwen_clip(side: Side) -> Callable[[], Any]:
    """Encodes prompt and negative prompt."""
    with side.pipe.placement.hold("text") as encoder:
        theirs = side.pipeline(
            "Kandinsky5T2VPipeline",
            text_encoder=encoder.qwen,
            tokenizer=_Processor(encoder.qwen_tokenizer),
            text_encoder_2=encoder.clip,
            tokenizer_2=encoder.clip_tokenizer,
        )
    prompts = [side.job.prompt]
    if Guidance(side.job.guidance).is_on:
        prompts.append(side.job.negative_prompt)
    length = encoder.params.qwen_max_length

    def work() -> list[Any]:
        with torch.no_grad():
            return [theirs.encode_prompt(prompt, max_sequence_length=length) for prompt in prompts]

    return work


def transformer(
    side: Side, noise_BTHWC: Tensor, text: TextEmbeddings, negative: TextEmbeddings | None
) -> Callable[[], Tensor]:
    """The whole loop on given noise and embeddings."""
    with side.pipe.placement.hold("dit") as ours:
        spec = AttentionSpec.from_dict(side.job.sampling.attention)
        config = {k: v for k, v in diffusers_config(ours.params, spec).items() if not k.startswith("_")}
        net = share(lambda: side.library.Kandinsky5Transformer3DModel(**config), ours.state_dict())
        compute = ours.visual_embeddings.in_layer.weight.dtype
        channels = ours.params.input_channels
    scheduler = side.library.FlowMatchEulerDiscreteScheduler(shift=side.job.shift)
    theirs = side.pipeline("Kandinsky5T2VPipeline", transformer=net, scheduler=scheduler)
    device = side.pipe.placement.device("dit")
    noise = noise_BTHWC.to(device)
    rest = noise.new_zeros(*noise.shape[:-1], channels - noise.shape[-1])
    shape = side.job.shape
    states = _states("", text.to(device, compute))
    if negative is not None:
        states |= _states("negative_", negative.to(device, compute))

    def work() -> Tensor:
        done = theirs(
            height=shape.height,
            width=shape.width,
            num_frames=shape.frames,
            num_inference_steps=side.job.steps,
            guidance_scale=side.job.guidance,
            latents=torch.cat((noise, rest), dim=-1),
            output_type="latent",
            **states,
        )
        out: Tensor = done.frames
        return out

    return work


def twin(
    library: Any, network: DiffusionTransformer3D, rope_scale: tuple[float, float, float]
) -> tuple[nn.Module, Callable[[nn.Module, Tensor, Tensor, TextEmbeddings], Tensor]]:
    """Diffusers' transformer with weights of its own that are equal to ours, and how it predicts."""
    config = {k: v for k, v in diffusers_config(network.params, AttentionSpec()).items() if not k.startswith("_")}
    state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    theirs: nn.Module = share(lambda: library.Kandinsky5Transformer3DModel(**config), state)
    patch, channels = network.params.patch_size, network.params.input_channels

    def call(net: nn.Module, noisy_BTHWC: Tensor, t: Tensor, text: TextEmbeddings) -> Tensor:
        rest = noisy_BTHWC.new_zeros(*noisy_BTHWC.shape[:-1], channels - noisy_BTHWC.shape[-1])
        places = [torch.arange(n // p) for n, p in zip(noisy_BTHWC.shape[1:4], patch, strict=True)]
        words = torch.arange(text.tokens_BLC.shape[1])
        out = net(
            torch.cat((noisy_BTHWC, rest), dim=-1), text.tokens_BLC, t * 1000, text.pooled_BC, places, words,
            scale_factor=rope_scale, return_dict=False,
        )  # fmt: skip
        found: Tensor = out[0] if isinstance(out, tuple) else out
        return found

    return theirs, call


class _Processor:
    """Diffusers calls Qwen's processor, with room for images; without any, its tokenizer does the same."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __call__(self, text: list[str], images: None = None, videos: None = None, **options: Any) -> Any:
        return self._tokenizer(text, **options)


def _states(prefix: str, states: TextEmbeddings) -> dict[str, Tensor]:
    length = states.tokens_BLC.shape[1]
    return {
        f"{prefix}prompt_embeds_qwen": states.tokens_BLC,
        f"{prefix}prompt_embeds_clip": states.pooled_BC,
        f"{prefix}prompt_cu_seqlens": torch.tensor([0, length], dtype=torch.int32),
    }
