"""Samples of a run as it goes: the same prompts and seeds every so many steps, through the stages of generation.

They come from the averaged weights, and leave no trace in the training: weights, modes and random numbers are as they
were, so losses with samples and without are the same bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from kandinsky.engine.context import Context
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.engine.request import Job, parse_size, resolve
from kandinsky.errors import RequestError
from kandinsky.media.video import write_sheet
from kandinsky.model.card import Card
from kandinsky.model.values import Request, Video
from kandinsky.train import journal
from kandinsky.train.checkpoint import Position, State
from kandinsky.train.scale import Scaling

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

    from kandinsky.train.loop import Learner


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSettings:
    """What is sampled.

    Attributes:
        prompts: One sample of each.
        every: Steps between two rounds of samples; there is one at the end, too.
        image: File of an image that all begin with, for models that need one or may take one.
        seed: Of the first prompt; the next ones count on.
        steps: Of the sampler; the model's own where absent, of a student those it learns.
        guidance: Scale; the model's own where absent, 1 of a student that needs none.
    """

    prompts: tuple[str, ...]
    every: int = field(default=500, metadata={"least": 1})
    image: str | None = None
    seed: int = field(default=0, metadata={"least": 0, "most": 2**32 - 1})
    steps: int | None = field(default=None, metadata={"least": 1})
    guidance: float | None = field(default=None, metadata={"least": 1})


@dataclass(frozen=True, slots=True)
class Manner:
    """How what learns is meant to be sampled, where that is not as its card says.

    Attributes:
        steps: Of the sampler.
        sampler: Its name.
        guidance: Scale.
    """

    steps: int | None = None
    sampler: str | None = None
    guidance: float | None = None


def jobs_of(
    settings: SampleSettings, card: Card, *, size: str | None, seconds: float | None, manner: Manner | None = None
) -> tuple[Card, list[Job]]:
    """The card that samples are made under, and a job for each prompt.

    Raises:
        RequestError: There is no prompt, or a generation would be refused.
    """
    manner = manner or Manner()
    if not settings.prompts:
        raise RequestError("`samples.prompts` is empty: name one or more")
    if settings.image is not None and not Path(settings.image).is_file():
        raise RequestError(f"`samples.image` is `{settings.image}`, which does not exist: name the file of an image")
    if manner.sampler is not None:
        card = dataclasses.replace(card, sampling=dataclasses.replace(card.sampling, sampler=manner.sampler))
    width, height = (None, None) if size is None else parse_size(size)
    request = Request(
        card.id, "", image=settings.image, seconds=seconds, width=width, height=height,
        steps=settings.steps or manner.steps, guidance=settings.guidance or manner.guidance,
    )  # fmt: skip
    try:
        return card, [
            resolve(dataclasses.replace(request, prompt=prompt, seed=settings.seed + number), card)
            for number, prompt in enumerate(settings.prompts)
        ]
    except RequestError as error:
        raise RequestError(f"`samples`: {error}", hint=error.hint) from error


class Samples:
    """A watcher that makes samples.

    Args:
        context: The model; its denoiser is not used.
        jobs: See ``jobs_of``.
        out: Folder of the run.
        update: Whose network is sampled.
        every: Steps between two rounds.
        last: The last step.
        bf16: Whether the network computes in bfloat16.
        scaling: The processes that train together; all sample alike, and the first one writes.
    """

    def __init__(
        self,
        context: Context,
        jobs: Sequence[Job],
        out: Path,
        *,
        update: str,
        every: int,
        last: int,
        bf16: bool,
        scaling: Scaling,
    ) -> None:
        self.jobs, self.folder, self.update = jobs, out / journal.SAMPLES, update
        self.every, self.last, self.bf16, self.scaling = every, last, bf16, scaling
        self._learner: Learner | None = None
        placement = context.placement.lending("dit", self._lend, scaling.device)
        self.pipe = GenerationPipeline(dataclasses.replace(context, placement=placement))
        with _apart():
            self.texts = [self.pipe.encode([job]) for job in jobs]

    def __call__(self, at: Position, state: State) -> None:
        if at.step % self.every and at.step != self.last:
            return
        self._learner, pipe = state.learners[self.update], self.pipe
        with _apart():
            for number, (job, (text, negative)) in enumerate(zip(self.jobs, self.texts, strict=True), 1):
                noise, known, fresh = pipe.noise([job]), pipe.known([job]), pipe.fresh_noise([job])
                latents = pipe.sample(noise, text, negative, job, known=known, fresh_NBTHWC=fresh)
                if self.scaling.is_first:
                    frames = pipe.decode(latents)[0]
                    recipe = {**pipe.recipe(job), "training step": at.step}
                    self._write(Video(frames, fps=job.fps, seed=job.seed, recipe=recipe), at.step, number)
        self._learner = None
        self.scaling.gather(None)  # nobody goes on alone, into a collective operation that has a time limit

    @contextmanager
    def _lend(self) -> Iterator[nn.Module]:
        """The network with its averaged weights, as it computes in training."""
        assert self._learner is not None
        network, device = self._learner.update.network, self.scaling.device.type
        with (
            _sharded(network),
            _evaluated(network),
            _exchanged(self._learner.held, self._learner.ema),
            _sharded(network),
            torch.autocast(device, dtype=torch.bfloat16, enabled=self.bf16),
        ):
            yield network

    def _write(self, video: Video, step: int, number: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        stem = self.folder / name_of(step, number)
        if len(video.frames_THWC) > 1:
            video.save(stem.with_suffix(".mp4"))
        write_sheet(video, stem.with_suffix(".png"), columns=6)


def name_of(step: int, number: int) -> str:
    """Name of a sample's files: of the prompt with this number, from 1."""
    return f"step-{step:08d}-{number}"


@contextmanager
def _apart() -> Iterator[None]:
    """Random numbers that are drawn here are not missing later."""
    with torch.random.fork_rng():
        yield


@contextmanager
def _sharded(network: nn.Module) -> Iterator[None]:
    """Let FSDP hold no whole weights before and after, which would outlive an exchange of their shards."""

    def reshard() -> None:
        for module in network.modules():
            if hasattr(module, "reshard"):
                cast("FSDPModule", module).reshard()

    reshard()
    try:
        yield
    finally:
        reshard()


@contextmanager
def _evaluated(network: nn.Module) -> Iterator[None]:
    """Set a network to evaluate, and its parts back to what each was."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, was in modes:
            module.training = was


@contextmanager
def _exchanged(held: Mapping[str, Tensor], average: Mapping[str, Tensor]) -> Iterator[None]:
    """Let weights and their averages change places; nothing needs to be kept twice."""

    def exchange() -> None:
        with torch.no_grad():
            for name, mean in average.items():
                own = held[name].detach().clone()
                held[name].copy_(mean)
                mean.copy_(own)

    exchange()
    try:
        yield
    finally:
        exchange()
