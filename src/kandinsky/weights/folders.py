"""Folders in the Diffusers layout: which card they are a copy of, and where the parts are. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kandinsky.model.card import Card, FileSet
from kandinsky.model.family import Cards

DIFFUSERS_SUFFIX = "-Diffusers"


def diffusers_repository(card: Card) -> str:
    """The repository that holds a card's model in the Diffusers layout."""
    return card.diffusers or card.dit.parts[0].repo + DIFFUSERS_SUFFIX


def in_diffusers_layout(card: Card, repo: str) -> Card:
    """The same model with its files in the Diffusers layout of one repository or local folder (an absolute path)."""
    is_here = repo.startswith("/")  # then the files themselves tell their size

    def part(folder: str, name: str = "", like: FileSet | None = None) -> FileSet:
        known: dict[str, Any] = {} if is_here or like is None else {"bytes": like.bytes, "dtype": like.dtype}
        return FileSet(repo=repo, files=(f"{folder}/",), name=name, local=f"{folder}/", **known)

    assert card.family.diffusers is not None
    layout = card.family.diffusers.layout
    encoders = {entry.name: entry for entry in card.text.parts}
    text = tuple(part(folder, name, encoders.get(name)) for name, folder in layout.text.items())
    return dataclasses.replace(
        card,
        dit=dataclasses.replace(card.dit, parts=(part(layout.dit, like=card.dit.parts[0]),)),
        text=dataclasses.replace(card.text, parts=text, params=dict(card.text.params) | dict(layout.params)),
        vae=dataclasses.replace(card.vae, parts=(part(layout.vae, like=card.vae.parts[0]),)),
    )


def overruled(card: Card, sampling: Mapping[str, Any]) -> Card:
    """The card with these sampling values overridden for all sizes."""
    classes = {
        name: dataclasses.replace(entry, sampling={k: v for k, v in entry.sampling.items() if k not in sampling})
        for name, entry in card.classes.items()
    }
    return dataclasses.replace(card, sampling=dataclasses.replace(card.sampling, **sampling), classes=classes)


def named_in(folder: Path, task: str, cards: Cards) -> Card | None:
    """The card for a task whose repository a folder is a copy of, by its name or the cache's folder name above it."""
    names = {part.rpartition("--")[2] for part in folder.parts}
    for card in cards.all():
        repositories = (card.dit.parts[0].repo, diffusers_repository(card))
        if card.task == task and names & {repo.rpartition("/")[2] for repo in repositories}:
            return card
    return None
