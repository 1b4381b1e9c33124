"""What the official calls of all families share: devices, paths, targets, a progress bar."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky.errors import RequestError
from kandinsky.model.card import Component
from kandinsky.runtime.parallel.launch import World

if TYPE_CHECKING:
    import torch

    from kandinsky.diffusion.sample import OnStep

# official names of the networks → ours
DEVICE_KEYS = {"dit": "dit", "vae": "vae", "text_embedder": "text"}


def devices_of(device_map: str | torch.device | Mapping[str, str | torch.device]) -> dict[str, Any]:
    """One device for each of our networks.

    Args:
        device_map: One device, or devices for `dit`, `vae` and `text_embedder`.

    Returns:
        Device by our network's name.

    Raises:
        RequestError: A key is missing or unknown.
    """
    if not isinstance(device_map, Mapping):
        return dict.fromkeys(DEVICE_KEYS.values(), device_map)
    if wrong := sorted(set(device_map) ^ set(DEVICE_KEYS)):
        fault = "does not know" if wrong[0] in device_map else "lacks"
        raise RequestError(f"device_map {fault} `{wrong[0]}`: give `dit`, `vae` and `text_embedder`")
    return {DEVICE_KEYS[key]: device for key, device in device_map.items()}


def in_company(places: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """The devices on this process, and the layout: as officially, processes that a launcher started work together."""
    world = World.started()
    if world.size == 1:
        return dict(places), None
    return {name: world.device("cuda") if str(p).startswith("cuda") else p for name, p in places.items()}, "auto"


def at_path(component: Component, given: str | Path | None, name: str = "") -> Component:
    """The component with the user's path in place of one part's files; unchanged without a path."""
    if given is None:
        return component
    path = Path(given).expanduser().absolute()  # not resolved: in huggingface_hub's cache that loses the file's name
    entry = path.name if path.suffix else f"{path.name}/"
    parts = tuple(
        dataclasses.replace(part, repo=str(path.parent), files=(entry,)) if part.name == name else part
        for part in component.parts
    )
    return dataclasses.replace(component, parts=parts)


def one_target(save_path: str | Sequence[str] | None) -> Path | None:
    """The one file to write, from a path or a list of one.

    Raises:
        RequestError: The list has several entries.
    """
    if save_path is None or isinstance(save_path, str | Path):
        return None if save_path is None else Path(save_path)
    if len(save_path) != 1:
        raise RequestError(f"save_path has {len(save_path)} entries: one clip is made, give one path")
    return Path(save_path[0])


@contextmanager
def progress_bar(shown: bool) -> Iterator[OnStep | None]:
    """A progress bar on stderr, if it is a terminal."""
    if not shown or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("sampling", total=None)

        def on_step(step: int, total: int, preview: torch.Tensor) -> None:
            progress.update(task, completed=step, total=total)

        yield on_step
