"""Muon for the matrices inside transformer blocks: momentum whose blocks of rows are made orthogonal.

Source: Jordan et al. 2024 (momentum, Newton–Schulz of the fifth order); the scale that gives an update the root mean
square of Adam's is Moonlight's (arXiv 2502.16982). Each matrix is cut into blocks of 128 along its longer side, for
queries, keys and values the heads of a wide-headed network; the work falls to a third of that of whole matrices,
which at a width of 384 would cost as much as the step itself on a CPU, and all blocks go through batched products.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from kandinsky.runtime.devices import multiplies_bfloat16

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
BLOCK = 128
CHUNK = 48  # blocks at a time: as many as stay in the processor's cache


def orthogonalise(blocks_NRC: Tensor, rounds: int = 5) -> Tensor:
    """Matrices with nearly orthonormal rows near the given ones, R ≤ C; in bfloat16 where that is fast."""
    a, b, c = COEFFICIENTS
    x = blocks_NRC.to(torch.bfloat16 if multiplies_bfloat16(blocks_NRC.device.type) else torch.float32)
    x = x / (x.float().flatten(1).norm(dim=1).view(-1, 1, 1).to(x.dtype) * 1.01 + 1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(gram, gram, gram, beta=b, alpha=c) @ x
    out: Tensor = x
    return out


class Shards(Protocol):
    """Matrices of which a process holds a part."""

    def shape(self, p: Tensor) -> tuple[int, ...]:
        """Of the whole."""
        ...

    def whole(self, p: Tensor, x: Tensor) -> Tensor:
        """The whole of which all processes have their parts, laid out as ``p``."""
        ...

    def own(self, p: Tensor, whole: Tensor) -> Tensor:
        """The inverse: this process' part."""
        ...


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised blockwise, at the rates of Adam.

    Args:
        params: Matrices; those whose sides do not fall into blocks of 128 are refused.
        shards: Where a process holds a part of each: momentum is kept of the part, directions are of the whole.
        lr: Learning rate on Adam's scale.
        momentum: Of the gradient's average, with Nesterov's step ahead.
        weight_decay: Decoupled.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        shards: Shards | None = None,
    ) -> None:
        self.shards = shards
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for p in group["params"]:
                shape = tuple(p.shape) if shards is None else shards.shape(p)
                if len(shape) != 2 or (max(shape) % BLOCK):
                    raise ValueError(f"Muon takes matrices whose longer side is a multiple of {BLOCK}, not {shape}")

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                mean = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                ahead = torch.lerp(p.grad, mean, group["momentum"])
                if self.shards is not None:
                    ahead = self.shards.whole(p, ahead)
                tall = ahead if ahead.shape[0] >= ahead.shape[1] else ahead.T
                by_shape.setdefault((BLOCK, tall.shape[1]), []).append((p, tall.unflatten(0, (-1, BLOCK))))
            for (rows, columns), pairs in by_shape.items():
                blocks = torch.cat([tall for _, tall in pairs])
                wide = blocks if rows <= columns else blocks.mT
                done = torch.cat([orthogonalise(part) for part in wide.split(CHUNK)])
                done = done if rows <= columns else done.mT
                scale = 0.2 * max(rows, columns) ** 0.5
                for (p, tall), update in zip(pairs, done.split([len(t) for _, t in pairs]), strict=True):
                    flat = update.reshape(-1, tall.shape[-1])
                    shape = tuple(p.shape) if self.shards is None else self.shards.shape(p)
                    flat = flat if shape[0] >= shape[1] else flat.T
                    if self.shards is not None:
                        flat = self.shards.own(p, flat)
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(flat.to(p.dtype), alpha=-group["lr"] * scale)
