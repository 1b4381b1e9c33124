"""Which LoRAs a model has, which of them are on and at what scale; applied to the network whenever it is held.

A set is plain data. ``apply`` brings a network to what the set says and does nothing if that is so already; a network
that was read again, because an offload mode had freed it, simply gets everything once more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from kandinsky.errors import RequestError
from kandinsky.ops.lora import LowRank, attach, detach, fuse, restore
from kandinsky.weights.keymaps import IDENTITY, KeyMap
from kandinsky.weights.lora import Lora, LoraConfig, Shapes, read_lora
from kandinsky.weights.lora_files import LoraSpecs, find_loras, locate_lora, name_of

State = tuple[tuple[tuple[str, float], ...], bool]


@dataclass(slots=True)
class _Applied:
    """The LoRAs currently in a network; ``originals`` are weights from before fusing."""

    state: State = ((), False)
    loras: tuple[Lora, ...] = ()
    originals: dict[str, Tensor] = field(default_factory=dict)


class Adapters:
    """The LoRAs of one model, by name.

    Args:
        model: Its name, for messages.
        layers: Returns (outputs, inputs) of its linear layers, called when needed.
        keymap: Official names of the layers ↔ ours.
        quantised: Scheme of its quantised weights; empty if they are not.
    """

    def __init__(
        self, model: str, layers: Callable[[], Shapes], *, keymap: KeyMap = IDENTITY, quantised: str = ""
    ) -> None:
        self.model = model
        self.keymap = keymap
        self.quantised = quantised
        self._layers = layers
        self._shapes: Shapes | None = None
        self._loaded: dict[str, Lora] = {}
        self._scales: dict[str, float] = {}
        self.is_fused = False
        self._networks: WeakKeyDictionary[nn.Module, _Applied] = WeakKeyDictionary()

    @property
    def layers(self) -> Shapes:
        """(outputs, inputs) of each linear layer of the network."""
        if self._shapes is None:
            self._shapes = self._layers()
        return self._shapes

    @property
    def names(self) -> tuple[str, ...]:
        """All that are loaded, on or off."""
        return tuple(self._loaded)

    @property
    def scales(self) -> dict[str, float]:
        """Those that are on, with their scales."""
        return dict(self._scales)

    @property
    def trigger(self) -> str:
        """Text in front of every prompt: the trigger phrases of the active LoRAs, in order.

        Source: official ``load_adapter``; no separator, as there. Quirk of the official code that is not kept: there
        triggers were added to expanded prompts only.
        """
        return "".join(self._loaded[name].trigger for name in self._scales)

    def load(
        self,
        source: str | Path,
        *,
        name: str | None = None,
        scale: float = 1.0,
        config: LoraConfig | None = None,
        trigger: str | None = None,
    ) -> str:
        """Read a LoRA and switch it on in addition to those that are on.

        Args:
            source: File, folder or Hugging Face repository (which is not downloaded here).
            name: What to call it; the name of the file or folder by default.
            scale: 1 is as trained.
            config: What scales it, in place of the file beside it.
            trigger: Its trigger phrase, in place of the header's.

        Returns:
            Its name.

        Raises:
            WeightsError: A tensor does not fit; the message names it.
            RequestError: The name is already in use.
        """
        found = locate_lora(source)
        # a recipe must find it again from any folder; a repository is found by its name
        shown = str(found.absolute()) if Path(source).expanduser().exists() else str(source)
        lora = read_lora(
            found, self.layers, model=self.model, config=config, keymap=self.keymap, name=name or "", source=shown
        )
        return self.add(lora if trigger is None else replace(lora, trigger=trigger), scale=scale)

    def add(self, lora: Lora, *, scale: float = 1.0) -> str:
        """Add a LoRA and switch it on in addition to those that are on.

        Returns:
            Its name.

        Raises:
            RequestError: The name is already in use, or the scale is not a finite number.
        """
        if lora.name in self._loaded:
            raise RequestError(f"a LoRA named `{lora.name}` is loaded already: unload it, or give another `name`")
        checked = _scale(lora.name, scale)
        self._loaded[lora.name] = lora
        self._scales[lora.name] = checked
        return lora.name

    def set(self, scales: Mapping[str, float]) -> None:
        """Switch exactly these on; all others off.

        Raises:
            RequestError: A name is not loaded, or a scale is not a finite number.
        """
        for name in scales:
            self._known(name)
        self._scales = {name: _scale(name, scale) for name, scale in scales.items()}

    def remove(self, name: str | None = None) -> None:
        """Unload one, or all.

        Raises:
            RequestError: The name is not loaded.
        """
        for one in self.names if name is None else (self._known(name),):
            del self._loaded[one]
            self._scales.pop(one, None)

    def fuse(self, on: bool = True) -> None:
        """Add the LoRAs that are on to the weights themselves from now on (or no longer).

        Raises:
            RequestError: The weights are quantised; nothing has changed then.
        """
        if on and self.quantised:
            raise RequestError(
                f"the weights of `{self.model}` are quantised (`{self.quantised}`), so no LoRA can be fused into them: "
                "leave them unfused, or load the model without `quantize`"
            )
        self.is_fused = on

    def recipe(self) -> list[dict[str, Any]]:
        """The LoRAs that are on, as a result's recipe lists them."""
        return [
            {"name": name, "scale": scale, "source": self._loaded[name].source, "sha256": self._loaded[name].sha256}
            for name, scale in self._scales.items()
        ]

    def apply(self, net: nn.Module, *, dtype: torch.dtype | None = None) -> None:
        """Bring a network to exactly the LoRAs that are on.

        Args:
            net: The network.
            dtype: The compute type, if it may differ from that of the weights.

        Raises:
            BackendError: The network is quantised and is to be fused.
        """
        chosen = {name: scale for name, scale in self._scales.items() if scale != 0}
        wanted: State = (tuple(chosen.items()), self.is_fused and bool(chosen))
        loras = tuple(self._loaded[name] for name in chosen)
        applied = self._networks.get(net, _Applied())
        # the same name may refer to another file by now
        if applied.state == wanted and all(a is b for a, b in zip(applied.loras, loras, strict=True)):
            return
        if applied.originals:
            restore(net, applied.originals)
        detach(net)
        self._networks[net] = _Applied()
        updates: dict[str, list[tuple[LowRank, float]]] = {}
        for lora, scale in zip(loras, chosen.values(), strict=True):
            for layer, update in lora.updates.items():
                updates.setdefault(layer, []).append((update, scale))
        originals: dict[str, Tensor] = {}
        if self.is_fused and updates:
            originals = fuse(net, updates, home=torch.device("cpu"), dtype=dtype)
        else:
            attach(net, updates, dtype=dtype)
        self._networks[net] = _Applied(wanted, loras, originals)

    def _known(self, name: str) -> str:
        if name not in self._loaded:
            loaded = ", ".join(f"`{n}`" for n in self._loaded) or "none"
            raise RequestError(f"no LoRA named `{name}` is loaded: loaded are {loaded}")
        return name


def load_loras(adapters: Adapters, specs: LoraSpecs | None) -> None:
    """Load each of ``specs``; if two would have the same name, the later one gets a number.

    Raises:
        RequestError: A spec is not valid.
        WeightsError: A LoRA is not on this machine, or does not fit.
    """
    for found, source, scale in find_loras(specs):
        base = name = name_of(found / "lora.safetensors" if found.is_dir() else found)
        number = 1
        while name in adapters.names:
            number += 1
            name = f"{base}-{number}"
        adapters.load(source, name=name, scale=scale)


def _scale(name: str, scale: float) -> float:
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise RequestError(f"scale `{scale}` of LoRA `{name}` must be a finite number: 1 is as trained, 0 is off")
    return float(scale)
