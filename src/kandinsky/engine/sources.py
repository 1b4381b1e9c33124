"""What a model's name stands for: a card, and the folder its files are looked for in.

A name is a catalogue id, a folder or an official YAML file on this machine, or a Hugging Face repository. A folder
may hold
- `card.toml`, as this library writes it;
- `model_index.json`, the Diffusers layout;
- `unet/`, `vae/` and `scheduler/`, the official layout of Kandinsky 4's video to audio, and maybe its `encoder/`;
- one official YAML file, or the official `model/`, `vae/`, `text_encoder/`, `text_encoder2/` of a catalogue model.
No torch and no network here.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kandinsky.errors import BackendError, RequestError, WeightsError
from kandinsky.families.kandinsky3 import folder as kandinsky3_folder
from kandinsky.families.kandinsky5 import official_config
from kandinsky.model import card as cards
from kandinsky.model.card import Card, Component, Part
from kandinsky.ops.attention_spec import AttentionSpec

log = logging.getLogger(__name__)
DIFFUSERS_SUFFIX = "-Diffusers"
# Diffusers' pipelines, and the card whose sampling defaults a folder gets that no card names and none is like:
# such folders carry no defaults of their own.
DIFFUSERS_PIPELINES = {
    "Kandinsky5T2VPipeline": "kandinsky5-lite-t2v-sft-5s",
    "Kandinsky5I2VPipeline": "kandinsky5-lite-i2v-5s",
    "Kandinsky5T2IPipeline": "kandinsky5-lite-t2i",
    "Kandinsky5I2IPipeline": "kandinsky5-lite-i2i",
    kandinsky3_folder.PIPELINE: "kandinsky3.0",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """A model's folders in the Diffusers layout: of the denoiser, of the autoencoder, and of each part of the text
    encoder by name; ``params`` of the text encoder go over the card's."""

    dit: str
    vae: str
    text: Mapping[str, str]
    params: Mapping[str, Any] = field(default_factory=dict)


# By the card's kind of denoiser.
LAYOUTS = {
    "kandinsky5.dit": Layout(
        "transformer",
        "vae",
        {
            "qwen": "text_encoder",
            "clip": "text_encoder_2",
            "qwen_tokenizer": "tokenizer",
            "clip_tokenizer": "tokenizer_2",
        },
    ),
    "kandinsky3.unet": Layout(
        "unet",
        "movq",
        {"t5": "text_encoder", "tokenizer": "tokenizer", "projection": "unet"},
        kandinsky3_folder.PROJECTION,
    ),
}

SOUND_MODEL = "kandinsky4-v2a"
SOUND_FILES = ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json")
SOUND_SCHEDULERS = {"PNDMScheduler": "pndm", "DDIMScheduler": "ddim"}


@dataclass(frozen=True, slots=True)
class Source:
    """A card; where its files lie (None = the Hugging Face cache); the name that finds it again."""

    card: Card
    root: Path | None
    name: str


def find(model: str | Path, *, weights: str | Path | None = None) -> Source:
    """The model a name stands for.

    Args:   weights: an official `weights/` folder to read a catalogue model from, instead of the Hugging Face cache.
    Raises: RequestError for a name that is nothing of all this; WeightsError for a folder that holds no model.
    """
    name = str(model)
    root = None if weights is None else Path(weights).expanduser()
    if name in cards.catalogue():
        return Source(cards.find(name), root, name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if weights is not None:
            raise RequestError("`weights` is for catalogue models: a folder brings its own weights")
        return from_folder(folder.resolve())
    if folder.is_file() and folder.suffix in (".yaml", ".yml"):
        if weights is not None:
            raise RequestError("`weights` is for catalogue models: a YAML file names its own weights")
        return Source(official_config.read(folder), None, str(folder.resolve()))
    if isinstance(model, Path) or name.startswith((".", "/", "~")):
        raise RequestError(f"model folder `{name}` is not there: give an existing folder or a catalogue id")
    if name.count("/") == 1 and (card := from_repository(name)):
        return Source(card, root, name)
    return Source(cards.find(name), root, name)


def from_folder(folder: Path) -> Source:
    """The model in a folder of this machine. Raises: WeightsError or RequestError where it is not one model."""
    name = str(folder)
    if (path := folder / "card.toml").is_file():
        return Source(cards.read(path), None, name)
    if all((folder / file).is_file() for file in SOUND_FILES):
        return Source(_sound_folder(folder), None, name)
    if (folder / "model_index.json").is_file():
        return Source(_diffusers_folder(folder), None, name)
    configs = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
    if len(configs) == 1:
        card = official_config.read(configs[0], bases=(folder, folder.parent))
        return Source(card, None, name)
    if configs:
        raise RequestError(f"folder `{folder}` holds {len(configs)} YAML files: give one with `conf_path`")
    found = []
    for root in (folder, folder / "weights"):
        for card in cards.catalogue().values():
            local = card.dit.parts[0].local
            if local and (root / local).is_file():
                found.append(Source(card, root, name))
    if not found:
        raise WeightsError(
            f"folder `{folder}` holds no model: looked for `card.toml`, `model_index.json`, an official YAML file, "
            "and `model/` with a catalogue model's file"
        )
    if len(found) > 1:
        ids = ", ".join(f"`{source.card.id}`" for source in found)
        raise RequestError(f"folder `{folder}` holds several models, {ids}: name one, with `weights` the folder")
    return found[0]


def from_repository(repository: str) -> Card | None:
    """The card of a Hugging Face repository, official or in the Diffusers layout; None where no card names it."""
    owner, _, bare = repository.partition("/")
    for card in cards.catalogue().values():
        for known, is_twin in ((card.dit.parts[0].repo, False), (diffusers_repository(card), True)):
            known_owner, _, known_bare = known.partition("/")
            # the first release lay under another owner
            if known_bare and known_bare == bare and owner in (known_owner, "ai-forever"):
                return in_diffusers_layout(card, repository) if is_twin else card
    return None


def diffusers_repository(card: Card) -> str:
    """The repository that holds a card's model in the Diffusers layout."""
    return card.diffusers or card.dit.parts[0].repo + DIFFUSERS_SUFFIX


def in_diffusers_layout(card: Card, repo: str) -> Card:
    """The same model with its files in the Diffusers layout of one repository or local folder (an absolute path)."""
    is_here = repo.startswith("/")  # then the files themselves tell their size

    def part(folder: str, name: str = "", like: Part | None = None) -> Part:
        known: dict[str, Any] = {} if is_here or like is None else {"bytes": like.bytes, "dtype": like.dtype}
        return Part(repo=repo, files=(f"{folder}/",), name=name, local=f"{folder}/", **known)

    layout = LAYOUTS[card.dit.kind]
    encoders = {entry.name: entry for entry in card.text.parts}
    text = tuple(part(folder, name, encoders.get(name)) for name, folder in layout.text.items())
    return dataclasses.replace(
        card,
        dit=dataclasses.replace(card.dit, parts=(part(layout.dit, like=card.dit.parts[0]),)),
        text=dataclasses.replace(card.text, parts=text, params=dict(card.text.params) | dict(layout.params)),
        vae=dataclasses.replace(card.vae, parts=(part(layout.vae, like=card.vae.parts[0]),)),
    )


def _diffusers_folder(folder: Path) -> Card:
    index = _read_json(folder / "model_index.json")
    if (kind := index.get("_class_name")) not in DIFFUSERS_PIPELINES:
        known = ", ".join(f"`{name}`" for name in DIFFUSERS_PIPELINES)
        raise BackendError(f"`{folder}` holds a `{kind}`, which is not built yet: use one of {known}")
    return _READERS.get(kind, _kandinsky5_folder)(folder, cards.find(DIFFUSERS_PIPELINES[kind]))


def _kandinsky5_folder(folder: Path, stand_in: Card) -> Card:
    values = _read_json(folder / "transformer" / "config.json")
    params = {k: v for k, v in values.items() if not k.startswith(("_", "attention_"))}
    attention = _diffusers_attention(values)
    base = _named_in(folder, stand_in.task)
    if base is None:
        base = _like(params, attention, stand_in)
        log.warning("no card names `%s`: steps, guidance and sizes are those of `%s`", folder.name, base.id)
        # what another checkpoint's steps were measured at says nothing of this one's
        base = _overruled(base, {"mag_ratios": ()})
        base = dataclasses.replace(base, id=folder.name, title=folder.name, source=str(folder))
    if base.dit.params.get("instruct_type") and params.get("visual_cond"):
        # Diffusers has one flag for condition channels, whatever they carry
        params |= {"instruct_type": base.dit.params["instruct_type"], "visual_cond": False}
    said: dict[str, Any] = {}
    shift = _read_json(folder / "scheduler" / "scheduler_config.json").get("shift")
    if shift is not None:
        said["shift"] = float(shift)
    tables = [
        base.sampling.attention,
        *(e.sampling["attention"] for e in base.classes.values() if "attention" in e.sampling),
    ]
    # a Pro folder has one table for SD and HD; the card has both
    if AttentionSpec.from_dict(attention) not in map(AttentionSpec.from_dict, tables):
        said["attention"] = attention
    card = _overruled(in_diffusers_layout(base, str(folder)), said)
    return dataclasses.replace(
        card,
        dit=Component(card.dit.kind, card.dit.parts, params),
        vae=Component(card.vae.kind, card.vae.parts, {}),
        clip=dataclasses.replace(card.clip, channels=int(params.get("in_visual_dim", card.clip.channels))),
    )


def _sound_folder(folder: Path) -> Card:
    """The card of Kandinsky 4's video to audio, with what the folder's files say otherwise."""
    from kandinsky.diffusion.scaled_linear import ScaledLinearSchedule  # which needs torch

    unet, vae, schedule = (_read_json(folder / file) for file in SOUND_FILES)
    kind = schedule.get("_class_name", "PNDMScheduler")
    if kind not in SOUND_SCHEDULERS:
        known = " or ".join(f"`{name}`" for name in SOUND_SCHEDULERS)
        raise RequestError(f"`{folder / SOUND_FILES[2]}` names a `{kind}`, which is not built: use {known}")
    if ScaledLinearSchedule.from_config(schedule) != ScaledLinearSchedule():
        raise RequestError(f"`{folder / SOUND_FILES[2]}` has other levels than Stable Diffusion 1: use those")
    card = cards.find(SOUND_MODEL)

    def component(name: str, entry: Component, params: Mapping[str, Any]) -> Component:
        part = Part(repo=str(folder), files=(f"{name}/",), name=entry.parts[0].name, local=f"{name}/")
        return Component(entry.kind, (part,), dict(params))

    has_encoder = (folder / "encoder").is_dir()
    return dataclasses.replace(
        card,
        dit=component("unet", card.dit, {}),
        vae=component("vae", card.vae, {}),
        text=component("encoder", card.text, card.text.params) if has_encoder else card.text,
        sampling=dataclasses.replace(card.sampling, sampler=SOUND_SCHEDULERS[kind]),
        clip=dataclasses.replace(
            card.clip,
            channels=int(unet.get("in_channels", card.clip.channels)),
            spatial=2 ** (len(vae.get("block_out_channels", "four")) - 1),
        ),
    )


def _kandinsky3_folder(folder: Path, card: Card) -> Card:
    """Kandinsky 3 as Diffusers runs it: its scheduler, guidance and steps, and its way with padding."""
    if _named_in(folder, card.task) is None:
        card = dataclasses.replace(card, id=folder.name, title=folder.name, source=str(folder))
    card = in_diffusers_layout(card, str(folder))
    params = kandinsky3_folder.unet_params(_read_json(folder / "unet" / "config.json"))
    vae = kandinsky3_folder.movq_params(_read_json(folder / "movq" / "config.json"))
    sampler = kandinsky3_folder.sampler_of(_read_json(folder / "scheduler" / "scheduler_config.json"))
    if sampler is None:
        log.warning("the scheduler of `%s` is not known: the official one of `%s` is used", folder, card.id)
    else:
        card = _overruled(card, {"sampler": sampler} | kandinsky3_folder.DEFAULTS)
    return dataclasses.replace(
        card,
        dit=Component(card.dit.kind, card.dit.parts, params),
        vae=Component(card.vae.kind, card.vae.parts, vae),
        clip=dataclasses.replace(card.clip, spatial=2 ** (len(vae["ch_mult"]) - 1), channels=int(vae["z_channels"])),
    )


def _overruled(card: Card, sampling: Mapping[str, Any]) -> Card:
    """The card with these sampling values for all its sizes."""
    classes = {
        name: dataclasses.replace(entry, sampling={k: v for k, v in entry.sampling.items() if k not in sampling})
        for name, entry in card.classes.items()
    }
    return dataclasses.replace(card, sampling=dataclasses.replace(card.sampling, **sampling), classes=classes)


def _diffusers_attention(values: Mapping[str, Any]) -> dict[str, Any]:
    """The `attention` table of a card from a transformer's `config.json`."""
    sparse = {k.removeprefix("attention_"): v for k, v in values.items() if k.startswith("attention_")}
    if sparse.get("type", "regular") == "regular":
        return {"type": "dense"}
    return {key: value for key, value in sparse.items() if value is not None}


def _like(params: Mapping[str, Any], attention: Mapping[str, Any], stand_in: Card) -> Card:
    """Of the shipped models for the same task one with the same network, and best the same attention.

    ``stand_in`` where there is none.
    """
    same = [
        card
        for card in cards.catalogue().values()
        if card.task == stand_in.task
        and all(params.get(key) == card.dit.params.get(key) for key in ("model_dim", "num_visual_blocks", "axes_dims"))
    ]
    if stand_in in same and attention["type"] == stand_in.sampling.attention["type"]:
        return stand_in
    return next(
        (card for card in same if card.sampling.attention["type"] == attention["type"]), (same or [stand_in])[0]
    )


def _named_in(folder: Path, task: str) -> Card | None:
    """The card for a task whose repository a folder is a copy of, by its name or the cache's folder name above it."""
    names = {part.rpartition("--")[2] for part in folder.parts}
    for card in cards.catalogue().values():
        repositories = (card.dit.parts[0].repo, diffusers_repository(card))
        if card.task == task and names & {repo.rpartition("/")[2] for repo in repositories}:
            return card
    return None


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"`{path}` is not there, but the Diffusers layout needs it") from error
    except ValueError as error:
        raise WeightsError(f"`{path}` is not valid JSON: fetch it again") from error
    if not isinstance(values, dict):
        raise WeightsError(f"`{path}` must hold a table: fetch it again")
    return values


# By Diffusers' pipeline, where its folders are not read as Kandinsky 5's are.
_READERS = {kandinsky3_folder.PIPELINE: _kandinsky3_folder}
