"""Reading weights, strictly: every tensor is present, has its shape, is finite, and nothing is left over.

Reads safetensors files, sharded safetensors with their index, Diffusers folders, and `.pt` files with
``weights_only=True``; no pickle is ever executed. Names are translated by a ``KeyMap``. This module and ``write`` are
the only code that opens weight files.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from kandinsky.errors import WeightsError
from kandinsky.files import listed
from kandinsky.ops.finite import is_finite
from kandinsky.printing import escaped
from kandinsky.weights import rows
from kandinsky.weights.header import read_header, shard_files
from kandinsky.weights.keymaps import IDENTITY, KeyMap
from kandinsky.weights.untrusted import reading, shown

PICKLED = (".pt", ".pth", ".bin", ".ckpt")
SINGLE_FILES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
INDEX_FILES = tuple(f"{name}.index.json" for name in SINGLE_FILES)
FOLDERS = ("transformer", "vae")
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# What wrappers leave in the names of a network's tensors: torch.compile, FSDP, checkpointing, PEFT.
_WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|base_layer)\.")
# What may stand before every name: of DistributedDataParallel, and of files made for other programs, which may hold
# further parts of a model.
_EVERYWHERE, _AMONG_OTHERS = "module.", "model.diffusion_model."
_Reader = Callable[[Path], dict[str, Tensor]]
_OTHERS = ("first_stage_model.", "cond_stage_model.", "conditioner.", "text_encoders.", "model_ema.", "vae.")


def read_state(path: Path) -> dict[str, Tensor]:
    """All tensors of a weight file or folder by name, in the file's order, on the host.

    Args:
        path: A `.safetensors` or `.pt` file, a `….index.json`, or a folder in the Diffusers layout (the folder with the
            weights, or the one that holds `transformer/`).

    Returns:
        Tensors in the types they are stored in; rows of small integers (``<name>.int8_scale`` beside ``<name>``, see
        ``rows.py``) as float32. Names are stripped of what wrappers add to them, see ``plain_names``.

    Raises:
        WeightsError: A file is missing or damaged; the message names it, and a tensor that is truncated or described
            wrongly.
    """
    return plain_names(read_stored(path), str(path))


def read_stored(path: Path) -> dict[str, Tensor]:
    """All tensors of a weight file or folder, under exactly the names in the file; see ``read_state``.

    Raises:
        WeightsError: A file is missing or damaged.
    """
    return _expanded(_merged(path, _read_safetensors, _read_pickled), path)


def read_meta(path: Path, *, stored: bool = False) -> dict[str, Tensor]:
    """The tensors of ``read_state`` on the meta device: names, shapes and types; no tensor is read.

    Args:
        path: As for ``read_state``.
        stored: Keep exactly the names in the file, as ``read_stored`` does.

    Returns:
        Tensors on the meta device by name.

    Raises:
        WeightsError: A file is missing or damaged.
    """
    state = _expanded(_merged(path, _meta_tensors, _describe_pickled), path)
    return state if stored else plain_names(state, str(path))


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors, from the headers alone.

    Raises:
        WeightsError: A file is missing or damaged.
    """
    return {name: tuple(tensor.shape) for name, tensor in read_meta(path).items()}


def read_metadata(path: Path) -> dict[str, str] | None:
    """The metadata of a safetensors header (of the first shard); None if there is none.

    Raises:
        WeightsError: The file is missing or damaged.
    """
    file = weight_files(path)[0]
    if file.suffix in PICKLED:
        return None
    metadata = read_header(file).metadata
    return None if metadata is None else dict(metadata)


def read_ranges(file: Path) -> tuple[bytes, list[tuple[int, int]]]:
    """The raw header of a safetensors file, and the byte range of each tensor in the file.

    Raises:
        WeightsError: The header is not valid.
    """
    header = read_header(file)
    return header.text, [(entry.begin, entry.end) for entry in header.entries.values()]


def load_into(net: nn.Module, path: Path, *, keymap: KeyMap | None = None, dtype: torch.dtype | None = None) -> None:
    """Give a network its weights, strictly; the network may be on the meta device.

    What is to have another type is read and converted tensor by tensor, so that main memory never holds the file beside
    the weights; tensors that stay as they are stored stay mapped from their file. (A pickled file is mapped whole.)

    Args:
        net: The network.
        path: As for ``read_state``.
        keymap: Names in the file ↔ names in the network; None if they are the same.
        dtype: Type for all floating tensors; None as stored.

    Raises:
        WeightsError: A tensor is missing, left over, of another shape or type, or not finite; the message has its name
            in the file. The network is then unchanged.
    """
    state = read_state(path) if dtype is None else _read_own(net, path, keymap or IDENTITY, dtype)
    assign_state(net, state, keymap=keymap, dtype=dtype, where=str(path))


def assign_state(
    net: nn.Module,
    state: dict[str, Tensor],
    *,
    keymap: KeyMap | None = None,
    dtype: torch.dtype | None = None,
    where: str = "the given tensors",
) -> None:
    """Give a network tensors that are already in memory, under their names in the file; see ``load_into``.

    Args:
        net: The network.
        state: The tensors.
        keymap: As for ``load_into``.
        dtype: As for ``load_into``.
        where: What to call their source in messages.

    Raises:
        WeightsError: The tensors do not fit, as for ``load_into``.
    """
    keymap = keymap or IDENTITY
    ours = check_state(net, state, keymap=keymap, where=where)
    for name, stored in ours.items():
        # every value is checked, which takes a tenth of the time of converting them
        converted = cast(keymap.to_official(name), stored, dtype, where)
        ours[name] = converted
    net.load_state_dict(made_tensors(net) | ours, strict=True, assign=True)


def check_state(
    net: nn.Module, state: dict[str, Tensor], *, keymap: KeyMap | None = None, where: str = "the given tensors"
) -> dict[str, Tensor]:
    """Check names, shapes and types of tensors, which may be on the meta device, against a network.

    Args:
        net: The network.
        state: Tensors under their names in the file.
        keymap: As for ``load_into``.
        where: What to call the file in messages.

    Returns:
        Those of the tensors that belong to the network, by our names.

    Raises:
        WeightsError: The tensors do not fit, as for ``load_into``.
    """
    keymap = keymap or IDENTITY
    ours = {keymap.to_ours(name): tensor for name, tensor in keymap.own(state).items()}
    check_shapes(net, {name: tuple(tensor.shape) for name, tensor in ours.items()}, keymap=keymap, where=where)
    expected = net.state_dict()
    for name, tensor in ours.items():
        if tensor.is_floating_point() != expected[name].is_floating_point():
            needed = "floating-point" if expected[name].is_floating_point() else "whole"
            raise WeightsError(
                f"tensor `{keymap.to_official(name)}` in `{where}` holds {dtype_name(tensor.dtype)}, the network needs "
                f"{needed} numbers: the file is damaged or not of this model"
            )
    return ours


def check_file(net: nn.Module, path: Path, *, keymap: KeyMap | None = None) -> None:
    """Check a weight file against a network, which may be on the meta device, by its header alone.

    Raises:
        WeightsError: The file is damaged, or its tensors do not fit, as for ``load_into``.
    """
    check_state(net, read_meta(path), keymap=keymap, where=str(path))


def check_shapes(
    net: nn.Module, shapes: Mapping[str, tuple[int, ...]], *, keymap: KeyMap | None = None, where: str = "the manifest"
) -> None:
    """Compare a network with names (ours) and shapes.

    Tensors that a network can make itself (``made_tensors() -> dict``) may be absent from a file.

    Args:
        net: The network.
        shapes: Shapes by our names.
        keymap: As for ``load_into``.
        where: What to call the source of the shapes in messages.

    Raises:
        WeightsError: A tensor is missing, left over or of another shape.
    """
    keymap = keymap or IDENTITY
    expected = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    made = {name: tuple(tensor.shape) for name, tensor in made_tensors(net).items()}
    shapes = {**made, **shapes}
    complaints = [
        ("missing", [name for name in expected if name not in shapes], "is missing"),
        ("unexpected", [name for name in shapes if name not in expected], "belongs to no part of the network"),
    ]
    for kind, names, text in complaints:
        if names:
            more = f" ({len(names)} {kind} in all)" if len(names) > 1 else ""
            raise WeightsError(
                f"tensor `{shown(keymap.to_official(names[0]))}` {text}{more} in `{where}`: is it another model's file?"
            )
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise WeightsError(
                f"tensor `{keymap.to_official(name)}` in `{where}` has shape {list(shapes[name])}, "
                f"the network needs {list(shape)}: the file and the model's parameters do not belong together"
            )


def check_finite(state: Mapping[str, Tensor], where: str) -> None:
    """Refuse tensors that hold NaN or infinity; every value is checked.

    Args:
        state: Tensors by name.
        where: What to call the file in messages.

    Raises:
        WeightsError: A tensor is not finite; the message names the first.
    """
    for name, tensor in state.items():
        if not is_finite(tensor):
            raise _not_finite(name, where, None)


def cast(name: str, tensor: Tensor, dtype: torch.dtype | None, where: str) -> Tensor:
    """A tensor in another type, if its numbers are floating; None leaves it as it is.

    Raises:
        WeightsError: It is not finite, or has values too large for the type; the message has the name.
    """
    converted = tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)
    if not is_finite(converted):
        raise _not_finite(name, where, dtype if is_finite(tensor) else None)
    return converted


def made_tensors(net: nn.Module) -> dict[str, Tensor]:
    """Tensors that a network can make itself, so that a file may omit them."""
    make = getattr(net, "made_tensors", None)
    return {} if make is None else make()


def plain_names(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Tensors by the names their network has for them, without what wrappers and other programs add.

    Removed are `_orig_mod.`, `base_layer.` and the like anywhere in a name, and `module.` and `model.diffusion_model.`
    in front of all names; with the latter, other parts of a model (`first_stage_model.` …) are dropped as a whole.

    Args:
        state: Tensors by their names in a file.
        where: What to call the file in messages.

    Returns:
        Tensors by their plain names.

    Raises:
        WeightsError: Two names become the same.
    """
    names = {name: _WRAPPERS.sub("", name) for name in state}
    while names and all(name.startswith(_EVERYWHERE) for name in names.values()):
        names = {stored: name.removeprefix(_EVERYWHERE) for stored, name in names.items()}
    if any(name.startswith(_AMONG_OTHERS) for name in names.values()):
        names = {
            stored: name.removeprefix(_AMONG_OTHERS) for stored, name in names.items() if not name.startswith(_OTHERS)
        }
    plain: dict[str, Tensor] = {}
    for stored, name in names.items():
        if name in plain:
            raise WeightsError(f"tensor `{shown(stored)}` in `{escaped(where)}` stands in it twice, under two names")
        plain[name] = state[stored]
    return plain


def weight_files(path: Path) -> list[Path]:
    """The files that hold the tensors of ``path``.

    A pickled file that was converted is replaced by the safetensors file beside it.

    Args:
        path: As for ``read_state``.

    Returns:
        The files.

    Raises:
        WeightsError: A file is missing or is not a weight file.
    """
    if path.is_dir():
        path = _in_folder(path)
    if path.suffix in PICKLED and (converted := path.with_suffix(".safetensors")).is_file():
        path = converted
    if not path.is_file():
        raise WeightsError(f"weight file `{path}` is not there")
    if path.suffix != ".json":
        if path.suffix != ".safetensors" and path.suffix not in PICKLED:
            raise WeightsError(f"`{path}` is not a weight file: give a `.safetensors` or `.pt` file, or a folder")
        return [path]
    shards = shard_files(path)
    for shard in shards:
        if not shard.is_file():
            raise WeightsError(f"weight file `{shard}` is not there, but `{path.name}` lists it")
    return shards


def _in_folder(folder: Path) -> Path:
    for place in (folder, *(folder / name for name in FOLDERS)):
        for name in (*INDEX_FILES, *SINGLE_FILES):
            if (place / name).is_file():
                return place / name
    # official repositories have one file in `model/`, under a name of its own
    if len(alone := listed(folder, ".safetensors")) == 1:
        return alone[0]
    raise WeightsError(f"folder `{folder}` holds no weights: looked for {', '.join(f'`{n}`' for n in SINGLE_FILES)}")


def dtype_name(dtype: torch.dtype) -> str:
    """A type as people write it, `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def tables(state: Any) -> dict[str, Any]:
    """The contents of an unpickled file as one table: `state_dict` if it has one; nested tables joined with dots."""
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    return dict(_flattened(state))


def _not_finite(name: str, where: str, dtype: torch.dtype | None) -> WeightsError:
    """The error for a tensor that is not finite.

    ``dtype`` is the type whose range a value exceeds on conversion; None if the file itself is at fault.
    """
    if dtype is not None:
        return WeightsError(
            f"tensor `{shown(name)}` in `{escaped(where)}` has values too large for {dtype_name(dtype)}",
            hint="use bfloat16 or float32",
        )
    return WeightsError(f"tensor `{shown(name)}` in `{escaped(where)}` holds NaN or infinity: the file is damaged")


def _merged(path: Path, read: _Reader, read_pickled: _Reader) -> dict[str, Tensor]:
    """The tensors of all files of ``path``."""
    state: dict[str, Tensor] = {}
    for file in weight_files(path):
        part = read_pickled(file) if file.suffix in PICKLED else read(file)
        if twice := state.keys() & part.keys():
            raise WeightsError(
                f"tensor `{shown(min(twice))}` is in more than one file of `{path}`: fetch the files again"
            )
        state |= part
    return state


def _meta_tensors(file: Path) -> dict[str, Tensor]:
    entries = read_header(file).entries
    return {name: torch.empty(e.shape, dtype=DTYPES[e.dtype], device="meta") for name, e in entries.items()}


def _read_own(net: nn.Module, path: Path, keymap: KeyMap, dtype: torch.dtype) -> dict[str, Tensor]:
    """Those tensors of a file that a network takes, in the type it is to have, under their plain names.

    Raises:
        WeightsError: A file is missing or damaged, or its tensors do not fit the network.
    """
    described = read_meta(path, stored=True)
    plain = plain_names(described, str(path))
    check_state(net, plain, keymap=keymap, where=str(path))
    own = {_storage(tensor) for tensor in keymap.own(plain).values()}
    stored = {_storage(tensor): name for name, tensor in described.items()}
    names = {stored[place] for place in own}
    read = _expanded(_merged(path, partial(_read_converted, names=names, dtype=dtype), _read_pickled), path)
    return {name: read[stored[_storage(tensor)]] for name, tensor in plain.items() if _storage(tensor) in own}


def _storage(tensor: Tensor) -> int:
    """What tells the memory of a tensor from that of others, for tensors on the meta device too."""
    return int(tensor.untyped_storage()._cdata)


def _read_converted(file: Path, *, names: Collection[str], dtype: torch.dtype) -> dict[str, Tensor]:
    """Some tensors of a file, those of floating numbers in the given type; rows of integers stay as they are."""
    entries = read_header(file).entries
    own = {name: entry for name, entry in entries.items() if rows.plain_name(name) in names}
    changed = {
        name: entry
        for name, entry in own.items()
        if DTYPES[entry.dtype] is not dtype
        and DTYPES[entry.dtype].is_floating_point
        and not name.endswith(rows.SUFFIXES)
    }
    # one for all, since fresh memory takes as long as reading
    raw = torch.empty(max((entry.end - entry.begin for entry in changed.values()), default=0), dtype=torch.uint8)
    found: dict[str, Tensor] = {}
    with reading(file, "is a damaged safetensors file"), file.open("rb") as stream, safe_open(file, "pt") as mapped:
        for name, entry in own.items():
            if name not in changed:
                found[name] = mapped.get_tensor(name)
                continue
            size = entry.end - entry.begin
            stream.seek(entry.begin)
            if stream.readinto(raw[:size].numpy().data) != size:
                raise WeightsError(f"`{escaped(file)}` is cut off within tensor `{shown(name)}`: fetch it again")
            found[name] = cast(name, raw[:size].view(DTYPES[entry.dtype]).reshape(entry.shape), dtype, str(file))
    return found


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    entries = read_header(file).entries
    with reading(file, "is a damaged safetensors file"), safe_open(file, framework="pt") as tensors:
        return {name: tensors.get_tensor(name) for name in entries}


def _read_pickled(file: Path, device: str = "cpu") -> dict[str, Tensor]:
    """Read a `.pt` file; ``device`` "meta" reads names and shapes only."""
    with reading(file, "is damaged or cut off, fetch it again"):
        try:
            # mapped into memory, a tensor is read when it is accessed; files of the old format cannot be mapped
            state = torch.load(file, map_location=device, weights_only=True, mmap=zipfile.is_zipfile(file))
        except pickle.UnpicklingError as error:
            raise WeightsError(
                f"`{file}` holds more than tensors, and reading it could run a program hidden in it: it is not opened",
                hint="if you trust it, this puts a file beside it that is read instead: "
                f"kandinsky convert {file} {file.with_suffix('.safetensors')} --trust-pickle",
            ) from error
        tensors = tables(state)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise WeightsError(f"`{file}` is not a table of tensors")
    for name, tensor in tensors.items():
        # a view may claim any number of values beyond those stored
        if tensor.layout is not torch.strided or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise WeightsError(f"tensor `{shown(name)}` in `{file}` is not stored whole: only plain tensors are read")
    return tensors


def _describe_pickled(file: Path) -> dict[str, Tensor]:
    """Names, shapes and types of a `.pt` file. They stand in a program, which takes long to go through: once a file."""
    try:
        state = file.stat()
    except OSError:
        return _read_pickled(file, device="meta")  # whose message says what is wrong
    return dict(_described(file, (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)))


@lru_cache(maxsize=16)
def _described(file: Path, version: tuple[int, ...]) -> dict[str, Tensor]:
    return _read_pickled(file, device="meta")


def _flattened(state: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested tables as one table: names are joined with dots, as in a network's own."""
    for name, value in state.items() if isinstance(state, dict) else ():
        if isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _expanded(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Tensors without those that only scale others; see ``rows.py``."""
    found = {}
    for name, tensor in state.items():
        if name.endswith(rows.SUFFIXES):
            if rows.plain_name(name) not in state:
                raise WeightsError(f"tensor `{shown(name)}` in `{path}` scales a tensor that is not there")
            continue
        if (stored := rows.scale_of(name, state)) is not None:
            bits, scale = stored
            if not rows.fits(tensor, scale, bits):
                kind = "xz" if bits == rows.XZ else f"int{bits}"
                raise WeightsError(
                    f"tensor `{shown(name)}.{kind}_scale` in `{path}` does not fit the rows of `{shown(name)}`"
                )
            try:
                tensor = rows.expanded(tensor, scale, bits)
            except ValueError as error:
                raise WeightsError(f"tensor `{shown(name)}` in `{path}` cannot be read: {error}") from None
        found[name] = tensor
    return found
