"""LoRA methods of a pipeline. Changes take effect with the next generation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kandinsky.model.checks import check_call
from kandinsky.runtime.adapters import Adapters
from kandinsky.weights.lora import LoraConfig


class LoraMethods:
    """Loading, switching, fusing and unloading LoRAs.

    Attributes:
        adapters: The LoRAs that are loaded.
    """

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
        """Load a LoRA and switch it on in addition to those that are on.

        Args:
            source: File, folder, or Hugging Face repository that `kandinsky download` has fetched.
            name: What to call it; the name of the file or folder by default.
            scale: 1 is as trained, 0 is off.
            config: α and rank, in place of the configuration beside the file.
            trigger: Text in front of every prompt while it is on; the one in the file's header by default.

        Returns:
            Its name.

        Raises:
            WeightsError: It does not fit this model; the message names the tensor.
            RequestError: The name is already in use.
        """
        return self.adapters.load(source, name=name, scale=scale, config=config, trigger=trigger)

    @check_call()
    def set_lora(self, scales: Mapping[str, float]) -> None:
        """Switch on exactly these LoRAs.

        Args:
            scales: Scale of each by name; ``{}`` switches all off.

        Raises:
            RequestError: A name is not loaded, or a scale is not a finite number.
        """
        self.adapters.set(scales)

    @check_call()
    def unload_lora(self, name: str | None = None) -> None:
        """Unload one LoRA or all; the weights are restored bit by bit.

        Args:
            name: Which one; None for all.

        Raises:
            RequestError: The name is not loaded.
        """
        self.adapters.remove(name)

    def fuse_lora(self) -> None:
        """Add the LoRAs that are on to the weights, so that they cost no time.

        Raises:
            RequestError: The model is quantised.
        """
        self.adapters.fuse()

    def unfuse_lora(self) -> None:
        """Remove them from the weights again, bit by bit; they stay on."""
        self.adapters.fuse(False)
