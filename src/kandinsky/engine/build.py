"""``load``: from a model's name to a pipeline. Networks are built through a table by the card's component kinds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kandinsky.diffusion import caching
from kandinsky.diffusion.caching import CacheSettings
from kandinsky.engine import sources
from kandinsky.engine.attention import check_choice
from kandinsky.engine.lora import load_loras
from kandinsky.engine.parallel import check_whole, demand_of_card
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.engine.text_states import open_store
from kandinsky.errors import BackendError, RequestError
from kandinsky.families.kandinsky5.denoiser import CONDITIONS
from kandinsky.model.card import DEFAULT_MODEL, Card, Component
from kandinsky.model.task import task_of
from kandinsky.ops.attention import AttentionSpec
from kandinsky.ops.lora import layer_shapes
from kandinsky.runtime import quantise
from kandinsky.runtime.adapters import Adapters
from kandinsky.runtime.parallel import launch
from kandinsky.runtime.parallel.launch import World
from kandinsky.runtime.parallel.layout import Layout, settle
from kandinsky.runtime.parallel.team import Team
from kandinsky.runtime.placement import Placement, Precision, place
from kandinsky.weights import keymaps
from kandinsky.weights.keymaps import KeyMap
from kandinsky.weights.locate import locate_parts, revision
from kandinsky.weights.lora_files import LoraSpecs
from kandinsky.weights.read import check_shapes, load_into, read_shapes
from kandinsky.weights.spellings import for_file

Files = Mapping[str, Path]
COMPONENTS = ("dit", "text", "vae")  # the model's own file is looked for first
BESIDE = {"interpolation": "dit", "image_vae": "vae"}  # further networks run where these do


def load(
    model: str | Path = DEFAULT_MODEL,
    *,
    device: str | torch.device | Mapping[str, str | torch.device] | None = None,
    dtype: str | torch.dtype | None = None,
    offload: str = "none",
    weights: str | Path | None = None,
    attention: str = "auto",
    cache: str | CacheSettings | None = None,
    lora: LoraSpecs | None = None,
    quantize: str | Mapping[str, str] | None = None,
    tiling: str | None = None,
    text_cache: bool | str | Path | None = None,
    only: Collection[str] | None = None,
    parallel: str | Layout | None = None,
) -> GenerationPipeline:
    """A pipeline for a model. Files are found and their headers checked now; weights are read at first use.

    Args:   model: catalogue id, local folder (official or Diffusers layout), official YAML file, or hub repository.
            device: where to run, `cpu`, `cuda`, `cuda:0`; a mapping places `dit`, `text` and `vae` apart. Default: the
            first CUDA device, else the processor.   dtype: compute type; default float32, on CUDA bfloat16.
            offload: `none`; `module` holds each network on its device only while it runs; `block` only one or two
            blocks of it at a time. Results are the same to the last bit.
            weights: an official `weights/` folder for a catalogue model, instead of the Hugging Face cache.
            attention: of the visual self attention: a type, `dense` or `nabla`, or a backend of ``ops/attention.py``,
            with options as in `nabla:P=0.8,wT=7`; `auto` is the card's.
            cache: step cache, `magcache`, `first-block`, `taylor` or `none`, with options as in
            `first-block:threshold=0.1`; or a value of ``diffusion/caching.py``. A call may choose another.
            lora: one or several of `FILE[:SCALE]`; a file, a folder, or a repository that was downloaded.
            quantize: `int8` or `fp8` for the transformer's linear layers, or `{"dit": "int8", "text": "int8"}`; see
            ``runtime/quantise.py``.   tiling: of the HunyuanVideo autoencoder, `none`, `auto` or `official`.
            text_cache: whether, or in which folder, text states are kept on disk; see ``text/store.py``.
            only: the networks that will be used, of `dit`, `text` and `vae` (and `interpolation`, `image_vae` where a
            model has them); the others need not be on this machine. None = all.
            parallel: how the processes that `torchrun` started work together: `auto`, or as `cfg=2,ulysses=2`, see
            ``runtime/parallel/layout.py``; each makes the same calls. None = each for itself.
    Raises: RequestError for a name or option that is not known; WeightsError naming what is missing or broken;
            BackendError for a device, package or attention backend that is not there.
    """
    if isinstance(cache, str):
        cache = caching.parse(cache)
    world = World.started() if parallel is not None else World()
    places = places_for(
        device if isinstance(device, Mapping) else world.device(None if device is None else str(device))
    )
    # before anything is looked for: the answer is immediate
    source = sources.find(model, weights=weights)
    return build(source.card, root=source.root, places=places, dtype=dtype, offload=offload, attention=attention,
                 cache=cache, lora=lora, quantize=quantize, tiling=tiling, text_cache=text_cache, only=only,
                 name=source.name, parallel=parallel)  # fmt: skip


def places_for(device: str | torch.device | Mapping[str, str | torch.device] | None) -> dict[str, torch.device]:
    """A device for each network. Raises: RequestError, BackendError."""
    if not isinstance(device, Mapping):
        return dict.fromkeys(COMPONENTS, place(device))
    if unknown := sorted(set(device) - set(COMPONENTS)):
        raise RequestError(f"device given for `{unknown[0]}`: use one of {', '.join(COMPONENTS)}")
    return {name: place(device.get(name)) for name in COMPONENTS}


def build(
    card: Card,
    *,
    root: Path | None = None,
    places: Mapping[str, torch.device],
    dtype: str | torch.dtype | None = None,
    offload: str = "none",
    attention: str = "auto",
    name: str | None = None,
    noise_device: torch.device | None = None,
    cache: CacheSettings | None = None,
    lora: LoraSpecs | None = None,
    quantize: str | Mapping[str, str] | None = None,
    tiling: str | None = None,
    text_cache: bool | str | Path | None = None,
    only: Collection[str] | None = None,
    parallel: str | Layout | None = None,
    types: Mapping[str, str] | None = None,
) -> GenerationPipeline:
    """A pipeline for a card whose files lie under ``root`` or where the card says.

    Args: name: what finds the model again, for the recipe.   noise_device: of the noise generator; see the pipeline.
          types: compute types of single networks (not `dit`) that are not ``dtype``.
    """
    task_of(card)  # refuses a task that is none
    if card.sound is not None:
        raise RequestError(f"`{card.id}` makes sound for a film, no clips: use `kandinsky.load`, or `--video FILE`")
    AttentionSpec.from_dict(card.sampling.attention)  # refuses what it does not know
    if card.sampling.condition not in CONDITIONS:
        known = " or ".join(CONDITIONS)
        raise RequestError(f"card `{card.id}`: sampling.condition `{card.sampling.condition}` is unknown: use {known}")
    check_choice(card, attention, places["dit"].type)
    calibrated = (card.sampling.mag_ratios, *(entry.sampling.get("mag_ratios") for entry in card.classes.values()))
    caching.choose(cache, model=card.id, ratios=next(filter(None, calibrated), ()))
    precision = Precision.choose(dtype, places["dit"])
    schemes = quantise.parse(quantize)
    quantise.check(schemes)
    keymap = keymaps.for_kind(card.dit.kind)
    adapters = Adapters(card.id, partial(_linear_shapes, card), keymap=keymap, quantised=schemes.get("dit", ""))
    load_loras(adapters, lora)
    card = _with_tiling(card, tiling)
    team = _team(card, parallel, attention, places["dit"])
    if team.layout.cuts_weights:
        check_whole(team.layout, offload=offload, lora=lora, quantize=bool(schemes))
    builders: dict[str, Callable[[], Any]] = {}
    found: dict[str, Files] = {}
    precisions: dict[str, Precision] = {}
    places = dict(places)
    for part, component in card.components.items():
        if only is not None and part not in only:
            continue
        places.setdefault(part, places[BESIDE.get(part, part)])
        files = found[part] = locate_parts(component, root=root, model=card.id)
        # a swapped block gets its type when it runs: until then it stays mapped from its file
        # and one that is cut is converted block by block
        stored = part == "dit" and part not in schemes and (offload == "block" or team.layout.cuts_weights)
        precisions[part] = Precision.choose((types or {}).get(part, precision.compute), places[part])
        builder = network_builder(component, files, None if stored else precisions[part])
        builders[part] = partial(_quantised, builder, schemes[part], places[part]) if part in schemes else builder
        if part == "dit":
            builders[part] = partial(team.build, builders[part], precision.compute)
    placement = Placement(
        builders,
        device=places["dit"],
        places={part: places[part] for part in builders},
        offload=offload,
        types={"dit": precision.compute},
        quantized=bool(schemes),
    )
    store = None
    if "text" in found:
        weights = [found["text"][name] for name in ENCODERS[card.text.kind].weights]
        settings = {"dtype": precisions["text"].name, "device": places["text"].type, "quantize": schemes.get("text")}
        store = open_store(card.text, found["text"], weights, settings, text_cache)
    named = {"quantize": schemes, "tiling": tiling}
    return GenerationPipeline(
        card,
        placement,
        precision,
        attention=attention,
        name=name or card.id,
        revision=revision(card.dit, root=root),
        noise_device=noise_device,
        cache=cache,
        adapters=adapters,
        text_store=store,
        settings={key: value for key, value in named.items() if value},
        team=team,
    )


def _team(card: Card, parallel: str | Layout | None, attention: str, device: torch.device) -> Team:
    """The processes that work together. Raises: RequestError for a layout that does not fit them, or the card."""
    if parallel is None:
        return Team()
    # a layout that is settled already was held against the request itself
    layout = parallel
    if not isinstance(layout, Layout):
        layout, _ = settle(layout, World.started().size, demand_of_card(card, attention))
    if layout.size > 1:
        launch.meet(device.type)
    return Team(layout, device)


def _with_tiling(card: Card, tiling: str | None) -> Card:
    """The card with its autoencoder's tiling replaced. Raises: RequestError for one that has none."""
    if tiling is None:
        return card
    if card.vae.kind not in TILED:
        raise RequestError(f"tiling `{tiling}` was asked for, and the autoencoder of `{card.id}` is never tiled")
    vae = dataclasses.replace(card.vae, params=dict(card.vae.params) | {"tiling": tiling})
    return dataclasses.replace(card, vae=vae)


def _quantised(builder: Callable[[], Any], scheme: str, device: torch.device) -> Any:
    built = builder()
    quantise.quantise(built, scheme, device=device)
    return built


def _linear_shapes(card: Card) -> dict[str, tuple[int, ...]]:
    """(outputs, inputs) of the linear layers of a card's transformer."""
    with torch.device("meta"):
        return layer_shapes(NETWORKS[card.dit.kind](card.dit, Path()))


def network_builder(component: Component, files: Files, precision: Precision | None) -> Callable[[], Any]:
    """How to build a component. ``precision`` None: in the types its file has (networks only)."""
    if component.kind in NETWORKS:
        (path,) = files.values()
        make = partial(NETWORKS[component.kind], component, path)
        keymap = _check_headers(make, component.kind, path)
        return partial(_read_network, make, keymap, path, precision)
    if (encoder := ENCODERS.get(component.kind)) and precision is not None:
        for name in encoder.weights:
            read_shapes(files[name])  # refuses a truncated file by its header
        return partial(encoder.read, component, files, precision)
    raise BackendError(f"component `{component.kind}` is not built yet: this version knows {', '.join(_kinds())}")


def _check_headers(make: Callable[[], nn.Module], kind: str, path: Path) -> KeyMap:
    """Refuse a truncated or wrong file by its header, before anything heavy is read. Returns how its names are read."""
    shapes = read_shapes(path)
    keymap = for_file(kind, shapes)
    shapes = keymap.own(shapes)
    with torch.device("meta"):
        net = make()
    check_shapes(net, {keymap.to_ours(name): shape for name, shape in shapes.items()}, keymap=keymap, where=str(path))
    return keymap


def _read_network(make: Callable[[], nn.Module], keymap: KeyMap, path: Path, precision: Precision | None) -> nn.Module:
    with torch.device("meta"):
        net = make()
    load_into(net, path, keymap=keymap, dtype=None if precision is None else precision.compute)
    return net.eval().requires_grad_(False)


def _kandinsky5_dit(component: Component, path: Path) -> nn.Module:
    from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D, DiTParams

    return DiffusionTransformer3D(DiTParams.from_dict(component.params))


def _kandinsky4_dit(component: Component, path: Path) -> nn.Module:
    from kandinsky.families.kandinsky4.dit import DiffusionTransformer3D, DiTParams

    return DiffusionTransformer3D(DiTParams.from_dict(component.params))


def _unet(component: Component, path: Path) -> nn.Module:
    from kandinsky.families.parts.unet.params import UNetParams
    from kandinsky.families.parts.unet.unet import UNet

    params = UNetParams.from_dict(component.params)
    if params.kind != component.kind:
        raise RequestError(f"the parameters are those of a `{params.kind}`, not of a `{component.kind}`")
    return UNet(params)


def _v2a_unet(component: Component, path: Path) -> nn.Module:
    from kandinsky.families.kandinsky4_v2a.params import V2AParams
    from kandinsky.families.kandinsky4_v2a.unet import V2AUNet

    return V2AUNet(V2AParams.from_dict(_config_in(path) | component.params))


def _movq(component: Component, path: Path) -> nn.Module:
    from kandinsky.families.parts.movq import MovqAutoencoder, MovqParams

    return MovqAutoencoder(MovqParams.from_dict(component.params))


def _hunyuan(component: Component, path: Path) -> nn.Module:
    from kandinsky.families.parts.hunyuan import HunyuanAutoencoder, HunyuanParams

    given = dict(component.params)
    tiling = given.pop("tiling", "auto")
    return HunyuanAutoencoder(HunyuanParams.from_dict(_config_in(path) | given), tiling=tiling)


def _stable_diffusion(component: Component, path: Path) -> nn.Module:
    from kandinsky.families.parts.flux import STABLE_DIFFUSION, FluxAutoencoder, FluxParams

    return FluxAutoencoder(FluxParams.from_dict(STABLE_DIFFUSION | _config_in(path) | component.params))


def _flux(component: Component, path: Path) -> nn.Module:
    from kandinsky.families.parts.flux import FluxAutoencoder, FluxParams

    return FluxAutoencoder(FluxParams.from_dict(_config_in(path) | component.params))


def _cogvideox(component: Component, path: Path) -> nn.Module:
    from kandinsky.families.parts.cogvideox import CogVideoXAutoencoder, CogVideoXParams

    return CogVideoXAutoencoder(CogVideoXParams.from_dict(_config_in(path) | component.params))


def _config_in(folder: Path) -> dict[str, Any]:
    """`config.json` beside the weights; the card's own values go before it."""
    config = folder / "config.json"
    return dict(json.loads(config.read_text(encoding="utf-8"))) if config.is_file() else {}


def _nano_vae(component: Component, path: Path) -> nn.Module:
    from kandinsky.families.nano.autoencoder import NanoAutoencoder, NanoAutoencoderParams

    return NanoAutoencoder(NanoAutoencoderParams.from_dict(component.params))


def _nano_clip(component: Component, path: Path) -> nn.Module:
    from kandinsky.families.nano.clip_encoder import NanoClipEncoder, NanoClipEncoderParams

    return NanoClipEncoder(NanoClipEncoderParams.from_dict(component.params))


def _qwen_clip(component: Component, files: Files, precision: Precision) -> nn.Module:
    from kandinsky.families.kandinsky5.qwen_clip import QwenClipFiles, QwenClipParams, read_qwen_clip

    given = dict(component.params)
    padding = given.pop("padding", "trimmed")
    return read_qwen_clip(
        QwenClipFiles(**files), params=QwenClipParams.from_dict(given), dtype=precision.compute, padding=padding
    )


def _t5(component: Component, files: Files, precision: Precision) -> nn.Module:
    from kandinsky.text.t5 import T5Params, read_t5

    params = T5Params.from_dict(component.params)
    return read_t5(files["t5"], files["tokenizer"], params=params, dtype=precision.compute)


def _t5_projected(component: Component, files: Files, precision: Precision) -> nn.Module:
    from kandinsky.families.parts.projected import ProjectedParams, read_projected_t5

    params = ProjectedParams.from_dict(component.params)
    return read_projected_t5(
        files["t5"], files["tokenizer"], files["projection"], params=params, dtype=precision.compute
    )


def _nano_text(component: Component, files: Files, precision: Precision) -> Any:
    from kandinsky.families.nano.text_encoder import NanoTextEncoder

    return NanoTextEncoder.from_files(files["network"], files["tokenizer"], component.params)


@dataclass(frozen=True, slots=True)
class Encoder:
    """Reads models and tokenizers together. ``weights``: the parts that hold tensors."""

    read: Callable[[Component, Files, Precision], Any]
    weights: tuple[str, ...]


# Builds the bare network; its weights are read by one routine.
NETWORKS: dict[str, Callable[[Component, Path], nn.Module]] = {
    "kandinsky5.dit": _kandinsky5_dit,
    "kandinsky4.dit": _kandinsky4_dit,
    "kandinsky4.v2a-unet": _v2a_unet,
    "kandinsky3.unet": _unet,
    "kandinsky_video1.keyframes-1.0": _unet,
    "kandinsky_video1.keyframes-1.1": _unet,
    "kandinsky_video1.interpolation-1.0": _unet,
    "kandinsky_video1.interpolation-1.1": _unet,
    "cogvideox": _cogvideox,
    "hunyuan": _hunyuan,
    "flux": _flux,
    "stable-diffusion": _stable_diffusion,
    "movq": _movq,
    "nano.vae": _nano_vae,
    "nano.clip": _nano_clip,
}
TILED = ("hunyuan",)
ENCODERS = {
    "qwen-clip": Encoder(_qwen_clip, ("qwen", "clip")),
    "t5": Encoder(_t5, ("t5",)),
    "t5-projected": Encoder(_t5_projected, ("t5", "projection")),
    "nano.text": Encoder(_nano_text, ("network",)),
}


def _kinds() -> list[str]:
    return [*NETWORKS, *ENCODERS]
