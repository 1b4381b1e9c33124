"""A Kandinsky 5 model in a folder: in the Diffusers layout, or with one of the official YAML files. No torch."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kandinsky.errors import RequestError, WeightsError
from kandinsky.families.kandinsky5 import official_config
from kandinsky.files import listed
from kandinsky.model.card import Card, Component
from kandinsky.model.family import Cards
from kandinsky.ops.attention_spec import AttentionSpec
from kandinsky.weights.folders import in_diffusers_layout, named_in, overruled
from kandinsky.weights.untrusted import read_table, shown

log = logging.getLogger(__name__)
SCHEDULER = Path("scheduler", "scheduler_config.json")
LARGEST_SHIFT = 1e6  # released models have up to 10
ENDINGS = (".yaml", ".yml")


def has_official_configuration(place: Path) -> bool:
    """Whether a path is an official YAML file, or a folder with some."""
    return place.suffix in ENDINGS if place.is_file() else bool(_configurations(place))


def read_official_configuration(place: Path, cards: Cards) -> Card:
    """The card of a YAML file, or of the one in a folder.

    Raises:
        RequestError: A folder holds several.
    """
    if place.is_file():
        return official_config.read(place, cards=cards)
    found = _configurations(place)
    if len(found) > 1:
        raise RequestError(f"folder `{place}` holds {len(found)} YAML files: give one with `conf_path`")
    return official_config.read(found[0], cards=cards, bases=(place, place.parent))


def _configurations(folder: Path) -> list[Path]:
    return sorted(path for ending in ENDINGS for path in listed(folder, ending))


def read_diffusers(folder: Path, stand_in: Card, cards: Cards) -> Card:
    """The card of a folder in the Diffusers layout; ``stand_in`` if no card names it and none is like it."""
    values = read_table(folder / "transformer" / "config.json")
    params = {k: v for k, v in values.items() if not k.startswith(("_", "attention_"))}
    attention = _diffusers_attention(values)
    base = named_in(folder, stand_in.task, cards)
    if base is None:
        base = _like(params, attention, stand_in, cards)
        log.warning("no card names `%s`: steps, guidance and sizes are those of `%s`", folder.name, base.id)
        # another checkpoint's measurements do not apply to this one's steps
        base = overruled(base, {"mag_ratios": ()})
        base = dataclasses.replace(base, id=folder.name, title=folder.name, source=str(folder))
    if base.dit.params.get("instruct_type") and params.get("visual_cond"):
        # Diffusers has one flag for condition channels, whatever they carry
        params |= {"instruct_type": base.dit.params["instruct_type"], "visual_cond": False}
    said: dict[str, Any] = {}
    shift = read_table(folder / SCHEDULER).get("shift")
    if shift is not None:
        if isinstance(shift, bool) or not isinstance(shift, int | float) or not 0 < shift < LARGEST_SHIFT:
            raise WeightsError(f"`{folder / SCHEDULER}` gives shift as `{shown(shift)}`: a number above 0 is needed")
        said["shift"] = float(shift)
    tables = [
        base.sampling.attention,
        *(e.sampling["attention"] for e in base.classes.values() if "attention" in e.sampling),
    ]
    # a Pro folder has one table for SD and HD; the card has both
    if AttentionSpec.from_dict(attention) not in map(AttentionSpec.from_dict, tables):
        said["attention"] = attention
    card = overruled(in_diffusers_layout(base, str(folder)), said)
    return dataclasses.replace(
        card,
        dit=Component(card.dit.kind, card.dit.parts, params),
        vae=Component(card.vae.kind, card.vae.parts, {}),
        clip=dataclasses.replace(card.clip, channels=int(params.get("in_visual_dim", card.clip.channels))),
    )


def _diffusers_attention(values: Mapping[str, Any]) -> dict[str, Any]:
    """The `attention` table of a card from a transformer's `config.json`."""
    sparse = {k.removeprefix("attention_"): v for k, v in values.items() if k.startswith("attention_")}
    if sparse.get("type", "regular") == "regular":
        return {"type": "dense"}
    return {key: value for key, value in sparse.items() if value is not None}


def _like(params: Mapping[str, Any], attention: Mapping[str, Any], stand_in: Card, cards: Cards) -> Card:
    """A shipped model for the same task with the same network, preferably the same attention.

    ``stand_in`` if there is none.
    """
    same = [
        card
        for card in cards.all()
        if card.task == stand_in.task
        and all(params.get(key) == card.dit.params.get(key) for key in ("model_dim", "num_visual_blocks", "axes_dims"))
    ]
    if stand_in in same and attention["type"] == stand_in.sampling.attention["type"]:
        return stand_in
    return next(
        (card for card in same if card.sampling.attention["type"] == attention["type"]), (same or [stand_in])[0]
    )
