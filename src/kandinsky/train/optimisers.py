"""Optimisers by name, and their learning rates over a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from kandinsky.errors import BackendError, RequestError
from kandinsky.train.muon import BLOCK, Muon, Shards

BLOCK_8BIT, LEAST_8BIT = 256, 4096  # numbers with one scale; numbers of a weight whose states have 8 bits
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
        weight_decay: Decoupled from the gradient; `rmsprop` and `sgd` add it to the gradient.
        betas: Of AdamW alone.
        eps: Of AdamW and `rmsprop`.
        clip: Largest norm of the gradient of an update; a larger one is scaled down.
    """

    lr: float = field(metadata={"least": 0})
    optimiser: Name = "adamw"
    other_lr: float | None = field(default=None, metadata={"least": 0})
    warmup: int = field(default=100, metadata={"least": 0})
    decay: float = field(default=0.3, metadata={"least": 0, "most": 1})
    schedule: Decay = "linear"
    weight_decay: float = field(default=0.01, metadata={"least": 0})
    betas: tuple[float, float] = field(default=(0.9, 0.98), metadata={"least": 0, "below": 1})
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
    betas: tuple[float, float] | None = field(default=None, metadata={"least": 0, "below": 1})
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
        named: What is trained, by name: parameters, or the part of each that this process holds.
        settings: See ``Optimiser``.
        shards: Where they are parts: how they become wholes.

    Raises:
        BackendError: 8-bit states need torchao.
        RequestError: Tensor parallelism cuts blocks of 8-bit states.
    """

    def __init__(self, named: Mapping[str, Tensor], settings: Optimiser, shards: Shards | None = None) -> None:
        self.settings, self.named = settings, dict(named)
        self.parameters = list(self.named.values())
        self.each = tuple(_build(self.named, settings, shards))
        self._base = [[float(group["lr"]) for group in one.param_groups] for one in self.each]
        self._of = {id(p): one for one in self.each for group in one.param_groups for p in group["params"]}

    def set_rate(self, step: int, steps: int) -> float:
        """Set the learning rates of a step. Returns: the factor."""
        factor = self.settings.factor(step, steps)
        for one, base in zip(self.each, self._base, strict=True):
            for group, lr in zip(one.param_groups, base, strict=True):
                if isinstance(group["lr"], Tensor):  # of those that are compiled
                    group["lr"].fill_(lr * factor)
                else:
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

    def state(self) -> dict[str, dict[str, Tensor]]:
        """What is remembered of each weight, by its name; nothing of one that was never changed."""
        return {name: _flat(self._of[id(p)].state.get(p, {}), p) for name, p in self.named.items()}

    def begin(self, name: str) -> dict[str, Tensor]:
        """An empty memory of a weight, to be filled with one that was stored."""
        p = self.named[name]
        one = self._of[id(p)]
        state: dict[str, Tensor] = {}
        if isinstance(one, torch.optim.AdamW):
            state = {"step": torch.zeros((), device=p.device)}
            state |= {key: torch.zeros_like(p) for key in ("exp_avg", "exp_avg_sq")}
        elif isinstance(one, torch.optim.RMSprop):
            state = {"step": torch.zeros(()), "square_avg": torch.zeros_like(p)}
        elif isinstance(one, Muon):
            state = {"momentum": torch.zeros_like(p)}
        elif hasattr(one, "_new_buffer"):
            state = {"step": torch.zeros(())}
            state |= {key: one._new_buffer(p, key == "exp_avg") for key in ("exp_avg", "exp_avg_sq")}
        one.state[p] = state
        return _flat(state, p)

    def forget(self) -> None:
        """Remember nothing of any weight."""
        for one in self.each:
            one.state.clear()


def _flat(state: Mapping[str, Any], p: Tensor) -> dict[str, Tensor]:
    """Plain tensors by name; 8-bit ones as their codes and, row by row, the scales of their blocks."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        if hasattr(value, "__tensor_flatten__"):
            found |= {f"{key}.codes": value.codes, f"{key}.scale": value.scale.view(len(p), -1)}
        elif isinstance(value, Tensor):
            found[key] = value
    return found


def _build(named: Mapping[str, Tensor], settings: Optimiser, shards: Shards | None) -> Iterable[torch.optim.Optimizer]:
    lr, decay = settings.lr, settings.weight_decay
    adam: dict[str, Any] = {"betas": settings.betas, "eps": settings.eps, "weight_decay": decay}
    tensors = list(named.values())
    match settings.optimiser:
        case "adamw":
            yield torch.optim.AdamW(tensors, lr=lr, fused=True, **adam)
        case "adamw8bit":
            yield _adamw8bit(named, lr, adam, shards)
        case "rmsprop":
            yield torch.optim.RMSprop(tensors, lr=lr, eps=settings.eps, weight_decay=decay)
        case "sgd":
            yield torch.optim.SGD(tensors, lr=lr, weight_decay=decay)
        case "muon":
            shapes = {name: tuple(p.shape) if shards is None else shards.shape(p) for name, p in named.items()}
            fits = {name for name, shape in shapes.items() if _is_block_matrix(name, shape)}
            rest = [p for name, p in named.items() if name not in fits]
            if fits:
                matrices = [named[name] for name in named if name in fits]
                yield Muon(matrices, lr=lr, weight_decay=decay, shards=shards)
            if rest:
                other = lr if settings.other_lr is None else settings.other_lr
                yield torch.optim.AdamW(rest, lr=other, fused=True, **adam)


def _is_block_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether Muon takes a weight: a matrix of a numbered block that divides into whole blocks of rows."""
    return len(shape) == 2 and max(shape) % BLOCK == 0 and any(part.isdigit() for part in name.split("."))


def _adamw8bit(
    named: Mapping[str, Tensor], lr: float, adam: dict[str, Any], shards: Shards | None
) -> torch.optim.Optimizer:
    """AdamW with states of 8 bits, in blocks of numbers of one row, so that blocks follow the rows into shards.

    Weights whose rows are no whole blocks, such as those of norms, keep states of 32 bits.

    Raises:
        BackendError: torchao is not installed.
        RequestError: Tensor parallelism cuts rows within blocks.
    """
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise BackendError(
            "optimiser `adamw8bit` needs the package torchao: pip install 'kandinsky-video[full]', or use `adamw`"
        ) from error
    small = set[int]()
    for name, p in named.items():
        whole = tuple(p.shape) if shards is None else shards.shape(p)
        if len(whole) < 2 or math.prod(whole) < LEAST_8BIT or math.prod(whole[1:]) % BLOCK_8BIT:
            small.add(id(p))
        elif math.prod(p.shape[1:]) % BLOCK_8BIT:
            raise RequestError(
                f"optimiser `adamw8bit` keeps blocks of {BLOCK_8BIT} numbers of a row, and `tp` cuts the rows of "
                f"`{name}` into {math.prod(p.shape[1:])}: use a smaller `tp`, or `adamw`"
            )

    class RowWise(AdamW8bit):  # type: ignore[misc]
        def _new_buffer(self, p: Tensor, signed: bool) -> Any:
            # a shard without rows has no blocks
            is_plain = id(p) in small or not p.numel()
            return torch.zeros_like(p) if is_plain else self._subclass_zeros(p, signed, BLOCK_8BIT)

    made: torch.optim.Optimizer = RowWise(list(named.values()), lr=lr, block_size=BLOCK_8BIT, **adam)
    return made
