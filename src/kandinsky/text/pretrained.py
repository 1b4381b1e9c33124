"""Models and tokenizers of transformers and tokenizers, read from local folders: the only use of those libraries.

Nothing is downloaded. Program code in a folder runs only if the caller allows it, with no prompt on stdin.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from kandinsky.errors import WeightsError
from kandinsky.printing import escaped
from kandinsky.weights.read import check_finite, read_meta
from kandinsky.weights.untrusted import read_table, read_text, reading, shown

CONFIG = "config.json"
# files of a folder that may refer to program code, for models, tokenizers and image processors
_CODE_FILES = (CONFIG, "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
# keys of `config.json` that make transformers look elsewhere: kernels of a hub, other files, packing schemes, adapters
_ELSEWHERE = re.compile(
    r"_?(attn|experts)_implementation(_internal)?|transformers_weights|quantization_config|fusion_config"
)
_COUNTS = re.compile(r"depth|(num_)?(\w+_)?layers")
MOST_LAYERS = 1000
MOST_TIMES = 3  # a model may have this many times the numbers of its file: tied tables and tensors left over


def from_folder(cls: Any, folder: Path, *, trust_remote_code: bool = False, **options: Any) -> Any:
    """``cls.from_pretrained`` of a local folder; every such call in this library is made here.

    Args:
        cls: A class of transformers with ``from_pretrained``.
        folder: The local folder.
        trust_remote_code: Run the program code in the folder, if there is any. Never asked for on stdin.
        options: Passed on.

    Returns:
        What ``from_pretrained`` returns.

    Raises:
        WeightsError: The folder needs to run program code and may not, or leads elsewhere (to an adapter, a kernel or
            code of another repository).
    """
    _refuse_elsewhere(folder, trusts_code=trust_remote_code)
    try:
        return cls.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code, **options)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise _brings_code(folder) from error


def read_model(
    cls: Any,
    folder: Path,
    dtype: torch.dtype,
    *,
    types: Sequence[str],
    may_be_left_over: tuple[str, ...] = (),
    **options: Any,
) -> nn.Module:
    """Read a model of transformers from a local folder, strictly, on the host; nothing is downloaded or executed.

    Args:
        cls: The model's class.
        folder: Holds `config.json` and the weights.
        dtype: Type of all floating tensors.
        types: Allowed values of `model_type` in `config.json`.
        may_be_left_over: Prefixes of further tensors that the file may hold.
        options: Of the class' own, such as `add_pooling_layer`.

    Returns:
        The model.

    Raises:
        WeightsError: A tensor is missing, left over, truncated, of another shape or not finite; the message names it
            and the folder.
    """
    stored = read_meta(folder, stored=True)  # checks the headers before any tensor is read
    _check_config(cls, folder, types, sum(tensor.numel() for tensor in stored.values()))
    with reading(folder, f"cannot be read as {cls.__name__}"), _quiet():
        model, report = from_folder(
            cls,
            folder,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    left_over = [key for key in report["unexpected_keys"] if not key.startswith(may_be_left_over)]
    for keys, text in ((report["missing_keys"], "is missing in"), (left_over, "belongs to no part of the network, in")):
        if keys:
            raise WeightsError(f"tensor `{shown(min(keys))}` {text} `{folder}` ({len(keys)} such for {cls.__name__})")
    for name, has, needs in sorted(report["mismatched_keys"]):
        raise WeightsError(
            f"tensor `{shown(name)}` in `{folder}` has shape {list(has)}, {cls.__name__} needs {list(needs)} by "
            f"`{CONFIG}`: the files do not belong together"
        )
    check_finite(dict(model.named_parameters()), str(folder))
    out: nn.Module = model
    return out


def read_tokenizer(cls: Any, folder: Path) -> Any:
    """Read a tokenizer or image processor of transformers from a local folder.

    Raises:
        WeightsError: The folder does not hold one, or its files are damaged.
        BackendError: A package is missing.
    """
    with reading(folder, "holds no tokenizer"), _quiet():
        return from_folder(cls, folder)


def read_tokenizer_file(file: Path) -> Tokenizer:
    """Read a `tokenizer.json`, which may be compressed as `tokenizer.json.xz`.

    Raises:
        WeightsError: The file is absent or damaged.
    """
    if not file.is_file():
        raise WeightsError(f"tokenizer file `{escaped(file)}` is not there")
    with reading(file, "is no tokenizer"):
        return Tokenizer.from_str(read_text(file).decode("utf-8"))


def check_vocabulary(vocabulary: Mapping[str, int], rows: int, where: Path | str) -> None:
    """Refuse a tokenizer that numbers tokens beyond a model's embedding table.

    Args:
        vocabulary: The number of each token, as from ``get_vocab``.
        rows: Number of rows of the table.
        where: What to call the tokenizer in messages.

    Raises:
        WeightsError: A number is too large; the message names it and the table's size.
    """
    largest = max(vocabulary.values(), default=-1)
    if largest >= rows:
        raise WeightsError(
            f"the tokenizer in `{escaped(where)}` numbers words up to {largest}, the model knows {rows}: they do not "
            "belong together"
        )


def _check_config(cls: Any, folder: Path, types: Sequence[str], numbers: int) -> None:
    """Refuse a `config.json` of another model, or of one much larger than its file, before it is built in memory."""
    values = read_table(folder / CONFIG)
    kind = values.get("model_type")
    if kind not in types:
        if "auto_map" in values:
            raise _brings_code(folder)
        raise WeightsError(
            f"`{escaped(folder / CONFIG)}` describes a model of type `{shown(kind)}`: {cls.__name__} is "
            f"{' or '.join(f'`{name}`' for name in types)}"
        )
    _refuse_many_layers(values, folder)
    failure = f"has a `{CONFIG}` that makes no {cls.__name__}"
    with reading(folder, failure), _quiet():
        config = from_folder(cls.config_class, folder)
        with torch.device("meta"):
            needed = sum(parameter.numel() for parameter in cls._from_config(config).parameters())
    if needed > MOST_TIMES * numbers:
        raise WeightsError(
            f"`{escaped(folder / CONFIG)}` describes {needed:,} numbers, and the weights beside it are {numbers:,}: "
            "the files do not belong together"
        )


def _refuse_many_layers(values: Any, folder: Path) -> None:
    for key, value in values.items() if isinstance(values, dict) else ():
        if isinstance(value, dict):
            _refuse_many_layers(value, folder)
        elif _COUNTS.fullmatch(key) and isinstance(value, int | float) and value > MOST_LAYERS:
            raise WeightsError(f"`{escaped(folder / CONFIG)}` gives {key} as {value}: at most {MOST_LAYERS} are built")


def _refuse_elsewhere(folder: Path, *, trusts_code: bool) -> None:
    if (folder / "adapter_config.json").exists():
        raise WeightsError(f"`{escaped(folder)}` holds an adapter (`adapter_config.json`): give the model itself")
    for file in (folder / name for name in _CODE_FILES):
        if not file.is_file():
            continue
        values = read_table(file)
        for key, value in values.items():
            if _ELSEWHERE.fullmatch(key) and value not in (None, "eager", "sdpa"):
                raise WeightsError(f"`{escaped(file)}` has `{key}`, which is not supported: give the plain model")
        if trusts_code and "--" in str(values.get("auto_map", "")):
            raise WeightsError(f"`{escaped(file)}` names code of another repository: only the folder's own runs")


def _brings_code(folder: Path) -> WeightsError:
    return WeightsError(
        f"`{escaped(folder)}` describes a model by program code of its own (`auto_map`), which runs only with "
        "`trust_remote_code` and only for models that need it: give the folder of the model itself"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the reports that transformers prints about what does not fit: the error says it."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
