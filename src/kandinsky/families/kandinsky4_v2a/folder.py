"""Kandinsky 4's video to audio in a folder: `unet/`, `vae/`, `scheduler/`, and maybe `encoder/`. No torch at import."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kandinsky.errors import RequestError
from kandinsky.model.card import Card, Component, FileSet
from kandinsky.model.family import Cards
from kandinsky.weights.untrusted import read_table

MODEL = "kandinsky4-v2a"
FILES = ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json")
SCHEDULERS = {"PNDMScheduler": "pndm", "DDIMScheduler": "ddim"}


def holds(place: Path) -> bool:
    """Whether a folder has the official layout."""
    return all((place / file).is_file() for file in FILES)


def read(folder: Path, cards: Cards) -> Card:
    """The card of Kandinsky 4's video to audio, with the values in which the folder's files differ."""
    from kandinsky.diffusion.scaled_linear import ScaledLinearSchedule  # which needs torch

    unet, vae, schedule = (read_table(folder / file) for file in FILES)
    kind = schedule.get("_class_name", "PNDMScheduler")
    if kind not in SCHEDULERS:
        known = " or ".join(f"`{name}`" for name in SCHEDULERS)
        raise RequestError(f"`{folder / FILES[2]}` names a `{kind}`, which is not built: use {known}")
    if ScaledLinearSchedule.from_config(schedule) != ScaledLinearSchedule():
        raise RequestError(f"`{folder / FILES[2]}` has other levels than Stable Diffusion 1: use those")
    card = cards.find(MODEL)

    def component(name: str, entry: Component, params: Mapping[str, Any]) -> Component:
        part = FileSet(repo=str(folder), files=(f"{name}/",), name=entry.parts[0].name, local=f"{name}/")
        return dataclasses.replace(entry, parts=(part,), params=dict(params))

    has_encoder = (folder / "encoder").is_dir()
    return dataclasses.replace(
        card,
        dit=component("unet", card.dit, {}),
        vae=component("vae", card.vae, {}),
        text=component("encoder", card.text, card.text.params) if has_encoder else card.text,
        sampling=dataclasses.replace(card.sampling, sampler=SCHEDULERS[kind]),
        clip=dataclasses.replace(
            card.clip,
            channels=int(unet.get("in_channels", card.clip.channels)),
            spatial=2 ** (len(vae.get("block_out_channels", "four")) - 1),
        ),
    )
