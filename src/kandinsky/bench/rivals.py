"""The same work through Diffusers, on the same weights: its pipeline's own loop, text encoding and decoding.

Its networks take our tensors as they are (names and layout are equal), so nothing is held twice. Diffusers is imported
when asked for; where it cannot do a model, ``Unavailable`` says why.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from kandinsky.diffusion.guidance import Guidance
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.engine.request import Job
from kandinsky.errors import BackendError
from kandinsky.families.kandinsky3 import folder as kandinsky3_folder
from kandinsky.families.kandinsky5.convert import diffusers_config
from kandinsky.model.values import TextEmbeddings
from kandinsky.ops.attention import AttentionSpec


class Unavailable(Exception):  # noqa: N818 - a verdict, not a failure
    """Diffusers has nothing to compare with here."""


class DiffusersSide:
    """Diffusers' pipelines over the networks of one of ours; which ones, stands in the tables at the end.

    Raises: BackendError where Diffusers is not installed.
    """

    def __init__(self, pipe: GenerationPipeline, resolved: Job) -> None:
        try:
            import diffusers
        except ImportError as error:
            raise BackendError("`--against diffusers` needs the package `diffusers`: install it") from error
        self.diffusers: Any = diffusers
        self.pipe = pipe
        self.resolved = resolved

    def text(self) -> Callable[[], Any]:
        """Encodes prompt and negative prompt. Raises: Unavailable for an encoder without a peer."""
        return _peer(TEXTS, self.pipe.card.text.kind, "text encoder")(self)

    def dit(self, noise_BTHWC: Tensor, text: TextEmbeddings, negative: TextEmbeddings | None) -> Callable[[], Tensor]:
        """The whole loop on given noise and states. Raises: Unavailable for a network without a peer."""
        return _peer(DITS, self.pipe.card.dit.kind, "network")(self, noise_BTHWC, text, negative)

    def vae(self, latents_BTHWC: Tensor) -> Callable[[], Tensor]:
        """Decodes as its pipeline does. Raises: Unavailable for an autoencoder without a peer."""
        return _peer(VAES, self.pipe.card.vae.kind, "autoencoder")(self, latents_BTHWC)

    def pipeline(self, name: str, **parts: Any) -> Any:
        """One of Diffusers' pipelines with some of its parts, and none of the others."""
        made = getattr(self.diffusers, name)
        names = [key for key in inspect.signature(made.__init__).parameters if key != "self"]
        pipe = made(**dict.fromkeys(names) | parts)
        pipe.set_progress_bar_config(disable=True)
        return pipe


Peer = TypeVar("Peer")


def _peer(peers: Mapping[str, Peer], kind: str, what: str) -> Peer:
    if kind not in peers:
        raise Unavailable(f"Diffusers has no {what} `{kind}`")
    return peers[kind]


def _qwen_clip(side: DiffusersSide) -> Callable[[], Any]:
    with side.pipe.placement.hold("text") as encoder:
        theirs = side.pipeline(
            "Kandinsky5T2VPipeline",
            text_encoder=encoder.qwen,
            tokenizer=_Processor(encoder.qwen_tokenizer),
            text_encoder_2=encoder.clip,
            tokenizer_2=encoder.clip_tokenizer,
        )
    prompts = [side.resolved.prompt]
    if Guidance(side.resolved.guidance).is_on:
        prompts.append(side.resolved.negative_prompt)
    length = encoder.params.qwen_max_length

    def work() -> list[Any]:
        with torch.no_grad():
            return [theirs.encode_prompt(prompt, max_sequence_length=length) for prompt in prompts]

    return work


def _kandinsky5(
    side: DiffusersSide, noise_BTHWC: Tensor, text: TextEmbeddings, negative: TextEmbeddings | None
) -> Callable[[], Tensor]:
    with side.pipe.placement.hold("dit") as ours:
        spec = AttentionSpec.from_dict(side.resolved.sampling.attention)
        config = {k: v for k, v in diffusers_config(ours.params, spec).items() if not k.startswith("_")}
        net = _share(lambda: side.diffusers.Kandinsky5Transformer3DModel(**config), ours.state_dict())
        compute = ours.visual_embeddings.in_layer.weight.dtype
        channels = ours.params.input_channels
    scheduler = side.diffusers.FlowMatchEulerDiscreteScheduler(shift=side.resolved.shift)
    theirs = side.pipeline("Kandinsky5T2VPipeline", transformer=net, scheduler=scheduler)
    device = side.pipe.placement.device("dit")
    noise = noise_BTHWC.to(device)
    rest = noise.new_zeros(*noise.shape[:-1], channels - noise.shape[-1])
    shape = side.resolved.shape
    states = _states("", text.to(device, compute))
    if negative is not None:
        states |= _states("negative_", negative.to(device, compute))

    def work() -> Tensor:
        done = theirs(
            height=shape.height,
            width=shape.width,
            num_frames=shape.frames,
            num_inference_steps=side.resolved.steps,
            guidance_scale=side.resolved.guidance,
            latents=torch.cat((noise, rest), dim=-1),
            output_type="latent",
            **states,
        )
        return done.frames

    return work


def _kandinsky3(
    side: DiffusersSide, noise_BTHWC: Tensor, text: TextEmbeddings, negative: TextEmbeddings | None
) -> Callable[[], Tensor]:
    """Its projection is left out, since the states are projected already; its scheduler costs next to nothing."""
    scale = side.resolved.guidance - 1
    if negative is not None and scale <= 1:
        raise Unavailable(
            f"Diffusers' pipeline runs no second pass at guidance {side.resolved.guidance:g}: use above 2"
        )
    with side.pipe.placement.hold("dit") as ours:
        if ours.params.num_channels != ours.params.out_channels:
            raise Unavailable("Diffusers has no U-Net of Kandinsky 3 with condition channels")
        width = ours.params.context_dim
        config = kandinsky3_folder.unet_config(dataclasses.asdict(ours.params), width)
        config.pop("_class_name")
        tensors = kandinsky3_folder.UNET.as_file(ours.state_dict())
        null = tensors.pop("null_embedding")
        tensors |= {
            f"{kandinsky3_folder.PROJECTION['table']}.{name}": null.new_zeros(shape)
            for name, shape in (
                ("projection_linear.weight", (width, width)),
                ("projection_norm.weight", width),
                ("projection_norm.bias", width),
            )
        }
        net = _share(lambda: side.diffusers.Kandinsky3UNet(**config), tensors)
        net.encoder_hid_proj = torch.nn.Identity()
    theirs = side.pipeline(
        "Kandinsky3Pipeline", unet=net, scheduler=side.diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    )
    device, shape = side.pipe.placement.device("dit"), side.resolved.shape
    tokens_BLC = text.tokens_BLC.to(device, null.dtype)
    mask_BL = torch.ones(tokens_BLC.shape[:2]) if text.mask_BL is None else text.mask_BL.float()
    states: dict[str, Any] = {"prompt_embeds": tokens_BLC, "attention_mask": mask_BL.to(device)}
    if negative is not None:  # the learned state for no text, in as many rows
        nothing, first = torch.zeros_like(tokens_BLC), torch.zeros_like(states["attention_mask"])
        nothing[:, 0], first[:, 0] = null, 1
        states |= {"negative_prompt_embeds": nothing, "negative_attention_mask": first}
    latents = noise_BTHWC[:, 0].permute(0, 3, 1, 2).to(device)

    def work() -> Tensor:
        done = theirs(
            height=shape.height,
            width=shape.width,
            num_inference_steps=side.resolved.steps,
            guidance_scale=1.0 if negative is None else scale,
            latents=latents,
            output_type="latent",
            **states,
        )
        return done.images

    return work


def _hunyuan(side: DiffusersSide, latents_BTHWC: Tensor) -> Callable[[], Tensor]:
    with side.pipe.placement.hold("vae") as ours:
        config = dataclasses.asdict(ours.params)
        net = _share(lambda: side.diffusers.AutoencoderKLHunyuanVideo(**config), ours.net.state_dict())
        scale = ours.params.scaling_factor
        compute = next(net.parameters()).dtype
    latents = latents_BTHWC.to(side.pipe.placement.device("vae"), compute).permute(0, 4, 1, 2, 3)

    def work() -> Tensor:
        with torch.no_grad():
            return net.decode(latents / scale).sample

    return work


def _movq(side: DiffusersSide, latents_BTHWC: Tensor) -> Callable[[], Tensor]:
    with side.pipe.placement.hold("vae") as ours:
        if ours.params.temporal:
            raise Unavailable("Diffusers has no MoVQ that looks along time")
        config = kandinsky3_folder.movq_config(dataclasses.asdict(ours.params)) | {"num_vq_embeddings": 1}
        config.pop("_class_name")
        tensors = kandinsky3_folder.movq(len(ours.params.ch_mult)).as_file(ours.state_dict())
        tensors["quantize.embedding.weight"] = next(ours.parameters()).new_zeros(1, ours.params.z_channels)
        net = _share(lambda: side.diffusers.VQModel(**config), tensors)
        compute = next(net.parameters()).dtype
    latents = latents_BTHWC[:, 0].permute(0, 3, 1, 2).to(side.pipe.placement.device("vae"), compute)

    def work() -> Tensor:
        with torch.no_grad():
            return net.decode(latents, force_not_quantize=True).sample

    return work


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


def _states(prefix: str, states: TextEmbeddings) -> dict[str, Tensor]:
    length = states.tokens_BLC.shape[1]
    return {
        f"{prefix}prompt_embeds_qwen": states.tokens_BLC,
        f"{prefix}prompt_embeds_clip": states.pooled_BC,
        f"{prefix}prompt_cu_seqlens": torch.tensor([0, length], dtype=torch.int32),
    }


# What stands against ours, by the card's kind of component.
TEXTS = {"qwen-clip": _qwen_clip}
DITS = {"kandinsky5.dit": _kandinsky5, "kandinsky3.unet": _kandinsky3}
VAES = {"hunyuan": _hunyuan, "movq": _movq}
