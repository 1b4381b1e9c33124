"""A latent on disk, finished but not decoded: safetensors, with the recipe of its clip in the file's own metadata.

`kandinsky decode FILE` and ``GenerationPipeline.finish`` continue from there, so that no work is lost if the decoder
runs out of memory or the process is killed.
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
    """A latent read from disk.

    Attributes:
        latents_THWC: float32, as the sampler left it.
        recipe: Recipe of the clip it will become.
    """

    latents_THWC: Tensor
    recipe: dict[str, Any]


def write_latent(path: Path, latents_THWC: Tensor, recipe: Mapping[str, Any]) -> Path:
    """Write one clip's latent; under a temporary name first, so that the file is complete or absent.

    Args:
        path: File to write.
        latents_THWC: The latent.
        recipe: Recipe of the clip.

    Returns:
        The file.

    Raises:
        RequestError: The file cannot be written.
    """
    try:
        return write_state({"latent": latents_THWC}, path, metadata={KEY: recipes.to_text(recipe)})
    except OSError as error:
        raise RequestError(f"latent `{path}` cannot be written: {error.strerror or error}") from error


def read_latent(path: Path) -> KeptLatent:
    """Read a latent; the inverse of ``write_latent``.

    Args:
        path: The file.

    Returns:
        The latent and its recipe.

    Raises:
        RequestError: The file does not exist or is not a kept latent.
        WeightsError: The file is damaged.
    """
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
    # A file's bytes lie at any address, and kernels round differently where it is not aligned as of a computed tensor.
    return KeptLatent(state["latent"].clone(), dict(recipe))
