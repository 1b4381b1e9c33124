"""The same work through Diffusers, on the same weights: its pipeline's own loop, text encoding and decoding.

Its networks take our tensors as they are (names and layout are equal), so nothing is held twice. Diffusers is imported
when asked for; where it cannot do a model, ``Unavailable`` says why.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kandinsky.diffusion.guidance import Guidance
from kandinsky.errors import BackendError
from kandinsky.nets.kandinsky5.dit import DiffusionTransformer3D
from kandinsky.ops.attention import AttentionSpec
from kandinsky.pipelines.generation import GenerationPipeline
from kandinsky.pipelines.request import Resolved
from kandinsky.types import TextStates
from kandinsky.weights.convert import diffusers_config


class Unavailable(Exception):  # noqa: N818 - a verdict, not a failure
    """Diffusers has nothing to compare with here."""


class DiffusersSide:
    """Diffusers' ``Kandinsky5T2VPipeline`` over the networks of one of our pipelines.

    Raises: BackendError where Diffusers is not installed.
    """

    def __init__(self, pipe: GenerationPipeline, resolved: Resolved) -> None:
        try:
            import diffusers
        except ImportError as error:
            raise BackendError("`--against diffusers` needs the package `diffusers`: install it") from error
        self._diffusers: Any = diffusers
        self.pipe = pipe
        self.resolved = resolved

    def text(self) -> Callable[[], Any]:
        """Encodes prompt and negative prompt. Raises: Unavailable for other encoders than Qwen and CLIP."""
        with self.pipe.placement.hold("text") as encoder:
            if self.pipe.card.text.kind != "qwen-clip":
                raise Unavailable(f"Diffusers has no text encoder `{self.pipe.card.text.kind}`")
            theirs = self._pipeline(
                text_encoder=encoder.qwen,
                tokenizer=_Processor(encoder.qwen_tokenizer),
                text_encoder_2=encoder.clip,
                tokenizer_2=encoder.clip_tokenizer,
            )
        prompts = [self.resolved.prompt]
        if Guidance(self.resolved.guidance).is_on:
            prompts.append(self.resolved.negative_prompt)
        length = encoder.params.qwen_max_length

        def work() -> list[Any]:
            with torch.no_grad():
                return [theirs.encode_prompt(prompt, max_sequence_length=length) for prompt in prompts]

        return work

    def dit(self, noise_BTHWC: Tensor, text: TextStates, negative: TextStates | None) -> Callable[[], Tensor]:
        """The whole loop on given noise and states. Raises: Unavailable for other networks, or image conditions."""
        with self.pipe.placement.hold("dit") as ours:
            if not isinstance(ours, DiffusionTransformer3D):
                raise Unavailable(f"Diffusers has no transformer `{self.pipe.card.dit.kind}`")
            spec = AttentionSpec.from_dict(self.resolved.sampling.attention)
            config = {k: v for k, v in diffusers_config(ours.params, spec).items() if not k.startswith("_")}
            net = _share(lambda: self._diffusers.Kandinsky5Transformer3DModel(**config), ours.state_dict())
            compute = ours.visual_embeddings.in_layer.weight.dtype
            channels = ours.params.input_channels
        scheduler = self._diffusers.FlowMatchEulerDiscreteScheduler(shift=self.resolved.shift)
        theirs = self._pipeline(transformer=net, scheduler=scheduler)
        device = self.pipe.placement.device("dit")
        noise = noise_BTHWC.to(device)
        rest = noise.new_zeros(*noise.shape[:-1], channels - noise.shape[-1])
        shape = self.resolved.shape
        states = _states("", text.to(device, compute))
        if negative is not None:
            states |= _states("negative_", negative.to(device, compute))

        def work() -> Tensor:
            done = theirs(
                height=shape.height,
                width=shape.width,
                num_frames=shape.frames,
                num_inference_steps=self.resolved.steps,
                guidance_scale=self.resolved.guidance,
                latents=torch.cat((noise, rest), dim=-1),
                output_type="latent",
                **states,
            )
            return done.frames

        return work

    def vae(self, latents_BTHWC: Tensor) -> Callable[[], Tensor]:
        """Decodes as its pipeline does. Raises: Unavailable for other autoencoders than HunyuanVideo's."""
        with self.pipe.placement.hold("vae") as ours:
            if self.pipe.card.vae.kind != "hunyuan":
                raise Unavailable(f"Diffusers has no autoencoder `{self.pipe.card.vae.kind}` of this shape")
            config = dataclasses.asdict(ours.params)
            net = _share(lambda: self._diffusers.AutoencoderKLHunyuanVideo(**config), ours.net.state_dict())
            scale = ours.params.scaling_factor
            compute = next(net.parameters()).dtype
        latents = latents_BTHWC.to(self.pipe.placement.device("vae"), compute).permute(0, 4, 1, 2, 3)

        def work() -> Tensor:
            with torch.no_grad():
                return net.decode(latents / scale).sample

        return work

    def _pipeline(self, **parts: Any) -> Any:
        names = ("transformer", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler")
        pipe = self._diffusers.Kandinsky5T2VPipeline(**dict.fromkeys(names) | parts)
        pipe.set_progress_bar_config(disable=True)
        return pipe


class _Processor:
    """Diffusers calls Qwen's processor, with room for pictures; without any, its tokenizer does the same."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __call__(self, text: list[str], images: None = None, videos: None = None, **options: Any) -> Any:
        return self._tokenizer(text, **options)


def _share(make: Callable[[], Any], tensors: dict[str, Tensor]) -> Any:
    """A network on our tensors, not copies of them.

    Made where they lie and not on the meta device, as its tables of frequencies are numbers too.
    """
    with torch.device(next(iter(tensors.values())).device):
        net = make()
    net.load_state_dict(tensors, strict=True, assign=True)
    return net.eval().requires_grad_(False)


def _states(prefix: str, states: TextStates) -> dict[str, Tensor]:
    length = states.tokens_BLC.shape[1]
    return {
        f"{prefix}prompt_embeds_qwen": states.tokens_BLC,
        f"{prefix}prompt_embeds_clip": states.pooled_BC,
        f"{prefix}prompt_cu_seqlens": torch.tensor([0, length], dtype=torch.int32),
    }
