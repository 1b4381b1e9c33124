"""What recipes of a catalogue model have in common: the model, its data, its batches, and where its weights go.

Fine-tuning and each way of distilling differ in their objective alone: they get the same ``Prepared`` model.

Legend: B batch, T H W C latent frames, rows, columns, channels.
"""

from __future__ import annotations

import logging
import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from kandinsky import catalogue
from kandinsky.engine.build import bare_network, build, stored_network
from kandinsky.engine.context import Context
from kandinsky.engine.lesson import Lesson
from kandinsky.engine.options import RunOptions
from kandinsky.engine.parallel import demand_of
from kandinsky.engine.request import Job, parse_size, resolve
from kandinsky.engine.stages import states_of, tensors_of
from kandinsky.errors import BackendError, KandinskyError, RequestError
from kandinsky.files import beside, local_path, remove
from kandinsky.model.card import Card, Component, Source
from kandinsky.model.denoiser import VIDEO, Known
from kandinsky.model.family import Part
from kandinsky.model.values import Request, TextEmbeddings
from kandinsky.printing import counted
from kandinsky.runtime.parallel.exchange import collect, shares, span, tell_tensors
from kandinsky.runtime.placement import Precision
from kandinsky.text.store import join
from kandinsky.train import branch, loop, pairs
from kandinsky.train.adapter import AdapterSettings, targets
from kandinsky.train.adapter import add as add_adapters
from kandinsky.train.adapter import without as without_adapters
from kandinsky.train.adapter import write as write_adapter
from kandinsky.train.branch import BranchLesson, BranchSettings
from kandinsky.train.conditions import Conditions, joined
from kandinsky.train.data import sources
from kandinsky.train.data.batches import (
    TASKS,
    Buckets,
    Mixture,
    Packing,
    Plan,
    Sequences,
    Shape,
    images_and_videos,
)  # fmt: skip
from kandinsky.train.data.captions import LENGTHS, Caption, CaptionChoice
from kandinsky.train.data.dataset import LATENT, MANIFEST, EncodedDataset
from kandinsky.train.data.feed import EncodedExamples, Examples, Feed, Loaded
from kandinsky.train.data.sources import Example
from kandinsky.train.denoising import Denoising, Given, Untold
from kandinsky.train.drawing import draw
from kandinsky.train.objective import Objective, Portion, Rng, Timed, at_times, check_portions
from kandinsky.train.recipe import Run
from kandinsky.train.samples import Manner, Samples, SampleSettings, jobs_of
from kandinsky.train.scale import HOST, Divisible, Scale, Scaling
from kandinsky.train.times import Times
from kandinsky.train.work import done
from kandinsky.weights.keymaps import keymap_of
from kandinsky.weights.read import check_file, load_into
from kandinsky.weights.untrusted import shown
from kandinsky.weights.write import write_state

log = logging.getLogger(__name__)
# for pairs, each of which has an empty prompt of its own
NOTHING = TextEmbeddings(torch.zeros(1, 1, 1), torch.zeros(1, 1))
MODEL, RANDOM = "model", "random"  # what a training begins with


@dataclass(frozen=True, slots=True)
class DataSettings:
    """What is trained on.

    Attributes:
        source: Folder of images and videos with captions; see ``train/data/sources.py``.
        size: Width and height, such as `768x512`; the model's own where absent.
        seconds: Of the clips; the model's own where absent. Longer videos are cut.
        batch: Clips of a step, over all processes.
        tokens: Instead: as many clips of a size as together have no more tokens, at least one.
        sequence: Clips of several sizes and lengths lie end to end, without padding, in sequences of no more tokens;
            `batch` is the number of these in a step. For networks that can keep the clips apart.
        tasks: Where images and videos are mixed, the weights of `text-to-image`, `text-to-video` and `image-to-video`;
            one of them is drawn for each step, so that batches hold images alone or videos alone.
        drop_text: Share of the clips that is learned without a prompt, for guidance.
        languages: Weight of captions of each language, such as `ru`; 1 where it is not named.
        lengths: Weight of captions that are `short`, `medium` or `long`; 1 where it is not named.
        workers: Processes that load ahead.
        conditions: What is given of the clips. Where absent, the first frame: of all for models that need an image, of
            half for those that may take one.
    """

    source: str
    size: str | None = None
    seconds: float | None = field(default=None, metadata={"least": 0})
    batch: int = field(default=1, metadata={"least": 1})
    tokens: int | None = field(default=None, metadata={"least": 1})
    sequence: int | None = field(default=None, metadata={"least": 1})
    tasks: Mapping[str, float] = field(default_factory=dict, metadata={"least": 0})
    drop_text: float = field(default=0.1, metadata={"least": 0, "most": 1})
    languages: Mapping[str, float] = field(default_factory=dict, metadata={"least": 0})
    lengths: Mapping[str, float] = field(default_factory=dict, metadata={"least": 0})
    workers: int = field(default=0, metadata={"least": 0})
    conditions: Conditions | None = None

    def __post_init__(self) -> None:
        for key, names, known in (("tasks", self.tasks, TASKS), ("lengths", self.lengths, LENGTHS)):
            if unknown := sorted(set(names) - set(known)):
                raise RequestError(f"`{key}` names `{shown(unknown[0])}`: use {', '.join(known)}")
        if self.tasks and not sum(self.tasks.values()) > 0:
            raise RequestError("`tasks` gives none a weight: give at least one, or leave it out")
        if self.tokens is not None and self.sequence is not None:
            raise RequestError(
                "give either `data.tokens`, for batches of clips of one size, or `data.sequence`, for packed sequences"
            )


@dataclass(frozen=True, slots=True)
class PromptedData(DataSettings):
    """What is trained on by recipes that keep prompts, since nothing is learned of clips without one.

    Attributes:
        drop_text: Share of the clips that is learned without a prompt.
    """

    drop_text: float = field(default=0.0, metadata={"least": 0, "most": 1})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecipe:
    """The keys of every recipe that trains a catalogue model.

    Attributes:
        model: Catalogue id, or a folder with a model.
        out: Folder of checkpoints, log and weights.
        data: See ``DataSettings``.
        loop: See ``LoopSettings``.
        start: Begin with the weights of the `model`, with `random` ones, or with those of a file, such as what an
            earlier stage has written.
        weights: Official `weights/` folder to read the model from.
        times: Where on the way between latent and noise the loss is taken.
        adapter: Train a LoRA or DoRA; all of the network's weights where absent.
        branch: Train a branch beside the network instead, which is told a clip or an image.
        scale: How it is spread over processes, and what it saves of memory.
        samples: Made as the training goes; see ``SampleSettings``.
        part: Which of the model's networks learns: `dit`, its denoiser, or `interpolation`, of keyframe models.
    """

    model: str
    out: str
    data: DataSettings
    loop: loop.LoopSettings
    start: str = "model"
    weights: str | None = None
    times: Times = field(default_factory=Times)
    adapter: AdapterSettings | None = None
    branch: BranchSettings | None = None
    scale: Scale = field(default_factory=Scale)
    samples: SampleSettings | None = None
    part: str = "dit"
    teaches: ClassVar[bool] = False  # whether recipes of the kind take lessons other than a clip from its caption
    packs: ClassVar[bool] = False  # whether recipes of the kind take `data.sequence`
    undoes: ClassVar[bool] = False  # the few steps of a model that was distilled to them
    unused: ClassVar[frozenset[str]] = frozenset(
        {"times.by_frame", "branch"}
    )  # keys that recipes of the kind do not take

    @property
    def learners(self) -> tuple[str, ...]:
        """Names of the objective's updates."""
        return ("network",)

    @property
    def helpers(self) -> tuple[str, ...]:
        """Networks of the size of the model's own, or nearly, that are at work too and do not learn."""
        return ()

    @property
    def reference(self) -> tuple[str, ...]:
        """The frozen copy of what is trained, for kinds that hold it against that; an adapter is taken off instead."""
        return ("reference",) if self.adapter is None else ()


@dataclass(frozen=True, slots=True)
class Clip:
    """One example as the network sees it.

    Attributes:
        latent: Clean, [1, T, H, W, C].
        texts: Embeddings of its captions.
        captions: What it shows.
        tensors: Further ones of its lesson.
        empty: Embeddings of no words, where they are its own.
    """

    latent: Tensor
    texts: Sequence[TextEmbeddings]
    captions: Sequence[Caption]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    empty: TextEmbeddings | None = None

    @property
    def text(self) -> TextEmbeddings:
        """Embeddings of the first caption."""
        return self.texts[0]


@dataclass(frozen=True, slots=True)
class Batch:
    """A share of a step's clips.

    Attributes:
        clean_BTHWC: Latents.
        given: Text and what is known; where a prompt was dropped, the embeddings of the empty one.
        numbers: The clips' places in the global batch, for random numbers of their own.
        total: Size of the global batch.
        captions: Of the clips, also of those whose prompt was dropped.
    """

    clean_BTHWC: Tensor
    given: Given
    numbers: Sequence[int]
    total: int
    captions: Sequence[str] = ()

    def noise(self, rng: Rng, stream: str = "noise") -> Tensor:
        """Noise of the latents' shape, on their device; drawn on CPU, so that it is the same for any device."""
        shape, device = self.clean_BTHWC.shape[1:], self.clean_BTHWC.device
        return torch.stack([torch.randn(shape, generator=rng.example(n, stream)) for n in self.numbers]).to(device)

    def to(self, device: torch.device | str) -> Batch:
        """The same on another device."""
        return replace(self, clean_BTHWC=self.clean_BTHWC.to(device), given=self.given.to(device))

    @property
    def each(self) -> tuple[Batch, ...]:
        """The clips of a packed batch; this alone, where all are of one shape."""
        return (self,)

    @property
    def learned(self) -> Tensor | None:
        """Where the loss counts, boolean, of a shape that broadcasts to the latents; None where it does everywhere."""
        mask = self.given.known.mask
        return ~next(iter(mask.values())) if mask else None


@dataclass(frozen=True, slots=True)
class Packed:
    """A share of a step's clips, of several shapes, for one pass.

    Attributes:
        each: Batches of one clip.
    """

    each: tuple[Batch, ...]

    @property
    def numbers(self) -> list[int]:
        """The clips' places in the global batch."""
        return [number for one in self.each for number in one.numbers]

    @property
    def total(self) -> int:
        """Size of the global batch."""
        return self.each[0].total

    def to(self, device: torch.device | str) -> Packed:
        """The same on another device."""
        return Packed(tuple(one.to(device) for one in self.each))


def error_of(predicted: Tensor, target: Tensor, batch: Batch) -> Tensor:
    """``errors_of``, averaged over clips."""
    return errors_of(predicted, target, batch).mean()


def errors_of(predicted: Tensor, target: Tensor, batch: Batch) -> Tensor:
    """Mean squared error of each clip, [B], where nothing is known of it."""
    error = (predicted - target).pow(2)
    if (learned := batch.learned) is None:
        return error.flatten(1).mean(1)
    weight = learned.expand_as(error).to(error)
    return (error * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp_min(1)


def by_time(predicted: Tensor, target: Tensor, t: Tensor, batch: Batch) -> list[Timed]:
    """``errors_of`` of each clip at its time; of each frame, where frames have times of their own.

    Args:
        predicted: [B, T, H, W, C], as ``target``.
        t: [B] or [B, T].
        batch: Says what is known.
    """
    with torch.no_grad():
        if t.ndim == 1:
            return at_times(t, errors_of(predicted, target, batch))
        error, learned = (predicted - target).pow(2), batch.learned
        weight = torch.ones_like(error) if learned is None else learned.expand_as(error).to(error)
        each, count = (error * weight).sum((2, 3, 4)), weight.sum((2, 3, 4))
        shares = count / count.sum(1, keepdim=True).clamp_min(1)
        rows = torch.stack((t.to(error), each / count.clamp_min(1), shares), dim=-1).flatten(0, 1)
        return [Timed(*row) for row in rows.tolist() if row[2] > 0]


class Batches(Protocol):
    """Gives a portion of the batch of a step; depends on nothing but the arguments."""

    def __call__(self, step: int, rng: Rng, portion: Portion, /) -> Batch:
        """A portion."""
        ...


@dataclass(frozen=True)
class HeldClips:
    """Clips in memory, as a data set.

    Attributes:
        clips: At least one.
        empty: Embeddings of the empty prompt.
    """

    clips: Sequence[Clip]
    empty: Untold

    @property
    def shapes(self) -> list[Shape]:
        """Of the latents."""
        return [(T, H, W, C) for clip in self.clips for _, T, H, W, C in [clip.latent.shape]]

    def captions(self, index: int) -> Sequence[Caption]:
        """Of a clip."""
        return self.clips[index].captions

    def example(self, place: int, index: int, caption: Caption | None) -> Loaded:
        """A clip with its caption, or with none."""
        clip = self.clips[index]
        if caption is None:
            text = clip.empty or self.empty.of(clip.latent)
        else:
            text = clip.texts[list(clip.captions).index(caption)]
        return Loaded(place, index, caption, {LATENT: clip.latent, **clip.tensors}, text)


@dataclass(frozen=True, slots=True)
class CaptionNumbers:
    """The generator that draws the caption of an example; for workers."""

    seed: int

    def __call__(self, step: int, place: int) -> torch.Generator:
        return Rng(self.seed, step).example(place, "caption")


class ClipBatches:
    """Batches of clips of one shape, or ``packed``; an epoch shows each once, in an order that the seed decides.

    Args:
        examples: The data.
        empty: Embeddings of the empty prompt.
        settings: Size and shares.
        conditions: What is given of the clips, by the task of a step; under "" where there are no tasks.
        seed: Of the order, and of captions.
        shares: Portions that this process asks for in each step, in their order.
        patch: Of the network, for the count of tokens.
        track: Of the state.
        lesson: What is learned of an example, and the job it is for; a clip from its caption where absent.

    Raises:
        RequestError: The tasks ask for images or clips that there are not.
    """

    def __init__(
        self,
        examples: Examples,
        empty: Untold,
        settings: DataSettings,
        conditions: Mapping[str, Conditions],
        *,
        seed: int = 0,
        shares: Sequence[Portion] = (Portion(),),
        patch: tuple[int, int, int] = (1, 2, 2),
        track: str = VIDEO,
        lesson: tuple[Lesson, Job] | None = None,
    ) -> None:
        self.examples, self.empty, self.settings, self.lesson = examples, empty, settings, lesson
        self.conditions, self.track, self.patch = conditions, track, patch
        self.choice = CaptionChoice(settings.drop_text, settings.languages, settings.lengths)
        shapes = examples.shapes

        def planned(only: Sequence[int] | None) -> Plan:
            if settings.sequence is not None:
                packing = Packing(shapes, tokens=settings.sequence, seed=seed, only=only, patch=patch)
                return Sequences(packing, settings.batch)
            batch = settings.batch if settings.tokens is None else None
            return Buckets(shapes, batch=batch, tokens=settings.tokens, seed=seed, only=only, patch=patch)

        self.mixture: Mixture | None = None
        if settings.tasks:
            images, videos = images_and_videos(shapes)
            plans = (planned(images) if images else None, planned(videos) if videos else None)
            self.mixture = Mixture(*plans, settings.tasks, seed=seed)
        plan: Plan = self.mixture or planned(None)
        self.feed = Feed(examples, plan, self.choice, CaptionNumbers(seed), shares, workers=settings.workers)
        smallest = min(len(plan.parts(step)) for step in range(min(plan.steps_per_epoch, 1000)))
        if smallest < shares[0].count:
            what = "clips" if settings.sequence is None else "sequences"
            raise RequestError(
                f"a batch has {smallest} {what}, and {shares[0].count} processes and micro-batches take {what} of "
                "their own: use a larger `data.batch`" + (" or `data.tokens`" if settings.sequence is None else "")
            )

    def __call__(self, step: int, rng: Rng, portion: Portion) -> Batch:
        """A portion of the batch of a step."""
        return self.collated(self.feed(step, portion), rng, *self._told(step))

    def packed(self, step: int, rng: Rng, portion: Portion) -> Packed:
        """A portion of the clips of a step, of several shapes."""
        told = self._told(step)
        return Packed(tuple(self.collated([one], rng, *told) for one in self.feed(step, portion)))

    def _told(self, step: int) -> tuple[int, Conditions]:
        """Size of the batch of a step, and what is given of its clips."""
        task = "" if self.mixture is None else self.mixture.task(step)
        return len(self.feed.plan(step)), self.conditions[task]

    def collated(self, loaded: Sequence[Loaded], rng: Rng, total: int, conditions: Conditions) -> Batch:
        """Loaded clips of one shape as a batch."""
        numbers = [one.place for one in loaded]
        made = [self._learned(one, rng, conditions) for one in loaded]
        clean, known = torch.cat([one for one, _ in made]), [one for _, one in made]
        texts = [one.text.to("cpu", torch.float32) for one in loaded]
        given = Given(join(texts), joined(known, clean, self.track))
        # where a prompt was dropped, what the clip shows is still known
        every = [[one.caption] if one.caption else self.examples.captions(one.index) for one in loaded]
        captions = [each[0].text if each else "" for each in every]
        done(samples=len(loaded), tokens=clean[..., 0].numel() // math.prod(self.patch))
        return Batch(clean, given, numbers, total, captions)

    def _learned(self, one: Loaded, rng: Rng, conditions: Conditions) -> tuple[Tensor, Known]:
        """What is made of an example, and what is known of it."""
        generator = rng.example(one.place, "known")
        if self.lesson is not None and not self.lesson[0].is_plain:
            lesson, job = self.lesson
            return lesson.given(job, one.tensors, generator)
        clean = one.latent.float()
        known = conditions.known(clean, self.track, generator)
        told = {} if self.lesson is None else self.lesson[0].beside(one.tensors)
        return clean, replace(known, extra={**known.extra, **told})


class Prepared:
    """A model that is ready to be trained.

    Attributes:
        source: Where it comes from.
        context: Its parts.
        denoising: The door of its denoiser.
        examples: The data.
        empty: Embeddings of the empty prompt.
        network: Its denoiser, in main memory and in the types of its file; what learns of it becomes float32 in the
            loop. Where the recipe asks for an adapter, that alone requires gradients.
        batches: Gives a portion of the batch of a step.
        told: What makes the result besides the loop's settings.
        scaling: The processes that train it together.
    """

    def __init__(
        self,
        recipe: ModelRecipe,
        run: Run,
        find: Callable[[str], Sequence[Example]] = sources.find,
        together: int = 1,
    ) -> None:
        """Read the model and its data.

        Args:
            recipe: What is trained.
            run: How.
            find: Gives the examples of the recipe's data source.
            together: Of so many examples that follow each other, none is of use without the others.

        Raises:
            RequestError: The model cannot be trained this way, or the data cannot be read.
            WeightsError: Weights are missing or broken.
        """
        root = None if recipe.weights is None else local_path(recipe.weights, "weights folder")
        self.recipe, self.run = recipe, run
        self.source: Source = catalogue.source_of(recipe.model, weights=root)
        card = self.source.card
        check(recipe, card, dist.get_world_size() if dist.is_initialized() else 1)
        self.lesson, self.part = lesson_of(recipe, card), recipe.part
        job = self.lesson.job(job_of(recipe, card))
        data = Path(recipe.data.source) / MANIFEST
        encoded = EncodedDataset(data.parent) if data.is_file() else None
        if self.lesson.pairs and find is sources.find:
            find = partial(pairs.find, folders=self.lesson.pairs)
        examples: Sequence[Example] = [] if encoded is not None else find(recipe.data.source)
        trigger = recipe.adapter.trigger if recipe.adapter is not None else ""
        if trigger and encoded is not None:
            raise RequestError("`adapter.trigger` stands before captions: put it into them before they are encoded")
        if trigger:
            examples = [_triggered(one, trigger) for one in examples]
        encoders = ("text", *(name for name in self.lesson.encoders if name in card.components))
        self._begins = self._beginning(card)
        options = RunOptions(device=run.device, dtype="float32", offload="module", only=encoders)
        # text encoders are as large as the networks that learn: in the type of generation
        types = {"text": Precision.choose(card.components["text"].dtype or None, torch.device(run.device)).name}
        self.context = build(card, options, root=self.source.root, name=self.source.name, types=types)
        self.denoising = Denoising(self.context, job, part=recipe.part)
        self.examples: Examples
        if encoded is not None:
            encoded.check_model(card)
            check_cutting(recipe, card, encoded)
            if absent := set(self.lesson.tensors) - set(encoded.manifest["tensors"]) or recipe.part != "dit":
                what = "another frame rate" if absent is True else f"`{min(absent)}` of each example"
                raise RequestError(
                    f"`{recipe.part}` of `{card.id}` needs {what}, which data set `{shown(recipe.data.source)}` has "
                    "not: name the folder it was made of"
                )
            self.examples, self.empty = EncodedExamples(encoded), empty_of(encoded)
            files = encoded.fingerprint
        else:
            clips, self.empty = encode_together(self.context, examples, job, self.lesson, together)
            usable = _usable(clips)
            # a file that could be read again would be another clip under a number that was another's
            files = sources.fingerprint(examples) + _left_out(clips)
            self.examples = HeldClips(usable, self.empty)
        self.network = self._network()
        self.scaling = Scaling(recipe.scale, run.device, self._divisible(job))
        self.batches = self.batches_of(self.examples)
        self.told = {**run.recipe, "data files": files}

    def batches_of(self, examples: Examples) -> ClipBatches:
        """Batches as the recipe asks for, of the data or of what stands in for it."""
        recipe = self.recipe
        does = self.context.card.does
        usual = Conditions(first={"none": 0.0, "required": 1.0, "optional": 0.5}[does.image])
        given = recipe.data.conditions
        return ClipBatches(
            examples,
            self.empty,
            recipe.data,
            {
                "": given or usual,
                "text-to-image": Conditions(),
                "text-to-video": Conditions(),
                "image-to-video": given or Conditions(first=1.0),
            },
            seed=recipe.loop.seed,
            shares=self.shares,
            patch=getattr(getattr(self.network, "params", None), "patch_size", (1, 1, 1)),
            lesson=(self.lesson, self.denoising.job),
        )

    @property
    def shares(self) -> list[Portion]:
        """Portions of the batch of a step that this process asks for, in their order."""
        scaling, count = self.scaling, self.recipe.loop.accumulate
        return [Portion(scaling.place * count + micro, scaling.data * count) for micro in range(count)]

    @cached_property
    def clips(self) -> Sequence[Clip]:
        """All examples in memory, for what looks at each of them."""
        if isinstance(self.examples, HeldClips):
            return self.examples.clips
        found = []
        for index in range(len(self.examples.shapes)):
            captions = self.examples.captions(index)
            loaded = [self.examples.example(index, index, one) for one in captions]
            found.append(Clip(loaded[0].latent.float(), [one.text for one in loaded], captions))
        return found

    def _divisible(self, job: Job) -> Divisible:
        """The model's network, and what of its work can be shared by processes."""
        context = self.context
        split = context.card.part(self.part).split
        demand = replace(demand_of(job, context.attention_of(job), clips=0), alone="")
        return Divisible(type(self.network), None if split is None else split.rules(), demand)

    def _beginning(self, card: Card) -> Callable[[], nn.Module]:
        """What gives the network with the weights that the training begins with, each time anew."""
        part, component, start = card.part(self.part), card.components[self.part], self.recipe.start
        if start == MODEL:
            return stored_network(card, self.part, root=self.source.root, model=self.source.name)

        def made() -> nn.Module:
            if start == RANDOM:
                return drawn(lambda: bare_network(part, component, Path()), self.recipe.loop.seed, self.run.out)
            with torch.device("meta"):
                network = bare_network(part, component, Path())
            load_into(network, Path(start), keymap=keymap_of(part))
            return network

        return made

    def copy(self, dtype: torch.dtype | None = None) -> nn.Module:
        """Another network with the weights that the training begins with, in main memory; no gradients are required.

        Args:
            dtype: Of its weights; as they are stored where absent.
        """
        return self._begins().to(dtype=dtype).requires_grad_(False).eval()

    def _network(self) -> nn.Module:
        network = learning(self._begins())
        if (adapter := self.recipe.adapter) is not None:
            default = self.context.card.part(self.part).adapts
            add_adapters(network, adapter, default, seed=self.recipe.loop.seed, device=self.run.device)
        if (beside := self.recipe.branch) is not None:
            branch.add(network, beside, self.context.card, seed=self.recipe.loop.seed, device=self.run.device)
        return network

    @contextmanager
    def reference(self, network: nn.Module) -> Iterator[nn.Module]:
        """The network as it was before the training: without its adapters, or a frozen copy."""
        if self.recipe.adapter is not None:
            with without_adapters(network):
                yield network
            return
        yield self.frozen_copy

    @property
    def reference_networks(self) -> Mapping[str, nn.Module]:
        """Networks that ``reference`` needs besides the trained one."""
        return {} if self.recipe.adapter is not None else {"reference": self.frozen_copy}

    @cached_property
    def frozen_copy(self) -> nn.Module:
        """The network as it is before the training, frozen."""
        return self.copy(torch.float32)

    def train(self, objective: Objective, manner: Manner | None = None) -> Mapping[str, Mapping[str, Tensor]]:
        """Run the loop.

        Args:
            objective: What is trained; its first update is that of the model's denoiser.
            manner: How the result is sampled, where that is not as the card says.

        Returns:
            By update, the weights it gives.
        """
        run, watchers = self.run, self._watchers(objective.updates[0].name, manner)
        self.context.placement.release()  # what encoded the data
        return loop.run(
            objective,
            self.recipe.loop,
            run.out,
            resume=run.resume,
            device=run.device,
            recipe=self.told,
            on_log=run.on_log,
            watchers=watchers,
            scaling=self.scaling,
        )

    def _watchers(self, update: str, manner: Manner | None) -> list[loop.Watcher]:
        """Whoever makes samples."""
        wanted, data, settings = self.recipe.samples, self.recipe.data, self.recipe.loop
        if wanted is None:
            return []
        card, jobs = jobs_of(wanted, self.context.card, size=data.size, seconds=data.seconds, manner=manner)
        return [
            Samples(
                self.context.with_card(card), jobs, self.run.out, update=update, every=wanted.every,
                last=settings.steps, bf16=settings.computes_bf16(self.run.device), scaling=self.scaling,
            )
        ]  # fmt: skip

    def write(self, weights: Mapping[str, Tensor], name: str | None = None) -> Path:
        """Write the network with these weights in it under the official tensor names, or its adapter's files.

        The first process writes; every process must ask.

        Returns:
            The file.
        """
        adapter, name = self.recipe.adapter, name or f"{self.part}.safetensors"
        keymap = keymap_of(self.context.card.part(self.part))
        is_whole = adapter is None and self.recipe.branch is None
        state: dict[str, Any] = self.scaling.state(self.network) if is_whole else {}
        if not self.scaling.is_first:
            return self.run.out / name
        if self.recipe.branch is not None:
            return branch.write(weights, self.recipe.branch, self.context.card, self.run.out)
        if adapter is not None:
            return write_adapter(weights, adapter, self.run.out, keymap)
        return write_state(keymap.as_file({**state, **weights}), self.run.out / name, layout="official")


def empty_of(encoded: EncodedDataset) -> Untold:
    """Embeddings of the empty prompt of a data set; where each example has its own, they are never asked for."""
    if encoded.has_own_texts:
        return Untold(NOTHING, NOTHING)
    # of a kind that there is none of, the other's are never asked for
    kinds = {row.frames == 1 for row in encoded.rows}
    clip, still = (encoded.text("", still=one if one in kinds else not one) for one in (False, True))
    return Untold(clip, still)


def drawn(build: Callable[[], nn.Module], seed: int, folder: Path) -> nn.Module:
    """A network with seeded random weights, the same for any number of processes.

    Of several processes on a machine one draws it into a file, module by module, and all map it from there, so that
    none ever holds the whole of it in float32.

    Args:
        build: Makes the network, with weights unless the default device is the meta device.
        seed: Of the weights.
        folder: Where a file may lie for a moment.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        with loop.seeded(seed):
            return build()
    hosts, rank = collect(platform.node(), HOST), dist.get_rank()
    first = hosts.index(hosts[rank])
    folder.mkdir(parents=True, exist_ok=True)
    path = beside(folder / "start.safetensors")
    try:
        problem = None
        if rank == first:
            try:
                draw(build, seed, path)
            except (KandinskyError, OSError) as error:
                problem = str(error)
        told = collect((str(path), problem), HOST)  # the files are there
        if problems := [one for _, one in told if one is not None]:
            raise BackendError(problems[0])
        with torch.device("meta"):
            network = build()
        load_into(network, Path(told[first][0]))
        collect(None, HOST)  # what is mapped stays when its name is gone
    finally:
        remove(path)
    return network


def learning(network: nn.Module) -> nn.Module:
    """Let all weights of a network learn; they stay in the types of their file until the loop takes them.

    Returns:
        The network.
    """
    for buffer in network.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.float()
    return network.requires_grad_(True)


def _triggered(example: Example, trigger: str) -> Example:
    """An example whose captions begin with the words that call an adapter."""
    captions = tuple(replace(one, text=trigger + one.text) for one in example.captions)
    return replace(example, captions=captions)


def encode(
    context: Context, examples: Sequence[Example], job: Job, lesson: Lesson, together: int = 1
) -> tuple[list[Clip | str], Untold]:
    """Tensors and text embeddings of the examples, and the embeddings of the empty prompt.

    Args:
        context: The model.
        examples: Of each, as many files as the lesson has.
        job: That is learned.
        lesson: What is learned.
        together: Of so many examples that follow each other, none is of use without the others.

    Returns:
        The examples; of one that cannot be used, why.
    """
    shape, step = job.shape, context.card.clip.frame_step
    fps, most = lesson.clip(job)
    each = len(lesson.pairs) or 1  # files of an example
    groups = [examples[start : start + each] for start in range(0, len(examples), each)]

    def frames(group: Sequence[Example]) -> list[np.ndarray]:
        size: dict[str, Any] = {"width": shape.width, "height": shape.height, "fps": fps, "step": step}
        return [sources.frames(example, **size, most=most) for example in group]

    made = list[dict[str, Tensor] | str]()
    with ExitStack() as held:
        for name in lesson.encoders:
            if name in context.card.components:
                held.enter_context(context.placement.hold(name))
        for group in groups:
            try:
                shown = frames(group)
            except RequestError as error:
                log.warning("left out: %s", error)
                made.append(str(error))
                continue
            made.append({name: x.float().cpu() for name, x in lesson.encode(context, *shown).items()})
    for start in range(0, len(made), together):
        if whys := [one for one in made[start : start + together] if isinstance(one, str)]:
            made[start : start + together] = [whys[0]] * together
    clips, own = list[Clip | str](), None
    with context.placement.hold("text"):
        for group, tensors in zip(groups, made, strict=True):
            if isinstance(tensors, str):
                clips.append(tensors)
                continue
            # of clips only the number of frames is asked for; of pairs the text encoder sees the images
            shown = frames(group) if lesson.pairs else [np.empty((tensors[LATENT].shape[1], 0, 0, 3), np.uint8)]
            texts = [lesson.text(context, one.text, *shown).to("cpu", torch.float32) for one in group[0].captions]
            own = lesson.text(context, "", *shown).to("cpu", torch.float32) if lesson.pairs else None
            others = {name: x for name, x in tensors.items() if name != LATENT}
            clips.append(Clip(tensors[LATENT], texts, group[0].captions, others, own))
        clip, still = (
            NOTHING if lesson.pairs else lesson.text(context, "", np.empty((count, 0, 0, 3), np.uint8))
            for count in (2, 1)
        )
    return clips, Untold(clip.to("cpu", torch.float32), still.to("cpu", torch.float32))


def encode_together(
    context: Context, examples: Sequence[Example], job: Job, lesson: Lesson, together: int = 1
) -> tuple[list[Clip | str], Untold]:
    """As ``encode``; several processes each encode a share, and all get the whole.

    Raises:
        RequestError: The encoders cannot be used; raised in all processes.
    """
    each = len(lesson.pairs) or 1  # files of an example
    if not dist.is_initialized() or dist.get_world_size() == 1:
        clips, empty = encode(context, examples, job, lesson, together)
        return clips, empty
    rank, world = dist.get_rank(), dist.get_world_size()
    counts = [one * together for one in shares(len(examples) // each // together, world)]
    spans = [span(counts, place) for place in range(world)]
    parts = [examples[one.start * each : one.stop * each] for one in spans]
    mine, nothing, problem = list[Clip | str](), None, None
    try:
        mine, nothing = encode(context, parts[rank], job, lesson, together)
    except KandinskyError as error:
        problem = str(error)
    told = collect((problem, [clip if isinstance(clip, str) else None for clip in mine]), HOST)
    if problems := [one for one, _ in told if one is not None]:
        raise RequestError(problems[0])
    assert nothing is not None
    names = [name for name in lesson.tensors if name != LATENT]
    found: list[Clip | str] = []
    for place, part in enumerate(parts):
        flat: list[Tensor | None] = []
        for clip in mine if place == rank else ():
            if not isinstance(clip, str):
                flat += [clip.latent, *(clip.tensors[name] for name in names), *tensors_of(*clip.texts, clip.empty)]
        made = iter(tell_tensors(flat if place == rank else None, place, HOST))
        for example, why in zip(part[::each], told[place][1], strict=True):
            if why is not None:
                found.append(why)
                continue
            latent, *others = (next(made) for _ in range(1 + len(names)))
            texts = [[next(made) for _ in range(3)] for _ in range(len(example.captions) + 1)]
            states = [None if text[0] is None else states_of(text) for text in texts]
            assert latent is not None
            tensors = {name: x for name, x in zip(names, others, strict=True) if x is not None}
            captioned = [text for text in states[:-1] if text is not None]
            found.append(Clip(latent, captioned, example.captions, tensors, states[-1]))
    return found, nothing


def _usable(clips: Sequence[Clip | str]) -> list[Clip]:
    """Those that can be used; how many are left out is told. Raises: RequestError if there are none."""
    found = [clip for clip in clips if not isinstance(clip, str)]
    whys = [clip for clip in clips if isinstance(clip, str)]
    if whys:
        log.warning("%d of %s cannot be used", len(whys), counted(len(clips), "example"))
    if not found:
        raise RequestError(f"nothing is left of the data: {whys[0]}")
    return found


def _left_out(clips: Sequence[Clip | str]) -> str:
    """Places of those that cannot be used, for a fingerprint; nothing if all can."""
    return "".join(f"-{place}" for place, clip in enumerate(clips) if isinstance(clip, str))


def check(recipe: ModelRecipe, card: Card, processes: int = 1) -> None:
    """Refuse what cannot be trained.

    Args:
        recipe: As it was read.
        card: The model.
        processes: That train together.

    Raises:
        RequestError: The model is not trained this way, conditions are more than all clips, or a batch has too few
            clips for the processes and micro-batches.
        BackendError: Its network is no denoiser.
    """
    does = card.does
    if recipe.undoes and card.distilled_from:
        text = f"`{card.id}` was distilled to its few steps, which this training undoes: train `{card.distilled_from}`"
        if recipe.adapter is None:
            raise RequestError(text, hint="recipes of kind `ladd`, `dmd2` and `step-distillation` make few steps of it")
        log.warning("%s", text)
    if said := [key for key in sorted(recipe.unused) if _is_said(recipe, key)]:
        raise RequestError(f"`{said[0]}` has no part in recipes of this kind: leave it out")
    if recipe.data.conditions is not None and recipe.data.conditions.total > 1:
        total = recipe.data.conditions.total
        raise RequestError(f"shares of `conditions` add up to {total:g}: use 1 at most; nothing is given of the rest")
    if recipe.start not in (MODEL, RANDOM) and not Path(recipe.start).is_file():
        raise RequestError(
            f"`start` is `{shown(recipe.start)}`: use `{MODEL}`, `{RANDOM}`, or a weight file that exists"
        )
    student = getattr(recipe, "student", None)  # of recipes that distil
    if student is not None and not Path(student).is_file():
        raise RequestError(f"`student` is `{shown(student)}`: name a weight file that exists")
    if recipe.data.tokens is None:
        what, taking = "clip" if recipe.data.sequence is None else "sequence", recipe.scale.layout(processes).data
        check_portions(recipe.loop.accumulate, recipe.data.batch, what=what, processes=taking)
    if does.makes == "sound" or (does.lessons and not recipe.teaches):
        raise RequestError(
            f"`{card.id}` cannot be trained by a recipe of this kind: it trains models that make a clip or an image "
            "from a prompt, or continue an image"
        )
    if recipe.part not in (learners := tuple(dict.fromkeys(("dit", *does.lessons)))):
        raise RequestError(f"`part` is `{shown(recipe.part)}`: of `{card.id}`, {' or '.join(learners)} can be trained")
    if not lesson_of(recipe, card).is_plain and (recipe.data.conditions or recipe.data.tasks):
        raise RequestError(f"`{card.id}` is given what its task says: leave `data.conditions` and `data.tasks` out")
    if recipe.times.by_frame and not card.part("dit").frame_times:
        raise RequestError(f"`times.by_frame`: network `{card.dit.kind}` takes one time a clip: leave it out")
    if card.part(recipe.part).bind is None:
        raise BackendError(f"network `{card.dit.kind}` is not a denoiser")
    if recipe.samples is not None:
        jobs_of(recipe.samples, card, size=recipe.data.size, seconds=recipe.data.seconds)
    if recipe.data.sequence is not None:
        _check_packing(recipe, card)
    begins = [one for one in (recipe.start, student) if one not in (None, MODEL, RANDOM)]
    part, component = card.part(recipe.part), card.components[recipe.part]
    if recipe.adapter is not None:
        check_adapter(recipe.adapter, part, component, recipe.scale)
    if recipe.branch is not None:
        check_branch(recipe, card)
    if begins:  # by their headers
        with torch.device("meta"):
            network = bare_network(part, component, Path())
        for one in begins:
            check_file(network, Path(one), keymap=keymap_of(part))


def _is_said(values: Any, key: str) -> bool:
    """Whether a key, such as `data.tasks`, has another value than its own."""
    name, _, rest = key.partition(".")
    if rest:
        return _is_said(getattr(values, name), rest)
    own = next(one for one in fields(values) if one.name == name)
    return bool(getattr(values, name) != (own.default if own.default_factory is MISSING else own.default_factory()))


def check_cutting(recipe: ModelRecipe, card: Card, encoded: EncodedDataset) -> None:
    """Refuse a size or length that an encoded data set was not cut to. Raises: RequestError."""
    data, cut, shape = recipe.data, encoded.manifest.get("settings", {}), job_of(recipe, card).shape
    advice = f"leave it out, or encode `{shown(data.source)}` anew"
    sizes = [(one["width"], one["height"]) for one in cut.get("buckets", ())]
    if data.size is not None and sizes and (shape.width, shape.height) not in sizes:
        there = ", ".join(f"{width}x{height}" for width, height in sizes)
        raise RequestError(f"`data.size` is `{shown(data.size)}`, and the data set was encoded at {there}: {advice}")
    lengths = cut.get("frames", ())
    if data.seconds is not None and lengths and shape.frames not in lengths:
        there = ", ".join(map(str, lengths))
        raise RequestError(
            f"`data.seconds` is {data.seconds:g}, which are {shape.frames} frames, and the data set was encoded with "
            f"{there}: {advice}"
        )


def check_adapter(adapter: AdapterSettings, part: Part, component: Component, scale: Scale | None = None) -> None:
    """Refuse an adapter that fits no layer of a network, which is not read, or not the way it is spread.

    Raises:
        RequestError: It does not fit.
    """
    if part.network is not None and (adapter.targets or not part.adapts):
        with torch.device("meta"):
            targets(bare_network(part, component, Path()), adapter.targets or part.adapts)
    if scale is None or scale.tp == 1:
        return
    if adapter.dropout:
        raise RequestError(
            "`adapter.dropout`: with `scale.tp` each process would drop others of its inputs: leave one of them out"
        )
    if adapter.base_dtype == "int8":
        raise RequestError("`scale.tp` divides plain weights: use the adapter's `base_dtype` `bfloat16`")


def check_branch(recipe: ModelRecipe, card: Card) -> None:
    """Raises: RequestError where no such branch can be trained."""
    assert recipe.branch is not None
    branch.check(recipe.branch, card)
    others = {
        "adapter": recipe.adapter is not None,
        "samples": recipe.samples is not None,
        "data.sequence": recipe.data.sequence is not None,
        "part": recipe.part != "dit",
        "scale": recipe.scale.ring * recipe.scale.ulysses * recipe.scale.tp > 1,
    }
    if said := [name for name, is_said in others.items() if is_said]:
        raise RequestError(f"`{said[0]}` cannot be used with `branch`: leave one of them out")
    if card.does.lessons:
        raise RequestError(f"`{card.id}` is taught more than clips from captions, and no branch yet: use another model")
    with torch.device("meta"):
        branch.built(recipe.branch, card)


def _check_packing(recipe: ModelRecipe, card: Card) -> None:
    """Raises: RequestError where clips of several sizes cannot share a sequence."""
    instead = "leave it out, and use `data.tokens` for batches of clips of one size"
    if not recipe.packs:
        raise RequestError(f"`data.sequence`: recipes of this kind take clips of one size together: {instead}")
    if not card.part("dit").packs:
        raise RequestError(
            f"`data.sequence`: network `{card.dit.kind}` cannot keep the clips of a sequence apart: {instead}"
        )
    if recipe.scale.ring * recipe.scale.ulysses > 1:
        raise RequestError("`data.sequence`: the tokens of a sequence are not shared: leave `scale.ring` and "
                           "`scale.ulysses` out")  # fmt: skip


def lesson_of(recipe: ModelRecipe, card: Card) -> Lesson:
    """What the network that learns is taught."""
    if recipe.branch is not None:
        return BranchLesson(recipe.branch, Path(recipe.data.source))
    own = card.does.lessons.get(recipe.part)
    return Lesson() if own is None else own()


def job_of(recipe: ModelRecipe, card: Card) -> Job:
    """Size, length and sampling values of the clips."""
    width, height = (None, None) if recipe.data.size is None else parse_size(recipe.data.size)
    request = Request(recipe.model, "any", seconds=recipe.data.seconds, width=width, height=height, seed=0)
    return resolve(request, card.of_whole_clips(), needs_image=False)
