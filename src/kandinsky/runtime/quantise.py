"""Weights in fewer bits: which layers, by which scheme, on which device. The layers that stay exact are listed here.

| name | on CPU | on CUDA | bytes a weight |
|---|---|---|---|
| `int8` | weights int8, one scale a row; products in the compute type | inputs too, one scale a token | 1 |
| `fp8` | weights float8, one scale a row; products in the compute type | inputs too, from capability 8.9 on | 1 |
| `nf4` | weights in 4 bits, a scale for each 64; products in the compute type; text encoders only | the same | 0.52 |

Only linear layers inside a network's blocks are quantised: they hold nearly all weights. Embeddings, the output layer
and all modulation stay exact: they are small, or computed in float32 on purpose (``ops/precision.py``).
``parse`` and the tables need no torch.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kandinsky.errors import RequestError, needs
from kandinsky.printing import shortened

if TYPE_CHECKING:
    import torch
    from torch import nn

COMPONENTS = ("dit", "text")
# Parts of a layer's dotted name that keep it exact, inside blocks. `modulation`: one vector a pass decides the scale of
# every token. `clip`: 0.2 GB, in float32 also in the official code. `visual`: Qwen's vision tower, which runs once.
EXACT = ("modulation", "norm", "embed", "clip", "visual")
FLOAT8_CAPABILITY = (8, 9)
# nf4: number of weights that share a one-byte scale, and of scales that share one of their own
NF4_GROUP, NF4_SCALES = 64, 256
NF4_BYTES = 0.5 + 1 / NF4_GROUP


@dataclass(frozen=True, slots=True)
class Scheme:
    """A way to store weights in fewer bits.

    Attributes:
        weight_bytes: Bytes of one quantised weight.
        components: Components it is available for.
    """

    weight_bytes: float
    components: tuple[str, ...] = COMPONENTS


SCHEMES = {"int8": Scheme(1), "fp8": Scheme(1), "nf4": Scheme(NF4_BYTES, ("text",))}


def parse(value: str | Mapping[str, str] | None) -> dict[str, str]:
    """Schemes by component; a bare name is for the transformer.

    Args:
        value: `int8`, `dit=int8,text=nf4`, a mapping of the same, or None for none.

    Returns:
        Scheme by component.

    Raises:
        RequestError: A component or scheme is unknown, or the scheme is not available for the component.
    """
    if value is None:
        return {}
    if isinstance(value, str):
        entries = [entry.partition("=") for entry in value.split(",")]
        named = [
            (name.strip(), scheme.strip()) if equals else ("dit", name.strip()) for name, equals, scheme in entries
        ]
        if len(dict(named)) < len(named):
            raise RequestError(f"quantize `{shortened(value)}` names a network twice: give each once")
        value = dict(named)
    for component, scheme in value.items():
        if component not in COMPONENTS:
            known = " and ".join(f"`{name}`" for name in COMPONENTS)
            raise RequestError(f"quantize was given for `{component}`: {known} can be quantised")
        if scheme not in SCHEMES or component not in SCHEMES[scheme].components:
            allowed = " or ".join(f"`{name}`" for name, known in SCHEMES.items() if component in known.components)
            raise RequestError(f"quantize `{scheme}` is not available for `{component}`: use {allowed}")
    return dict(value)


def check(schemes: Mapping[str, str]) -> None:
    """Refuse what cannot run here, before weights are read.

    Raises:
        BackendError: A package is not installed.
    """
    if schemes:
        with needs("torchao", "quantize"), _quietly():
            import torchao  # noqa: F401


def quantise(held: Any, scheme: str, *, device: torch.device) -> int:
    """Quantise the linear layers of a network's blocks in place, on the host.

    Args:
        held: A network, or an object whose attributes are networks.
        scheme: Name of the scheme.
        device: Where it will run.

    Returns:
        Number of layers that were quantised.
    """
    from torch import nn

    from kandinsky.runtime.placement import networks

    count = 0
    for net in networks(held):
        chosen = set(layers(net))
        if not chosen:
            continue
        if scheme == "nf4":
            count += _to_nf4(net, chosen)
        else:
            count += len(chosen)
            with _quietly():
                from torchao.quantization import quantize_

                quantize_(net, _config(scheme, device), filter_fn=lambda module, name: name in chosen)  # noqa: B023
        assert all(not p.requires_grad for p in net.parameters()), "networks that generate have no gradients"
        assert all(isinstance(net.get_submodule(name), nn.Linear) for name in chosen)
    return count


def layers(net: nn.Module) -> Iterator[str]:
    """Names of the linear layers that are quantised: inside blocks, and not in ``EXACT``."""
    from torch import nn

    from kandinsky.runtime.blocks import block_lists

    inside = {id(module) for blocks in block_lists(net) for module in blocks.modules()}
    for name, module in net.named_modules():
        if isinstance(module, nn.Linear) and id(module) in inside:
            # the list itself may be called visual_…: a block's number ends what names the list
            parts = name.split(".")
            own = parts[next(i for i, part in enumerate(parts) if part.isdecimal()) :]
            outer = parts[: len(parts) - len(own) - 1]
            if not any(mark in part for part in own for mark in EXACT) and not any(part in EXACT for part in outer):
                yield name


def describe(scheme: str, device: torch.device) -> str:
    """What a scheme is on a device, for the recipe: `int8 weights`, `fp8 weights and inputs`."""
    if scheme == "nf4" or not _quantises_inputs(scheme, device):
        return f"{scheme} weights"
    return f"{scheme} weights and inputs"


def _quantises_inputs(scheme: str, device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    import torch

    return scheme == "int8" or torch.cuda.get_device_capability(device) >= FLOAT8_CAPABILITY


def _config(scheme: str, device: torch.device) -> Any:
    from torchao import quantization as ao

    inputs = _quantises_inputs(scheme, device)
    if scheme == "int8":
        return ao.Int8DynamicActivationInt8WeightConfig() if inputs else ao.Int8WeightOnlyConfig()
    if inputs:
        return ao.Float8DynamicActivationFloat8WeightConfig(granularity=ao.PerRow())
    return ao.Float8WeightOnlyConfig()


def _to_nf4(net: nn.Module, chosen: set[str]) -> int:
    """Quantise to nf4; layers whose weights do not fill whole groups stay exact (there are none at full size)."""
    from torch import nn

    with _quietly():
        from torchao.quantization import to_nf4
    count = 0
    for name in chosen:
        layer = net.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        groups, rest = divmod(layer.weight.numel(), NF4_GROUP)
        if not rest:
            packed = to_nf4(layer.weight.data, NF4_GROUP, math.gcd(groups, NF4_SCALES))
            layer.weight = nn.Parameter(packed, requires_grad=False)
            count += 1
    return count


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence Torchao, which on import reports compiled parts that do not fit this machine; none is used here."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
