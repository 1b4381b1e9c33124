"""What recipes of a catalogue model have in common: the model, its data, its batches, and where its weights go.

Fine-tuning and each way of distilling differ in their objective alone: they get the same ``Prepared`` model.

Legend: B batch, T H W C latent frames, rows, columns, channels.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kandinsky import catalogue
from kandinsky.engine.build import bare_network, build
from kandinsky.engine.context import Context
from kandinsky.engine.options import RunOptions
from kandinsky.engine.parallel import demand_of
from kandinsky.engine.request import Job, parse_size, resolve
from kandinsky.errors import BackendError, RequestError
from kandinsky.files import local_path
from kandinsky.model.card import Card, Source
from kandinsky.model.denoiser import VIDEO
from kandinsky.model.values import Request, TextEmbeddings
from kandinsky.text.store import join
from kandinsky.train import loop
from kandinsky.train.adapter import AdapterSettings
from kandinsky.train.adapter import add as add_adapters
from kandinsky.train.adapter import without as without_adapters
from kandinsky.train.adapter import write as write_adapter
from kandinsky.train.conditions import Conditions, joined
from kandinsky.train.data import sources
from kandinsky.train.data.sources import Example
from kandinsky.train.denoising import Denoising, Given
from kandinsky.train.objective import Objective, Portion, Rng
from kandinsky.train.recipe import Run
from kandinsky.train.scale import Divisible, Scale, Scaling
from kandinsky.train.times import Times
from kandinsky.weights.keymaps import keymap_of
from kandinsky.weights.write import write_state


@dataclass(frozen=True, slots=True)
class DataSettings:
    """What is trained on.

    Attributes:
        source: Folder of images and videos with captions; see ``train/data/sources.py``.
        size: Width and height, such as `768x512`; the model's own where absent.
        seconds: Of the clips; the model's own where absent. Longer videos are cut.
        batch: Clips of a step, over all processes.
        drop_text: Share of the clips that is learned without a prompt, for guidance.
        conditions: What is given of the clips. Where absent, the first frame: of all for models that need an image, of
            half for those that may take one.
    """

    source: str
    size: str | None = None
    seconds: float | None = field(default=None, metadata={"least": 0})
    batch: int = field(default=1, metadata={"least": 1})
    drop_text: float = field(default=0.1, metadata={"least": 0, "most": 1})
    conditions: Conditions | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecipe:
    """The keys of every recipe that trains a catalogue model.

    Attributes:
        model: Catalogue id, or a folder with a model.
        out: Folder of checkpoints, log and weights.
        data: See ``DataSettings``.
        loop: See ``LoopSettings``.
        start: Begin with the model's weights, or with random ones.
        weights: Official `weights/` folder to read the model from.
        times: Where on the way between latent and noise the loss is taken.
        adapter: Train a LoRA or DoRA; all of the network's weights where absent.
        scale: How it is spread over processes, and what it saves of memory.
    """

    model: str
    out: str
    data: DataSettings
    loop: loop.LoopSettings
    start: Literal["model", "random"] = "model"
    weights: str | None = None
    times: Times = field(default_factory=Times)
    adapter: AdapterSettings | None = None
    scale: Scale = field(default_factory=Scale)


@dataclass(frozen=True, slots=True)
class Clip:
    """One example as the network sees it: clean latent [1, T, H, W, C], its caption, and the embeddings of that."""

    latent: Tensor
    text: TextEmbeddings
    caption: str = ""


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
    def learned(self) -> Tensor | None:
        """Where the loss counts, boolean, of a shape that broadcasts to the latents; None where it does everywhere."""
        mask = self.given.known.mask
        return ~next(iter(mask.values())) if mask else None


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


class Batches:
    """Batches of one length, drawn with replacement: each example has the same chance to be the first of its step.

    Args:
        clips: At least one.
        empty: Embeddings of the empty prompt.
        settings: Size and shares.
        conditions: What is given of the clips.
        track: Of the state.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        empty: TextEmbeddings,
        settings: DataSettings,
        conditions: Conditions,
        track: str = VIDEO,
    ) -> None:
        self.clips, self.empty, self.settings = clips, empty, settings
        self.conditions, self.track = conditions, track
        groups: dict[tuple[int, ...], list[Clip]] = defaultdict(list)
        for clip in clips:
            groups[tuple(clip.latent.shape)].append(clip)
        self.groups = dict(groups)

    def __call__(self, step: int, rng: Rng, portion: Portion) -> Batch:
        """A portion of the batch of a step."""

        def drawn(count: int, number: int) -> int:
            return int(torch.randint(count, (), generator=rng.example(number, "clip")))

        total = self.settings.batch
        first = self.clips[drawn(len(self.clips), 0)]
        like = self.groups[tuple(first.latent.shape)]
        numbers = portion.of(range(total))
        return self.collated([first if n == 0 else like[drawn(len(like), n)] for n in numbers], rng, numbers)

    def collated(self, clips: Sequence[Clip], rng: Rng, numbers: Sequence[int]) -> Batch:
        """These clips of one shape, at these places of the step's batch."""
        chances = [float(torch.rand((), generator=rng.example(n, "drop"))) for n in numbers]
        texts = [
            self.empty if chance < self.settings.drop_text else clip.text
            for clip, chance in zip(clips, chances, strict=True)
        ]
        clean = torch.cat([clip.latent for clip in clips])
        known = [
            self.conditions.known(clip.latent, self.track, rng.example(n, "known"))
            for clip, n in zip(clips, numbers, strict=True)
        ]
        captions = [clip.caption for clip in clips]
        given = Given(join(texts), joined(known, clean, self.track))
        return Batch(clean, given, numbers, self.settings.batch, captions)


class Prepared:
    """A model that is ready to be trained.

    Attributes:
        source: Where it comes from.
        context: Its parts.
        denoising: The door of its denoiser.
        clips: The examples.
        network: A copy of its denoiser, float32. Where the recipe asks for an adapter, that alone requires gradients.
        batches: Gives a portion of the batch of a step.
        told: What makes the result besides the loop's settings.
        scaling: The processes that train it together.
    """

    def __init__(self, recipe: ModelRecipe, run: Run, find: Callable[[str], Sequence[Example]] = sources.find) -> None:
        """Read the model and its data.

        Args:
            recipe: What is trained.
            run: How.
            find: Gives the examples of the recipe's data source.

        Raises:
            RequestError: The model cannot be trained this way, or the data cannot be read.
            WeightsError: Weights are missing or broken.
        """
        root = None if recipe.weights is None else local_path(recipe.weights, "weights folder")
        self.recipe, self.run = recipe, run
        self.source: Source = catalogue.source_of(recipe.model, weights=root)
        card = self.source.card
        _check(recipe, card)
        job = _job(recipe, card)
        examples = find(recipe.data.source)
        if recipe.adapter is not None and recipe.adapter.trigger:
            examples = [_triggered(one, recipe.adapter.trigger) for one in examples]
        only = ("text", "vae") if recipe.start == "random" else ("dit", "text", "vae")
        options = RunOptions(device=run.device, dtype="float32", offload="module", only=only)
        self.context = build(card, options, root=self.source.root, name=self.source.name)
        self.denoising = Denoising(self.context, job)
        self.clips, empty = encode(self.context, examples, job)
        usual = Conditions(first={"none": 0.0, "required": 1.0, "optional": 0.5}[card.does.image])
        self.batches = Batches(self.clips, empty, recipe.data, recipe.data.conditions or usual)
        self.network = self._network()
        self.scaling = Scaling(recipe.scale, run.device, self._divisible(job))
        if recipe.data.batch < (least := self.scaling.data * recipe.loop.accumulate):
            raise RequestError(
                f"`data.batch` is {recipe.data.batch}, and {self.scaling.data} processes x `accumulate` "
                f"{recipe.loop.accumulate} take examples of their own: use {least} or more"
            )
        self.told = {**run.recipe, "data files": sources.fingerprint(examples)}

    def _divisible(self, job: Job) -> Divisible:
        """The model's network, and what of its work can be shared by processes."""
        context = self.context
        split = context.card.part("dit").split
        demand = demand_of(job, context.attention_of(job), clips=0)
        return Divisible(type(self.network), None if split is None else split.rules(), demand)

    def _network(self) -> nn.Module:
        if self.recipe.start == "random":
            with loop.seeded(self.recipe.loop.seed):
                network = bare_network(self.context.card.part("dit"), self.context.card.dit, Path())
        else:
            with self.context.placement.hold("dit") as held:
                network = copy.deepcopy(held)  # its weights may be mapped from their file
        network = network.float().requires_grad_(True)
        if (adapter := self.recipe.adapter) is not None:
            add_adapters(network, adapter, self.context.part("dit").adapts, seed=self.recipe.loop.seed)
        return network

    @contextmanager
    def reference(self, network: nn.Module) -> Iterator[nn.Module]:
        """The network as it was before the training: without its adapters, or a frozen copy made at the first call."""
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
        """The network as it is when this is first asked for, frozen."""
        return copy.deepcopy(self.network).requires_grad_(False).eval()

    def train(self, objective: Objective) -> Mapping[str, Mapping[str, Tensor]]:
        """Run the loop. Returns: by update, the weights it gives."""
        run = self.run
        return loop.run(
            objective,
            self.recipe.loop,
            run.out,
            resume=run.resume,
            device=run.device,
            recipe=self.told,
            on_log=run.on_log,
            scaling=self.scaling,
        )

    def write(self, weights: Mapping[str, Tensor], name: str = "dit.safetensors") -> Path:
        """Write the network with these weights in it under the official tensor names, or its adapter's files.

        The first process writes; every process must ask.

        Returns:
            The file.
        """
        adapter = self.recipe.adapter
        state: dict[str, Any] = {} if adapter is not None else self.scaling.state(self.network)
        if not self.scaling.is_first:
            return self.run.out / name
        if adapter is not None:
            return write_adapter(weights, adapter, self.run.out, keymap_of(self.context.part("dit")))
        keymap = keymap_of(self.context.card.part("dit"))
        return write_state(keymap.as_file({**state, **weights}), self.run.out / name, layout="official")


def _triggered(example: Example, trigger: str) -> Example:
    """An example whose captions begin with the words that call an adapter."""
    captions = tuple(replace(one, text=trigger + one.text) for one in example.captions)
    return replace(example, captions=captions)


def encode(context: Context, examples: Sequence[Example], job: Job) -> tuple[list[Clip], TextEmbeddings]:
    """Latents and text embeddings of the examples, and the embeddings of the empty prompt."""
    shape, card = job.shape, context.card
    is_image = card.does.makes == "image"
    latents, device = [], context.placement.device("vae")
    with context.placement.hold("vae") as vae, torch.no_grad():
        for example in examples:
            pixels = sources.frames(
                example,
                width=shape.width,
                height=shape.height,
                fps=job.fps,
                step=card.clip.frame_step,
                most=1 if is_image else shape.frames,
            )
            unit = torch.from_numpy(pixels)[None].float() / 127.5 - 1.0
            latents.append(vae.encode(unit.to(device)).float().cpu())
    with context.placement.hold("text") as encoder, torch.no_grad():
        texts = [
            encoder.encode([example.caption], still=latent.shape[1] == 1).to("cpu", torch.float32)
            for example, latent in zip(examples, latents, strict=True)
        ]
        empty = encoder.encode([""]).to("cpu", torch.float32)
    captions = [example.caption for example in examples]
    return [Clip(*one) for one in zip(latents, texts, captions, strict=True)], empty


def _check(recipe: ModelRecipe, card: Card) -> None:
    """Raises: RequestError for a model that is not trained this way, or conditions that are more than all clips."""
    does = card.does
    if recipe.data.conditions is not None and recipe.data.conditions.total > 1:
        total = recipe.data.conditions.total
        raise RequestError(f"shares of `conditions` add up to {total:g}: use 1 at most; nothing is given of the rest")
    if does.makes == "sound" or card.keyframes is not None or does.image_is != "frames" or does.text_sees_image:
        raise RequestError(
            f"`{card.id}` cannot be trained by a recipe of this kind: it trains models that make a clip or an image "
            "from a prompt, or continue an image"
        )
    if recipe.times.by_frame and not card.part("dit").frame_times:
        raise RequestError(f"`times.by_frame`: network `{card.dit.kind}` takes one time a clip: leave it out")
    if card.part("dit").bind is None:
        raise BackendError(f"network `{card.dit.kind}` is not a denoiser")


def _job(recipe: ModelRecipe, card: Card) -> Job:
    """Size, length and sampling values of the clips."""
    width, height = (None, None) if recipe.data.size is None else parse_size(recipe.data.size)
    request = Request(recipe.model, "any", seconds=recipe.data.seconds, width=width, height=height, seed=0)
    return resolve(request, card, needs_image=False)
