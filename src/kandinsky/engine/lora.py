"""What a pipeline offers for LoRAs. Which are on takes effect with the next generation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kandinsky.model.checks import check_call
from kandinsky.runtime.adapters import Adapters
from kandinsky.weights.lora import LoraConfig


class LoraMethods:
    """Loading, switching, fusing and unloading. ``adapters`` holds what is loaded."""

    adapters: Adapters

    @check_call()
    def load_lora(
        self,
        source: str | Path,
        *,
        name: str | None = None,
        scale: float = 1.0,
        config: LoraConfig | None = None,
        trigger: str | None = None,
    ) -> str:
        """Read a LoRA and switch it on beside those that are on.

        Args:    source: file, folder, or Hugging Face repository that `kandinsky download` has fetched.
                 name: to speak of it by; the file's or folder's when not given.   scale: 1 is as trained, 0 is off.
                 config: α and rank, in the place of the configuration beside the file.
                 trigger: text in front of every prompt while it is on; what the file's header says when not given.
        Returns: its name.
        Raises:  WeightsError naming the tensor where it does not fit this model; RequestError for a name that is taken.
        """
        return self.adapters.load(source, name=name, scale=scale, config=config, trigger=trigger)

    @check_call()
    def set_lora(self, scales: Mapping[str, float]) -> None:
        """Switch exactly these on, at these scales; ``{}`` switches all off. Raises: RequestError."""
        self.adapters.set(scales)

    @check_call()
    def unload_lora(self, name: str | None = None) -> None:
        """Unload one, or all; the weights are what they were before, to the last bit. Raises: RequestError."""
        self.adapters.remove(name)

    def fuse_lora(self) -> None:
        """Add what is on to the weights, so that it costs no time. Raises: RequestError for a quantised model."""
        self.adapters.fuse()

    def unfuse_lora(self) -> None:
        """Take it out of the weights again, to the last bit; it stays on."""
        self.adapters.fuse(False)
