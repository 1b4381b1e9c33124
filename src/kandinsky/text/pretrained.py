"""Models and tokenizers of transformers, read from local folders, strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from kandinsky.errors import WeightsError
from kandinsky.weights.read import read_shapes


def read_model(cls: Any, folder: Path, dtype: torch.dtype, *, may_be_left_over: tuple[str, ...] = ()) -> nn.Module:
    """A model of transformers from a local folder, strictly, on the host; nothing is fetched or executed.

    Args:   may_be_left_over: beginnings of tensor names that the file may hold besides.
    Raises: WeightsError naming the folder, and the tensor that is missing, left over or cut off.
    """
    read_shapes(folder)  # names a tensor that is cut off, before any is read
    try:
        model, report = cls.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise WeightsError(f"`{folder}` cannot be read as {cls.__name__}: {first_line(error)}") from error
    left_over = [key for key in report["unexpected_keys"] if not key.startswith(may_be_left_over)]
    for keys, text in ((report["missing_keys"], "is missing in"), (left_over, "belongs to no part of the network, in")):
        if keys:
            raise WeightsError(f"tensor `{sorted(keys)[0]}` {text} `{folder}` ({len(keys)} such for {cls.__name__})")
    return model


def read_tokenizer(cls: Any, folder: Path) -> Any:
    """A tokenizer of transformers from a local folder. Raises: WeightsError."""
    try:
        return cls.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise WeightsError(f"`{folder}` holds no tokenizer: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """What another library's error says, in one line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
