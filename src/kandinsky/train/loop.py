"""The training loop: one loop for every objective.

An ``Objective`` says what is trained, what a batch is and what its losses are; the loop owns optimisers, rates,
averages, checkpoints and log. Every random number of step k comes from generators seeded by (seed, k), so a resumed
run continues bit-equal to one that never stopped.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from kandinsky.errors import KandinskyError, RequestError
from kandinsky.model.params import read_params
from kandinsky.train import interrupts, journal
from kandinsky.train.checkpoint import Checkpoints, Position, State, locked
from kandinsky.train.objective import Loss, Objective, Portion, Rng, Update
from kandinsky.train.optimisers import Change, Optimiser, Optimisers

log = logging.getLogger(__name__)
SEEDS = 2**32  # with every step and stream, their numbers still fit a generator


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings(Optimiser):
    """How a run goes; the optimiser's settings hold for every update that ``updates`` does not change.

    Attributes:
        steps: Length of the run.
        updates: By the name of an update, what is different for it.
        accumulate: Micro-batches of a step, one after the other, for batches that do not fit into memory.
        ema: Decay of the averaged weights, reached gradually: it is min(ema, (1+k)/(10+k)) at step k.
        bf16: Whether networks compute in bfloat16; weights and optimiser states are float32 in any case.
        checkpoint_minutes: A checkpoint is written every so many minutes, and at the end.
        checkpoint_steps: It is also written every so many steps.
        log_every: A line of the log is written every so many steps.
        seed: Of the initial weights and of every random number of the run.
    """

    steps: int = field(metadata={"least": 1})
    updates: Mapping[str, Change] = field(default_factory=dict)
    accumulate: int = field(default=1, metadata={"least": 1})
    ema: float = field(default=0.998, metadata={"least": 0, "most": 1})
    bf16: bool = True
    checkpoint_minutes: float = field(default=5.0, metadata={"least": 0})
    checkpoint_steps: int | None = field(default=None, metadata={"least": 1})
    log_every: int = field(default=20, metadata={"least": 1})
    seed: int = field(default=0, metadata={"least": 0, "most": SEEDS - 1})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LoopSettings:
        """Read settings by name.

        Raises:
            RequestError: A key is no setting, one is missing, or its value is not allowed.
        """
        return read_params(cls, values, "loop setting")


# What may change when a run is resumed, since it does not decide the result of a step.
FREE = ("steps", "checkpoint_minutes", "checkpoint_steps", "log_every", "accumulate")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Give a block random numbers of its own, such as the initial weights of a network; the caller's go on after it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


class Watcher(Protocol):
    """Looks at a run as it goes, such as to make samples. It changes nothing of the result."""

    def __call__(self, at: Position, state: State) -> None:
        """Called after each step."""
        ...


def run(
    objective: Objective,
    settings: LoopSettings,
    out: Path,
    *,
    resume: bool = True,
    device: str = "cpu",
    recipe: Mapping[str, Any] | None = None,
    on_log: Callable[[dict[str, float]], None] | None = None,
    watchers: Sequence[Watcher] = (),
) -> dict[str, dict[str, Tensor]]:
    """Train, in a folder that no other training uses meanwhile.

    SIGINT and SIGTERM end the run after the step it is in, with a checkpoint.

    Args:
        objective: What is trained, with its initial weights.
        settings: Length, rates and the rest.
        out: Receives `checkpoint.pt`, the one before it as `checkpoint.previous.pt`, and `log.jsonl`.
        resume: Go on from the last checkpoint, where there is one; otherwise what an earlier run left there is removed.
        device: Where to train.
        recipe: What makes the result besides ``settings``; a run is only resumed under the same.
        on_log: Given each line of the log.
        watchers: Called after each step.

    Returns:
        By the name of each update, its averaged weights, or its weights where no average is kept.

    Raises:
        RequestError: Another training runs in the folder, its checkpoints cannot be used or belong to another recipe
            or network, nothing can be written there, or `updates` names what the objective has not.
        KandinskyError: A loss or the weights became infinite or NaN; the last good checkpoint is kept.
        KeyboardInterrupt: A signal ended the run.
    """
    _check_updates(objective, settings)
    with locked(out), interrupts.held() as asked_to_stop:
        checkpoints = Checkpoints(out, _told(settings, recipe or {}))
        for network in objective.frozen.values():
            network.to(device).eval().requires_grad_(False)
        for network in objective.carried.values():
            network.to(device).requires_grad_(False)
        learners = [Learner(update, settings, device) for update in objective.updates]
        state = State(learners, objective.carried)
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
                rng = Rng(settings.seed, step)
                torch.manual_seed(rng.generator(2).initial_seed())  # of networks with dropout
                parts = take_step(objective, settings, learners, rng, device)
                if broken := next((name for name, value in parts.items() if _is_broken_loss(name, value)), None):
                    raise _diverged(f"the {broken} of step {step + 1} is {parts[broken]}", checkpoints)
                objective.after(step)
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
                        "lr": settings.lr * settings.factor(step, settings.steps),
                        **figures,
                    }
                    write(line)
                    if on_log:
                        on_log(line)
                due = settings.checkpoint_steps is not None and (step + 1) % settings.checkpoint_steps == 0
                if due or now - saved > settings.checkpoint_minutes * 60 or is_last or asked_to_stop():
                    if not state.is_finite():
                        raise _diverged(f"weights are infinite or NaN after step {step + 1}", checkpoints)
                    checkpoints.save(position, state)
                    saved = time.monotonic()
                for watch in watchers:
                    watch(position, state)
                if asked_to_stop() and not is_last:
                    raise KeyboardInterrupt
        return {one.update.name: one.result() for one in learners}


class Learner:
    """One update at work: its weights, their average, its optimisers.

    Args:
        update: Its network is moved to the device and set to train.
        settings: Of the run.
        device: Where to train.
    """

    def __init__(self, update: Update, settings: LoopSettings, device: str) -> None:
        self.update = update
        update.network.to(device).train()
        change = settings.updates.get(update.name, Change())
        self.every = change.every or update.every
        self.weights = {name: p for name, p in update.network.named_parameters() if p.requires_grad}
        self.optimisers = Optimisers(update.network, change.over(settings))
        self.ema = {name: p.detach().clone() for name, p in self.weights.items()} if update.averaged else {}

    def descend(self, step: int, steps: int, *, ema: float) -> float:
        """Change the weights by their gradients, and the average.

        Returns:
            The norm of the gradient. A step whose gradient is not finite is dropped, not averaged in.
        """
        self.optimisers.set_rate(step, steps)
        norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), self.optimisers.settings.clip)
        if torch.isfinite(norm):
            self.optimisers.step()
        if self.ema:
            keep = min(ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(self.ema.values()), [p.detach() for p in self.weights.values()], 1 - keep)
        return float(norm)

    def result(self) -> dict[str, Tensor]:
        """What the run gives: the averaged weights, where they are kept."""
        return self.ema or {name: p.detach() for name, p in self.weights.items()}


def take_step(
    objective: Objective, settings: LoopSettings, learners: Sequence[Learner], rng: Rng, device: str
) -> dict[str, float]:
    """One step: each update that is due, in turn.

    Returns:
        Figures; `loss` is that of the first update, the others' are called `NAME loss`. Nothing is changed after a loss
        that is not finite.
    """
    found: dict[str, float] = {}
    count = settings.accumulate
    batches: dict[int, Any] = {}
    for learner in learners:
        name = learner.update.name
        if rng.step % learner.every:
            continue
        for other in learners:  # gradients go through the networks of others, not into them
            for p in other.weights.values():
                p.requires_grad_(other is learner)
        learner.optimisers.zero_grad()
        losses: list[tuple[float, float]] = []
        for micro in range(count):
            if micro not in batches:
                batches[micro] = objective.batch(rng.step, rng, Portion(micro, count))
            with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=settings.bf16):
                loss = objective.loss(name, batches[micro], rng)
            if count > 1 and len(learners) == 1:
                del batches[micro]
            losses.append((float(loss.value.detach()), loss.weight))
            found |= {key: found.get(key, 0.0) + value / count for key, value in loss.figures.items()}
            if not math.isfinite(losses[-1][0]):
                break
            _scaled(loss, count).backward()
        total = sum(weight for _, weight in losses)
        title = "loss" if learner is learners[0] else f"{name} loss"
        found[title] = losses[0][0] if count == 1 else sum(value * weight for value, weight in losses) / total
        if not math.isfinite(found[title]):
            return found
        if count > 1:
            for p in learner.weights.values():
                if p.grad is not None:
                    p.grad.div_(total)
        norm = learner.descend(rng.step, settings.steps, ema=settings.ema)
        found["norm" if learner is learners[0] else f"{name} norm"] = norm
    for learner in learners:
        for p in learner.weights.values():
            p.requires_grad_(True)
    return found


def _scaled(loss: Loss, count: int) -> Tensor:
    """The term of a sum that is divided by its weights in the end; a single portion is left as it is."""
    return loss.value if count == 1 else loss.value * loss.weight


def _is_broken_loss(name: str, value: float) -> bool:
    return (name == "loss" or name.endswith(" loss")) and not math.isfinite(value)


def _check_updates(objective: Objective, settings: LoopSettings) -> None:
    """Raises: RequestError where the settings speak of an update that is not there."""
    names = [update.name for update in objective.updates]
    if unknown := sorted(set(settings.updates) - set(names)):
        raise RequestError(f"`updates` names `{unknown[0]}`, but what learns here is {', '.join(names)}")


def _told(settings: LoopSettings, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the result of a step, by name; the length of a run may be changed, to train on."""
    return {**recipe, **{f.name: getattr(settings, f.name) for f in fields(LoopSettings) if f.name not in FREE}}


def _diverged(what: str, checkpoints: Checkpoints) -> KandinskyError:
    last = checkpoints.last_step()
    kept = "no checkpoint was written before" if last is None else f"the checkpoint of step {last} is kept"
    return KandinskyError(f"training stopped: {what}; {kept}; use a smaller `lr`, or look at the data")
