"""The models of a worker: loaded when they are first needed, the least recently used one unloaded when room is needed.

LoRAs are switched on a loaded model; nothing is read again for it but the LoRA's own file, once.
"""

from __future__ import annotations

import gc
import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from kandinsky.engine.options import RunOptions
from kandinsky.errors import RequestError
from kandinsky.files import inside, listed
from kandinsky.printing import escaped
from kandinsky.weights.lora_files import parse_spec

if TYPE_CHECKING:
    from kandinsky.engine.pipeline import GenerationPipeline, VideoToAudioPipeline

    Pipeline: TypeAlias = GenerationPipeline | VideoToAudioPipeline

log = logging.getLogger(__name__)
LORAS_KEPT = 8  # of each model, read but possibly off
ENDING = ".safetensors"


class Models:
    """Loaded models by name.

    Args:
        options: How they run.
        memory: Most bytes of weights kept at once; None = as many models as are asked for. The model that is needed is
            always loaded.
        loras: Folder with the LoRAs that requests may name.
    """

    def __init__(self, options: RunOptions, *, memory: int | None = None, loras: Path | None = None) -> None:
        self.options = options
        self.memory = memory
        self.loras = loras
        self._loaded: OrderedDict[str, Pipeline] = OrderedDict()

    @property
    def names(self) -> tuple[str, ...]:
        """Those that are loaded; the last one was used last."""
        return tuple(self._loaded)

    @property
    def bytes(self) -> int:
        """Bytes of all weights in memory."""
        return sum(pipe.placement.bytes for pipe in self._loaded.values())

    def has(self, name: str) -> bool:
        return name in self._loaded

    def get(self, name: str) -> Pipeline:
        """A model, loaded if it is not.

        Raises:
            RequestError: An option does not suit it.
            WeightsError: A file is missing or broken.
            BackendError: A device or package is not available.
        """
        from kandinsky.catalogue import open_model, source_of
        from kandinsky.weights.locate import card_bytes

        if name not in self._loaded:
            source = source_of(name)
            self._make_room(card_bytes(source.card))
            options = self.options
            if source.card.does.makes == "sound":  # an audio model takes fewer options
                options = RunOptions(
                    device=options.device,
                    dtype=options.dtype,
                    offload=options.offload,
                    trust_remote_code=options.trust_remote_code,
                )
            self._loaded[name] = open_model(source, options)
        self._loaded.move_to_end(name)
        return self._loaded[name]

    def keep_only(self, name: str) -> bool:
        """Unload all others; False if there were none."""
        others = [one for one in self._loaded if one != name]
        for one in others:
            self._unload(one)
        return bool(others)

    def _make_room(self, needed: int) -> None:
        while self.memory is not None and self._loaded and self.bytes + needed > self.memory:
            self._unload(next(iter(self._loaded)))

    def _unload(self, name: str) -> None:
        import torch

        log.info("model `%s` is unloaded", name)
        del self._loaded[name]
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @contextmanager
    def switched(self, pipe: Pipeline, loras: Sequence[str], attention: str | None) -> Iterator[None]:
        """Switch a model to the LoRAs and the attention of a request, for the duration of a `with` block.

        Args:
            pipe: The model.
            loras: `NAME` or `NAME:SCALE` each, in addition to those of ``RunOptions.lora``.
            attention: As in ``RunOptions``; None = as loaded.

        Raises:
            RequestError: There is no LoRA of this name, or it is for another model.
            WeightsError: A LoRA does not fit.
        """
        adapters, before = pipe.adapters, pipe.adapters.scales
        attention_before = pipe.context.attention
        try:
            if loras:
                scales = dict(before)
                for spec in loras:
                    name, scale = parse_spec(spec)
                    if name not in adapters.names:
                        pipe.load_lora(self.find_lora(name), name=name)
                    scales[name] = scale
                pipe.set_lora(scales)
            if attention is not None:
                pipe.context.attention = attention
            yield
        finally:
            pipe.set_lora(before)
            pipe.context.attention = attention_before
            spare = [name for name in adapters.names if name not in before]
            for name in spare[: max(0, len(spare) - LORAS_KEPT)]:
                pipe.unload_lora(name)

    def find_lora(self, name: str) -> Path:
        """The file or folder of a LoRA; see ``lora_names``."""
        return find_lora(self.loras, name)


def lora_names(folder: Path | None) -> list[str]:
    """Names of the LoRAs in a folder: files without `.safetensors`, and folders."""
    if folder is None or not folder.is_dir():
        return []
    return sorted(
        path.name.removesuffix(".safetensors")
        for path in folder.iterdir()
        if not path.name.startswith(".") and (path.is_dir() or path.suffix == ".safetensors")
    )


def find_lora(folder: Path | None, name: str) -> Path:
    """The file or folder of a LoRA.

    Raises:
        RequestError: There is none of this name.
    """
    known = lora_names(folder)
    if folder is None or name not in known:
        raise RequestError(f"there is no LoRA `{name}` here: {_listed(known)}")
    path = inside(folder, name)
    return path if path.is_dir() else inside(folder, f"{name}.safetensors")


def branch_names(folder: Path | None) -> list[str]:
    """Names of the branches in a folder: files without `.safetensors`."""
    return [] if folder is None else [path.name.removesuffix(ENDING) for path in listed(folder, ENDING)]


def find_branch(folder: Path | None, name: str) -> Path:
    """The file of a branch.

    Raises:
        RequestError: There is none of this name.
    """
    known = branch_names(folder)
    if folder is None or name not in known:
        raise RequestError(f"there is no branch `{escaped(name)}` here: {_listed(known)}")
    return inside(folder, f"{name}{ENDING}")


def _listed(known: Sequence[str]) -> str:
    return f"there are {', '.join(f'`{one}`' for one in known)}" if known else "this server has none"
