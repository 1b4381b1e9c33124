"""The only place that unpickles: `kandinsky convert --trust-pickle`, after a person allowed it; nothing else does."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor

from kandinsky.errors import RequestError, WeightsError
from kandinsky.weights.read import PICKLED, tables
from kandinsky.weights.write import write_state


def convert_trusted(source: Path, target: Path) -> tuple[Path, list[str]]:
    """Convert a pickled file to safetensors; everything in it that is not a tensor is dropped.

    EXECUTES CODE FROM THE FILE: only for files from a source you trust.

    Args:
        source: The pickled file.
        target: The safetensors file to write.

    Returns:
        ``target``, and the names of what was dropped.

    Raises:
        RequestError: A file name has the wrong suffix, or the target cannot be written.
        WeightsError: The file is damaged or holds no tensor.
    """
    if source.suffix not in PICKLED:
        raise RequestError(f"`{source}` is not a pickled file: those end in {', '.join(PICKLED)}")
    if target.suffix != ".safetensors":
        raise RequestError(f"target `{target}` must end in `.safetensors`")
    if not source.is_file():
        raise WeightsError(f"weight file `{source}` is not there")
    try:
        entries = tables(torch.load(source, map_location="cpu", weights_only=False))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError, ImportError, AttributeError) as error:
        raise WeightsError(f"`{source}` cannot be unpickled: {error}") from error
    tensors = {name: value.detach().contiguous() for name, value in entries.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"`{source}` holds no tensor in its tables")
    return write_state(tensors, target), sorted(set(entries) - set(tensors))
