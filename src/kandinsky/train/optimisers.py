"""Optimisers by name, and their learning rates over a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kandinsky.errors import BackendError
from kandinsky.train.muon import BLOCK, Muon

Name = Literal["adamw", "adamw8bit", "muon", "rmsprop", "sgd"]
Decay = Literal["linear", "cosine", "constant"]


@dataclass(frozen=True, slots=True)
class Optimiser:
    """How the weights of an update are changed.

    Attributes:
        optimiser: `muon` is for the matrices within transformer blocks; all other weights go to AdamW.
        lr: Learning rate after the warm-up.
        other_lr: That of the weights that Muon leaves to AdamW; ``lr`` where absent.
        warmup: Steps of the linear warm-up.
        decay: Share of the run, at its end, over which the rate falls to zero.
        schedule: How it falls.
        weight_decay: Decoupled from the gradient.
        betas: Of AdamW. ``eps`` too.
        clip: Largest norm of the gradient of an update; a larger one is scaled down.
    """

    lr: float = field(metadata={"least": 0})
    optimiser: Name = "adamw"
    other_lr: float | None = field(default=None, metadata={"least": 0})
    warmup: int = field(default=100, metadata={"least": 0})
    decay: float = field(default=0.3, metadata={"least": 0, "most": 1})
    schedule: Decay = "linear"
    weight_decay: float = field(default=0.01, metadata={"least": 0})
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = field(default=1e-8, metadata={"above": 0})
    clip: float = field(default=1.0, metadata={"above": 0})

    def factor(self, step: int, steps: int) -> float:
        """What learning rates are multiplied with in a step of a run of so many."""
        warm = min(1.0, (step + 1) / max(1, self.warmup))
        if self.schedule == "constant":
            return warm
        left = max(0.0, min(1.0, (steps - step) / max(1.0, self.decay * steps)))
        if self.schedule == "cosine":
            left = 0.5 - 0.5 * torch.cos(torch.tensor(left * torch.pi, dtype=torch.float64)).item()
        return min(warm, left)


@dataclass(frozen=True, slots=True)
class Change:
    """What a recipe says of one of several updates; what it leaves out is as the run's own.

    Attributes:
        every: The update is taken in every so many-th step.
    """

    every: int | None = field(default=None, metadata={"least": 1})
    optimiser: Name | None = None
    lr: float | None = field(default=None, metadata={"least": 0})
    other_lr: float | None = field(default=None, metadata={"least": 0})
    warmup: int | None = field(default=None, metadata={"least": 0})
    decay: float | None = field(default=None, metadata={"least": 0, "most": 1})
    schedule: Decay | None = None
    weight_decay: float | None = field(default=None, metadata={"least": 0})
    betas: tuple[float, float] | None = None
    eps: float | None = field(default=None, metadata={"above": 0})
    clip: float | None = field(default=None, metadata={"above": 0})

    def over(self, base: Optimiser) -> Optimiser:
        """The run's own settings with these in their place."""
        names = (name for name in Change.__dataclass_fields__ if name != "every")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return replace(base, **given)


class Optimisers:
    """The optimisers of one update, seen as one.

    Args:
        network: Its parameters that require gradients are trained.
        settings: See ``Optimiser``.

    Raises:
        BackendError: 8-bit states need torchao.
    """

    def __init__(self, network: nn.Module, settings: Optimiser) -> None:
        self.settings = settings
        named = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.parameters = list(named.values())
        self.each = tuple(_build(named, settings))
        self._base = [[group["lr"] for group in one.param_groups] for one in self.each]

    def set_rate(self, step: int, steps: int) -> float:
        """Set the learning rates of a step. Returns: the factor."""
        factor = self.settings.factor(step, steps)
        for one, base in zip(self.each, self._base, strict=True):
            for group, lr in zip(one.param_groups, base, strict=True):
                group["lr"] = lr * factor
        return factor

    def step(self) -> None:
        """Change the weights by their gradients."""
        for one in self.each:
            one.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for p in self.parameters:
            p.grad = None

    def state_dict(self) -> list[dict[str, Any]]:
        """The states, of each optimiser by itself."""
        return [one.state_dict() for one in self.each]

    def load_state_dict(self, states: Iterable[Mapping[str, Any]]) -> None:
        """Put states back. Raises: ValueError where they belong to other optimisers."""
        for one, state in zip(self.each, states, strict=True):
            one.load_state_dict(dict(state))


def _build(named: Mapping[str, Tensor], settings: Optimiser) -> Iterable[torch.optim.Optimizer]:
    lr, decay = settings.lr, settings.weight_decay
    adam: dict[str, Any] = {"betas": settings.betas, "eps": settings.eps, "weight_decay": decay}
    tensors = list(named.values())
    match settings.optimiser:
        case "adamw":
            yield torch.optim.AdamW(tensors, lr=lr, fused=True, **adam)
        case "adamw8bit":
            yield _adamw8bit(tensors, lr, adam)
        case "rmsprop":
            yield torch.optim.RMSprop(tensors, lr=lr, eps=settings.eps, weight_decay=decay)
        case "sgd":
            yield torch.optim.SGD(tensors, lr=lr, weight_decay=decay)
        case "muon":
            fits = {name for name, p in named.items() if _is_block_matrix(name, p)}
            rest = [p for name, p in named.items() if name not in fits]
            if fits:
                yield Muon([named[name] for name in named if name in fits], lr=lr, weight_decay=decay)
            if rest:
                other = lr if settings.other_lr is None else settings.other_lr
                yield torch.optim.AdamW(rest, lr=other, fused=True, **adam)


def _is_block_matrix(name: str, p: Tensor) -> bool:
    """Whether Muon takes a weight: a matrix of a numbered block that divides into whole blocks of rows."""
    return p.ndim == 2 and max(p.shape) % BLOCK == 0 and any(part.isdigit() for part in name.split("."))


def _adamw8bit(tensors: list[Tensor], lr: float, adam: dict[str, Any]) -> torch.optim.Optimizer:
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise BackendError(
            "optimiser `adamw8bit` needs the package torchao: pip install 'kandinsky-video[full]', or use `adamw`"
        ) from error
    made: torch.optim.Optimizer = AdamW8bit(tensors, lr=lr, **adam)
    return made
