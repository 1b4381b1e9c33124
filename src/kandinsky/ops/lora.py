"""Low-rank updates of linear layers, applied to a finished network from outside.

An update adds ``scale · up · (down · x)`` to what a linear layer answers; one with magnitudes (DoRA, arXiv 2402.09353)
also gives every row of the updated weight a norm of its own. The network's own code and the names of its
state dict stay as they are: a layer gets a child without persistent tensors, which moves with it from device to device,
and a hook that adds the child's answer. Layers that ``ops/precision.py`` evaluates in float32 without calling them look
for the child themselves. Several updates of one layer are joined into one pair of matrices.

Strength: of what an update changes of the weight, so much is added; for plain updates that is their scale.

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
    """One update of one layer.

    Attributes:
        scale: α/r (or α/√r), without the strength a user chooses.
        magnitude_O: Norms of the rows of the updated weight, of DoRA; None where rows keep what norm they get.
    """

    down_RI: Tensor
    up_OR: Tensor
    scale: float
    magnitude_O: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.down_RI.shape[0]

    def on(self, device: torch.device | str) -> LowRank:
        """The same in float32 on a device."""
        magnitude = None if self.magnitude_O is None else self.magnitude_O.to(device, torch.float32)
        return LowRank(
            self.down_RI.to(device, torch.float32), self.up_OR.to(device, torch.float32), self.scale, magnitude
        )

    def added_to(self, weight_OI: Tensor) -> Tensor:
        """The updated weight, float32."""
        mine = self.on(weight_OI.device)
        total = torch.addmm(weight_OI.float(), mine.up_OR, mine.down_RI, alpha=self.scale)
        return total if mine.magnitude_O is None else total * (mine.magnitude_O / _norms(total))[:, None]

    def gain(self, weight_OI: Tensor) -> Tensor:
        """What the rows of the updated weight are multiplied with, float32 [O]; ones without magnitudes."""
        if self.magnitude_O is None:
            return torch.ones(len(weight_OI), device=weight_OI.device)
        bare = LowRank(self.down_RI, self.up_OR, self.scale)
        return self.magnitude_O.to(weight_OI.device, torch.float32) / _norms(bare.added_to(weight_OI))


def _norms(weight_OI: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(weight_OI, dim=1)
    return norms.clamp_min(torch.finfo(torch.float32).tiny)


# (update, strength); the sum of a layer's updates, each times its strength, is what counts
Weighted = Sequence[tuple[LowRank, float]]


class LowRankSum(nn.Module):
    """The sum of a layer's updates as one pair of matrices, and factors of the layer's own answer.

    Args:
        updates: (update, strength).
        weight_OI: Of the layer, before any update; read where updates have magnitudes.
        device: Of the matrices.
        dtype: Of the matrices.
    """

    down_RI: Tensor
    up_OR: Tensor
    more_O: Tensor | None  # share of the layer's own answer, without its bias, that is added
    hook: RemovableHandle  # of the layer; kept here so that both go together

    def __init__(self, updates: Weighted, weight_OI: Tensor, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        down = torch.cat([update.down_RI.to(device, dtype) for update, _ in updates])
        scaled, more = [], None
        for update, strength in updates:
            # The scale goes into `up` before rounding, so that one rounding remains.
            up = update.up_OR.float() * (update.scale * strength)
            if update.magnitude_O is not None:
                gain = update.gain(_plain(weight_OI)).to(up.device)
                up = up * gain[:, None]
                more = (gain - 1) * strength + (0 if more is None else more)
            scaled.append(up)
        self.register_buffer("down_RI", down, persistent=False)
        self.register_buffer("up_OR", torch.cat(scaled, dim=1).to(device, dtype), persistent=False)
        self.register_buffer("more_O", None if more is None else more.to(device), persistent=False)

    def forward(self, x: Tensor, answer: Tensor, bias: Tensor | None) -> Tensor:
        """What is to be added to the layer's answer, in the type of x.

        Args:
            x: […, I].
            answer: […, O] of the layer.
            bias: The part of it that no weight makes.
        """
        out = F.linear(F.linear(x, self.down_RI.to(x.dtype)), self.up_OR.to(x.dtype))
        if self.more_O is None:
            return out
        own = answer.float() if bias is None else answer.float() - bias.float()
        return out + (own * self.more_O).to(out.dtype)


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
            child = LowRankSum(chosen, layer.weight, layer.weight.device, dtype or layer.weight.dtype)
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
            if update.magnitude_O is not None:
                total = total + strength * (update.added_to(weight) - weight.float())
                continue
            mine = update.on(weight.device)
            total = torch.addmm(total, mine.up_OR, mine.down_RI, alpha=update.scale * strength)
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


def _plain(weight: Tensor) -> Tensor:
    """A weight as numbers, also of one that is packed."""
    unpack = getattr(weight, "dequantize", None)
    return weight.detach() if is_plain(weight) or unpack is None else unpack()


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
    out: Tensor = output + layer.get_submodule(LOW_RANK)(inputs[0], output, layer.bias)
    return out


def _detach_one(layer: nn.Linear) -> None:
    if (child := getattr(layer, LOW_RANK, None)) is not None:
        child.hook.remove()
        delattr(layer, LOW_RANK)
