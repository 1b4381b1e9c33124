"""The official Kandinsky Video 1.1 interface: networks one by one, or a pipeline of all of them, and its stages.

Arguments, defaults and results are the official ones, plus a seed; scales of the first frame and of the interpolation
count from 0 here. Nothing is downloaded: missing files are named, with the command that fetches them.
Source: ai-forever/KandinskyVideo@914eac1, kandinsky_video/__init__.py, t2v_pipeline.py.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kandinsky import catalogue
from kandinsky.compat.official_call import progress_bar
from kandinsky.compat.video_parts import (
    Device,
    encoder_folders,
    found_in,
    null_state,
    pipeline_of,
    read_encoder,
    read_network,
)
from kandinsky.engine.build import build
from kandinsky.engine.options import RunOptions
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.engine.stages import to_bytes
from kandinsky.errors import RequestError, WeightsError
from kandinsky.families.kandinsky_video1 import keyframes as stages
from kandinsky.families.kandinsky_video1.request import keyframes_of
from kandinsky.families.parts.projected import ProjectedParams
from kandinsky.model.card import Card, Component, FileSet
from kandinsky.model.values import Request
from kandinsky.runtime import quantise
from kandinsky.runtime.devices import choose_dtype
from kandinsky.runtime.placement import place
from kandinsky.weights.locate import locate_part, places
from kandinsky.weights.read import read_state

if TYPE_CHECKING:
    from PIL import Image

    from kandinsky.engine.request import Job

MODEL = "kandinsky-video-1.1"
# official names of the networks → ours
DEVICE_KEYS = {"unet": "dit", "interpolation_unet": "interpolation", "text_encoder": "text", "movq": "vae"}
# sections of configs.json → our networks
SECTIONS = {"t2v": "dit", "interpolation": "interpolation", "image_movq": "image_vae", "video_movq": "vae"}
PROJECTIONS = {"text": "projection_base", "gaps": "projection_interpolation"}
LEVELS = 1000


def get_T2V_unet(  # noqa: N802 - an official name
    cache_dir: str | None,
    device: Device,
    configs: Mapping[str, Any] | None = None,
    dtype: str | torch.dtype = torch.float32,
) -> tuple[nn.Module, Tensor, None]:
    """Load the keyframe network.

    Args:
        cache_dir: See ``get_T2V_pipeline``.
        device: Where it runs.
        configs: Its parameters; None = the released ones.
        dtype: Its type.

    Returns:
        The network, its embedding for an empty prompt, and None.

    Raises:
        WeightsError: The file does not exist or does not fit.
        RequestError: A parameter is not known.
        BackendError: The device is not available.
    """
    return _unet("dit", cache_dir, device, configs, dtype)


def get_interpolation_unet(
    cache_dir: str | None,
    device: Device,
    configs: Mapping[str, Any] | None = None,
    dtype: str | torch.dtype = torch.float32,
) -> tuple[nn.Module, Tensor, None]:
    """Load the interpolation network; arguments, result and errors as of ``get_T2V_unet``."""
    return _unet("interpolation", cache_dir, device, configs, dtype)


def get_movq(
    cache_dir: str | None,
    device: Device,
    configs: Mapping[str, Any] | None = None,
    dtype: str | torch.dtype = torch.float32,
) -> nn.Module:
    """Load the autoencoder of single images; arguments and errors as of ``get_T2V_unet``."""
    return _read("image_vae", cache_dir, device, configs, dtype)


def get_video_movq(
    cache_dir: str | None,
    device: Device,
    configs: Mapping[str, Any] | None = None,
    dtype: str | torch.dtype = torch.float32,
) -> nn.Module:
    """Load the autoencoder whose decoder has temporal layers; arguments and errors as of ``get_T2V_unet``."""
    return _read("vae", cache_dir, device, configs, dtype)


def get_T5encoder(  # noqa: N802 - an official name
    cache_dir: str | None,
    device: Device,
    weights_path: str,
    tokens_length: int = 128,
    context_dim: int = 4096,
    dtype: str | torch.dtype = torch.float32,
    low_cpu_mem_usage: bool = True,
    load_in_8bit: bool = False,
    load_in_4bit: bool = False,
) -> tuple[Any, nn.Module]:
    """Load the tokenizer and the text encoder with both projections.

    Args:
        cache_dir: See ``get_T2V_pipeline``.
        device: Where it runs.
        weights_path: A folder, or `google/flan-ul2` if it was downloaded.
        tokens_length: Most tokens of a prompt.
        context_dim: Width of the embeddings; must be that of the projections.
        dtype: Its type.
        low_cpu_mem_usage: Only True.
        load_in_8bit: See ``runtime/quantise.py``.
        load_in_4bit: See ``runtime/quantise.py``.

    Returns:
        Tokenizer and text encoder.

    Raises:
        RequestError: Arguments do not fit or cannot be combined.
        WeightsError: Files are missing.
        BackendError: The device or a package is not available.
    """
    if not low_cpu_mem_usage:
        raise RequestError("low_cpu_mem_usage=False is not available: leave it out")
    if load_in_8bit and load_in_4bit:
        raise RequestError("load_in_8bit and load_in_4bit were both given: choose one")
    scheme = {"text": "int8" if load_in_8bit else "nf4"} if load_in_8bit or load_in_4bit else {}
    target = place(str(device))
    quantise.check(scheme)
    card = found_in(catalogue.find(MODEL), cache_dir)
    path = locate_part(_part(card.text, "projection"), model=MODEL)
    state = read_state(path)
    tables = {
        ours: {n.removeprefix(f"{official}."): t for n, t in state.items() if n.startswith(f"{official}.")}
        for ours, official in PROJECTIONS.items()
    }
    for ours, official in PROJECTIONS.items():
        if (weight := tables[ours].get("0.weight")) is None:
            raise WeightsError(f"tensor `{official}.0.weight` is missing in `{path}`: it holds no such projection")
        if len(weight) != context_dim:
            raise RequestError(f"context_dim `{context_dim}` is not the projections': they are {len(weight)} wide")
    encoder = read_encoder(
        encoder_folders(card, weights_path),
        tables,
        params=ProjectedParams(tokens_length),
        dtype=_type(dtype),
        projection_dtype=_type(dtype),
        where=str(path),
    )
    if scheme:
        quantise.quantise(encoder, scheme["text"], device=target)
    return encoder.t5.tokenizer, encoder.to(target)


def get_T2V_pipeline(  # noqa: N802 - an official name
    device_map: Device | Mapping[str, Device], cache_dir: str | None = None
) -> KandinskyVideoT2VPipeline:
    """All networks as one pipeline; each is read when its stage is reached.

    As officially, on a GPU the U-Nets run in float16 and the others in float32.

    Args:
        device_map: One device, or devices for `unet`, `interpolation_unet`, `text_encoder` and `movq`.
        cache_dir: A folder with official files, put there by the official code or by hand; what it lacks is looked for
            where `kandinsky download kandinsky-video-1.1` puts it. A `configs.json` beside them is used.

    Returns:
        The pipeline, callable with the official arguments.

    Raises:
        RequestError: A key of ``device_map`` is missing or unknown.
        BackendError: A device is not available.
        WeightsError: A file is missing; the message names it.
    """
    devices = _devices(device_map)
    is_half = devices["dit"].type == "cuda"
    context = build(
        _configured(found_in(catalogue.find(MODEL), cache_dir)),
        RunOptions(device=devices, dtype="float16" if is_half else "float32"),
        types={"text": "float32", "vae": "float32", "image_vae": "float32"},
    )
    return KandinskyVideoT2VPipeline.over(GenerationPipeline(context))


class KandinskyVideoT2VPipeline:
    """Callable with the official arguments; its stages can be called one by one, and with one seed give the same clip.

    Latents have the official layout here, [frames, channels, rows, columns]. The attribute ``pipeline`` is this
    library's own pipeline, ``seed`` the seed last used.

    Args:
        device_map: As for ``get_T2V_pipeline``.
        dtype_map: Types of the networks by the same names; the text encoder keeps the one it was read in.
        unet: First result of ``get_T2V_unet``.
        null_embedding: Its second result.
        interpolation_unet: First result of ``get_interpolation_unet``.
        interpolation_null_embedding: Its second result.
        t5_processor: First result of ``get_T5encoder``.
        t5_encoder: Its second result.
        movq: Result of ``get_movq``.
        video_movq: Result of ``get_video_movq``.
    """

    def __init__(
        self,
        device_map: Device | Mapping[str, Device],
        dtype_map: Mapping[str, str | torch.dtype],
        unet: nn.Module,
        null_embedding: Tensor | None,
        interpolation_unet: nn.Module,
        interpolation_null_embedding: Tensor | None,
        t5_processor: Any,
        t5_encoder: nn.Module,
        movq: nn.Module,
        video_movq: nn.Module,
    ) -> None:
        _check_keys("dtype_map", dtype_map)
        types = {name: _type(dtype_map[key]) for key, name in DEVICE_KEYS.items()}
        typed = {"dit": unet, "interpolation": interpolation_unet, "vae": video_movq, "image_vae": movq}
        networks = {name: net.to(types.get(name, types["vae"])) for name, net in typed.items()}
        devices = _devices(device_map)
        pipeline = pipeline_of(
            catalogue.find(MODEL),
            networks | {"text": t5_encoder},
            {"dit": null_embedding, "interpolation": interpolation_null_embedding},
            devices=devices | {"image_vae": devices["vae"], "interpolation": devices["interpolation"]},
            dtype=types["dit"],
        )
        self.pipeline = pipeline
        self.seed: int | None = None

    @classmethod
    def over(cls, pipeline: GenerationPipeline) -> KandinskyVideoT2VPipeline:
        """The official interface for a pipeline of this library."""
        door = cls.__new__(cls)
        door.pipeline, door.seed = pipeline, None
        return door

    def __call__(
        self,
        prompt: str,
        negative_prompt: str | None = None,
        image: Any = None,
        width: int = 512,
        height: int = 512,
        fps: str = "low",
        motion: str = "normal",
        key_frame_guidance_scale: float = 5.0,
        guidance_weight_prompt: float = 5.0,
        guidance_weight_image: float = 2.0,
        interpolation_guidance_scale: float = 0.5,
        noise_augmentation: int = 20,
        seed: int | None = None,
    ) -> list[Image.Image]:
        """Generate one clip.

        Args:
            prompt: The prompt.
            negative_prompt: The negative prompt; the official code accepts it and ignores it.
            image: The first frame; generated from the prompt if omitted.
            width: Width in pixels.
            height: Height in pixels.
            fps: `low`, `medium` or `high`: 12, 45 or 177 frames.
            motion: `low`, `medium` (also `normal`), `high` or `extreme`.
            key_frame_guidance_scale: Guidance scale of a first frame generated from the prompt.
            guidance_weight_prompt: Guidance scale of the prompt in the keyframes.
            guidance_weight_image: Guidance scale of the first frame in the keyframes.
            interpolation_guidance_scale: Guidance scale of the interpolation; 0 disables it.
            noise_augmentation: Level of noise in the first frame, 0 to 999.
            seed: Drawn if omitted.

        Returns:
            The frames.

        Raises:
            RequestError: A size, name or number is not allowed; nothing was loaded.
        """
        with progress_bar(True) as on_step:
            video = self._with(key_frame_guidance_scale, noise_augmentation)(
                prompt,
                image=image,
                width=width,
                height=height,
                fps=fps,
                motion=motion,
                guidance=guidance_weight_prompt,
                image_guidance=guidance_weight_image,
                interpolation_guidance=interpolation_guidance_scale + 1,
                negative_prompt=negative_prompt,
                seed=seed,
                on_step=on_step,
            )
        self.seed = video.seed
        return video.images

    def generate_key_frame(
        self, prompt: str, height: int = 512, width: int = 512, guidance_scale: float = 3.0, seed: int | None = None
    ) -> Image.Image:
        """Generate a first frame from the prompt.

        Args:
            prompt: The prompt.
            height: Height of the clip in pixels.
            width: Width of the clip in pixels.
            guidance_scale: Guidance scale; 0 disables it.
            seed: Drawn if omitted.

        Returns:
            An image of twice the size.

        Raises:
            RequestError: A size or number is not allowed.
        """
        pipeline = self._with(guidance_scale)
        context, job = pipeline.context, self._job(pipeline, prompt, width=width, height=height, seed=seed)
        text, nothing = stages.encode(context, job)
        with progress_bar(True) as on_step:
            return pipeline.drive(stages.make_first_frame(context, job, text, nothing), on_step)

    def generate_base_frames(
        self,
        prompt: str,
        key_frame: Any = None,
        height: int = 512,
        width: int = 512,
        guidance_scale_prompt: float = 5,
        guidance_weight_image: float = 3.0,
        motion: str = "normal",
        noise_augmentation: int = 20,
        key_frame_guidance_scale: float = 3.0,
        seed: int | None = None,
    ) -> Tensor:
        """Generate the latents of the keyframes.

        Args:
            prompt: The prompt.
            key_frame: Image of the first keyframe; generated from the prompt if omitted.
            height: Height in pixels.
            width: Width in pixels.
            guidance_scale_prompt: Guidance scale of the prompt.
            guidance_weight_image: Guidance scale of the first frame.
            motion: `low`, `medium` (also `normal`), `high` or `extreme`.
            noise_augmentation: Level of noise in the first frame, 0 to 999.
            key_frame_guidance_scale: Guidance scale of a first frame generated from the prompt.
            seed: Drawn if omitted.

        Returns:
            Latents [12, C, H, W].

        Raises:
            RequestError: A size, name or number is not allowed.
        """
        pipeline = self._with(key_frame_guidance_scale, noise_augmentation)
        context = pipeline.context
        job = self._job(
            pipeline,
            prompt,
            image=key_frame,
            width=width,
            height=height,
            motion=motion,
            guidance=guidance_scale_prompt,
            image_guidance=guidance_weight_image,
            seed=seed,
        )
        text, nothing = stages.encode(context, job)
        made = stages.KeyframesMade((job,), text=text, negative=nothing)
        with progress_bar(True) as on_step:
            first = pipeline.drive(stages.FirstFrame()(context, made), on_step)
            assert isinstance(first, stages.KeyframesMade)
            walk = stages.sample_keyframes(context, job, text, nothing, first.first)
            return _official(pipeline.drive(walk, on_step))

    def interpolate_base_frames(
        self,
        base_frames: Tensor,
        height: int,
        width: int,
        guidance_scale: float,
        skip_frames: int,
        prompt: str,
        seed: int | None = None,
    ) -> Tensor:
        """Put three frames between every two.

        Args:
            base_frames: Latents [n, C, H, W].
            height: Height in pixels.
            width: Width in pixels.
            guidance_scale: Guidance scale; 0 disables it.
            skip_frames: 3 in the first pass, 1 in the second.
            prompt: The prompt.
            seed: Drawn if omitted.

        Returns:
            Latents [4·n − 3, C, H, W].

        Raises:
            RequestError: ``skip_frames`` is another number, the latents do not have this size, or a value is not
                allowed.
        """
        pipeline, keyframes = self.pipeline, keyframes_of(self.pipeline.card)
        context, skips = pipeline.context, keyframes.skips
        if skip_frames not in skips:
            raise RequestError(f"skip_frames `{skip_frames}` is no pass: use {' or '.join(map(str, skips))}")
        job = self._job(
            pipeline,
            prompt,
            width=width,
            height=height,
            fps=list(keyframes.fps)[1],
            interpolation_guidance=guidance_scale + 1,
            seed=seed,
        )
        latents = self._ours(base_frames)
        if latents.shape[2:4] != (job.latent.height, job.latent.width):
            side = pipeline.card.clip.spatial
            H, W = latents.shape[2] * side, latents.shape[3] * side
            raise RequestError(f"base_frames are latents of {W}x{H}, not of {width}x{height}")
        text, nothing = stages.encode(context, job)
        told, number = stages.encode_for_gaps(context, job, text), skips.index(skip_frames)
        with progress_bar(True) as on_step:
            walk = stages.fill_gaps_of(context, job, latents, told, nothing, number=number)
            return _official(pipeline.drive(walk, on_step))

    def encode_image(self, image: Any, width: int, height: int) -> Tensor:
        """Encode an image, scaled to cover the size and cropped.

        Args:
            image: A path or an image.
            width: Width in pixels.
            height: Height in pixels.

        Returns:
            Latent [C, H, W].

        Raises:
            RequestError: The image cannot be read.
        """
        job = self.pipeline.resolve(Request(MODEL, "a picture", image=image, width=width, height=height, seed=0))
        assert job.image is not None
        return _official(stages.encode_image(self.pipeline.context, job.image.pixels()))[0]

    def decode_image(self, image: Tensor) -> Image.Image:
        """Decode the image of a latent [1, C, H, W].

        Raises:
            RequestError: The latent has another shape.
        """
        from PIL import Image

        latents, placement = self._ours(image), self.pipeline.placement
        with placement.hold("image_vae") as vae, torch.no_grad():
            pixels = to_bytes(vae.decode(latents.to(placement.device("image_vae"))))
        return Image.fromarray(pixels[0, 0].cpu().numpy())

    def decode_video(self, video: Tensor) -> list[Image.Image]:
        """Decode the frames of latents [T, C, H, W].

        Raises:
            RequestError: The latents have another shape.
        """
        from PIL import Image

        return [Image.fromarray(frame) for frame in self.pipeline.decode(self._ours(video))[0]]

    def _with(self, guidance: float, noise_level: int = 0) -> GenerationPipeline:
        """The pipeline with other values for the first frame; networks are shared."""
        if isinstance(noise_level, bool) or not isinstance(noise_level, int) or not 0 <= noise_level < LEVELS:
            raise RequestError(f"noise_augmentation `{noise_level}` is not a level: use 0 to {LEVELS - 1}")
        if guidance < 0:
            raise RequestError(f"key_frame_guidance_scale `{guidance}` is below 0: use 0 for none")
        card = self.pipeline.card
        keyframes = keyframes_of(card)
        assert keyframes.first_frame is not None
        first = dataclasses.replace(keyframes.first_frame, guidance=guidance + 1, noise_level=noise_level)
        other = dataclasses.replace(card, keyframes=dataclasses.replace(keyframes, first_frame=first))
        return GenerationPipeline(self.pipeline.context.with_card(other))

    def _job(self, pipeline: GenerationPipeline, prompt: str, **values: Any) -> Job:
        job = pipeline.resolve(Request(MODEL, prompt, **values))
        self.seed = job.seed
        return job

    def _ours(self, latents: Tensor) -> Tensor:
        channels = self.pipeline.card.clip.channels
        if latents.dim() != 4 or latents.shape[1] != channels:
            raise RequestError(f"latents are [frames, {channels}, rows, columns], not {list(latents.shape)}")
        return latents.movedim(1, -1)[None]


def _official(latents_BTHWC: Tensor) -> Tensor:
    return latents_BTHWC[0].movedim(-1, 1)


def _unet(
    name: str, cache_dir: str | None, device: Device, configs: Mapping[str, Any] | None, dtype: str | torch.dtype
) -> tuple[nn.Module, Tensor, None]:
    net = _read(name, cache_dir, device, configs, dtype)
    return net, null_state(net), None


def _read(
    name: str, cache_dir: str | None, device: Device, configs: Mapping[str, Any] | None, dtype: str | torch.dtype
) -> nn.Module:
    card = found_in(catalogue.find(MODEL), cache_dir)
    return read_network(card, _with_params(name, card.component(name), configs), device, _type(dtype))


def _with_params(name: str, component: Component, configs: Mapping[str, Any] | None) -> Component:
    """The component with official constructor arguments; those of the interpolation are known by one they may omit."""
    if configs is None:
        return component
    told = {"time_downsample": component.params["time_downsample"]} if name == "interpolation" else {}
    return dataclasses.replace(component, params=told | dict(configs))


def _configured(card: Card) -> Card:
    """The card with the parameters of the `configs.json` beside its first file, if there is one.

    Raises:
        WeightsError: It cannot be read.
    """
    here = next((at for at in places(card.dit.parts[0]) if not at.missing()), None)
    if here is None or not (file := here.target.parent / "configs.json").is_file():
        return card
    try:
        sections = json.loads(file.read_text(encoding="utf-8"))
        given = {ours: sections[name]["configs"] for name, ours in SECTIONS.items() if name in sections}
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"`{file}` is not a configuration of Kandinsky Video 1.1: fetch it again") from error
    return card.with_components(lambda name, component: _with_params(name, component, given.get(name)))


def _part(component: Component, name: str) -> FileSet:
    return next(part for part in component.parts if part.name == name)


def _devices(device_map: Device | Mapping[str, Device]) -> dict[str, torch.device]:
    if not isinstance(device_map, Mapping):
        return dict.fromkeys(DEVICE_KEYS.values(), place(str(device_map)))
    _check_keys("device_map", device_map)
    return {DEVICE_KEYS[key]: place(str(device)) for key, device in device_map.items()}


def _check_keys(what: str, given: Mapping[str, Any]) -> None:
    if wrong := sorted(set(given) ^ set(DEVICE_KEYS)):
        fault = "does not know" if wrong[0] in given else "lacks"
        known = ", ".join(f"`{name}`" for name in DEVICE_KEYS)
        raise RequestError(f"{what} {fault} `{wrong[0]}`: give {known}")


def _type(dtype: str | torch.dtype) -> torch.dtype:
    out: torch.dtype = getattr(torch, choose_dtype(str(dtype).removeprefix("torch."), "cpu"))
    return out
