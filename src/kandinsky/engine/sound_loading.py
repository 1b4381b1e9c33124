"""From a model's name to a pipeline for sound; and ``load``, the one door that knows both kinds of pipelines."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kandinsky.engine import build as loading
from kandinsky.engine import sources
from kandinsky.engine.build import BESIDE, Files, network_builder, places_for
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.engine.remote_code import FOREIGN, check_trust
from kandinsky.families.kandinsky4_v2a.cogvlm2 import CogVlm2Params, read_cogvlm2
from kandinsky.families.kandinsky4_v2a.pipeline import VideoToAudioPipeline
from kandinsky.families.kandinsky4_v2a.request import sound_of
from kandinsky.model.card import DEFAULT_MODEL, Card, Component
from kandinsky.runtime.placement import Placement, Precision
from kandinsky.weights.locate import locate_parts, revision

ALL = ("dit", "text", "vae")
# grey levels are raised to the fourth power: the autoencoder works in float32, whatever the others do
EXACT = "vae"


def load(
    model: str | Path = DEFAULT_MODEL, *, trust_remote_code: bool = False, **options: Any
) -> GenerationPipeline | VideoToAudioPipeline:
    """A pipeline for any model: ``loading.load`` for those that make pictures, ``load_sound`` for those of sound.

    Args:   model: catalogue id, local folder, official YAML file, or hub repository.
            trust_remote_code: run the program code in the repository of an encoder that comes with some.
            options: as of these functions, `device`, `dtype`, `offload`, `weights` and `only` for both.
    Raises: RequestError for a name or option that is not known; WeightsError naming what is missing or broken;
            BackendError for a device, package or attention backend that is not there.
    """
    places_for(options.get("device"))  # a device that is not there is said before anything is looked for
    if sources.find(model, weights=options.get("weights")).card.sound is None:
        return loading.load(model, **options)
    return load_sound(model, trust_remote_code=trust_remote_code, **options)


def load_sound(
    model: str | Path,
    *,
    device: str | torch.device | Mapping[str, str | torch.device] | None = None,
    dtype: str | torch.dtype | None = None,
    offload: str = "none",
    weights: str | Path | None = None,
    only: Collection[str] | None = None,
    trust_remote_code: bool = False,
) -> VideoToAudioPipeline:
    """A pipeline for a model of sound; arguments and errors as ``load``.

    Files are found and their headers checked now; weights are read at first use.
    """
    places = places_for(device)
    source = sources.find(model, weights=weights)
    return build_sound(
        source.card,
        root=source.root,
        places=places,
        dtype=dtype,
        offload=offload,
        only=only,
        trust_remote_code=trust_remote_code,
        name=source.name,
    )


def build_sound(
    card: Card,
    *,
    root: Path | None = None,
    places: Mapping[str, torch.device],
    dtype: str | torch.dtype | None = None,
    offload: str = "none",
    only: Collection[str] | None = None,
    trust_remote_code: bool = False,
    name: str | None = None,
) -> VideoToAudioPipeline:
    """A pipeline for a card whose files lie under ``root`` or where the card says. Raises: as ``load``."""
    sound_of(card)
    wanted = set(ALL if only is None else only)
    check_trust(card, trust_remote_code, only=wanted)
    precision = Precision.choose(dtype, places["dit"])
    exact = Precision(Precision.islands)
    builders: dict[str, Callable[[], Any]] = {}
    for part, component in card.components.items():
        if part not in wanted:
            continue
        files = locate_parts(component, root=root, model=card.id)
        if component.kind in FOREIGN:
            builders[part] = partial(READERS[component.kind], component, files)
        else:
            stored = part == "dit" and offload == "block"  # a swapped block gets its type when it runs
            builders[part] = network_builder(
                component, files, None if stored else exact if part == EXACT else precision
            )
    placement = Placement(
        builders,
        device=places["dit"],
        places={part: places[BESIDE.get(part, part)] for part in builders},
        offload=offload,
        types={"dit": precision.compute},
    )
    return VideoToAudioPipeline(
        card, placement, precision, name=name or card.id, revision=revision(card.dit, root=root)
    )


def _cogvlm2(component: Component, files: Files) -> Any:
    (folder,) = files.values()
    # twelve billion numbers, which are bfloat16 in the file and in the official run
    return read_cogvlm2(folder, params=CogVlm2Params.from_dict(component.params), dtype=torch.bfloat16)


# By the names of ``remote_code.FOREIGN``; all other encoders are networks of this library.
READERS: dict[str, Callable[[Component, Files], Any]] = {"cogvlm2-video": _cogvlm2}
