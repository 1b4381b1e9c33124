"""A training loop without an end: constant rates, checkpoints by the clock, and a cooldown when one is wanted.

How many hours a background run will get is not known when it begins. So the rate stays where warm-up left it, averages
of two lengths are kept, and a separate run (``Steady.cooldown``) lets the rate fall to zero from any checkpoint. Random
numbers of step k come from a generator seeded by (seed, k), so a resumed run continues as one that never stopped.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kandinsky.errors import RequestError
from kandinsky.runtime.devices import mixed_precision
from kandinsky.train.muon import Muon
from kandinsky.train.objective import Rng

log = logging.getLogger(__name__)


class SteadyObjective(Protocol):
    """What is trained, and how: its parameters by the pace they are trained at."""

    @property
    def network(self) -> nn.Module: ...

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by pace: "muon" for block matrices, "plain" for the rest, "rows" for rows that are rarely seen."""
        ...

    def batch(self, step: int, generator: torch.Generator) -> Any: ...

    def loss(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]: ...


@dataclass(frozen=True, slots=True)
class Steady:
    """Settings of a run.

    Args:
        muon, plain, rows: Learning rates of the groups of parameters.
        cooldown: (first step, steps): the rates fall linearly to zero over so many steps, and the run ends.
        averages: Decays of the averaged weights, each reached gradually.
    """

    muon: float = 1e-3
    plain: float = 6e-4
    rows: float = 2.4e-3
    warmup: int = 100
    cooldown: tuple[int, int] | None = None
    averages: tuple[float, float] = (0.998, 0.9995)
    clip: float = 1.0
    checkpoint_minutes: float = 10.0
    log_every: int = 20
    seed: int = 0
    max_steps: int = 10_000_000

    def factor(self, step: int) -> float:
        """What the rates are multiplied with at a step."""
        warm = min(1.0, (step + 1) / max(1, self.warmup))
        if self.cooldown is None:
            return warm
        first, steps = self.cooldown
        return warm * max(0.0, min(1.0, (first + steps - step) / steps))

    @property
    def end(self) -> int:
        return self.max_steps if self.cooldown is None else sum(self.cooldown)


def run_steadily(
    objective: SteadyObjective,
    settings: Steady,
    out: Path,
    *,
    copies: Sequence[Path] = (),
    start: Path | None = None,
    minutes: float | None = None,
    on_checkpoint: Callable[[int], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> list[dict[str, Tensor]]:
    """Train until the settings' end, or for so many minutes; ``out`` receives ``checkpoint.pt`` and ``log.jsonl``.

    Args:
        copies: Folders that get a copy of every checkpoint.
        start: Checkpoint to go on from where ``out`` has none.
        stop: Asked after every step; the run then writes its checkpoint and ends.

    Returns:
        The averaged weights, one set for each of ``settings.averages``.

    Raises:
        RequestError: A checkpoint belongs to another network.
    """
    out.mkdir(parents=True, exist_ok=True)
    network = objective.network.train()
    weights = {name: p for name, p in network.named_parameters() if p.requires_grad}
    groups = objective.groups()
    muon = Muon(groups["muon"], settings.muon)
    adam = torch.optim.AdamW(
        [
            {"params": groups["plain"], "lr": settings.plain, "weight_decay": 0.0},
            {"params": groups["rows"], "lr": settings.rows, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.99),
        fused=True,
    )
    optimisers: tuple[torch.optim.Optimizer, ...] = (muon, adam)
    averages = [{name: p.detach().clone() for name, p in weights.items()} for _ in settings.averages]
    checkpoint, step, seconds = out / "checkpoint.pt", 0, 0.0
    found = checkpoint if checkpoint.exists() else start
    if found is not None:
        step, seconds = _restore(found, weights, averages, optimisers)
        log.info("goes on from %s at step %d after %.0f s", found, step, seconds)
    plain, rows = adam.param_groups
    paces = [(muon.param_groups[0], settings.muon), (plain, settings.plain), (rows, settings.rows)]
    (out / "settings.json").write_text(json.dumps(asdict(settings)))
    began = saved = time.monotonic()
    figures: dict[str, float] = {}
    with (out / "log.jsonl").open("a") as journal:
        while step < settings.end:
            factor = settings.factor(step)
            for group, pace in paces:
                group["lr"] = pace * factor
            rng = Rng(settings.seed, step)
            batch = objective.batch(step, rng.generator(0))
            with mixed_precision("cpu"):
                loss, parts = objective.loss(batch, rng.generator(1))
            for optimiser in optimisers:
                optimiser.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(weights.values(), settings.clip)
            if torch.isfinite(norm):  # a step with a broken gradient is dropped, not averaged in
                for optimiser in optimisers:
                    optimiser.step()
            for average, decay in zip(averages, settings.averages, strict=True):
                keep = min(decay, (1 + step) / (10 + step))
                torch._foreach_lerp_(list(average.values()), [p.detach() for p in weights.values()], 1 - keep)
            step += 1
            for name, value in {"loss": float(loss.detach()), "norm": float(norm), **parts}.items():
                figures[name] = figures.get(name, value) * 0.95 + value * 0.05
            now = time.monotonic()
            over = step == settings.end or stop() or (minutes is not None and now - began > minutes * 60)
            if step % settings.log_every == 0 or over:
                line = {"step": step, "seconds": seconds + now - began, "factor": factor, **figures}
                journal.write(json.dumps({key: round(value, 5) for key, value in line.items()}) + "\n")
                journal.flush()
            if over or now - saved > settings.checkpoint_minutes * 60:
                _save(checkpoint, step, seconds + now - began, weights, averages, optimisers)
                for folder in copies:
                    folder.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(checkpoint, folder / "checkpoint.part")
                    (folder / "checkpoint.part").replace(folder / "checkpoint.pt")
                    shutil.copyfile(out / "log.jsonl", folder / "log.jsonl")
                if on_checkpoint:
                    on_checkpoint(step)
                saved = time.monotonic()
            if over:
                break
    return averages


def _save(
    path: Path,
    step: int,
    seconds: float,
    weights: dict[str, nn.Parameter],
    averages: list[dict[str, Tensor]],
    optimisers: Sequence[torch.optim.Optimizer],
) -> None:
    part = path.with_suffix(".part")
    state = {
        "step": step,
        "seconds": seconds,
        "weights": {name: p.detach() for name, p in weights.items()},
        "averages": averages,
        "optimisers": [optimiser.state_dict() for optimiser in optimisers],
    }
    torch.save(state, part)
    part.replace(path)


def _restore(
    path: Path,
    weights: dict[str, nn.Parameter],
    averages: list[dict[str, Tensor]],
    optimisers: Sequence[torch.optim.Optimizer],
) -> tuple[int, float]:
    state = torch.load(path, map_location="cpu", weights_only=True)
    if {k: v.shape for k, v in state["weights"].items()} != {k: p.shape for k, p in weights.items()}:
        raise RequestError(f"checkpoint `{path}` belongs to another network: write to another folder")
    with torch.no_grad():
        for name, p in weights.items():
            p.copy_(state["weights"][name])
            for average, saved in zip(averages, state["averages"], strict=True):
                average[name].copy_(saved[name])
    for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(saved)
    return int(state["step"]), float(state["seconds"])
