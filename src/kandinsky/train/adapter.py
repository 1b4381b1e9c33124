"""Adapters in training: LoRA, DoRA and LoKr through PEFT on any network, and the files they are written to.

The network keeps its class and its own code, so that the same ``bind`` serves it; PEFT wraps the linear layers that the
family names (``Part.adapts``) or the recipe does. Only the adapters' parameters require gradients, in float32 whatever
the type of the frozen weights.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kandinsky.errors import BackendError, RequestError
from kandinsky.ops.lora import LowRank, linear_layers
from kandinsky.printing import escaped
from kandinsky.runtime import quantise
from kandinsky.train.loop import seeded
from kandinsky.weights import lokr
from kandinsky.weights.keymaps import KeyMap
from kandinsky.weights.lora import Lora, write_lora

NAME = "default"  # of PEFT's adapter
Format = Literal["official", "peft", "diffusers", "comfyui", "kohya"]
_FILES: Mapping[str, str] = {  # below the run's folder
    "official": "lora",
    "peft": "peft",
    "diffusers": "diffusers/pytorch_lora_weights.safetensors",
    "comfyui": "comfyui/lora.safetensors",
    "kohya": "kohya/lora.safetensors",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSettings:
    """What is trained in the place of the network's own weights.

    Attributes:
        kind: `lora`; `dora`, which also learns the norm of each row of the updated weights; or `lokr`, Kronecker
            products of a small matrix and a low-rank one.
        rank: Of the updates.
        alpha: Updates are scaled by alpha / rank; the rank itself where absent, so 1.
        targets: Linear layers that get one: names or endings of names, `*` for any text; the family's where empty.
        dropout: Share of the adapters' inputs that is dropped.
        rank_stabilised: Scale by alpha / √rank.
        factor: Of `lokr`, the size of the small matrix; near the square root of the layer's where absent.
        trigger: Text in front of every caption, and of every prompt while the LoRA is on; stored in its file.
        base_dtype: Type of the frozen weights; `int8` needs torchao.
        formats: Files to write.
        dtype: Type of the tensors in them.
    """

    kind: Literal["lora", "dora", "lokr"] = "lora"
    rank: int = field(default=32, metadata={"least": 1, "most": 4096})
    alpha: float | None = field(default=None, metadata={"above": 0})
    targets: tuple[str, ...] = ()
    dropout: float = field(default=0.0, metadata={"least": 0, "most": 0.99})
    rank_stabilised: bool = False
    factor: int | None = field(default=None, metadata={"least": 1})
    trigger: str = ""
    base_dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    formats: tuple[Format, ...] = ("official",)
    dtype: Literal["bfloat16", "float32"] = "bfloat16"

    def __post_init__(self) -> None:
        if self.kind == "dora" and self.base_dtype == "int8":
            raise RequestError("adapter `dora` needs the norms of the frozen weights: use base_dtype `bfloat16`")
        if not self.formats:
            raise RequestError(f"adapter `formats` is empty: name some of {', '.join(_FILES)}")
        if self.kind != "lokr":
            if self.factor is not None:
                raise RequestError(f"adapter `factor` is for `lokr`, not for `{self.kind}`: leave it out")
            return
        if unfit := [one for one in self.formats if one not in lokr.STYLES]:
            raise RequestError(
                f"adapter `lokr`: format `{unfit[0]}` holds low-rank updates alone: give `formats`, some of "
                f"{', '.join(lokr.STYLES)}"
            )
        for name, default in (("dropout", 0.0), ("rank_stabilised", False)):
            if getattr(self, name) != default:
                raise RequestError(f"adapter `lokr` has no `{name}`: leave it out, or use `lora`")
        if self.base_dtype == "int8":
            raise RequestError("adapter `lokr` needs plain frozen weights: use base_dtype `bfloat16`")

    @property
    def scale(self) -> float:
        """What an update is multiplied with."""
        alpha = self.rank if self.alpha is None else self.alpha
        return alpha / (self.rank**0.5 if self.rank_stabilised else self.rank)


def targets(network: nn.Module, wanted: Sequence[str]) -> list[str]:
    """Linear layers whose names are, or end with, one of these; `*` stands for any text.

    Raises:
        RequestError: One of them fits no layer, or there is none.
    """
    layers = list(linear_layers(network))
    found: dict[str, None] = {}
    for one in wanted:
        pattern = re.compile(r"(?:.*\.)?" + r".*".join(map(re.escape, one.split("*"))))
        fitting = [name for name in layers if pattern.fullmatch(name)]
        if not fitting:
            endings = dict.fromkeys(".".join(name.split(".")[-2:]) for name in layers)
            near = difflib.get_close_matches(one, endings, n=3, cutoff=0) or list(endings)[:3]
            raise RequestError(
                f"adapter target `{escaped(one)}` fits none of the {len(layers)} linear layers: such as "
                f"{', '.join(f'`{name}`' for name in near)} are there"
            )
        found |= dict.fromkeys(fitting)
    if not found:
        raise RequestError("the family names no layers for adapters: give `targets` of the adapter")
    return [name for name in layers if name in found]


def add(
    network: nn.Module,
    settings: AdapterSettings,
    default: Sequence[str],
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> list[str]:
    """Freeze a network, in the settings' type, and give it adapters that change nothing yet.

    Args:
        network: Changed in place.
        settings: Of the adapters.
        default: Targets where the settings name none.
        seed: Of the first matrices.
        device: Where the network will run.

    Returns:
        Names of the layers.

    Raises:
        RequestError: A target fits no layer.
        BackendError: PEFT or torchao is not installed.
    """
    chosen = targets(network, settings.targets or default)
    try:
        from peft import LoKrConfig, LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise BackendError("adapters need the package peft: pip install 'kandinsky-video[lora]'") from error
    freeze(network, settings.base_dtype, device)
    alpha: Any = settings.rank if settings.alpha is None else settings.alpha
    config: Any = LoraConfig(
        r=settings.rank,
        lora_alpha=alpha,
        target_modules=chosen,
        lora_dropout=settings.dropout,
        use_rslora=settings.rank_stabilised,
        use_dora=settings.kind == "dora",
    )
    if settings.kind == "lokr":
        factor = -1 if settings.factor is None else settings.factor
        config = LoKrConfig(r=settings.rank, alpha=alpha, target_modules=chosen, decompose_factor=factor)
    with seeded(seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torchao's weights cannot be merged
        inject_adapter_in_model(config, network, adapter_name=NAME)
    for p in network.parameters():
        if p.requires_grad:
            p.data = p.data.float()
    return chosen


def freeze(network: nn.Module, dtype: str, device: torch.device | str = "cpu") -> None:
    """Let nothing of a network learn, and keep its weights in a type: `float32`, `bfloat16` or `int8`.

    Args:
        network: Changed in place, tensor by tensor; those of the type already stay as they are.
        dtype: Of the weights.
        device: Where the network will run.
    """
    network.requires_grad_(False)
    for p in network.parameters():
        p.data = p.data.to(torch.float32 if dtype == "float32" else torch.bfloat16)
    if dtype == "int8":
        quantise.check({"dit": "int8"})
        quantise.quantise(network, "int8", device=torch.device(device))


@contextmanager
def without(network: nn.Module) -> Iterator[None]:
    """The network as it was before it got adapters, for a block."""
    layers: list[Any] = [one for one in network.modules() if hasattr(one, "enable_adapters")]
    learning = [p for p in network.parameters() if p.requires_grad]  # PEFT changes that too
    for one in layers:
        one.enable_adapters(False)
    try:
        yield
    finally:
        for one in layers:
            one.enable_adapters(True)
        for p in learning:
            p.requires_grad_(True)


def as_lora(weights: Mapping[str, Tensor], settings: AdapterSettings) -> Lora:
    """Trained parameters of a network with adapters, by name, as a LoRA."""
    updates = {
        layer: LowRank(parts["lora_A"], parts["lora_B"], settings.scale, parts.get("lora_magnitude_vector"))
        for layer, parts in _by_layer(weights, settings).items()
    }
    return Lora(updates, trigger=settings.trigger)


def as_lokr(weights: Mapping[str, Tensor], settings: AdapterSettings) -> dict[str, lokr.Kronecker]:
    """The same of a network with LoKr adapters, by layer."""
    return {
        layer: lokr.kronecker({part.removeprefix("lokr_"): x for part, x in parts.items()}, settings.scale, layer)
        for layer, parts in _by_layer(weights, settings).items()
    }


def _by_layer(weights: Mapping[str, Tensor], settings: AdapterSettings) -> dict[str, dict[str, Tensor]]:
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        layer, _, part = name.removesuffix(".weight").removesuffix(f".{NAME}").rpartition(".")
        layers.setdefault(layer, {})[part] = tensor.detach().to("cpu", getattr(torch, settings.dtype))
    return layers


def write(
    weights: Mapping[str, Tensor], settings: AdapterSettings, folder: Path, keymap: KeyMap, *, suffix: str = ""
) -> Path:
    """Write a trained adapter in each of the settings' formats.

    Args:
        weights: Trained parameters by name.
        settings: Of the adapter.
        folder: Of the run.
        keymap: Official names of the layers ↔ ours.
        suffix: Behind the names of the folders, for a run that makes several.

    Returns:
        The weight file of the first format.
    """
    written = []
    for style in settings.formats:
        first, slash, rest = _FILES[style].partition("/")
        path = folder / f"{first}{suffix}{slash}{rest}"
        if settings.kind == "lokr":
            config = {"r": settings.rank, "alpha": settings.scale * settings.rank}
            config |= {"decompose_factor": -1 if settings.factor is None else settings.factor}
            made = lokr.write_lokr(
                as_lokr(weights, settings), path, style=style, keymap=keymap, trigger=settings.trigger, config=config
            )
        else:
            made = write_lora(as_lora(weights, settings), path, style=style, keymap=keymap)
        written.append(made)
    return written[0]
