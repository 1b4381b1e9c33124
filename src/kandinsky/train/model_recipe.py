"""What recipes of a catalogue model have in common: the model, its data, its batches, and where its weights go.

Fine-tuning and each way of distilling differ in their objective alone: they get the same ``Prepared`` model.

Legend: B batch, T H W C latent frames, rows, columns, channels.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from kandinsky.engine.stages import with_frames
from kandinsky.errors import BackendError, RequestError
from kandinsky.files import local_path
from kandinsky.model.card import Card, Source
from kandinsky.model.denoiser import VIDEO, Known
from kandinsky.model.values import Request, TextEmbeddings
from kandinsky.text.store import join
from kandinsky.train import captioned, loop
from kandinsky.train.captioned import Example
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
        source: Folder of images and videos with captions; see ``train/captioned.py``.
        size: Width and height, such as `768x512`; the model's own where absent.
        seconds: Of the clips; the model's own where absent. Longer videos are cut.
        batch: Clips of a step, over all processes.
        drop_text: Share of the clips that is learned without a prompt, for guidance.
        image_share: Share of the clips whose first frame is given, for models that may take an image or not.
    """

    source: str
    size: str | None = None
    seconds: float | None = field(default=None, metadata={"least": 0})
    batch: int = field(default=1, metadata={"least": 1})
    drop_text: float = field(default=0.1, metadata={"least": 0, "most": 1})
    image_share: float = field(default=0.5, metadata={"least": 0, "most": 1})


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
        scale: How it is spread over processes, and what it saves of memory.
    """

    model: str
    out: str
    data: DataSettings
    loop: loop.LoopSettings
    start: Literal["model", "random"] = "model"
    weights: str | None = None
    times: Times = field(default_factory=Times)
    scale: Scale = field(default_factory=Scale)


@dataclass(frozen=True, slots=True)
class Clip:
    """One example as the network sees it: clean latent [1, T, H, W, C] and the embeddings of its caption."""

    latent: Tensor
    text: TextEmbeddings


@dataclass(frozen=True, slots=True)
class Batch:
    """A share of a step's clips.

    Attributes:
        clean_BTHWC: Latents.
        given: Text and what is known; where a prompt was dropped, the embeddings of the empty one.
        numbers: The clips' places in the global batch, for random numbers of their own.
        total: Size of the global batch.
    """

    clean_BTHWC: Tensor
    given: Given
    numbers: Sequence[int]
    total: int

    def noise(self, rng: Rng, stream: str = "noise") -> Tensor:
        """Noise of the latents' shape, on their device; drawn on CPU, so that it is the same for any device."""
        shape, device = self.clean_BTHWC.shape[1:], self.clean_BTHWC.device
        return torch.stack([torch.randn(shape, generator=rng.example(n, stream)) for n in self.numbers]).to(device)

    def to(self, device: torch.device | str) -> Batch:
        """The same on another device."""
        return Batch(self.clean_BTHWC.to(device), self.given.to(device), self.numbers, self.total)

    @property
    def learned(self) -> Tensor | None:
        """Where the loss counts, boolean, of a shape that broadcasts to the latents; None where it does everywhere."""
        mask = self.given.known.mask
        return ~next(iter(mask.values())) if mask else None


class Batches:
    """Batches of one length, drawn with replacement: each example has the same chance to be the first of its step.

    Args:
        clips: At least one.
        empty: Embeddings of the empty prompt.
        settings: Size and shares.
        image_share: Share of clips whose first frame is given.
        track: Of the state.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        empty: TextEmbeddings,
        settings: DataSettings,
        image_share: float,
        track: str = VIDEO,
    ) -> None:
        self.clips, self.empty, self.settings = clips, empty, settings
        self.image_share, self.track = image_share, track
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
        clips = [first if n == 0 else like[drawn(len(like), n)] for n in numbers]
        chances = [torch.rand(2, generator=rng.example(n, "shares")).tolist() for n in numbers]
        texts = [
            self.empty if drop < self.settings.drop_text else clip.text
            for clip, (drop, _) in zip(clips, chances, strict=True)
        ]
        clean = torch.cat([clip.latent for clip in clips])
        # of a single frame that is given nothing would be left to learn
        is_given = torch.tensor([chance < self.image_share and clean.shape[1] > 1 for _, chance in chances])
        known = Known()
        if is_given.any():
            known = with_frames(known, self.track, clean[:, :1], 0, clean.shape[1])
            known.mask[self.track][~is_given] = False
        return Batch(clean, Given(join(texts), known), numbers, total)


class Prepared:
    """A model that is ready to be trained.

    Attributes:
        source: Where it comes from.
        context: Its parts.
        denoising: The door of its denoiser.
        network: A copy of its denoiser, float32.
        batches: Gives a portion of the batch of a step.
        told: What makes the result besides the loop's settings.
        scaling: The processes that train it together.
    """

    def __init__(self, recipe: ModelRecipe, run: Run) -> None:
        """Read the model and its data.

        Raises:
            RequestError: The model cannot be trained this way, or the data cannot be read.
            WeightsError: Weights are missing or broken.
        """
        root = None if recipe.weights is None else local_path(recipe.weights, "weights folder")
        self.recipe, self.run = recipe, run
        self.source: Source = catalogue.source_of(recipe.model, weights=root)
        card = self.source.card
        _check(card)
        job = _job(recipe, card)
        examples = captioned.find(recipe.data.source)
        only = ("text", "vae") if recipe.start == "random" else ("dit", "text", "vae")
        options = RunOptions(device=run.device, dtype="float32", offload="module", only=only)
        self.context = build(card, options, root=self.source.root, name=self.source.name)
        self.denoising = Denoising(self.context, job)
        clips, empty = encode(self.context, examples, job)
        image_share = {"none": 0.0, "required": 1.0, "optional": recipe.data.image_share}[card.does.image]
        self.batches = Batches(clips, empty, recipe.data, image_share)
        self.network = self._network()
        self.scaling = Scaling(recipe.scale, run.device, self._divisible(job))
        if recipe.data.batch < (least := self.scaling.data * recipe.loop.accumulate):
            raise RequestError(
                f"`data.batch` is {recipe.data.batch}, and {self.scaling.data} processes x `accumulate` "
                f"{recipe.loop.accumulate} take examples of their own: use {least} or more"
            )
        self.told = {**run.recipe, "data files": captioned.fingerprint(examples)}

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
        return network.float().requires_grad_(True)

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
        """Write the network with these weights in it under the official tensor names, in the first process.

        Every process must ask.

        Returns:
            The file.
        """
        state: dict[str, Any] = {**self.scaling.state(self.network), **weights}
        if not self.scaling.is_first:
            return self.run.out / name
        keymap = keymap_of(self.context.card.part("dit"))
        return write_state(keymap.as_file(state), self.run.out / name, layout="official")


def encode(context: Context, examples: Sequence[Example], job: Job) -> tuple[list[Clip], TextEmbeddings]:
    """Latents and text embeddings of the examples, and the embeddings of the empty prompt."""
    shape, card = job.shape, context.card
    is_image = card.does.makes == "image"
    latents, device = [], context.placement.device("vae")
    with context.placement.hold("vae") as vae, torch.no_grad():
        for example in examples:
            pixels = captioned.frames(
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
    return [Clip(*one) for one in zip(latents, texts, strict=True)], empty


def _check(card: Card) -> None:
    """Raises: RequestError for a model that is not trained this way."""
    does = card.does
    if does.makes == "sound" or card.keyframes is not None or does.image_is != "frames" or does.text_sees_image:
        raise RequestError(
            f"`{card.id}` cannot be trained by a recipe of this kind: it trains models that make a clip or an image "
            "from a prompt, or continue an image"
        )
    if card.part("dit").bind is None:
        raise BackendError(f"network `{card.dit.kind}` is not a denoiser")


def _job(recipe: ModelRecipe, card: Card) -> Job:
    """Size, length and sampling values of the clips."""
    width, height = (None, None) if recipe.data.size is None else parse_size(recipe.data.size)
    request = Request(recipe.model, "any", seconds=recipe.data.seconds, width=width, height=height, seed=0)
    return resolve(request, card, needs_image=False)
