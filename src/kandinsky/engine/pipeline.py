"""Pipelines: a loaded model as an object that is called, with each stage as a method on plain values."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from kandinsky.diffusion.caching import CacheSettings
from kandinsky.diffusion.sample import OnStep
from kandinsky.diffusion.step_cache import Branches, StepCache
from kandinsky.engine import stages
from kandinsky.engine.context import Context
from kandinsky.engine.engine import Engine
from kandinsky.engine.events import Event, Step
from kandinsky.engine.latents import read_latent
from kandinsky.engine.lora import LoraMethods
from kandinsky.engine.request import Job, parse_size
from kandinsky.errors import Cancelled, RequestError
from kandinsky.model.card import Card
from kandinsky.model.denoiser import AUDIO, VIDEO, Known
from kandinsky.model.values import Request, Soundtrack, TextEmbeddings, Video, VideoStream
from kandinsky.ops.attention import AttentionSpec
from kandinsky.ops.nabla import KeptBlocks
from kandinsky.runtime.adapters import Adapters
from kandinsky.runtime.parallel.team import Team
from kandinsky.runtime.placement import Placement, Precision

T = TypeVar("T")


class Pipeline(LoraMethods):
    """What all pipelines are: a context, and the engine that runs it. See ``Context`` for what it holds."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.engine = Engine(context)

    @property
    def card(self) -> Card:
        return self.context.card

    @card.setter
    def card(self, card: Card) -> None:
        self.context.card = card

    @property
    def name(self) -> str:
        return self.context.name

    @property
    def placement(self) -> Placement:
        return self.context.placement

    @property
    def precision(self) -> Precision:
        return self.context.precision

    @property
    def adapters(self) -> Adapters:  # type: ignore[override]
        return self.context.adapters

    @property
    def team(self) -> Team:
        return self.context.team

    def resolve(self, request: Request) -> Job:
        """Check a request against the card. Raises: RequestError; BackendError for attention that is not there."""
        return self.engine.resolve(request)

    def attention_of(self, job: Job) -> AttentionSpec:
        """The visual self attention of a job. Raises: BackendError where it cannot run on this device."""
        return self.context.attention_of(job)

    def recipe(self, job: Job) -> dict[str, Any]:
        """What makes this result again, as stored in the file."""
        return self.context.recipe(job)

    def drive(self, running: Generator[Event, None, T], on_step: OnStep | None) -> T:
        """Take all events of a run. Raises: Cancelled when ``on_step`` returns False on the first process."""
        while True:
            try:
                event = next(running)
            except StopIteration as end:
                value: T = end.value
                return value
            if on_step is None or not isinstance(event, Step):
                continue
            clean = event.clean()
            answer = on_step(event.step, event.total, clean[VIDEO if VIDEO in clean else AUDIO])
            if answer is False and self.team.is_first:
                running.close()
                raise Cancelled(f"cancelled after step {event.step} of {event.total}")


class GenerationPipeline(Pipeline):
    """A model of clips or images, ready to be asked."""

    def __call__(
        self,
        prompt: str = "",
        *,
        image: Any = None,
        mask: Any = None,
        mask_grow: int | None = None,
        seconds: float | None = None,
        width: int | None = None,
        height: int | None = None,
        size: str | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        shift: float | None = None,
        negative_prompt: str | None = None,
        seed: int | None = None,
        cache: str | CacheSettings | None = None,
        expand: bool = False,
        fps: str | None = None,
        motion: str | None = None,
        image_guidance: float | None = None,
        interpolation_guidance: float | None = None,
        keep_latent: str | Path | None = None,
        on_step: OnStep | None = None,
    ) -> Video:
        """Make one clip or image; what is left out comes from the model's card.

        Args:    prompt: what it shows; with an image some models need none.
                 image: a path, a Pillow image or a uint8 array [H, W, 3], for models whose task takes one. Any size: it
                 decides the size of the result and is fitted to it; the recipe says how.
                 mask: of the image's size, for models that repaint a part of it: white, or 1 in an array [H, W], where.
                 mask_grow: pixels by which it is grown; the officially prepared masks have 6.
                 seconds: length; 0 makes one still frame.   width, height: pixels.   size: both, `768x512`.
                 steps: network steps.   guidance: weight of the prompt, 1 = off.   shift: more time near noise.
                 negative_prompt: what to keep away from.   seed: drawn when not given; the result carries it.
                 cache: step cache of this call, `none` for none; see ``diffusion/caching.py``.
                 expand: have the text encoder's language model write the prompt out first; the recipe keeps its text.
                 fps: of models that make key frames, `low`, `medium` or `high`: these alone, or the gaps between them
                 filled once or twice.   motion: `low` to `extreme`, how much should move.   image_guidance: weight of
                 the first frame.   interpolation_guidance: of the frames around a gap; 1 = off.
                 keep_latent: file for the latent, written before it is decoded; see ``finish``.
                 on_step: ``on_step(step, total, preview_latents)``, called after each step; returning False cancels.
        Raises:  RequestError before anything is loaded; WeightsError, OutOfMemory, Cancelled later.
        """
        width, height = _one_size(width, height, size)
        request = Request(
            model=self.card.id,
            prompt=prompt,
            negative_prompt=negative_prompt,
            seconds=seconds,
            width=width,
            height=height,
            steps=steps,
            guidance=guidance,
            shift=shift,
            seed=seed,
            image=image,
            mask=mask,
            mask_grow=mask_grow,
            cache=cache,
            expand=expand,
            fps=fps,
            motion=motion,
            image_guidance=image_guidance,
            interpolation_guidance=interpolation_guidance,
        )
        return self.run(self.resolve(request), keep_latent=keep_latent, on_step=on_step)

    def run(self, job: Job, *, keep_latent: str | Path | None = None, on_step: OnStep | None = None) -> Video:
        """The whole way for one resolved request."""
        kept = None if keep_latent is None else [Path(keep_latent)]
        return self.run_batch([job], keep_latents=kept, on_step=on_step)[0]

    def run_batch(
        self, batch: Sequence[Job], *, keep_latents: Sequence[Path] | None = None, on_step: OnStep | None = None
    ) -> list[Video]:
        """Several jobs in one pass of each network; they may differ in prompt, negative prompt, seed and image (all
        with one, or none).

        keep_latents: a file for each latent, written before any is decoded.
        Results equal those of single runs up to the rounding of differently ordered sums.
        Raises: RequestError where the jobs differ in size, length, steps, guidance or shift.
        """
        streams = self.stream_batch(batch, keep_latents=keep_latents, on_step=on_step)
        with ExitStack() as held:
            if self.team.size == 1:
                held.enter_context(self.placement.hold("vae"))  # once for all clips
            return [stream.gather() for stream in streams]

    def stream_batch(
        self, batch: Sequence[Job], *, keep_latents: Sequence[Path] | None = None, on_step: OnStep | None = None
    ) -> list[VideoStream]:
        """``run_batch`` up to the latents: clips are decoded as their pieces are taken, so that none need ever lie in
        memory whole. Several processes, which must decode at the same time, have done so.
        """
        made = self.drive(self.engine.latents(batch, keep=keep_latents or ()), on_step)
        return [one for one in self.engine.finish.results(self.context, made) if isinstance(one, VideoStream)]

    def finish(self, kept: str | Path) -> Video:
        """Decode a latent that ``keep_latent`` wrote: the frames that run would have given.

        Raises: RequestError for a file that is none, or of another model.
        """
        return self.finish_stream(kept).gather()

    def finish_stream(self, kept: str | Path) -> VideoStream:
        """``finish``, decoded as the pieces are taken. Raises: as that."""
        recipe: Mapping[str, Any] | None = None

        def read() -> list[Tensor | None]:
            nonlocal recipe
            latent = read_latent(Path(kept))
            recipe = latent.recipe
            if latent.latents_THWC.shape[-1] != self.card.clip.channels:
                raise RequestError(f"`{kept}` is a latent of `{recipe.get('model')}`, not of `{self.name}`")
            return [latent.latents_THWC[None]]

        (latents_1THWC,) = self.team.once(read)
        assert latents_1THWC is not None
        return stages.streams(self.context, latents_1THWC, [self.team.agree(recipe)])[0]

    def expand(self, batch: Sequence[Job]) -> list[Job]:
        """See ``stages.expand``."""
        return stages.expand(self.context, batch)

    def encode(self, batch: Sequence[Job]) -> tuple[TextEmbeddings, TextEmbeddings | None]:
        """See ``stages.encode``."""
        return stages.encode(self.context, batch)

    def known(self, batch: Sequence[Job]) -> Known:
        """See ``stages.known_of``."""
        return stages.known_of(self.context, batch)

    def noise(self, batch: Sequence[Job]) -> Tensor:
        """See ``stages.noise``."""
        return stages.noise(self.context, batch)

    def fresh_noise(self, batch: Sequence[Job]) -> Tensor | None:
        """See ``stages.fresh_noise``."""
        return stages.fresh_noise(self.context, batch)

    def start_cache(self, job: Job) -> StepCache | None:
        """See ``stages.start_cache``."""
        return stages.start_cache(job)

    def sample(
        self,
        noise_BTHWC: Tensor,
        text: TextEmbeddings,
        negative: TextEmbeddings | None,
        job: Job,
        *,
        known: Known | None = None,
        fresh_NBTHWC: Tensor | None = None,
        cache: Branches | None = None,
        kept: KeptBlocks | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Latents [B, T, H, W, C], float32, from noise, text embeddings and what is known; see ``stages.denoise``."""
        walk = stages.denoise(
            self.context,
            {VIDEO: noise_BTHWC},
            text,
            negative,
            job,
            known=known,
            fresh=fresh_NBTHWC,
            cache=cache,
            kept=kept,
        )
        return self.drive(walk, on_step)[VIDEO]

    def decode(self, latents_BTHWC: Tensor) -> np.ndarray:
        """See ``stages.decode``."""
        return stages.decode(self.context, latents_BTHWC)

    def decode_pieces(self, latents_THWC: Tensor) -> Iterator[np.ndarray]:
        """See ``stages.decode_pieces``."""
        return stages.decode_pieces(self.context, latents_THWC)


class VideoToAudioPipeline(Pipeline):
    """A model of sound, ready to be asked."""

    def __call__(
        self,
        prompt: str = "",
        *,
        video: str | Path | Video,
        seconds: float | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        negative_prompt: str | None = None,
        seed: int | None = None,
        states: str | Path | None = None,
        on_step: OnStep | None = None,
    ) -> Soundtrack:
        """Make the sound of one film; what is left out comes from the model's card.

        Args:    prompt: what is to be heard.   video: a file, or a clip in memory.   seconds: of it, from its begin.
                 steps, guidance (1 = off), negative_prompt, seed: as for video; a seed is drawn when not given.
                 states: a file of precomputed embeddings of frames and words; the encoder is then not needed.
                 on_step: ``on_step(step, total, preview_latents)``, called after each step; returning False cancels.
        Raises:  RequestError before anything is loaded; WeightsError, BackendError, OutOfMemory, Cancelled later.
        """
        request = Request(
            model=self.card.id,
            prompt=prompt,
            video=video,
            negative_prompt=negative_prompt,
            seconds=seconds,
            steps=steps,
            guidance=guidance,
            seed=seed,
            states=states,
        )
        return self.run(self.resolve(request), on_step=on_step)

    def run(self, job: Job, *, on_step: OnStep | None = None) -> Soundtrack:
        """The whole way for one resolved request."""
        return self.run_batch([job], on_step=on_step)[0]

    def run_batch(self, batch: Sequence[Job], *, at_once: int = 1, on_step: OnStep | None = None) -> list[Soundtrack]:
        """Several films, with ``at_once`` windows in one pass of the U-Net.

        Results equal those of single runs up to the rounding of differently ordered sums.
        """
        made = self.drive(self.engine.latents(batch, at_once=at_once), on_step)
        return [one for one in self.engine.finish.results(self.context, made) if isinstance(one, Soundtrack)]


def pipeline_of(context: Context) -> GenerationPipeline | VideoToAudioPipeline:
    """The pipeline of a loaded model, by what its task makes."""
    return (VideoToAudioPipeline if context.card.does.makes == "sound" else GenerationPipeline)(context)


def _one_size(width: int | None, height: int | None, size: str | None) -> tuple[int | None, int | None]:
    if size is None:
        return width, height
    if width is not None or height is not None:
        raise RequestError("give either `size` or `width` and `height`, not both")
    return parse_size(size)
