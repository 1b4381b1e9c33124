"""Reading weights, strictly: every tensor is there, has its shape, and nothing is left over.

Understands safetensors files, sharded safetensors with their index, Diffusers folders, and `.pt` files read with
``weights_only=True``; no pickle is ever executed. Names are translated by a ``KeyMap``. This module and ``write`` are
the only code that opens weight files.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from kandinsky.errors import WeightsError
from kandinsky.weights.keymaps import IDENTITY, KeyMap

INT8_SCALE = ".int8_scale"
PICKLED = (".pt", ".pth", ".bin", ".ckpt")
SINGLE_FILES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
INDEX_FILES = tuple(f"{name}.index.json" for name in SINGLE_FILES)
FOLDERS = ("transformer", "vae")
HEADER_LIMIT = 100_000_000  # bytes; the format's own limit


def read_state(path: Path) -> dict[str, Tensor]:
    """All tensors of a weight file or folder by name, in the file's order, on the host.

    Args:    path: a `.safetensors` or `.pt` file, a `….index.json`, or a folder in the Diffusers layout (the folder
             with the weights, or the one that holds `transformer/`).
    Returns: tensors in the types they are stored in; int8 rows (``<name>.int8_scale`` beside ``<name>``) as float32.
    Raises:  WeightsError naming the file, and the tensor where one is cut off.
    """
    state: dict[str, Tensor] = {}
    for file in weight_files(path):
        part = _read_pickled(file) if file.suffix in PICKLED else _read_safetensors(file)
        if twice := state.keys() & part.keys():
            raise WeightsError(f"tensor `{min(twice)}` is in more than one file of `{path}`: fetch the files again")
        state |= part
    return _expand_int8(state, path)


def read_metadata(path: Path) -> dict[str, str] | None:
    """The free text of a safetensors header (of the first shard); None where it has none. Raises: WeightsError."""
    file = weight_files(path)[0]
    return None if file.suffix in PICKLED else _header(file)[1]


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes without reading a tensor. Raises: WeightsError."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in weight_files(path):
        if file.suffix in PICKLED:
            shapes |= {name: tuple(tensor.shape) for name, tensor in _read_pickled(file, device="meta").items()}
            continue
        entries = _header(file)[0]
        shapes |= {name: tuple(e["shape"]) for name, e in entries.items() if not name.endswith(INT8_SCALE)}
    return shapes


def read_ranges(file: Path) -> tuple[bytes, list[tuple[int, int]]]:
    """The header of a safetensors file as text, and where each tensor's bytes begin and end. Raises: WeightsError."""
    entries, _ = _header(file)
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = stream.read(length)
    offsets = [entry["data_offsets"] for entry in entries.values()]
    return header, [(8 + length + begin, 8 + length + end) for begin, end in offsets]


def load_into(net: nn.Module, path: Path, *, keymap: KeyMap | None = None, dtype: torch.dtype | None = None) -> None:
    """Give a network its weights, strictly; the network may stand on the meta device.

    Args:   keymap: names in the file ↔ names in the network; the same names when not given.
            dtype: type for all floating tensors; as stored when not given.
    Raises: WeightsError naming the first tensor that is missing, left over, or of another shape, by its name in the
            file, and how many there are; the network is then unchanged.
    """
    assign_state(net, read_state(path), keymap=keymap, dtype=dtype, where=str(path))


def assign_state(
    net: nn.Module,
    state: dict[str, Tensor],
    *,
    keymap: KeyMap | None = None,
    dtype: torch.dtype | None = None,
    where: str = "the given tensors",
) -> None:
    """``load_into`` for tensors that are already in memory, under their names in the file."""
    keymap = keymap or IDENTITY
    ours = {keymap.to_ours(name): tensor for name, tensor in keymap.own(state).items()}
    check_shapes(net, {name: tuple(tensor.shape) for name, tensor in ours.items()}, keymap=keymap, where=where)
    ours = made_tensors(net) | ours
    if dtype is not None:
        ours = {name: t.to(dtype) if t.is_floating_point() else t for name, t in ours.items()}
    net.load_state_dict(ours, strict=True, assign=True)


def check_shapes(
    net: nn.Module, shapes: dict[str, tuple[int, ...]], *, keymap: KeyMap | None = None, where: str = "the manifest"
) -> None:
    """Compare a network with names (ours) and shapes. Raises: WeightsError as ``load_into`` does.

    A network that makes some tensors itself (``made_tensors() -> dict``) does without them in a file, but takes them.
    """
    keymap = keymap or IDENTITY
    expected = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    made = {name: tuple(tensor.shape) for name, tensor in made_tensors(net).items()}
    shapes = made | shapes
    complaints = [
        ("missing", [name for name in expected if name not in shapes], "is missing"),
        ("unexpected", [name for name in shapes if name not in expected], "belongs to no part of the network"),
    ]
    for kind, names, text in complaints:
        if names:
            more = f" ({len(names)} {kind} in all)" if len(names) > 1 else ""
            raise WeightsError(
                f"tensor `{keymap.to_official(names[0])}` {text}{more} in `{where}`: is it another model's file?"
            )
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise WeightsError(
                f"tensor `{keymap.to_official(name)}` in `{where}` has shape {list(shapes[name])}, "
                f"the network needs {list(shape)}: the file and the model's parameters do not belong together"
            )


def made_tensors(net: nn.Module) -> dict[str, Tensor]:
    """Tensors that a network can make itself, so that a file may leave them out."""
    make = getattr(net, "made_tensors", None)
    return {} if make is None else make()


def weight_files(path: Path) -> list[Path]:
    """The files that hold the tensors of ``path``. Raises: WeightsError where one of them is not there.

    A pickled file that was converted is read from the safetensors file beside it.
    """
    if path.is_dir():
        path = _in_folder(path)
    if path.suffix in PICKLED and (converted := path.with_suffix(".safetensors")).is_file():
        path = converted
    if not path.is_file():
        raise WeightsError(f"weight file `{path}` is not there")
    if path.suffix != ".json":
        if path.suffix != ".safetensors" and path.suffix not in PICKLED:
            raise WeightsError(f"`{path}` is no weight file: give a `.safetensors` or `.pt` file, or a folder")
        return [path]
    try:
        names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise WeightsError(f"`{path}` is no index of weight files: fetch it again") from error
    shards = []
    for name in names:
        if Path(name).name != name:
            raise WeightsError(f"index `{path}` points outside its folder: `{name}`")
        if not (shard := path.parent / name).is_file():
            raise WeightsError(f"weight file `{shard}` is not there, but `{path.name}` lists it")
        shards.append(shard)
    return shards


def _in_folder(folder: Path) -> Path:
    for place in (folder, *(folder / name for name in FOLDERS)):
        for name in (*INDEX_FILES, *SINGLE_FILES):
            if (place / name).is_file():
                return place / name
    # official repositories have one file in `model/`, under a name of its own
    if len(alone := sorted(folder.glob("*.safetensors"))) == 1:
        return alone[0]
    raise WeightsError(f"folder `{folder}` holds no weights: looked for {', '.join(f'`{n}`' for n in SINGLE_FILES)}")


def _header(file: Path) -> tuple[dict[str, dict[str, Any]], dict[str, str] | None]:
    """Entries of a safetensors header in the order of their data, and the metadata."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, HEADER_LIMIT):
            raise WeightsError(f"`{file}` is cut off within its header ({size} bytes): fetch it again")
        try:
            entries = json.loads(stream.read(length))
            metadata = entries.pop("__metadata__", None)
            ordered = dict(sorted(entries.items(), key=lambda item: tuple(item[1]["data_offsets"])))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightsError(f"`{file}` is no safetensors file: its header cannot be read") from error
    for name, entry in ordered.items():
        if 8 + length + entry["data_offsets"][1] > size:
            raise WeightsError(f"`{file}` is cut off within tensor `{name}` ({size} bytes): fetch it again")
    return ordered, metadata


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    entries, _ = _header(file)
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tensors.get_tensor(name) for name in entries}
    except SafetensorError as error:
        raise WeightsError(f"`{file}` is a damaged safetensors file: {error}") from error


def _read_pickled(file: Path, device: str = "cpu") -> dict[str, Tensor]:
    """``device`` "meta" reads names and shapes only."""
    try:
        # mapped into memory, a tensor is read when it is looked at; files of the old format cannot be
        state = torch.load(file, map_location=device, weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"`{file}` holds more than tensors, and reading it could run a program hidden in it: it is not opened",
            hint="if you trust it, this puts a file beside it that is read instead: "
            f"kandinsky convert {file} {file.with_suffix('.safetensors')} --trust-pickle",
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise WeightsError(f"`{file}` is damaged or cut off: fetch it again") from error
    tensors = tables(state)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise WeightsError(f"`{file}` is no table of tensors")
    return tensors


def tables(state: Any) -> dict[str, Any]:
    """What an unpickled file holds as one table: `state_dict` where it has one; tables in it joined with dots."""
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    return dict(_flattened(state))


def _flattened(state: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Tables in tables as one table: names are joined with dots, as in a network's own."""
    for name, value in state.items() if isinstance(state, dict) else ():
        if isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _expand_int8(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    expanded = {}
    for name, tensor in state.items():
        if name.endswith(INT8_SCALE):
            if name.removesuffix(INT8_SCALE) not in state:
                raise WeightsError(f"tensor `{name}` in `{path}` scales a tensor that is not there")
            continue
        if (scale := state.get(name + INT8_SCALE)) is not None:
            if scale.shape != tensor.shape[:1]:
                raise WeightsError(f"tensor `{name}{INT8_SCALE}` in `{path}` does not fit the rows of `{name}`")
            tensor = tensor.float() * scale.float().view(-1, *[1] * (tensor.dim() - 1))
        expanded[name] = tensor
    return expanded
