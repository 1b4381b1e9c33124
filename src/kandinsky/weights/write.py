"""Writing weights: an official single file, or a Diffusers folder, each file atomically.

The safetensors format is serialised here because order matters: what ``read`` read is written back byte for byte,
metadata included. (safetensors' own writer sorts tensors and keeps metadata in a hash map.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kandinsky.errors import RequestError
from kandinsky.files import replacing
from kandinsky.weights import rows
from kandinsky.weights.read import DTYPES, INDEX_FILES, SINGLE_FILES

SHARD_BYTES = 10_000_000_000  # Diffusers' default
ALIGNMENT = 8
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_state(
    state: Mapping[str, Tensor],
    path: Path,
    *,
    layout: str = "official",
    metadata: Mapping[str, str] | None = None,
    int8: Collection[str] = (),
    int6: Collection[str] = (),
    int5: Collection[str] = (),
    int4: Collection[str] = (),
    xz: Mapping[str, Tensor] | None = None,
    config: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write tensors under their names, in their order.

    Args:
        state: The tensors.
        path: The file for "official"; for "diffusers" the folder that gets `config.json` and the weights.
        layout: "official" or "diffusers".
        metadata: Text for the header.
        int8: Names or patterns (`*.weight`) of tensors stored as int8 rows with one float32 scale per row.
        int6: The same of matrices stored with six bits a number, unless they are among the ones before.
        int5: With five.
        int4: With four.
        xz: Scales of columns by the names of matrices of their whole multiples, which are stored compressed.
        config: Contents of `config.json` ("diffusers" only).
        shard_bytes: Larger Diffusers weights are split into several files with an index.

    Returns:
        ``path``.

    Raises:
        RequestError: The layout is unknown, safetensors has no such type, or the file cannot be written.
    """
    tensors = _packed(state, {8: int8, 6: int6, 5: int5, 4: int4}, xz or {})
    if layout == "official":
        _write_file(path, tensors, metadata)
    elif layout == "diffusers":
        _write_folder(path, tensors, metadata, config or {}, shard_bytes)
    else:
        raise RequestError(f"unknown layout `{layout}`: use `official` or `diffusers`")
    return path


def write_tensors(
    path: Path,
    described: Mapping[str, Tensor],
    make: Callable[[str], Tensor],
    *,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a file whose tensors are made one after another, so that one at a time is in memory.

    Args:
        path: The file.
        described: Types and shapes by name, as tensors on the meta device.
        make: Gives the tensor of a name, of that type and shape.
        metadata: Text for the header.

    Returns:
        ``path``.

    Raises:
        RequestError: As ``write_state``.
    """
    _write_file(path, described, metadata, make)
    return path


def _write_folder(
    folder: Path,
    state: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None,
    config: Mapping[str, Any],
    shard_bytes: int,
) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    room = shard_bytes
    for name, tensor in state.items():
        if tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = tensor
        room -= tensor.nbytes
    stem = SINGLE_FILES[0].removesuffix(".safetensors")
    if len(shards) == 1:
        _write_file(folder / SINGLE_FILES[0], shards[0], metadata)
    else:
        weight_map: dict[str, str] = {}
        for i, shard in enumerate(shards, start=1):
            name = f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors"
            _write_file(folder / name, shard, metadata)
            weight_map |= dict.fromkeys(shard, name)
        index = {"metadata": {"total_size": sum(t.nbytes for t in state.values())}, "weight_map": weight_map}
        _replace(folder / INDEX_FILES[0], [_pretty(index)])
    _replace(folder / "config.json", [_pretty(config)])


def _write_file(
    path: Path,
    state: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None,
    make: Callable[[str], Tensor] | None = None,
) -> None:
    _replace(path, serialised(state, metadata, make))


def serialised(
    state: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    make: Callable[[str], Tensor] | None = None,
) -> Iterator[bytes | Tensor]:
    """A safetensors file in pieces, one behind the other; ``raw`` gives the bytes of a piece.

    Args:
        state: The tensors; of those that ``make`` makes, types and shapes are looked at.
        metadata: Text for the header.
        make: Makes each tensor when its turn comes.

    Raises:
        RequestError: safetensors has no such type.
    """
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in state.items():
        if tensor.dtype not in DTYPE_NAMES:
            raise RequestError(f"tensor `{name}` has type {tensor.dtype}, which safetensors cannot hold")
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    yield len(text).to_bytes(8, "little")
    yield text
    yield from state.values() if make is None else map(make, state)


def _replace(path: Path, pieces: Iterable[bytes | Tensor]) -> None:
    """Replace a file atomically by the concatenation of ``pieces``."""
    with replacing(path) as beside, beside.open("wb") as stream:
        for piece in pieces:
            stream.write(raw(piece))


def raw(piece: bytes | Tensor) -> Any:
    """The bytes of a tensor, without a copy where it is contiguous on the host."""
    if isinstance(piece, bytes):
        return piece
    flat = piece.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""


def _pretty(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()


def _packed(
    state: Mapping[str, Tensor], patterns: Mapping[int, Collection[str]], scales: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    stored: dict[str, Tensor] = {}
    for name, tensor in state.items():
        chosen = [bits for bits, names in patterns.items() if any(fnmatchcase(name, one) for one in names)]
        kind = "xz columns" if name in scales else f"int{max(chosen)} rows" if chosen else ""
        try:
            if name in scales:
                stored[name] = rows.compressed(tensor, scales[name])
                stored[f"{name}.xz_scale"] = scales[name].detach().float()
            elif chosen:
                stored[name], stored[f"{name}.int{max(chosen)}_scale"] = rows.packed(tensor, max(chosen))
            else:
                stored[name] = tensor
        except ValueError as error:
            raise RequestError(f"tensor `{name}` cannot be stored as {kind}: {error}") from error
    return stored
