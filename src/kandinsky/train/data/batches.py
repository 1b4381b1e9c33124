"""Which examples a step sees: planners that compute it from (seed, step) alone, so that nothing is to be resumed.

``Buckets`` makes batches of equal shape and size, ``Packing`` sequences of clips of several shapes, ``Sequences`` puts
some of these into a step, ``Mixture`` draws the task of each step. Of an epoch every example is seen exactly once; of
``Buckets`` some of them only later.

Legend: T H W C latent frames, rows, columns, channels.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np

from kandinsky.errors import RequestError

Shape = tuple[int, int, int, int]
PATCH = (1, 2, 2)
TEXT_TO_IMAGE, TEXT_TO_VIDEO, IMAGE_TO_VIDEO = "text-to-image", "text-to-video", "image-to-video"
TASKS = (TEXT_TO_IMAGE, TEXT_TO_VIDEO, IMAGE_TO_VIDEO)
_BLOCK = 4096  # steps whose tasks are drawn together


class Plan(Protocol):
    """The global batch of every step."""

    @property
    def steps_per_epoch(self) -> int:
        """After so many steps every example has been seen once."""
        ...

    def __call__(self, step: int) -> tuple[int, ...]:
        """Numbers of the examples of a step, in the order of the batch.

        Args:
            step: From 0.
        """
        ...

    def parts(self, step: int) -> tuple[tuple[int, ...], ...]:
        """The same in the parts that are not divided among processes and micro-batches: examples, or sequences."""
        ...


def tokens_of(shape: Shape, patch: tuple[int, int, int] = PATCH) -> int:
    """Tokens that a latent becomes; incomplete patches count whole."""
    count = 1
    for side, unit in zip(shape, patch, strict=False):
        count *= -(-side // unit)
    return count


class Epochs:
    """Epochs of batches, each a new order of the same slots.

    A slot is a batch whose places have kinds: each epoch deals the examples of a kind out to its places, and shuffles
    the slots. So every epoch has as many steps, and no two need be alike.

    Args:
        slots: Of each batch the kinds of its places; of every kind there are as many places as examples.
        examples: Of each kind the numbers of its examples.
        seed: Of all orders.
    """

    def __init__(self, slots: Sequence[Sequence[int]], examples: Sequence[Sequence[int]], seed: int) -> None:
        self._slots, self._seed = slots, seed
        self._examples = [np.asarray(numbers, np.int64) for numbers in examples]
        self._order = lru_cache(maxsize=2)(self._ordered)

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "_order"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._order = lru_cache(maxsize=2)(self._ordered)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return len(self._slots)

    def __call__(self, step: int) -> tuple[int, ...]:
        """The examples of a step. Raises: RequestError for a step below 0."""
        if step < 0:
            raise RequestError(f"there is no step {step}: the first is 0")
        epoch, turn = divmod(step, len(self._slots))
        return self._order(epoch)[turn]

    def parts(self, step: int) -> tuple[tuple[int, ...], ...]:
        """The examples of a step, each by itself."""
        return tuple((number,) for number in self(step))

    def _ordered(self, epoch: int) -> list[tuple[int, ...]]:
        rng = _rng(self._seed, "epoch", epoch)
        dealt = [iter(rng.permutation(numbers).tolist()) for numbers in self._examples]
        filled = [tuple(next(dealt[kind]) for kind in slot) for slot in self._slots]
        return [filled[place] for place in rng.permutation(len(filled))]


class Buckets(Epochs):
    """Batches of examples whose latents have one shape, all batches of a shape equally large.

    What is left of a shape at the end of an epoch waits for the next one, in which the examples of that shape go on. So
    after any number of epochs no example was seen more often than there were epochs, and none of its shape more than
    once less, but for those that wait. Where a shape has fewer examples than a batch, several epochs pass between its
    batches, and each of these holds an example several times.

    Args:
        shapes: Of the latents of all examples, (T, H, W, C).
        batch: Examples of a batch; or by shape, where every shape that there is must be named.
        tokens: Instead: as many examples as together have no more tokens, at least one.
        seed: Of all orders.
        only: Numbers of the examples that take part; all where None.
        patch: (t, h, w) of the network, for the count of tokens.

    Raises:
        RequestError: There are no examples, both or none of ``batch`` and ``tokens`` are given, or they are below 1.
    """

    def __init__(
        self,
        shapes: Sequence[Shape],
        *,
        batch: int | Mapping[Shape, int] | None = None,
        tokens: int | None = None,
        seed: int = 0,
        only: Iterable[int] | None = None,
        patch: tuple[int, int, int] = PATCH,
    ) -> None:
        groups = _grouped(shapes, only)
        super().__init__((), list(groups.values()), seed)
        self._sizes = _sizes(groups, batch, tokens, patch)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch; a part of one counts whole."""
        return math.ceil(sum(Fraction(len(one), size) for one, size in zip(self._examples, self._sizes, strict=True)))

    def __call__(self, step: int) -> tuple[int, ...]:
        """The examples of a step. Raises: RequestError for a step below 0."""
        if step < 0:
            raise RequestError(f"there is no step {step}: the first is 0")
        last = max(self._sizes)
        while sum(self._batches(last)) <= step:
            last *= 2
        epoch = bisect_right(range(1, last + 1), step, key=lambda epochs: sum(self._batches(epochs)))
        return self._order(epoch)[step - sum(self._batches(epoch))]

    def _batches(self, epochs: int) -> list[int]:
        """Whole batches of each shape in so many epochs."""
        return [epochs * len(one) // size for one, size in zip(self._examples, self._sizes, strict=True)]

    def _ordered(self, epoch: int) -> list[tuple[int, ...]]:
        filled: list[tuple[int, ...]] = []
        ends = zip(self._batches(epoch), self._batches(epoch + 1), strict=True)
        for kind, ((first, last), examples, size) in enumerate(zip(ends, self._examples, self._sizes, strict=True)):
            if first == last:
                continue
            turns = range(first * size // len(examples), -(-last * size // len(examples)))
            orders = [_rng(self._seed, f"shape {kind}", turn).permutation(examples) for turn in turns]
            start = first * size - turns.start * len(examples)
            dealt = np.concatenate(orders)[start : start + (last - first) * size]
            filled += map(tuple, dealt.reshape(-1, size).tolist())
        return [filled[place] for place in _rng(self._seed, "epoch", epoch).permutation(len(filled))]


class Packing(Epochs):
    """Sequences of clips that lie end to end, none longer than a budget.

    Clips share a sequence without padding; one that is longer than the budget alone is refused.

    Args:
        shapes: Of the latents of all examples, (T, H, W, C).
        frames: Latent frames of a sequence, at most; its clips are of equal height and width.
        tokens: Instead: tokens of a sequence, at most; its clips are of any sizes.
        seed: Of all orders.
        only: Numbers of the examples that take part; all where None.
        patch: (t, h, w) of the network, for the count of tokens.

    Raises:
        RequestError: There are no examples, both or none of ``frames`` and ``tokens`` are given, or a clip does not
            fit into a sequence.
    """

    def __init__(
        self,
        shapes: Sequence[Shape],
        *,
        frames: int | None = None,
        tokens: int | None = None,
        seed: int = 0,
        only: Iterable[int] | None = None,
        patch: tuple[int, int, int] = PATCH,
    ) -> None:
        if (frames is None) == (tokens is None):
            raise RequestError("give the length of sequences either as `frames` or as `tokens`")
        groups = _grouped(shapes, only)
        kinds = {shape: kind for kind, shape in enumerate(groups)}
        slots: list[list[int]] = []
        if tokens is not None:
            budget, room = f"{tokens} tokens", _positive("tokens", tokens)
            lengths = {shape: tokens_of(shape, patch) for shape in groups}
            together = [list(groups)]
        else:
            assert frames is not None
            budget, room = f"{frames} latent frames", _positive("frames", frames) // patch[0]
            lengths = {shape: -(-shape[0] // patch[0]) for shape in groups}
            areas: dict[tuple[int, ...], list[Shape]] = defaultdict(list)
            for shape in groups:
                areas[shape[1:]].append(shape)
            together = list(areas.values())
        for shape, length in lengths.items():
            if length > room:
                raise RequestError(
                    f"example {groups[shape][0]} has a latent of {_written(shape)}, which does not fit into sequences "
                    f"of {budget}: raise the budget, or encode shorter clips"
                )
        for found in together:
            slots += _packed([(lengths[shape], kinds[shape]) for shape in found for _ in groups[shape]], room)
        super().__init__(slots, list(groups.values()), seed)


@dataclass(frozen=True, slots=True)
class Sequences:
    """Steps of several packed sequences; a sequence is never divided.

    Attributes:
        packing: Gives them, one after the other.
        count: Of a step.
    """

    packing: Packing
    count: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every example has been seen once, the last of them together with some of the next epoch."""
        return -(-self.packing.steps_per_epoch // self.count)

    def __call__(self, step: int) -> tuple[int, ...]:
        """The examples of a step, sequence by sequence."""
        return tuple(number for part in self.parts(step) for number in part)

    def parts(self, step: int) -> tuple[tuple[int, ...], ...]:
        """The sequences of a step."""
        return tuple(self.packing(step * self.count + place) for place in range(self.count))


@dataclass(frozen=True)
class Mixture:
    """Tasks that are drawn anew for every step, each from the examples it can use.

    All processes draw the same task. Batches hold images alone or videos alone; tasks of videos share the order of
    their examples, so that an epoch shows each clip once whatever the task.

    Attributes:
        images: Plan of examples of one latent frame; None where there are none.
        videos: Plan of longer examples; None where there are none.
        weights: Of each task, such as `text-to-image` 0.01, `text-to-video` 0.79, `image-to-video` 0.2; they need
            not add up to 1.
        seed: Of the draws.

    Raises:
        RequestError: A task is unknown, a weight is no share, or a task that has one has no examples.
    """

    images: Plan | None
    videos: Plan | None
    weights: Mapping[str, float]
    seed: int = 0
    _counts: list[int] = field(default_factory=lambda: [0], init=False, repr=False, compare=False)
    _blocks: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for task, weight in self.weights.items():
            if task not in TASKS:
                raise RequestError(f"task `{task}` is unknown: use {', '.join(TASKS)}")
            if not 0 <= weight < float("inf"):
                raise RequestError(f"the weight of `{task}` must be 0 or more, not `{weight}`")
            if weight and self._plan(task) is None:
                kind = "image" if task == TEXT_TO_IMAGE else "video"
                raise RequestError(f"task `{task}` has a weight, and the data has no {kind}: give it 0, or add some")
        if not sum(self.weights.values()) > 0:
            raise RequestError("no task has a weight: give at least one")

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which the examples of the task with most work are seen once, about."""
        total = sum(self.weights.values())
        image = self.weights.get(TEXT_TO_IMAGE, 0.0) / total
        found = [
            plan.steps_per_epoch / share
            for plan, share in ((self.images, image), (self.videos, 1 - image))
            if plan is not None and share > 1e-12
        ]
        return round(max(found))

    def task(self, step: int) -> str:
        """The task of a step."""
        return self._names[int(self._drawn(step // _BLOCK)[step % _BLOCK])]

    def __call__(self, step: int) -> tuple[int, ...]:
        """The examples of a step."""
        plan, turn = self._turn(step)
        return plan(turn)

    def parts(self, step: int) -> tuple[tuple[int, ...], ...]:
        """The same as its plan divides them."""
        plan, turn = self._turn(step)
        return plan.parts(turn)

    def _turn(self, step: int) -> tuple[Plan, int]:
        """The plan of a step's task, and how many steps it had before."""
        task = self.task(step)
        plan = self._plan(task)
        assert plan is not None
        of_images = self._images_before(step)
        return plan, of_images if task == TEXT_TO_IMAGE else step - of_images

    def _plan(self, task: str) -> Plan | None:
        return self.images if task == TEXT_TO_IMAGE else self.videos

    @cached_property
    def _names(self) -> list[str]:
        return [task for task in TASKS if self.weights.get(task)]

    def _drawn(self, block: int) -> np.ndarray:
        """Numbers of the tasks of a block of steps."""
        if block not in self._blocks:
            weights = np.array([self.weights[name] for name in self._names], np.float64)
            ends = np.cumsum(weights / weights.sum())
            drawn = np.searchsorted(ends, _rng(self.seed, "task", block).random(_BLOCK), "right")
            self._blocks.clear()
            self._blocks[block] = np.minimum(drawn, len(ends) - 1)
        return self._blocks[block]

    def _images_before(self, step: int) -> int:
        """How many of the steps before one draw images."""
        if TEXT_TO_IMAGE not in self._names:
            return 0
        block, rest = divmod(step, _BLOCK)
        image = self._names.index(TEXT_TO_IMAGE)
        while len(self._counts) <= block:
            self._counts.append(self._counts[-1] + int((self._drawn(len(self._counts) - 1) == image).sum()))
        return self._counts[block] + int((self._drawn(block)[:rest] == image).sum())


def images_and_videos(shapes: Sequence[Shape]) -> tuple[list[int], list[int]]:
    """Numbers of the examples of one latent frame, and of longer ones."""
    images = [number for number, shape in enumerate(shapes) if shape[0] == 1]
    return images, [number for number, shape in enumerate(shapes) if shape[0] > 1]


def _grouped(shapes: Sequence[Shape], only: Iterable[int] | None) -> dict[Shape, list[int]]:
    chosen = range(len(shapes)) if only is None else sorted(set(only))
    groups: dict[Shape, list[int]] = defaultdict(list)
    for number in chosen:
        groups[tuple(shapes[number])].append(number)  # type: ignore[index]
    if not groups:
        raise RequestError("there are no examples to make batches of")
    return dict(sorted(groups.items()))


def _sizes(
    groups: Mapping[Shape, Sequence[int]],
    batch: int | Mapping[Shape, int] | None,
    tokens: int | None,
    patch: tuple[int, int, int],
) -> list[int]:
    """Examples of a batch, of each shape."""
    if (batch is None) == (tokens is None):
        raise RequestError("give the size of batches either as `batch` or as `tokens`")
    if tokens is not None:
        return [max(1, _positive("tokens", tokens) // max(1, tokens_of(shape, patch))) for shape in groups]
    if not isinstance(batch, Mapping):
        return [_positive("batch", batch)] * len(groups)
    if absent := [shape for shape in groups if shape not in batch]:
        raise RequestError(f"`batch` names no size for latents of shape {_written(absent[0])}")
    return [_positive("batch", batch[shape]) for shape in groups]


def _packed(clips: list[tuple[int, int]], room: int) -> list[list[int]]:
    """Kinds of clips in sequences that hold ``room``: the longest first, each where it leaves least room."""
    slots: list[list[int]] = []
    open_slots: list[tuple[int, int]] = []  # (room that is left, slot), rising
    for length, kind in sorted(clips, reverse=True):
        place = bisect_left(open_slots, (length, -1))
        if place == len(open_slots):
            slots.append([kind])
            left, slot = room - length, len(slots) - 1
        else:
            left, slot = open_slots.pop(place)
            slots[slot].append(kind)
            left -= length
        if left:
            insort(open_slots, (left, slot))
    return slots


def _rng(seed: int, what: str, number: int) -> np.random.Generator:
    name = hashlib.sha256(f"{seed}/{what}/{number}".encode()).digest()[:16]
    return np.random.Generator(np.random.PCG64(int.from_bytes(name, "big")))


def _positive(name: str, value: int | None) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RequestError(f"`{name}` must be a whole number from 1 on, not `{value}`")
    return value


def _written(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
