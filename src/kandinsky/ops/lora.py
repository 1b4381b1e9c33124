"""Low-rank updates of linear layers, applied to a finished network from outside.

An update adds ``scale · up · (down · x)`` to what a linear layer answers. The network's own code and the names of its
state dict stay as they are: a layer gets a child without persistent tensors, which moves with it from device to device,
and a hook that adds the child's answer. Layers that ``ops/precision.py`` evaluates in float32 without calling them look
for the child themselves. Several updates of one layer are joined into one pair of matrices.

Legend: R rank; I inputs, O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.hooks import RemovableHandle

from kandinsky.errors import BackendError, RequestError
from kandinsky.ops.finite import is_finite
from kandinsky.ops.precision import LOW_RANK


@dataclass(frozen=True, slots=True)
class LowRank:
    """One update of one layer. ``scale`` is α/r (or α/√r), without the strength a user chooses."""

    down_RI: Tensor
    up_OR: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return self.down_RI.shape[0]


# (update, strength); the sum of a layer's updates, each times its strength, is what counts
Weighted = Sequence[tuple[LowRank, float]]


class LowRankSum(nn.Module):
    """The sum of a layer's updates as one pair of matrices."""

    down_RI: Tensor
    up_OR: Tensor
    hook: RemovableHandle  # of the layer; kept here so that both go together

    def __init__(self, updates: Weighted, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        down = torch.cat([update.down_RI.to(device, dtype) for update, _ in updates])
        # The scale goes into `up` before rounding, so that one rounding remains.
        up = torch.cat([update.up_OR.float() * (update.scale * strength) for update, strength in updates], dim=1)
        self.register_buffer("down_RI", down, persistent=False)
        self.register_buffer("up_OR", up.to(device, dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[…, I] → […, O] in the type of x."""
        return F.linear(F.linear(x, self.down_RI.to(x.dtype)), self.up_OR.to(x.dtype))


def linear_layers(net: nn.Module) -> dict[str, nn.Linear]:
    """The layers of a network that can be updated, by name."""
    return {name: layer for name, layer in net.named_modules() if isinstance(layer, nn.Linear)}


def layer_shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    """(outputs, inputs) of each such layer; the network may stand on the meta device."""
    return {name: (layer.out_features, layer.in_features) for name, layer in linear_layers(net).items()}


def attach(net: nn.Module, updates: Mapping[str, Weighted], *, dtype: torch.dtype | None = None) -> None:
    """Give each named layer its updates, in place of any it had; all other layers lose theirs.

    Attach before compiling: a compiled network may not look for hooks again.

    Args:
        net: The network.
        updates: By the layer's name; each is (update, strength).
        dtype: Type the updates are kept in; that of a layer's weight if omitted.

    Raises:
        RequestError: Scale times matrix is too large for that type; no layer has an update then.
    """
    for name, layer in linear_layers(net).items():
        _detach_one(layer)
        if chosen := updates.get(name):
            child = LowRankSum(chosen, layer.weight.device, dtype or layer.weight.dtype)
            if not (is_finite(child.up_OR) and is_finite(child.down_RI)):
                detach(net)
                raise _too_large(name, child.up_OR.dtype)
            child.hook = layer.register_forward_hook(_add_update)
            layer.add_module(LOW_RANK, child)


def detach(net: nn.Module) -> None:
    """The plain network again."""
    attach(net, {})


def fuse(
    net: nn.Module, updates: Mapping[str, Weighted], *, home: torch.device, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Add updates to the weights themselves, so that a call costs no more work.

    Args:
        net: The network.
        updates: As for ``attach``.
        home: Where the original weights are kept.
        dtype: Type of the sums; that of a layer's weight if omitted.

    Returns:
        The original weights, for ``restore``; subtracting would not restore them bit by bit.

    Raises:
        BackendError: A layer's weight is quantised; the network is then unchanged.
        RequestError: A sum is too large for its type; the network is then unchanged.
    """
    layers = linear_layers(net)
    for name in updates:
        if not is_plain(layers[name].weight):
            raise BackendError(
                f"layer `{name}` is quantised, so adapters cannot be fused into it: leave them unfused, or load the "
                "model without `quantize`"
            )
    originals: dict[str, Tensor] = {}
    for name, chosen in updates.items():
        weight = layers[name].weight.detach()
        originals[name] = weight.to(home)
        total = weight.float()
        for update, strength in chosen:
            down, up = (m.to(weight.device, torch.float32) for m in (update.down_RI, update.up_OR))
            total = torch.addmm(total, up, down, alpha=update.scale * strength)
        total = total.to(dtype or weight.dtype)
        if not is_finite(total):
            del originals[name]
            restore(net, originals)
            raise _too_large(name, total.dtype)
        _replace(layers[name], total)
    return originals


def restore(net: nn.Module, originals: Mapping[str, Tensor]) -> None:
    """Undo ``fuse``, to the last bit."""
    layers = linear_layers(net)
    for name, weight in originals.items():
        _replace(layers[name], weight.to(layers[name].weight.device))


def _replace(layer: nn.Linear, weight: Tensor) -> None:
    old = layer.weight
    # page-locked weights are those that block offload copies while it computes
    weight = weight.pin_memory() if old.is_pinned() and not weight.is_pinned() else weight
    layer.weight = nn.Parameter(weight, requires_grad=old.requires_grad)


def _too_large(layer: str, dtype: torch.dtype) -> RequestError:
    name = str(dtype).removeprefix("torch.")
    return RequestError(f"the LoRA scales make the update of layer `{layer}` too large for {name}: use smaller ones")


def is_plain(weight: Tensor) -> bool:
    """Whether a weight is an ordinary tensor of numbers, not packed by a quantiser."""
    return type(weight) in (Tensor, nn.Parameter) and weight.is_floating_point() and weight.dtype.itemsize > 1


def updated_layers(net: nn.Module) -> Iterable[str]:
    """Names of the layers that carry an update."""
    return [name for name, layer in linear_layers(net).items() if hasattr(layer, LOW_RANK)]


def _add_update(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    out: Tensor = output + layer.get_submodule(LOW_RANK)(inputs[0])
    return out


def _detach_one(layer: nn.Linear) -> None:
    if (child := getattr(layer, LOW_RANK, None)) is not None:
        child.hook.remove()
        delattr(layer, LOW_RANK)
