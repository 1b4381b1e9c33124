"""The official Kandinsky Video 1.0 interface: networks one by one, or a pipeline of all of them.

Arguments, defaults and results are the official ones, plus a seed; guidance scales count from 0 here. Nothing is
downloaded: missing files are named, with the command that fetches them.
Source: ai-forever/KandinskyVideo@4e10a23, video_kandinsky3/__init__.py, t2v_pipeline.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kandinsky import catalogue
from kandinsky.compat.official_call import at_path, progress_bar
from kandinsky.compat.video_parts import (
    Device,
    encoder_folders,
    found_in,
    null_state,
    pipeline_of,
    read_encoder,
    read_network,
)
from kandinsky.engine.build import bare_network, build
from kandinsky.engine.options import RunOptions
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.errors import RequestError
from kandinsky.model.card import Component
from kandinsky.runtime.placement import place
from kandinsky.weights.read import read_state

if TYPE_CHECKING:
    from PIL import Image

MODEL = "kandinsky-video-1.0"


def get_T2V_unet(  # noqa: N802 - an official name
    device: Device, weights_path: str | None = None, fp16: bool = False
) -> tuple[nn.Module, Tensor | None, dict[str, Any] | None]:
    """Load the keyframe network.

    Args:
        device: Where it runs.
        weights_path: Its file; None for a network without weights.
        fp16: Use float16.

    Returns:
        The network, its embedding for an empty prompt, and the projections; the last two are None without weights.

    Raises:
        WeightsError: The file does not exist or does not fit.
        BackendError: The device is not available.
    """
    net = _network("dit", device, weights_path, fp16)
    if weights_path is None:
        return net, None, None
    prefix = "projections.t5."
    table = {k.removeprefix(prefix): t for k, t in read_state(Path(weights_path)).items() if k.startswith(prefix)}
    return net, null_state(net), {"t5": table}


def get_interpolation_unet(
    device: Device, weights_path: str | None = None, fp16: bool = False
) -> tuple[nn.Module, Tensor | None]:
    """Load the interpolation network.

    Args:
        device: Where it runs.
        weights_path: Its file; None for a network without weights.
        fp16: Use float16.

    Returns:
        The network and its embedding for an empty prompt; the latter is None without weights.

    Raises:
        WeightsError: The file does not exist or does not fit.
        BackendError: The device is not available.
    """
    net = _network("interpolation", device, weights_path, fp16)
    return net, None if weights_path is None else null_state(net)


def get_movq(device: Device, weights_path: str, fp16: bool = False) -> nn.Module:
    """Load the autoencoder.

    Args:
        device: Where it runs.
        weights_path: Its file.
        fp16: Use float16.

    Returns:
        The network.

    Raises:
        WeightsError: The file does not exist or does not fit.
        BackendError: The device is not available.
    """
    return _network("vae", device, weights_path, fp16)


def get_T5encoder(  # noqa: N802 - an official name
    device: Device,
    weights_path: str,
    projections_state_dict: Mapping[str, Any] | None = None,
    fp16: bool = True,
    low_cpu_mem_usage: bool = True,
    device_map: Any = None,
) -> tuple[Any, nn.Module]:
    """Load the tokenizer and the text encoder with its projection, which stays in float32.

    Args:
        device: Where it runs.
        weights_path: A folder, or `google/flan-ul2` if it was downloaded.
        projections_state_dict: What ``get_T2V_unet`` returned.
        fp16: Use float16.
        low_cpu_mem_usage: Only True.
        device_map: Only None; ``device`` decides.

    Returns:
        Tokenizer and text encoder.

    Raises:
        RequestError: The projections are missing, or a device map was given.
        WeightsError: Files are missing.
        BackendError: The device is not available.
    """
    if not low_cpu_mem_usage or device_map is not None:
        raise RequestError("low_cpu_mem_usage=False and device_map are not available: leave them out, `device` decides")
    if not projections_state_dict or "t5" not in projections_state_dict:
        raise RequestError("projections_state_dict is missing: give what get_T2V_unet(device, weights_path) returned")
    encoder = read_encoder(
        encoder_folders(catalogue.find(MODEL), weights_path),
        {"text": projections_state_dict["t5"]},
        dtype=_type(fp16),
        projection_dtype=torch.float32,
        where="projections_state_dict",
    ).to(place(str(device)))
    return encoder.t5.tokenizer, encoder


def get_T2V_pipeline(  # noqa: N802 - an official name
    device: Device,
    fp16: bool = False,
    cache_dir: str | None = None,
    unet_path: str | None = None,
    interpolation_unet_path: str | None = None,
    text_encode_path: str | None = None,
    movq_path: str | None = None,
) -> VideoKandinsky3T2VPipeline:
    """All networks as one pipeline; each is read when its stage is reached.

    Args:
        device: Where they run.
        fp16: Use float16.
        cache_dir: A folder with official files, put there by the official code or by hand; what it lacks is looked for
            where `kandinsky download kandinsky-video-1.0` puts it.
        unet_path: File to use instead.
        interpolation_unet_path: File to use instead.
        text_encode_path: Folder to use instead.
        movq_path: File to use instead.

    Returns:
        The pipeline, callable with the official arguments.

    Raises:
        WeightsError: A file is missing; the message names it.
        BackendError: The device is not available.
    """
    card = found_in(catalogue.find(MODEL), cache_dir)
    encoder = tokenizer = None
    if text_encode_path is not None:
        encoder, tokenizer = encoder_folders(card, text_encode_path)
    given = {
        ("dit", ""): unet_path,
        ("interpolation", ""): interpolation_unet_path,
        ("text", "t5"): encoder,
        ("text", "tokenizer"): tokenizer,
        ("text", "projection"): unet_path,
        ("vae", ""): movq_path,
    }

    def as_given(name: str, component: Component) -> Component:
        for part in component.parts:
            component = at_path(component, given[name, part.name], part.name)
        return component

    options = RunOptions(device=str(device), dtype="float16" if fp16 else "float32")
    return VideoKandinsky3T2VPipeline.over(GenerationPipeline(build(card.with_components(as_given), options)))


class VideoKandinsky3T2VPipeline:
    """Keyframes, interpolation, frames; callable with the official arguments.

    Attributes:
        pipeline: This library's own pipeline.
        seed: The seed last used.
    """

    def __init__(
        self,
        device: Device,
        unet: nn.Module,
        null_embedding: Tensor | None,
        interpolation_unet: nn.Module,
        interpolation_null_embedding: Tensor | None,
        t5_processor: Any,
        t5_encoder: nn.Module,
        movq: nn.Module,
        fp16: bool = True,
    ) -> None:
        self.pipeline = pipeline_of(
            catalogue.find(MODEL),
            {"dit": unet, "text": t5_encoder, "vae": movq, "interpolation": interpolation_unet},
            {"dit": null_embedding, "interpolation": interpolation_null_embedding},
            devices=dict.fromkeys(("dit", "text", "vae", "interpolation"), place(str(device))),
            dtype=_type(fp16),
        )
        self.seed: int | None = None

    @classmethod
    def over(cls, pipeline: GenerationPipeline) -> VideoKandinsky3T2VPipeline:
        """The official interface for a pipeline of this library."""
        door = cls.__new__(cls)
        door.pipeline, door.seed = pipeline, None
        return door

    def __call__(
        self,
        text: str,
        negative_text: str | None = None,
        width: int = 512,
        height: int = 512,
        fps: str = "low",
        guidance_scale: float = 5.0,
        interpolation_guidance_scale: float = 0.25,
        steps: int = 50,
        seed: int | None = None,
    ) -> list[Image.Image]:
        """Generate one clip.

        Args:
            text: The prompt.
            negative_text: The negative prompt.
            width: Width in pixels.
            height: Height in pixels.
            fps: `low`, `medium` or `high`: 15, 57 or 225 frames.
            guidance_scale: Guidance scale of the keyframes; 0 disables it.
            interpolation_guidance_scale: Guidance scale of the interpolation; 0 disables it.
            steps: Sampling steps.
            seed: Drawn if omitted, see ``seed``.

        Returns:
            The frames.

        Raises:
            RequestError: A size, name or number is not allowed; nothing was loaded.
        """
        with progress_bar(True) as on_step:
            video = self.pipeline(
                text,
                negative_prompt=negative_text,
                width=width,
                height=height,
                fps=fps,
                guidance=guidance_scale + 1,
                interpolation_guidance=interpolation_guidance_scale + 1,
                steps=steps,
                seed=seed,
                on_step=on_step,
            )
        self.seed = video.seed
        return video.images


def _network(name: str, device: Device, path: str | None, fp16: bool) -> nn.Module:
    card = catalogue.find(MODEL)
    component = card.component(name)
    if path is not None:
        return read_network(card, component, device, _type(fp16), Path(path).expanduser())
    with place(str(device)):  # initialised as by its constructor, for training
        return bare_network(card.part(name), component, Path()).to(_type(fp16))


def _type(fp16: bool) -> torch.dtype:
    return torch.float16 if fp16 else torch.float32
