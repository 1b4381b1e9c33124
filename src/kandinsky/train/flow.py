"""Recipes of kind `flow`: train the denoiser of any model in the catalogue on a folder of captioned images and videos.

Latents and text embeddings are made once, by the model's own autoencoder and text encoder. The network is entered
through its part's ``bind`` alone, as in generation, and learns what its sampler asks it for: the velocity of flow
matching, or noise or v on the sampler's schedule.

Legend: B batch, T H W C latent frames, rows, columns, channels.
"""

from __future__ import annotations

import copy
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from kandinsky import catalogue
from kandinsky.diffusion.samplers import sampler
from kandinsky.diffusion.schedule import shift_times
from kandinsky.engine.build import bare_network, build
from kandinsky.engine.context import Context
from kandinsky.engine.options import RunOptions
from kandinsky.engine.request import Job, parse_size, resolve
from kandinsky.engine.stages import with_frames
from kandinsky.errors import BackendError, RequestError
from kandinsky.files import local_path
from kandinsky.model.card import Card, Source
from kandinsky.model.denoiser import VIDEO, Known, Pass
from kandinsky.model.values import Request, TextEmbeddings
from kandinsky.text.store import join
from kandinsky.train import captioned, loop
from kandinsky.train.captioned import Example
from kandinsky.train.recipe import Run
from kandinsky.weights.keymaps import keymap_of
from kandinsky.weights.write import write_state

log = logging.getLogger(__name__)
LEVELS = 1000  # of schedules that are not straight


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowRecipe(loop.LoopSettings):
    """The keys of a recipe, besides those of ``LoopSettings``.

    model: catalogue id, or a folder with a model.   data: folder of examples; see ``train/captioned.py``.
    start: the model's weights, or random ones.   weights: official `weights/` folder to read the model from.
    size, seconds: of the clips; the model's own where absent. Longer videos are cut.
    batch: clips a step, of one length.   drop_text: share of them that is learned without a prompt, for guidance.
    image_share: share of the clips whose first frame is given, for models that may take an image or not.
    """

    model: str
    data: str
    out: str
    start: Literal["model", "random"] = "model"
    weights: str | None = None
    size: str | None = None
    seconds: float | None = field(default=None, metadata={"least": 0})
    batch: int = field(default=1, metadata={"least": 1})
    drop_text: float = field(default=0.1, metadata={"least": 0, "most": 1})
    image_share: float = field(default=0.5, metadata={"least": 0, "most": 1})


@dataclass(frozen=True, slots=True)
class Clip:
    """One example as the network sees it: clean latent [1, T, H, W, C] and the embeddings of its caption."""

    latent: Tensor
    text: TextEmbeddings


@dataclass(frozen=True, slots=True)
class Batch:
    """clean_BTHWC: latents.   text: embeddings, of the empty prompt where it was dropped.   given_B: whether the first
    frame is known."""

    clean_BTHWC: Tensor
    text: TextEmbeddings
    given_B: Tensor


class FlowObjective:
    """Denoising of latents, through ``bind``.

    Args:
        context: The model.
        network: Its denoiser, trained in float32.
        clips: At least one.
        empty: Embeddings of the empty prompt.
        job: Gives the card's values for this size.
        recipe: Batch and shares.
    """

    def __init__(
        self,
        context: Context,
        network: nn.Module,
        clips: Sequence[Clip],
        empty: TextEmbeddings,
        job: Job,
        recipe: FlowRecipe,
    ) -> None:
        self._network, self.context, self.job, self.recipe, self.empty = network, context, job, recipe, empty
        self.clips = clips
        groups: dict[tuple[int, ...], list[Clip]] = defaultdict(list)
        for clip in clips:
            groups[tuple(clip.latent.shape)].append(clip)
        self.groups = dict(groups)
        does = context.card.does
        self.image_share = {"none": 0.0, "required": 1.0, "optional": recipe.image_share}[does.image]
        self.rules = sampler(job.sampling.sampler)

    @property
    def network(self) -> nn.Module:
        return self._network

    def batch(self, step: int, generator: torch.Generator) -> Batch:
        """Clips of one length, drawn with replacement: each example has the same chance to be the first of them."""

        def drawn(count: int) -> int:
            return int(torch.randint(count, (), generator=generator))

        first = self.clips[drawn(len(self.clips))]
        like = self.groups[tuple(first.latent.shape)]
        clips = [first, *(like[drawn(len(like))] for _ in range(self.recipe.batch - 1))]
        dropped, given = torch.rand(2, len(clips), generator=generator)
        texts = [
            self.empty if drop < self.recipe.drop_text else clip.text for clip, drop in zip(clips, dropped, strict=True)
        ]
        clean = torch.cat([clip.latent for clip in clips])
        # of a single frame that is given nothing would be left to learn
        return Batch(clean, join(texts), (given < self.image_share) & (clean.shape[1] > 1))

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Mean squared error of the prediction; frames that are given do not count."""
        job, count = self.job, len(batch.clean_BTHWC)
        if self.rules.predicts == "velocity":
            t = shift_times(torch.sigmoid(torch.randn(count, generator=generator)), job.shift)
        else:
            t = torch.randint(1, LEVELS + 1, (count,), generator=generator) / LEVELS
        noise = torch.randn(batch.clean_BTHWC.shape, generator=generator)
        noising = self.rules.noising(job.shift)
        each = list(zip(batch.clean_BTHWC, noise, t, strict=True))  # not every schedule takes several times at once
        noisy = torch.stack([noising.noised(clean, one, at) for clean, one, at in each])
        target = torch.stack([self.rules.target(clean, one, at, job.shift) for clean, one, at in each])
        known = Known()
        if batch.given_B.any():
            known = with_frames(known, VIDEO, batch.clean_BTHWC[:, :1], 0, batch.clean_BTHWC.shape[1])
            known.mask[VIDEO][~batch.given_B] = False
        device = next(self._network.parameters()).device  # numbers are drawn on CPU: the same for any device
        known, noisy, target, t = known.over(lambda x: x.to(device)), noisy.to(device), target.to(device), t.to(device)
        bind = self.context.part("dit").bind
        assert bind is not None
        run = Pass(
            batch.text.to(device),
            condition=job.sampling.condition,
            rope_scale=job.sampling.rope_scale,
            attention=self.context.attention_of(job),
        )
        predicted = bind()(self._network, known, run)(known.pin({VIDEO: noisy}), t)[VIDEO].float()
        error = (predicted - target).pow(2)
        if known.mask:
            error = error[(~known.mask[VIDEO]).expand_as(error)]
        return error.mean(), {}


def train(recipe: FlowRecipe, run: Run) -> Path:
    """Train a model's denoiser.

    Returns:
        The weight file written, `dit.safetensors`, with the official tensor names.

    Raises:
        RequestError: The model cannot be trained this way, or the data cannot be read.
        WeightsError: Weights are missing or broken.
    """
    root = None if recipe.weights is None else local_path(recipe.weights, "weights folder")
    source = catalogue.source_of(recipe.model, weights=root)
    _check(source.card)
    job = _job(recipe, source.card)
    examples = captioned.find(recipe.data)
    only = ("text", "vae") if recipe.start == "random" else ("dit", "text", "vae")
    options = RunOptions(device=run.device, dtype="float32", offload="module", only=only)
    context = build(source.card, options, root=source.root, name=source.name)
    clips, empty = encode(context, examples, job)
    objective = FlowObjective(context, _network(context, recipe), clips, empty, job, recipe)
    told = {**run.recipe, "data files": captioned.fingerprint(examples)}
    ema = loop.run(objective, recipe, run.out, resume=run.resume, device=run.device, recipe=told, on_log=run.on_log)
    return _write(source, {**objective.network.state_dict(), **ema}, run.out)


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
            f"`{card.id}` cannot be trained by a recipe of kind `flow`: it trains models that make a clip or an image "
            "from a prompt, or continue an image"
        )
    if card.part("dit").bind is None:
        raise BackendError(f"network `{card.dit.kind}` is not a denoiser")


def _job(recipe: FlowRecipe, card: Card) -> Job:
    """Size, length and sampling values of the clips."""
    width, height = (None, None) if recipe.size is None else parse_size(recipe.size)
    request = Request(recipe.model, "any", seconds=recipe.seconds, width=width, height=height, seed=0)
    return resolve(request, card, needs_image=False)


def _network(context: Context, recipe: FlowRecipe) -> nn.Module:
    """The denoiser to be trained, float32."""
    if recipe.start == "random":
        component = context.card.dit
        with loop.seeded(recipe.seed):
            network = bare_network(context.card.part("dit"), component, Path())
    else:
        with context.placement.hold("dit") as held:
            network = copy.deepcopy(held)  # its weights may be mapped from their file
    return network.float().requires_grad_(True)


def _write(source: Source, state: dict[str, Tensor], out: Path) -> Path:
    """Weights under the official names."""
    return write_state(keymap_of(source.card.part("dit")).as_file(state), out / "dit.safetensors", layout="official")
