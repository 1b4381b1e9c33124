"""Locating LoRA files: a file, a folder, or a Hugging Face repository in the cache. No torch, no network access.

`kandinsky download OWNER/NAME` fetches a repository; ``weights/lora.py`` reads what is found.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from kandinsky.errors import RequestError, WeightsError
from kandinsky.files import listed, local_path
from kandinsky.model.card import FileSet
from kandinsky.printing import shortened
from kandinsky.weights.locate import is_repository, locate_part

# weights → their configuration, in the order they are searched for in a folder
LAYOUTS = {
    "lora.safetensors": "config_lora.json",
    "adapter_model.safetensors": "adapter_config.json",
    "pytorch_lora_weights.safetensors": "",  # Diffusers: in the header, or none
}
# one or several of `FILE[:SCALE]`
LoraSpecs = str | Path | Iterable[str | Path]
_STRENGTH = re.compile(r"(?P<source>.+):(?P<scale>[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?)", re.IGNORECASE)


def parse_spec(spec: str | Path) -> tuple[str, float]:
    """Split `FILE[:SCALE]` into file and scale.

    A colon that is not followed by a number is part of the name, as in a Windows drive.

    Args:
        spec: The text, or a path.

    Returns:
        File and scale; the scale is 1 if omitted.

    Raises:
        RequestError: It is not text, or names no file.
    """
    if not isinstance(spec, str | Path):
        raise RequestError(f"LoRA `{spec}` is not a file: give FILE or FILE:SCALE, or a list of them")
    text = str(spec)
    if match := _STRENGTH.fullmatch(text):
        text = match["source"]
    if not text.strip():
        raise RequestError(f"LoRA `{spec}` names no file: give FILE or FILE:SCALE")
    return text, float(match["scale"]) if match else 1.0


def locate_lora(source: str | Path) -> Path:
    """Find a LoRA: a file or folder of that name, otherwise a repository in the cache.

    Args:
        source: File, folder or OWNER/NAME.

    Returns:
        The file or folder.

    Raises:
        WeightsError: There is none; the message says what was looked for, and how to download it.
        RequestError: The name is neither a path nor a repository.
    """
    path = local_path(source, "LoRA")
    if path.exists():
        find_files(path)
        return path
    name = str(source)
    file, colon, scale = name.rpartition(":")
    if colon and file and Path(file).expanduser().exists():
        raise WeightsError(
            f"scale `{shortened(scale)}` of LoRA `{file}` is not a finite number: write it as `FILE:0.8`"
        )
    if not is_repository(name) or path.suffix in (".safetensors", ".pt", ".bin", ".json"):
        raise WeightsError(f"LoRA `{name}` is not there: give a file, a folder or a Hugging Face repository")
    missing: WeightsError | None = None
    for part in repository_parts(name):
        try:
            found = locate_part(part, model=name)
        except WeightsError as error:
            missing = missing or error
        else:
            return found
    assert missing is not None
    raise missing


def find_loras(specs: LoraSpecs | None) -> list[tuple[Path, str, float]]:
    """Find the LoRAs of a request.

    Args:
        specs: One or several of `FILE[:SCALE]`.

    Returns:
        (path, name as given, scale) of each.

    Raises:
        RequestError: A spec is not text, or names no file.
        WeightsError: One is not on this machine.
    """
    if specs is None:
        return []
    is_one = isinstance(specs, str | Path) or not isinstance(specs, Iterable)
    listed: Iterable[str | Path] = [specs] if is_one else specs  # type: ignore[list-item, assignment]
    parsed = [parse_spec(spec) for spec in listed]
    return [(locate_lora(source), source, scale) for source, scale in parsed]


def repository_parts(repo: str) -> list[FileSet]:
    """The files of a LoRA repository, once for each layout it may have."""
    return [
        FileSet(
            repo=repo, files=tuple(name for name in (weights, config) if name), local=f"lora/{repo.partition('/')[2]}/"
        )
        for weights, config in LAYOUTS.items()
    ]


def find_files(path: Path) -> tuple[Path, Path | None]:
    """Find weights and configuration of a LoRA.

    Args:
        path: File or folder.

    Returns:
        The weight file, and the configuration; None if there is none.

    Raises:
        WeightsError: There is no such file, or the folder holds none or several.
    """
    if path.is_dir():
        if named := next((path / name for name in LAYOUTS if (path / name).is_file()), None):
            return find_files(named)
        found = listed(path, ".safetensors")
        if len(found) != 1:
            what = f"holds {len(found)} `.safetensors` files" if found else "holds no LoRA"
            raise WeightsError(f"folder `{path}` {what}: give the file, or a folder with {' or '.join(LAYOUTS)}")
        path = found[0]
    if not path.is_file():
        raise WeightsError(f"LoRA `{path}` is not there: give a file, a folder or a Hugging Face repository")
    config = LAYOUTS.get(path.name)
    return path, path.with_name(config) if config and path.with_name(config).is_file() else None


def name_of(file: Path) -> str:
    """What to call a LoRA: the file's name, or its folder's if every LoRA of that layout has the same file name."""
    if file.name not in LAYOUTS:
        return file.stem
    folder = file.absolute().parent
    # in the Hugging Face cache: models--owner--name/snapshots/commit/
    return folder.parents[1].name.rpartition("--")[2] if folder.parent.name == "snapshots" else folder.name
