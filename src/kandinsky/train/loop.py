"""The training loop: one loop for every objective.

An ``Objective`` says what is trained, what a batch is and what its loss is; the loop owns optimiser, schedule, average,
checkpoints and log. Every random number of step k comes from a generator seeded by (seed, k), so a resumed run
continues bit-equal to one that never stopped.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kandinsky.errors import KandinskyError
from kandinsky.model.params import read_params
from kandinsky.train import interrupts, journal
from kandinsky.train.checkpoint import Checkpoints, Position, State, locked

log = logging.getLogger(__name__)
SEEDS = 2**32  # with every step and stream, their numbers still fit a generator


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
    seed: of the initial weights and of every random number of the run.
    """

    steps: int = field(metadata={"least": 1})
    lr: float = field(metadata={"least": 0})
    warmup: int = field(default=100, metadata={"least": 0})
    decay: float = field(default=0.3, metadata={"least": 0, "most": 1})
    weight_decay: float = field(default=0.01, metadata={"least": 0})
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = field(default=1.0, metadata={"above": 0})
    ema: float = field(default=0.998, metadata={"least": 0, "most": 1})
    bf16: bool = True
    checkpoint_minutes: float = field(default=5.0, metadata={"least": 0})
    log_every: int = field(default=20, metadata={"least": 1})
    seed: int = field(default=0, metadata={"least": 0, "most": SEEDS - 1})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LoopSettings:
        """Read settings by name.

        Raises:
            RequestError: A key is no setting, one is missing, or its value is not allowed.
        """
        return read_params(cls, values, "loop setting")

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, constant, linear to zero."""
        left = (self.steps - step) / max(1.0, self.decay * self.steps)
        return self.lr * min(1.0, (step + 1) / max(1, self.warmup), max(0.0, left))


def generator_for(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """A generator that depends only on (seed, step, stream)."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) * 8 + stream)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Give a block random numbers of its own, such as the initial weights of a network; the caller's go on after it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def run(
    objective: Objective,
    settings: LoopSettings,
    out: Path,
    *,
    resume: bool = True,
    device: str = "cpu",
    recipe: Mapping[str, Any] | None = None,
    on_log: Callable[[dict[str, float]], None] | None = None,
) -> dict[str, Tensor]:
    """Train, in a folder that no other training uses meanwhile.

    SIGINT and SIGTERM end the run after the step it is in, with a checkpoint.

    Args:
        objective: What is trained, with its initial weights.
        settings: Length, rate and the rest.
        out: Receives `checkpoint.pt`, the one before it as `checkpoint.previous.pt`, and `log.jsonl`.
        resume: Go on from the last checkpoint, where there is one; otherwise what an earlier run left there is removed.
        device: Where to train.
        recipe: What makes the result besides ``settings``; a run is only resumed under the same.
        on_log: Given each line of the log.

    Returns:
        The averaged weights.

    Raises:
        RequestError: Another training runs in the folder, its checkpoints cannot be used or belong to another recipe
            or network, or nothing can be written there.
        KandinskyError: The loss or the weights became infinite or NaN; the last good checkpoint is kept.
        KeyboardInterrupt: A signal ended the run.
    """
    with locked(out), interrupts.held() as asked_to_stop:
        checkpoints = Checkpoints(out, _told(settings, recipe or {}))
        network = objective.network.to(device).train()
        weights = {name: p for name, p in network.named_parameters() if p.requires_grad}
        optimiser = torch.optim.AdamW(
            weights.values(), lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
        )
        state = State(weights, {name: p.detach().clone() for name, p in weights.items()}, optimiser)
        at = Position()
        if not resume:
            checkpoints.clear()
        elif (found := checkpoints.restore(state, settings.steps, device)) is not None:
            at = found
            log.info("resumed %s at step %d after %.0f s", out.name, at.step, at.seconds)
        began = saved = time.monotonic()
        figures: dict[str, float] = {}
        with journal.opened(out / "log.jsonl", after=at.step) as write, seeded(settings.seed):
            for step in range(at.step, settings.steps):
                torch.manual_seed((settings.seed * 1_000_003 + step) * 8 + 2)  # of networks with dropout
                parts = _step(objective, settings, state, step, device)
                if not math.isfinite(parts["loss"]):
                    raise _diverged(f"the loss of step {step + 1} is {parts['loss']}", checkpoints)
                for name, value in parts.items():
                    figures[name] = figures.get(name, value) * 0.95 + value * 0.05
                now = time.monotonic()
                position = Position(step + 1, at.seconds + now - began)
                is_last = step + 1 == settings.steps
                if (step + 1) % settings.log_every == 0 or is_last:
                    line = {
                        "step": position.step,
                        "steps": settings.steps,
                        "seconds": position.seconds,
                        "lr": settings.rate(step),
                        **figures,
                    }
                    write(line)
                    if on_log:
                        on_log(line)
                if now - saved > settings.checkpoint_minutes * 60 or is_last or asked_to_stop():
                    if not state.is_finite():
                        raise _diverged(f"weights are infinite or NaN after step {step + 1}", checkpoints)
                    checkpoints.save(position, state)
                    saved = time.monotonic()
                if asked_to_stop() and not is_last:
                    raise KeyboardInterrupt
        return state.ema


def _step(objective: Objective, settings: LoopSettings, state: State, step: int, device: str) -> dict[str, float]:
    """One step; its loss and figures. Nothing is changed where the loss is not finite."""
    for group in state.optimiser.param_groups:
        group["lr"] = settings.rate(step)
    batch = objective.batch(step, generator_for(settings.seed, step))
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=settings.bf16):
        loss, parts = objective.loss(batch, generator_for(settings.seed, step, stream=1))
    found = {"loss": float(loss.detach()), **parts}
    if not math.isfinite(found["loss"]):
        return found
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(state.weights.values(), settings.clip)
    if torch.isfinite(norm):  # a step with a broken gradient is dropped, not averaged in
        state.optimiser.step()
    keep = min(settings.ema, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(state.ema.values()), [p.detach() for p in state.weights.values()], 1 - keep)
    return found


def _told(settings: LoopSettings, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the result of a step, by name; the length of a run may be changed, to train on."""
    names = ("lr", "warmup", "decay", "weight_decay", "betas", "clip", "ema", "bf16", "seed")
    return {**recipe, **{name: getattr(settings, name) for name in names}}


def _diverged(what: str, checkpoints: Checkpoints) -> KandinskyError:
    last = checkpoints.last_step()
    kept = "no checkpoint was written before" if last is None else f"the checkpoint of step {last} is kept"
    return KandinskyError(f"training stopped: {what}; {kept}; use a smaller `lr`, or look at the data")
