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
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from kandinsky.errors import KandinskyError, RequestError
from kandinsky.model.params import read_params
from kandinsky.runtime.devices import multiplies_bfloat16
from kandinsky.train import interrupts, journal, page
from kandinsky.train.checkpoint import Checkpoints, Position, State, locked
from kandinsky.train.objective import Loss, Objective, Portion, Rng, Timed, Update
from kandinsky.train.optimisers import Change, Optimiser, Optimisers
from kandinsky.train.record import Record
from kandinsky.train.scale import Scaling, held
from kandinsky.train.work import Work, counted

log = logging.getLogger(__name__)
SEEDS = 2**32  # with every step and stream, their numbers still fit a generator


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings(Optimiser):
    """How a run goes; the optimiser's settings hold for every update that ``updates`` does not change.

    Attributes:
        steps: Length of the run.
        updates: By the name of an update, what is different for it.
        accumulate: Micro-batches of a step, one after the other, for batches that do not fit into memory.
        ema: Decay of the averaged weights, reached gradually: it is min(ema, (1+k)/(10+k)) at step k; 0 keeps none.
        bf16: Whether networks compute in bfloat16, by default where the device multiplies it fast; weights and
            optimiser states are float32 in any case.
        checkpoint_minutes: A checkpoint is written every so many minutes, and at the end.
        checkpoint_steps: It is also written every so many steps.
        keep: How many checkpoints are kept, the last ones.
        keep_every: That of every so many-th step is kept besides.
        log_every: A line of the log is written every so many steps, with the means over them.
        log: `jsonl` is the file `log.jsonl` alone; `tensorboard` writes event files for TensorBoard besides.
        seed: Of the initial weights and of every random number of the run.
    """

    steps: int = field(metadata={"least": 1})
    updates: Mapping[str, Change] = field(default_factory=dict)
    accumulate: int = field(default=1, metadata={"least": 1})
    ema: float = field(default=0.998, metadata={"least": 0, "most": 1})
    bf16: bool | None = None
    checkpoint_minutes: float = field(default=5.0, metadata={"least": 0})
    checkpoint_steps: int | None = field(default=None, metadata={"least": 1})
    keep: int = field(default=2, metadata={"least": 1})
    keep_every: int | None = field(default=None, metadata={"least": 1})
    log_every: int = field(default=1, metadata={"least": 1})
    log: journal.Log = "jsonl"
    seed: int = field(default=0, metadata={"least": 0, "most": SEEDS - 1})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LoopSettings:
        """Read settings by name.

        Raises:
            RequestError: A key is no setting, one is missing, or its value is not allowed.
        """
        return read_params(cls, values, "loop setting")

    def computes_bf16(self, device: str) -> bool:
        """Whether networks compute in bfloat16 on this device."""
        return multiplies_bfloat16(device) if self.bf16 is None else self.bf16


# What may change when a run is resumed, since it does not decide the result of a step.
FREE = ("steps", "checkpoint_minutes", "checkpoint_steps", "keep", "keep_every", "log_every", "log", "accumulate")


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
    scaling: Scaling | None = None,
) -> dict[str, dict[str, Tensor]]:
    """Train, in a folder that no other training uses meanwhile.

    SIGINT and SIGTERM end the run after the step it is in, with a checkpoint. Of several processes each calls this with
    the same arguments; a signal that one of them gets ends all after the same step, and the first one writes.

    Args:
        objective: What is trained, with its initial weights.
        settings: Length, rates and the rest.
        out: Receives `checkpoint-STEP` folders and `log.jsonl`; the same folder for all processes.
        resume: Go on from the last checkpoint, where there is one; otherwise what an earlier run left there is removed.
        device: Where to train.
        recipe: What makes the result besides ``settings``; a run is only resumed under the same.
        on_log: Given each line of the log, in the first process.
        watchers: Called after each step, in every process.
        scaling: The processes that train together; this one alone where absent.

    Returns:
        By the name of each update, its averaged weights, or its weights where no average is kept. Of several processes
        the first one gets them, whole, the others none.

    Raises:
        RequestError: Another training runs in the folder, its checkpoints cannot be used or belong to another recipe
            or network, nothing can be written there, or `updates` names what the objective has not.
        KandinskyError: A loss or the weights became infinite or NaN; the last good checkpoint is kept.
        KeyboardInterrupt: A signal ended the run.
    """
    check_updates([update.name for update in objective.updates], settings)
    journal.check(settings.log)
    scaling = scaling or Scaling(device=device)
    with locked(out) if scaling.is_first else nullcontext(), interrupts.held() as asked_to_stop:
        checkpoints = Checkpoints(
            out, _told(settings, recipe or {}), scaling, keep=settings.keep, keep_every=settings.keep_every
        )
        for network in objective.frozen.values():
            network.eval().requires_grad_(False)
            scaling.prepare(network, trains=False)
        carried = {}
        for name, network in objective.carried.items():
            network.requires_grad_(False)
            carried[name] = scaling.prepare(network, trains=False)
        learners = [Learner(update, settings, device, scaling) for update in objective.updates]
        state = State(learners, objective.carried, carried)
        at = Position()
        if not resume:
            checkpoints.clear()
        elif (found := checkpoints.restore(state, settings.steps)) is not None:
            at = found
            if scaling.is_first:
                log.info("resumed %s at step %d after %.0f s", out.name, at.step, at.seconds)
        began = saved = time.monotonic()
        dtype = torch.bfloat16 if settings.computes_bf16(device) else torch.float32
        record = Record(device, dtype, scaling.processes)
        journal_of = journal.opened(out, settings.log, after=at.step) if scaling.is_first else nullcontext(_no_line)
        with journal_of as write, seeded(settings.seed), _ended(checkpoints):
            for step in range(at.step, settings.steps):
                rng = Rng(settings.seed, step)
                # of networks with dropout
                torch.manual_seed(rng.generator(2).initial_seed() + scaling.place)
                parts = take_step(objective, settings, learners, rng, device, scaling, record)
                if broken := next((name for name, value in parts.items() if _is_broken_loss(name, value)), None):
                    raise _diverged(f"the {broken} of step {step + 1} is {parts[broken]}", checkpoints)
                objective.after(step)
                record.add(parts)
                now = time.monotonic()
                is_late = now - saved > settings.checkpoint_minutes * 60
                # what may differ between processes is decided for all
                every = scaling.gather([asked_to_stop(), is_late, checkpoints.progress()])
                stops, is_late = any(one[0] for one in every), every[0][1]
                checkpoints.settle([one[2] for one in every])
                position = Position(step + 1, at.seconds + now - began)
                is_last = step + 1 == settings.steps
                if scaling.is_first and ((step + 1) % settings.log_every == 0 or is_last):
                    own = {
                        "step": position.step,
                        "steps": settings.steps,
                        "seconds": position.seconds,
                        "lr": settings.lr * settings.factor(step, settings.steps),
                    }
                    line = dict(**own, **record.line())  # an objective's figure of the same name is an error
                    write(line)
                    if on_log:
                        on_log(line)
                due = settings.checkpoint_steps is not None and (step + 1) % settings.checkpoint_steps == 0
                if due or is_late or is_last or stops:
                    if not all(scaling.gather(state.is_finite())):
                        raise _diverged(f"weights are infinite or NaN after step {step + 1}", checkpoints)
                    checkpoints.save(position, state)
                    saved = time.monotonic()
                    if is_last or stops:
                        checkpoints.wait()
                began_watching = time.monotonic()
                for watch in watchers:
                    watch(position, state)
                record.pause(time.monotonic() - began_watching)
                if stops and not is_last:
                    raise KeyboardInterrupt
        return {one.update.name: one.result() for one in learners}


@contextmanager
def _ended(checkpoints: Checkpoints) -> Iterator[None]:
    """Leave nothing half-written, and a page that shows the run; what ended it is not hidden by a page that fails."""
    try:
        yield
    finally:
        checkpoints.abandon()
        if checkpoints.scaling.is_first:
            try:
                page.write(checkpoints.folder)
            except (OSError, KandinskyError) as error:
                log.debug("no page: %s", error)


def _no_line(line: Mapping[str, float]) -> None:
    """What a process that is not the first writes into the log."""


class Learner:
    """One update at work: its weights, their average, its optimisers.

    Attributes:
        weights: Its trained parameters.
        held: The part of each that this process holds; the parameter itself where that is all.
        splits: How each is divided.
        ema: Averages of ``held``.

    Args:
        update: Its network is moved to the device and set to train.
        settings: Of the run.
        device: Where to train.
        scaling: The processes that train together.
    """

    def __init__(self, update: Update, settings: LoopSettings, device: str, scaling: Scaling | None = None) -> None:
        self.update, self.scaling = update, scaling or Scaling(device=device)
        splits = self.scaling.prepare(update.network.train())
        change = settings.updates.get(update.name, Change())
        self.every = change.every or update.every
        self.weights = {name: p for name, p in update.network.named_parameters() if p.requires_grad}
        self.held = {name: held(p) for name, p in self.weights.items()}
        self.splits = {name: splits[name] for name in self.weights}
        shards = self.scaling.shards(self.held, self.splits)
        self.optimisers = Optimisers(self.held, change.over(settings), shards)
        averages = update.averaged and settings.ema > 0
        self.ema = {name: p.detach().clone() for name, p in self.held.items()} if averages else {}

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.optimisers.zero_grad()
        for p in self.weights.values():
            p.grad = None

    def descend(self, step: int, steps: int, *, ema: float) -> float:
        """Change the weights by their gradients, and the average.

        Returns:
            The norm of the gradient. A step whose gradient is not finite is dropped, not averaged in.
        """
        self.optimisers.set_rate(step, steps)
        norm = self.scaling.clip(self.weights, self.splits, self.optimisers.settings.clip)
        if torch.isfinite(norm):
            for name, part in self.held.items():
                p = self.weights[name]
                if part is not p:
                    part.grad = None if p.grad is None else held(p.grad)
            self.optimisers.step()
        if self.ema:
            keep = min(ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(self.ema.values()), [p.detach() for p in self.held.values()], 1 - keep)
        return float(norm)

    def result(self) -> dict[str, Tensor]:
        """What the run gives: the averaged weights, where they are kept; whole, on the first process."""
        parts = self.ema or {name: p.detach() for name, p in self.held.items()}
        return self.scaling.result(parts, self.splits)


def take_step(
    objective: Objective,
    settings: LoopSettings,
    learners: Sequence[Learner],
    rng: Rng,
    device: str,
    scaling: Scaling | None = None,
    record: Record | None = None,
) -> dict[str, float]:
    """One step: each update that is due, in turn; what else the log says of it goes into ``record``.

    Returns:
        Figures, the same on all processes; `loss` is that of the first update, the others' are called `NAME loss`.
        Nothing is changed after a loss that is not finite.
    """
    scaling, record = scaling or Scaling(device=device), record or Record(device)
    found: dict[str, float] = {}
    count = settings.accumulate
    portions = count * scaling.data
    batches: dict[int, Any] = {}
    for learner in learners:
        name = learner.update.name
        if rng.step % learner.every:
            continue
        for other in learners:  # gradients go through the networks of others, not into them
            scaling.reshard(other.update.network)
            for p in other.weights.values():
                p.requires_grad_(other is learner)
        learner.zero_grad()
        losses: list[tuple[float, float]] = []
        own: dict[str, float] = {}
        timed: list[Timed] = []
        done, bf16 = Work(), settings.computes_bf16(device)
        for micro in range(count):
            with counted() as work:
                if micro not in batches:
                    portion, began = Portion(scaling.place * count + micro, portions), time.monotonic()
                    batches[micro] = objective.batch(rng.step, rng, portion)
                    record.waited += time.monotonic() - began
                with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=bf16):
                    loss = objective.loss(name, batches[micro], rng)
            done.add(work)
            timed += loss.timed if learner is learners[0] else ()
            if count > 1 and len(learners) == 1:
                del batches[micro]
            losses.append((float(loss.value.detach()), loss.weight))
            own |= {key: own.get(key, 0.0) + float(value) / portions for key, value in loss.figures.items()}
            scaling.sync(learner.update.network, micro == count - 1)
            _scaled(loss, portions).backward()
        # even after a loss that is not finite: the others wait for the gradients
        every = scaling.gather_portions([losses, own, timed, [done.samples, done.tokens, done.flops]])
        losses = [loss for one in every for loss in one[0]]
        for _, figures, errors, work in every:
            record.learned((Timed(*one) for one in errors), Work(*work))
            found |= {key: found.get(key, 0.0) + value for key, value in figures.items()}
        total = sum(weight for _, weight in losses)
        title = "loss" if learner is learners[0] else f"{name} loss"
        found[title] = losses[0][0] if portions == 1 else sum(value * weight for value, weight in losses) / total
        if not math.isfinite(found[title]):
            return found
        if portions > 1 or not scaling.is_alone:
            scaling.add_up(learner.update.network, learner.weights, total if portions > 1 else 1.0)
        norm = learner.descend(rng.step, settings.steps, ema=settings.ema)
        found["norm" if learner is learners[0] else f"{name} norm"] = norm
    for learner in learners:
        for p in learner.weights.values():
            p.requires_grad_(True)
    return found


def _scaled(loss: Loss, portions: int) -> Tensor:
    """The term of a sum that is divided by its weights in the end; a single portion is left as it is."""
    return loss.value if portions == 1 else loss.value * loss.weight


def _is_broken_loss(name: str, value: float) -> bool:
    return (name == "loss" or name.endswith(" loss")) and not math.isfinite(value)


def check_updates(names: Sequence[str], settings: LoopSettings) -> None:
    """Refuse settings that speak of an update that is not among these. Raises: RequestError."""
    if unknown := sorted(set(settings.updates) - set(names)):
        raise RequestError(f"`updates` names `{unknown[0]}`, but what learns here is {', '.join(names)}")


def _told(settings: LoopSettings, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the result of a step, by name; the length of a run may be changed, to train on."""
    return {**recipe, **{f.name: getattr(settings, f.name) for f in fields(LoopSettings) if f.name not in FREE}}


def _diverged(what: str, checkpoints: Checkpoints) -> KandinskyError:
    checkpoints.wait()
    last = checkpoints.last_step()
    kept = "no checkpoint was written before" if last is None else f"the checkpoint of step {last} is kept"
    return KandinskyError(f"training stopped: {what}; {kept}; use a smaller `lr`, or look at the data")
