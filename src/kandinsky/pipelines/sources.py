"""What a model's name stands for: a card, and the folder its files are looked for in.

A name is a catalogue id, a folder or an official YAML file on this machine, or a Hugging Face repository. A folder
may hold
- `card.toml`, as this library writes it;
- `model_index.json`, the Diffusers layout;
- one official YAML file, or the official `model/`, `vae/`, `text_encoder/`, `text_encoder2/` of a catalogue model.
No torch and no network here.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kandinsky import cards
from kandinsky.cards import Card, Component, Part
from kandinsky.errors import BackendError, RequestError, WeightsError
from kandinsky.pipelines import official_config

log = logging.getLogger(__name__)
DIFFUSERS_SUFFIX = "-Diffusers"
# Diffusers folders carry no sampling defaults of their own; one that no card names gets this card's.
DIFFUSERS_STAND_IN = "kandinsky5-lite-t2v-sft-5s"
DIFFUSERS_CLASS = "Kandinsky5T2VPipeline"


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
    """The card of a Hugging Face repository, also of its `-Diffusers` twin; None where no card names it."""
    owner, _, bare = repository.partition("/")
    twin = bare.endswith(DIFFUSERS_SUFFIX)
    for card in cards.catalogue().values():
        known_owner, _, known = card.dit.parts[0].repo.partition("/")
        # the first release lay under another owner
        if known and known == bare.removesuffix(DIFFUSERS_SUFFIX) and owner in (known_owner, "ai-forever"):
            return in_diffusers_layout(card, repository) if twin else card
    return None


def in_diffusers_layout(card: Card, repo: str) -> Card:
    """The same model with its files in the Diffusers layout of one repository or local folder (an absolute path)."""

    def part(folder: str, name: str = "") -> Part:
        return Part(repo=repo, files=(f"{folder}/",), name=name, local=f"{folder}/")

    text = (
        part("text_encoder", "qwen"),
        part("text_encoder_2", "clip"),
        part("tokenizer", "qwen_tokenizer"),
        part("tokenizer_2", "clip_tokenizer"),
    )
    return dataclasses.replace(
        card,
        dit=dataclasses.replace(card.dit, parts=(part("transformer"),)),
        text=dataclasses.replace(card.text, parts=text),
        vae=dataclasses.replace(card.vae, parts=(part("vae"),)),
    )


def _diffusers_folder(folder: Path) -> Card:
    index = _read_json(folder / "model_index.json")
    if (kind := index.get("_class_name")) != DIFFUSERS_CLASS:
        raise BackendError(f"`{folder}` holds a `{kind}`, which is not built yet: use a `{DIFFUSERS_CLASS}`")
    values = _read_json(folder / "transformer" / "config.json")
    params = {k: v for k, v in values.items() if not k.startswith(("_", "attention_"))}
    sparse = {k.removeprefix("attention_"): v for k, v in values.items() if k.startswith("attention_")}
    attention: dict[str, Any] = {"type": "dense"}
    if sparse.get("type", "regular") != "regular":
        attention = {key: value for key, value in sparse.items() if value is not None}
    base = _named_in(folder)
    if base is None:
        base = cards.find(DIFFUSERS_STAND_IN)
        log.warning("no card names `%s`: steps, guidance and sizes are those of `%s`", folder.name, DIFFUSERS_STAND_IN)
        base = dataclasses.replace(base, id=folder.name, title=folder.name, source=str(folder))
    shift = _read_json(folder / "scheduler" / "scheduler_config.json").get("shift", base.sampling.shift)
    card = in_diffusers_layout(base, str(folder))
    return dataclasses.replace(
        card,
        dit=Component(card.dit.kind, card.dit.parts, params),
        vae=Component(card.vae.kind, card.vae.parts, {}),
        sampling=dataclasses.replace(card.sampling, shift=float(shift), attention=attention),
        clip=dataclasses.replace(card.clip, channels=int(params.get("in_visual_dim", card.clip.channels))),
    )


def _named_in(folder: Path) -> Card | None:
    """The card whose repository a folder is a copy of, by its name or the cache's folder name above it."""
    names = {part.rpartition("--")[2].removesuffix(DIFFUSERS_SUFFIX) for part in folder.parts}
    for card in cards.catalogue().values():
        if card.dit.parts[0].repo.rpartition("/")[2] in names:
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
