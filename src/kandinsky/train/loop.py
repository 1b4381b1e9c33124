"""The training loop: one loop for every objective.

An ``Objective`` says what is trained, what a batch is and what its loss is; the loop owns optimiser, schedule, average,
checkpoints and log. Every random number of step k comes from a generator seeded by (seed, k), so a resumed run
continues bit-equal to one that never stopped.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kandinsky.errors import RequestError
from kandinsky.model.params import read_params

log = logging.getLogger(__name__)


class Objective(Protocol):
    """What is trained. ``network`` holds exactly the trainable parameters (others have requires_grad False)."""

    @property
    def network(self) -> nn.Module: ...

    def batch(self, step: int, generator: torch.Generator) -> Any:
        """The batch of a step; depends on nothing but the arguments."""
        ...

    def loss(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Scalar loss and figures for the log."""
        ...


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """steps: length of the run; the rate falls linearly to zero over the last ``decay`` share of them.

    ema: decay of the averaged weights, reached gradually (it is min(ema, (1+k)/(10+k)) at step k).
    """

    steps: int
    lr: float
    warmup: int = 100
    decay: float = 0.3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    ema: float = 0.998
    bf16: bool = True
    checkpoint_minutes: float = 5.0
    log_every: int = 20
    seed: int = 0

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LoopSettings:
        """Raises: RequestError for a key that is not a setting."""
        return read_params(cls, values, "loop setting")

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, constant, linear to zero."""
        left = (self.steps - step) / max(1.0, self.decay * self.steps)
        return self.lr * min(1.0, (step + 1) / max(1, self.warmup), max(0.0, left))


def generator_for(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """A generator that depends only on (seed, step, stream)."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) * 8 + stream)


def run(
    objective: Objective,
    settings: LoopSettings,
    out: Path,
    *,
    resume: bool = True,
    device: str = "cpu",
    on_log: Callable[[dict[str, float]], None] | None = None,
) -> dict[str, Tensor]:
    """Train; returns the averaged weights. ``out`` receives ``checkpoint.pt``, ``log.jsonl``.

    Raises: RequestError where a checkpoint in ``out`` belongs to another network.
    """
    out.mkdir(parents=True, exist_ok=True)
    network = objective.network.to(device).train()
    weights = {name: p for name, p in network.named_parameters() if p.requires_grad}
    optimiser = torch.optim.AdamW(
        weights.values(), lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
    )
    ema = {name: p.detach().clone() for name, p in weights.items()}
    start, seconds = 0, 0.0
    checkpoint = out / "checkpoint.pt"
    if resume and checkpoint.exists():
        start, seconds = _restore(checkpoint, weights, ema, optimiser, device)
        log.info("resumed %s at step %d after %.0f s", out.name, start, seconds)
    began = saved = time.monotonic()
    figures: dict[str, float] = {}
    with (out / "log.jsonl").open("a") as journal:
        for step in range(start, settings.steps):
            for group in optimiser.param_groups:
                group["lr"] = settings.rate(step)
            batch = objective.batch(step, generator_for(settings.seed, step))
            with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=settings.bf16):
                loss, parts = objective.loss(batch, generator_for(settings.seed, step, stream=1))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(weights.values(), settings.clip)
            if torch.isfinite(norm):  # a step with a broken gradient is dropped, not averaged in
                optimiser.step()
            keep = min(settings.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(ema.values()), [p.detach() for p in weights.values()], 1 - keep)
            for name, value in {"loss": float(loss.detach()), **parts}.items():
                figures[name] = figures.get(name, value) * 0.95 + value * 0.05
            now = time.monotonic()
            if (step + 1) % settings.log_every == 0 or step + 1 == settings.steps:
                line = {
                    "step": step + 1,
                    "steps": settings.steps,
                    "seconds": seconds + now - began,
                    "lr": settings.rate(step),
                    **figures,
                }
                journal.write(json.dumps({key: round(value, 6) for key, value in line.items()}) + "\n")
                journal.flush()
                if on_log:
                    on_log(line)
            if now - saved > settings.checkpoint_minutes * 60 or step + 1 == settings.steps:
                _save(checkpoint, step + 1, seconds + now - began, weights, ema, optimiser)
                saved = time.monotonic()
    return ema


def _save(
    path: Path,
    step: int,
    seconds: float,
    weights: dict[str, nn.Parameter],
    ema: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
) -> None:
    part = path.with_suffix(".part")
    state = {name: p.detach() for name, p in weights.items()}
    torch.save(
        {"step": step, "seconds": seconds, "weights": state, "ema": ema, "optimiser": optimiser.state_dict()}, part
    )
    part.replace(path)


def _restore(
    path: Path,
    weights: dict[str, nn.Parameter],
    ema: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
    device: str,
) -> tuple[int, float]:
    state = torch.load(path, map_location=device, weights_only=True)
    if {k: v.shape for k, v in state["weights"].items()} != {k: p.shape for k, p in weights.items()}:
        raise RequestError(f"checkpoint `{path}` belongs to another network: use another --out or --no-resume")
    with torch.no_grad():
        for name, p in weights.items():
            p.copy_(state["weights"][name])
            ema[name].copy_(state["ema"][name])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"]), float(state["seconds"])
