"""The official Kandinsky Video 1.0 door: networks one by one, or a pipeline of all of them.

Arguments, defaults and results are the official ones, and a seed beside them; guidance scales count from 0 here.
Nothing is fetched: what is missing is named, with the command that fetches it.
Source: ai-forever/KandinskyVideo@4e10a23, video_kandinsky3/__init__.py, t2v_pipeline.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kandinsky import cards
from kandinsky.cards import Component
from kandinsky.compat.official_call import at_path, progress_bar
from kandinsky.errors import RequestError
from kandinsky.pipelines import loading
from kandinsky.pipelines.generation import GenerationPipeline
from kandinsky.runtime.placement import Placement, Precision, place
from kandinsky.text.projected import ProjectedT5Encoder, Projection
from kandinsky.text.t5 import read_t5
from kandinsky.weights import keymaps
from kandinsky.weights.locate import locate_part
from kandinsky.weights.read import assign_state, load_into, read_state

if TYPE_CHECKING:
    from PIL import Image

MODEL = "kandinsky-video-1.0"
Device = str | torch.device


def get_T2V_unet(  # noqa: N802 - an official name
    device: Device, weights_path: str | None = None, fp16: bool = False
) -> tuple[nn.Module, Tensor | None, dict[str, Any] | None]:
    """The network of key frames, the state for no text, and the projections; the last two are None without weights.

    Raises: WeightsError for a file that is not there or does not fit.
    """
    net = _network(cards.find(MODEL).dit, device, weights_path, fp16)
    if weights_path is None:
        return net, None, None
    prefix = "projections.t5."
    table = {k.removeprefix(prefix): t for k, t in read_state(Path(weights_path)).items() if k.startswith(prefix)}
    return net, _null(net), {"t5": table}


def get_interpolation_unet(
    device: Device, weights_path: str | None = None, fp16: bool = False
) -> tuple[nn.Module, Tensor | None]:
    """The network that fills gaps, and its state for no text; None without weights. Raises: WeightsError."""
    net = _network(cards.find(MODEL).component("interpolation"), device, weights_path, fp16)
    return net, None if weights_path is None else _null(net)


def get_movq(device: Device, weights_path: str, fp16: bool = False) -> nn.Module:
    """The autoencoder. Raises: WeightsError."""
    return _network(cards.find(MODEL).vae, device, weights_path, fp16)


def get_T5encoder(  # noqa: N802 - an official name
    device: Device,
    weights_path: str,
    projections_state_dict: Mapping[str, Any] | None = None,
    fp16: bool = True,
    low_cpu_mem_usage: bool = True,
    device_map: Any = None,
) -> tuple[Any, nn.Module]:
    """Tokenizer and text encoder with its projection, which stays in float32.

    Args:   weights_path: a folder, or `google/flan-ul2` where it was downloaded.   projections_state_dict: what
            ``get_T2V_unet`` gave.   low_cpu_mem_usage: always so.   device_map: only None; ``device`` decides.
    Raises: RequestError without projections or with a device map; WeightsError for files that are not there.
    """
    if not low_cpu_mem_usage or device_map is not None:
        raise RequestError("low_cpu_mem_usage=False and device_map are not available: leave them out, `device` decides")
    if not projections_state_dict or "t5" not in projections_state_dict:
        raise RequestError("projections_state_dict is missing: give what get_T2V_unet(device, weights_path) returned")
    found = {part.name: part for part in cards.find(MODEL).text.parts}
    local = Path(weights_path).expanduser()
    folders = [
        local if local.is_dir() else locate_part(dataclasses.replace(found[name], repo=weights_path), model=MODEL)
        for name in ("t5", "tokenizer")
    ]
    bare = read_t5(*folders, dtype=torch.float16 if fp16 else torch.float32)
    tensors = dict(projections_state_dict["t5"])
    out, width = tensors["0.weight"].shape
    projection = Projection(width, out)
    assign_state(projection, tensors, dtype=torch.float32, where="projections_state_dict")
    return bare.tokenizer, ProjectedT5Encoder(bare.encoder, bare.tokenizer, projection).to(place(str(device)))


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

    Args:   cache_dir: a folder with the official files; without it, and where it is not there, the places
            `kandinsky download kandinsky-video-1.0` fills.   *_path: a file or folder to use instead.
    Raises: WeightsError naming a missing file.
    """
    card = cards.find(MODEL)
    text = at_path(at_path(card.text, text_encode_path, "t5"), text_encode_path, "tokenizer")
    card = dataclasses.replace(
        card,
        dit=at_path(card.dit, unet_path),
        text=at_path(text, unet_path, "projection"),
        vae=at_path(card.vae, movq_path),
    )
    if card.keyframes is not None:
        gaps = at_path(card.keyframes.interpolation, interpolation_unet_path)
        card = dataclasses.replace(card, keyframes=dataclasses.replace(card.keyframes, interpolation=gaps))
    root = Path(cache_dir).expanduser() if cache_dir is not None else None
    pipeline = loading.build(
        card,
        root=root if root is not None and root.is_dir() else None,
        places=loading.places_for(str(device)),
        dtype="float16" if fp16 else "float32",
    )
    return VideoKandinsky3T2VPipeline.over(pipeline)


class VideoKandinsky3T2VPipeline:
    """Key frames, interpolation, frames; callable with the official arguments.

    ``pipeline`` is this library's own; ``seed`` is the seed last used.
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
        for net, null in ((unet, null_embedding), (interpolation_unet, interpolation_null_embedding)):
            if null is not None:
                mine = net.get_buffer("null_embedding")
                mine.copy_(null.detach().flatten().to(mine))
        given = {"dit": unet, "text": t5_encoder, "vae": movq, "interpolation": interpolation_unet}
        placement = Placement({name: partial(_as_it_is, net) for name, net in given.items()}, device=place(str(device)))
        precision = Precision(torch.float16 if fp16 else torch.float32)
        self.pipeline = GenerationPipeline(cards.find(MODEL), placement, precision)
        self.seed: int | None = None

    @classmethod
    def over(cls, pipeline: GenerationPipeline) -> VideoKandinsky3T2VPipeline:
        """The same door before a pipeline of this library."""
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
        """Make one clip.

        Args:    fps: `low`, `medium` or `high`: 15, 57 or 225 frames.   guidance_scale,
                 interpolation_guidance_scale: 0 = off.   seed: drawn when not given, see ``seed``.
        Returns: the frames.
        Raises:  RequestError for an illegal size, name or number, before anything is loaded.
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


def _network(component: Component, device: Device, path: str | None, fp16: bool) -> nn.Module:
    dtype = torch.float16 if fp16 else torch.float32
    where = place(str(device))
    make = partial(loading.NETWORKS[component.kind], component, Path(path or ""))
    if path is None:  # as a constructor fills it, such as for training
        with where:
            return make().to(dtype)
    with torch.device("meta"):
        net = make()
    load_into(net, Path(path).expanduser(), keymap=keymaps.for_kind(component.kind), dtype=dtype)
    return net.to(where).eval().requires_grad_(False)


def _null(net: nn.Module) -> Tensor:
    return net.get_buffer("null_embedding")


def _as_it_is(net: nn.Module) -> nn.Module:
    return net
