"""Nano's recipes: their keys and what they build, as the table of kinds in ``train/recipe.py`` names them."""

from __future__ import annotations

import json
import lzma
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kandinsky.errors import RequestError
from kandinsky.families.kandinsky4_v2a.params import V2AParams
from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D
from kandinsky.families.kandinsky5.params import DiTParams
from kandinsky.families.nano.autoencoder import NanoAutoencoder
from kandinsky.families.nano.clip_encoder import NanoClipEncoderParams
from kandinsky.families.nano.params import NanoAutoencoderParams
from kandinsky.families.nano.text import NanoTextNetwork, NanoTextParams
from kandinsky.files import inside, replacing
from kandinsky.lab.nano.captions import COLOURS
from kandinsky.lab.nano.flow import FlowObjective, Stage, cache_latents
from kandinsky.lab.nano.splits import autoencoder_rows
from kandinsky.lab.nano.text_encoder import Settings as TextSettings
from kandinsky.lab.nano.text_encoder import train_text_encoder
from kandinsky.lab.nano.train_autoencoder import AutoencoderObjective
from kandinsky.lab.nano.train_sound import PictureSettings, SoundAutoencoderObjective, SoundObjective
from kandinsky.model.params import read_params
from kandinsky.train import loop
from kandinsky.train.curve import draw_curve
from kandinsky.train.objective import One, Simple
from kandinsky.train.recipe import Run
from kandinsky.weights.read import check_file, load_into, read_state
from kandinsky.weights.write import write_state

_COUNT = {"least": 1}
_SHARE = {"least": 0, "most": 1}


@dataclass(frozen=True, slots=True)
class TrainedAutoencoder:
    """An autoencoder that is used as it is: its weight file and hyper-parameters."""

    weights: str
    params: NanoAutoencoderParams


@dataclass(frozen=True, slots=True)
class TrainedText:
    """A text network of which the memory of slots is used: its weight file and hyper-parameters."""

    weights: str
    params: NanoTextParams


@dataclass(frozen=True, slots=True)
class AutoencoderData:
    """Clips of an autoencoder; see ``AutoencoderObjective``."""

    side: int = field(default=96, metadata=_COUNT)
    frames: int = field(default=9, metadata=_COUNT)
    batch: int = field(default=4, metadata=_COUNT)
    latent_noise: float = field(default=0.1, metadata={"least": 0})
    frozen_encoder: bool = False
    pca_clips: int = field(default=300, metadata=_COUNT)


@dataclass(frozen=True, slots=True)
class AutoencoderRecipe:
    """held_every: one of so many clips that are no concept is never trained on.   start: weights to begin from."""

    cache: str
    out: str
    network: NanoAutoencoderParams
    loop: loop.LoopSettings
    held_every: int = field(default=6, metadata=_COUNT)
    data: AutoencoderData = field(default_factory=AutoencoderData)
    start: str | None = None


@dataclass(frozen=True, slots=True)
class LatentData:
    """Clips that are encoded once; see ``cache_latents``."""

    side: int = field(metadata=_COUNT)
    extras: int = field(metadata={"least": 0})
    wordless: int = field(default=0, metadata={"least": 0})


@dataclass(frozen=True, slots=True)
class FlowSettings:
    """See ``FlowObjective``."""

    rope_scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    plain_share: float = field(default=0.6, metadata=_SHARE)
    drop_text: float = field(default=0.1, metadata=_SHARE)
    time_shift: float = field(default=1.0, metadata={"above": 0})
    keep_first: float = field(default=0.0, metadata=_SHARE)
    condition: str = "zeros"
    image_share: float = field(default=0.0, metadata=_SHARE)
    wordless_share: float = field(default=0.5, metadata=_SHARE)


@dataclass(frozen=True, slots=True)
class DenoiserRecipe:
    """autoencoder: needed where `latents.npy` does not lie in ``out`` yet.   start: weights to begin from."""

    cache: str
    out: str
    text: TrainedText
    data: LatentData
    network: DiTParams
    stages: tuple[Stage, ...]
    loop: loop.LoopSettings
    autoencoder: TrainedAutoencoder | None = None
    objective: FlowSettings = field(default_factory=FlowSettings)
    start: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRecipe(TextSettings):
    """The text encoder's settings, and where its weights go."""

    out: str
    cache: str | None = None


@dataclass(frozen=True, slots=True)
class SoundAutoencoderData:
    """Pictures of an autoencoder; see ``SoundAutoencoderObjective``."""

    batch: int = field(default=16, metadata=_COUNT)
    latent_noise: float = field(default=0.1, metadata={"least": 0})
    pca_clips: int = field(default=400, metadata=_COUNT)


@dataclass(frozen=True, slots=True)
class SoundAutoencoderRecipe:
    """cache: where the emoji are; null: drawn shapes alone.   start: weights to begin from."""

    cache: str | None
    out: str
    pictures: PictureSettings
    network: NanoAutoencoderParams
    loop: loop.LoopSettings
    data: SoundAutoencoderData = field(default_factory=SoundAutoencoderData)
    start: str | None = None


@dataclass(frozen=True, slots=True)
class SoundSettings:
    """See ``SoundObjective``."""

    batch: int = field(default=32, metadata=_COUNT)
    drop: float = field(default=0.1, metadata=_SHARE)
    reading: float = field(default=0.3, metadata={"least": 0})


@dataclass(frozen=True, slots=True)
class SoundRecipe:
    """cache: where the emoji are; null: drawn shapes alone."""

    cache: str | None
    out: str
    pictures: PictureSettings
    autoencoder: TrainedAutoencoder
    network: V2AParams
    clip: NanoClipEncoderParams
    loop: loop.LoopSettings
    objective: SoundSettings = field(default_factory=SoundSettings)


_FROM = "from"  # a key of recipes that is a keyword of Python


@dataclass(frozen=True, slots=True)
class Packed:
    """Weights in the package. source: the trained file.   int8_from: matrices of at least so many rows and columns
    become int8 rows; with ``kernels`` also those of convolutions."""

    source: str
    int8_from: int = field(default=1 << 30, metadata=_COUNT)
    kernels: bool = False

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Packed:
        """Raises: RequestError for a key that is unknown or missing."""
        out: Packed = _read_from(cls, values, "key of weights")
        return out


@dataclass(frozen=True, slots=True)
class Curve:
    """An image of a loss. source: journals of the parts of a training.   names: of the curves."""

    source: tuple[str, ...]
    names: tuple[str, ...]
    title: str

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Curve:
        """Raises: RequestError for a key that is unknown or missing."""
        out: Curve = _read_from(cls, values, "key of a curve")
        return out


@dataclass(frozen=True, slots=True)
class PackageRecipe:
    """weights, copy, curves: by the name in the package; a copy whose name ends in `.xz` is compressed."""

    out: str
    weights: Mapping[str, Packed]
    copy: Mapping[str, str] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)


def autoencoder(recipe: AutoencoderRecipe, run: Run) -> Path:
    """Train nano's autoencoder; returns its weight file."""
    check_begin(NanoAutoencoder, recipe.network, recipe.start)
    cache = Path(recipe.cache)
    rows, _ = autoencoder_rows(cache, recipe.held_every)
    palette = [colour.rgb for colour in COLOURS]
    with loop.seeded(recipe.loop.seed):
        objective = AutoencoderObjective(cache, rows, palette, recipe.network, **asdict(recipe.data))
    _start(objective.network, recipe.start)
    state = {**objective.network.state_dict(), **_trained(objective, recipe.loop, run)}
    with replacing(run.out / "config.json") as part:
        part.write_text(json.dumps(asdict(recipe.network)))
    return write_state(state, run.out / "vae.safetensors", layout="official")


def denoiser(recipe: DenoiserRecipe, run: Run) -> Path:
    """Train nano's denoiser; returns its weight file."""
    check_begin(DiffusionTransformer3D, recipe.network, recipe.start)
    run.out.mkdir(parents=True, exist_ok=True)
    latents = run.out / "latents.npy"
    if not latents.exists():
        if recipe.autoencoder is None:
            raise RequestError(f"`{latents}` is not there: name the `autoencoder` that makes it")
        cache_latents(Path(recipe.cache), frozen_autoencoder(recipe.autoencoder), latents, **asdict(recipe.data))
    words = NanoTextNetwork(recipe.text.params)
    load_into(words, Path(recipe.text.weights))  # its memory alone is used
    with loop.seeded(recipe.loop.seed):
        objective = FlowObjective(
            latents, words, recipe.network, recipe.stages, steps=recipe.loop.steps, **asdict(recipe.objective)
        )
    _start(objective.network, recipe.start)
    return write_state(_trained(objective, recipe.loop, run), run.out / "dit.safetensors", layout="official")


def text(recipe: TextRecipe, run: Run) -> Path:
    """Train nano's text encoder; returns its weight file."""
    return train_text_encoder(asdict(recipe), run.out, on_log=run.on_log)


def text_steps(values: dict[str, Any], steps: int) -> dict[str, Any]:
    """A recipe of the text encoder with so many steps in all, its two phases in their proportion."""
    phases = [values.get(name, default) for name, default in (("word_steps", 1500), ("caption_steps", 1500))]
    if not all(isinstance(phase, int) and phase >= 0 for phase in phases) or not sum(phases):
        return values  # refused when it is read
    word_steps = steps * phases[0] // sum(phases)
    return values | {"word_steps": word_steps, "caption_steps": steps - word_steps}


def sound_autoencoder(recipe: SoundAutoencoderRecipe, run: Run) -> Path:
    """Train the autoencoder of nano's mel spectrograms; returns its weight file."""
    check_begin(NanoAutoencoder, recipe.network, recipe.start)
    with loop.seeded(recipe.loop.seed):
        objective = SoundAutoencoderObjective(
            _cache(recipe.cache), recipe.pictures, recipe.network, **asdict(recipe.data)
        )
    _start(objective.network, recipe.start)
    state = {**objective.network.state_dict(), **_trained(objective, recipe.loop, run)}
    return write_state(state, run.out / "vae.safetensors", layout="official")


def sound(recipe: SoundRecipe, run: Run) -> Path:
    """Train nano's video-to-audio network and its clip encoder; returns the last of their weight files."""
    frozen = frozen_autoencoder(recipe.autoencoder)
    with loop.seeded(recipe.loop.seed):
        objective = SoundObjective(
            _cache(recipe.cache), recipe.pictures, frozen, recipe.network, recipe.clip, **asdict(recipe.objective)
        )
    ema = _trained(objective, recipe.loop, run)
    for name in ("unet", "clip"):  # the third, which says events, has done its work
        part = {key.removeprefix(f"{name}."): tensor for key, tensor in ema.items() if key.startswith(f"{name}.")}
        target = write_state(part, run.out / f"{name}.safetensors", layout="official")
    return target


def package(recipe: PackageRecipe, run: Run) -> Path:
    """Put trained weights into the package: bfloat16, and int8 rows where the recipe says so."""
    for name, entry in recipe.weights.items():
        state = {key: tensor.float() for key, tensor in read_state(Path(entry.source)).items()}
        least, dims = entry.int8_from, 5 if entry.kernels else 2
        packed = [key for key, t in state.items() if 2 <= t.ndim <= dims and min(t.shape[:2]) >= least]
        half = {key: tensor if key in packed else tensor.to(torch.bfloat16) for key, tensor in state.items()}
        write_state(half, inside(run.out, f"{name}.safetensors"), layout="official", int8=packed)
    for name, source in recipe.copy.items():
        with replacing(inside(run.out, name)) as part:
            if name.endswith(".xz") and not source.endswith(".xz"):
                part.write_bytes(lzma.compress(Path(source).read_bytes(), preset=9 | lzma.PRESET_EXTREME))
            else:
                shutil.copyfile(source, part)
    for name, curve in recipe.curves.items():
        with replacing(inside(run.out, name)) as part:
            draw_curve([Path(one) for one in curve.source], part, names=curve.names, title=curve.title)
    return run.out


def _trained(objective: Simple, settings: loop.LoopSettings, run: Run) -> dict[str, torch.Tensor]:
    made = loop.run(
        One(objective), settings, run.out, resume=run.resume, device=run.device, recipe=run.recipe, on_log=run.on_log
    )
    return made["network"]


def check_begin(network: Callable[[Any], nn.Module], params: object, weights: str | None) -> None:
    """Refuse weights to begin from that are not of the network, by their header. Raises: WeightsError."""
    if weights is not None:
        with torch.device("meta"):
            check_file(network(params), Path(weights))


def _start(network: nn.Module, weights: str | None) -> None:
    """Begin from a weight file where the recipe names one, as for more training of shipped weights."""
    if weights is not None:
        load_into(network, Path(weights), dtype=torch.float32)


def frozen_autoencoder(entry: TrainedAutoencoder) -> NanoAutoencoder:
    """An autoencoder with its weights."""
    network = NanoAutoencoder(entry.params)
    load_into(network, Path(entry.weights))
    return network


def _cache(folder: str | None) -> Path | None:
    """Where the emoji are; None: drawn shapes alone."""
    return None if folder is None else Path(folder)


def _read_from(cls: type, values: Mapping[str, Any], what: str) -> Any:
    named = {key: value for key, value in values.items() if key != _FROM}
    if "source" in values:
        raise RequestError(f"unknown {what} `source`: did you mean `{_FROM}`")
    if _FROM not in values:
        raise RequestError(f"{what} `{_FROM}` is missing")
    return read_params(cls, {**named, "source": values[_FROM]}, what)
