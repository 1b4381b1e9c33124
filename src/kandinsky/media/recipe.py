"""The recipe of a result: what made it, stored in the file's own metadata, and the command that makes it again.

| ending | where it lies |
|---|---|
| .mp4, .webm, .mov, .mkv, .wav, .flac | the container's `comment` tag, JSON |
| .gif | the comment extension, JSON |
| .webp | EXIF ImageDescription, JSON |
| .png | a tEXt chunk named `kandinsky`, JSON |
| a folder of frames | the tEXt chunk of each frame |
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import kandinsky
from kandinsky.diffusion import caching
from kandinsky.errors import RequestError

PNG_KEY = "kandinsky"
CONTAINERS = (".mp4", ".webm", ".mov", ".mkv", ".wav", ".flac")
EXIF_IMAGE_DESCRIPTION = 0x010E
_VERSIONED = ("torch", "transformers", "diffusers", "tokenizers", "numpy", "av")


def build(settings: Mapping[str, Any], *, revision: str, dtype: str, device: str) -> dict[str, Any]:
    """The recipe of one result.

    Args: settings: model, prompt, seed and the rest (``Job.settings()``).   revision: of the weights.
          dtype: compute type, such as `float32`.   device: such as `cpu`.
    """
    values = dict(settings)
    model = values.pop("model")
    head = {"kandinsky": kandinsky.__version__, "model": model, "revision": revision}
    return {**head, **values, "dtype": dtype, "device": device, "versions": versions()}


def versions() -> dict[str, str]:
    """Versions of the installed packages that can change a result, without importing them."""
    found = {}
    for name in _VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def to_text(recipe: Mapping[str, Any]) -> str:
    """A recipe as one line of ASCII JSON: not every container keeps other letters intact."""
    return json.dumps(recipe, ensure_ascii=True, separators=(",", ":"), sort_keys=False)


def from_text(text: str | None) -> dict[str, Any] | None:
    """Inverse of ``to_text``; None for text that is no recipe, such as another program's comment."""
    if not text:
        return None
    try:
        values = json.loads(text)
    except ValueError:
        return None
    return values if isinstance(values, dict) and "kandinsky" in values else None


def read(path: Path) -> dict[str, Any]:
    """The recipe stored in a result, a file or a folder of frames.

    Raises: RequestError for a file that is absent, is of no known kind, or carries no recipe.
    """
    path = Path(path)
    if path.is_dir():
        frames = sorted(path.glob("*.png"))
        if not frames:
            raise RequestError(f"`{path}` holds no frames (*.png)")
        path = frames[0]
    if not path.is_file():
        raise RequestError(f"`{path}` does not exist")
    readers = dict.fromkeys(CONTAINERS, _container) | {".gif": _gif, ".webp": _webp, ".png": _png}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise RequestError(f"`{path}` is of no kind that carries a recipe: {', '.join(sorted(readers))}")
    try:
        recipe = from_text(reader(path))
    except OSError as error:
        raise RequestError(f"`{path}` cannot be read: {error}") from error
    if recipe is None:
        raise RequestError(f"`{path}` carries no recipe: it was not written by this program, or was converted since")
    return recipe


def command(recipe: Mapping[str, Any]) -> str:
    """The shell command that makes a result again.

    Raises: RequestError for a recipe without model or prompt.
    """
    for key in ("model", "prompt"):
        if key not in recipe:
            raise RequestError(f"the recipe has no `{key}`")
    words = ["kandinsky", "generate", "--model", str(recipe["model"])]
    if "width" in recipe and "height" in recipe:
        words += ["--size", f"{recipe['width']}x{recipe['height']}"]
    # where a frame rate was chosen by name, it decides the length too
    length = ("rate", "--fps") if "rate" in recipe else ("seconds", "--seconds")
    for key, option in (
        length,
        ("motion", "--motion"),
        ("image_guidance", "--image-guidance"),
        ("interpolation_guidance", "--interpolation-guidance"),
        ("steps", "--steps"),
        ("guidance", "--guidance"),
        ("shift", "--shift"),
        ("negative_prompt", "--negative"),
        ("seed", "--seed"),
        ("dtype", "--dtype"),
        ("device", "--device"),
    ):
        value = recipe.get(key)
        # Without guidance there is no second pass, so a negative prompt decides nothing.
        if value is None or (key == "negative_prompt" and recipe.get("guidance") == 1):
            continue
        words += [option, _plain(value)]
    if image := recipe.get("image"):
        words += ["--image", image["file"] or "IMAGE"]  # one from memory has no name
    if film := recipe.get("video"):
        words += ["--video", film["file"] or "VIDEO"]  # one from memory has no name
    if sound := recipe.get("sound"):
        words += ["--sound", "--sound-model", str(sound["model"])]
    if states := recipe.get("states"):
        words += ["--states", str(states)]
    if mask := recipe.get("mask"):
        words += ["--mask", mask["file"] or "MASK", *(("--mask-grow", str(mask["grow"])) if mask["grow"] else ())]
    if quantize := recipe.get("quantize"):
        words += ["--quantize", ",".join(f"{part}={scheme}" for part, scheme in quantize.items())]
    if tiling := recipe.get("tiling"):
        words += ["--tiling", tiling]
    if attention := recipe.get("attention"):
        words += ["--attention", str(attention)]
    if cache := caching.option_of(recipe):
        words += ["--cache", cache]
    for lora in recipe.get("lora") or ():
        words += ["--lora", f"{lora['source']}:{_plain(lora['scale'])}"]
    if expanded := recipe.get("expanded_prompt"):
        words += ["--expanded-prompt", str(expanded)]
    # After `--` a prompt may begin with a dash.
    return shlex.join([*words, "--", str(recipe["prompt"])])


def _plain(value: Any) -> str:
    """A number the way a person types it, without losing digits."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _container(path: Path) -> str | None:
    import av

    try:
        with av.open(str(path)) as container:
            tags = {key.lower(): value for key, value in container.metadata.items()}
    except av.FFmpegError as error:
        raise RequestError(f"`{path}` cannot be read: {error}") from error
    return tags.get("comment")


def _gif(path: Path) -> str | None:
    from PIL import Image

    with Image.open(path) as image:
        comment = image.info.get("comment", b"")
    return comment.decode("ascii", errors="replace") if isinstance(comment, bytes) else comment


def _webp(path: Path) -> str | None:
    from PIL import Image

    with Image.open(path) as image:
        return image.getexif().get(EXIF_IMAGE_DESCRIPTION)


def _png(path: Path) -> str | None:
    from PIL import Image

    with Image.open(path) as image:
        return image.info.get(PNG_KEY)
