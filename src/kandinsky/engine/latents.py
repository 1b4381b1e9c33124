"""A latent on disk, finished but not decoded: safetensors, with the recipe of its clip in the file's own metadata.

`kandinsky decode FILE` and ``GenerationPipeline.finish`` go on from there: what a decoder that ran out of memory, or a
killed process, leaves behind is not lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from kandinsky.engine.latent_names import ENDING
from kandinsky.errors import RequestError, WeightsError
from kandinsky.media import recipe as recipes
from kandinsky.weights.read import read_metadata, read_state
from kandinsky.weights.write import write_state

KEY = "kandinsky"


@dataclass(frozen=True, slots=True)
class KeptLatent:
    """latents_THWC: float32, as the sampler left it.   recipe: of the clip it will be."""

    latents_THWC: Tensor
    recipe: dict[str, Any]


def write_latent(path: Path, latents_THWC: Tensor, recipe: Mapping[str, Any]) -> Path:
    """Write one clip's latent; beside and renamed, so that it is there whole or not at all.

    Raises: RequestError where it cannot be written.
    """
    try:
        return write_state({"latent": latents_THWC}, path, metadata={KEY: recipes.to_text(recipe)})
    except OSError as error:
        raise RequestError(f"latent `{path}` cannot be written: {error.strerror or error}") from error


def read_latent(path: Path) -> KeptLatent:
    """Inverse of ``write_latent``. Raises: RequestError for a file that is none; WeightsError for a damaged one."""
    path = Path(path)
    if not path.is_file():
        raise RequestError(f"latent `{path}` does not exist")
    try:
        recipe = recipes.from_text((read_metadata(path) or {}).get(KEY))
        state = read_state(path)
    except WeightsError as error:
        if path.suffix == ".safetensors":
            raise
        raise RequestError(f"`{path}` is not a kept latent: those end in `{ENDING}`") from error
    if recipe is None or set(state) != {"latent"} or state["latent"].dim() != 4:
        raise RequestError(f"`{path}` is not a kept latent: it was not written by `kandinsky generate`")
    if 0 in state["latent"].shape:
        raise RequestError(f"`{path}` is not a kept latent: its shape is {list(state['latent'].shape)}")
    try:
        recipes.needs(recipe, "model", "seed", "fps", "dtype", "device")
    except RequestError as error:
        raise RequestError(f"`{path}`: {error}") from error
    return KeptLatent(state["latent"], dict(recipe))
