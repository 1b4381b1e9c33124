"""The official LoRA methods of the text-to-video and image-to-video pipelines.

Faults of the official code that are corrected: triggers apply with and without prompt expansion, a list of names may be
switched on, and weights that lie beside their configuration need no path of their own.
Source: kandinskylab/kandinsky-5@6e2a805, kandinsky/t2v_pipeline.py, load_adapter, set_adapter, disable_adapters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky.errors import RequestError

if TYPE_CHECKING:
    from kandinsky.engine.pipeline import GenerationPipeline
    from kandinsky.weights.lora import LoraConfig

DEFAULT_NAME = "default"


class OfficialAdapters:
    """``load_adapter``, ``set_adapter`` and ``disable_adapters``, with the official signatures."""

    pipeline: GenerationPipeline

    def load_adapter(
        self,
        adapter_config: Any,
        adapter_path: str | None = None,
        adapter_name: str | None = None,
        trigger: str | None = None,
    ) -> None:
        """Load a LoRA and switch it on alone.

        Args:
            adapter_config: A ``peft.PeftConfig``, or the path of a JSON file with its keys.
            adapter_path: The weights; those beside the JSON file if omitted.
            adapter_name: What to call it; `default` if omitted.
            trigger: Text in front of each prompt; the one in the file's header if omitted.

        Raises:
            TypeError: The configuration is of another kind.
            RequestError: The name is already in use (also a ``ValueError``), or the path is missing.
            WeightsError: It does not fit; the message names the tensor.
        """
        from kandinsky.weights.lora_files import find_files

        name = adapter_name or DEFAULT_NAME
        config = _config(adapter_config)
        if adapter_path is None:
            if not isinstance(adapter_config, str | Path):
                raise RequestError(
                    "load_adapter needs `adapter_path`: a configuration alone does not say where it lies"
                )
            adapter_path = str(find_files(Path(adapter_config).expanduser().parent)[0])
        adapters = self.pipeline.adapters
        adapters.load(adapter_path, name=name, config=config, trigger=trigger)
        adapters.set({name: 1.0})

    def set_adapter(self, adapter_name: str | Iterable[str]) -> None:
        """Switch on one loaded LoRA, or several; all others off.

        Args:
            adapter_name: Its name, or several.

        Raises:
            RequestError: A name is not loaded (also a ``ValueError``).
        """
        self._need_one("set_adapter")
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        self.pipeline.adapters.set(dict.fromkeys(names, 1.0))

    def disable_adapters(self) -> None:
        """Switch all off; ``set_adapter`` brings them back.

        Raises:
            RequestError: None is loaded.
        """
        self._need_one("disable_adapters")
        self.pipeline.adapters.set({})

    def _need_one(self, method: str) -> None:
        if not self.pipeline.adapters.names:
            raise RequestError(f"{method} needs a loaded adapter: call load_adapter first")


def _config(given: Any) -> LoraConfig:
    from kandinsky.weights.lora import LoraConfig, read_config

    if isinstance(given, str | Path):
        return read_config(Path(given).expanduser())
    if not hasattr(given, "to_dict") or not isinstance(values := given.to_dict(), Mapping):
        raise TypeError(f"adapter_config is a `{type(given).__name__}`: give a peft.PeftConfig or the path of its JSON")
    return LoraConfig.from_dict(values, where=type(given).__name__)
