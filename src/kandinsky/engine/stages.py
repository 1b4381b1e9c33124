"""The stages that lead from jobs to results: condition, encode, sample, decode. Each is public and fully typed.

A stage is called with the context and what was made so far; it yields events and returns what it has added. A family
whose models work differently has a list of stages of its own (``Task.stages``).

Legend: B batch; T H W C frames, rows, columns, channels (of latents or pixels, as stated); N draws of noise.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from kandinsky.diffusion import noise as noise_rule
from kandinsky.diffusion import step_cache
from kandinsky.diffusion.first_frame import normalize_first_frame
from kandinsky.diffusion.flowedit import FlowEdit
from kandinsky.diffusion.following import Following, first_step
from kandinsky.diffusion.guidance import Denoising, Guidance, Pairing
from kandinsky.diffusion.sample import Progress, steps
from kandinsky.diffusion.samplers import sampler
from kandinsky.diffusion.step_cache import Branches, StepCache
from kandinsky.diffusion.tiles import Tiles, tiled
from kandinsky.engine.branches import free_branches, hold_branch
from kandinsky.engine.context import Context
from kandinsky.engine.events import Event, Phase, Step
from kandinsky.engine.latents import write_latent
from kandinsky.engine.parallel import check_fits, demand_of
from kandinsky.engine.request import Job, common
from kandinsky.engine.text_states import Asked
from kandinsky.engine.told import told_of_frames
from kandinsky.errors import BackendError, Cancelled, NotFinite, RequestError
from kandinsky.media.image import FittedImage
from kandinsky.media.input_clip import FittedClip
from kandinsky.media.signals import SIGNALS
from kandinsky.model.autoencoder import decode_pieces as decoded
from kandinsky.model.condition import Condition
from kandinsky.model.denoiser import VIDEO, Denoiser, Known, Pass, each
from kandinsky.model.values import Soundtrack, TextEmbeddings, VideoStream
from kandinsky.ops.branches import Beside
from kandinsky.ops.nabla import KeptBlocks
from kandinsky.text.protocol import ImageTextEncoder, PromptWriter, ReadingTextEncoder
from kandinsky.text.store import encode_each, join
from kandinsky.weights.branch_files import CONTROL, LATENTS

if TYPE_CHECKING:
    from PIL.Image import Image

    from kandinsky.model.denoiser import State
    from kandinsky.model.task import Way
    from kandinsky.text.protocol import TextEncoder

log = logging.getLogger(__name__)
X = TypeVar("X", bound=Tensor | Mapping[str, Tensor])


@dataclass(frozen=True, slots=True)
class PromptEmbeddings:
    """Embeddings of the prompts of one clip.

    Attributes:
        prompts: The prompts.
        text: Embeddings, a row each.
        negative: Embeddings for the unconditional pass of guidance, a row each; None without it.
        unused: Words that the text encoder does not use.
    """

    prompts: tuple[str, ...]
    text: TextEmbeddings
    negative: TextEmbeddings | None
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Made:
    """The state of a batch of jobs so far; each stage fills in part of it.

    Attributes:
        jobs: The jobs.
        keep: A file for the latent of each job, written before it is decoded.
        unused: For each job, the words of its prompt that the text encoder does not use, if it can tell.
        text: Embeddings of the prompts.
        negative: Embeddings for the unconditional pass of guidance.
        source: Embeddings of the prompts of source clips.
        known: What is known of the results.
        latents: The finished state.
        recipes: One per job.
        at_once: Parts of a job that go through a network together, for jobs made in parts.
        scripts: Of jobs made in windows, the embeddings of their prompts.
        tell: Called with the events of what runs only when results are consumed; it may raise.
    """

    jobs: tuple[Job, ...]
    keep: tuple[Path | None, ...] = ()
    unused: tuple[tuple[str, ...], ...] = ()
    text: TextEmbeddings | None = None
    negative: TextEmbeddings | None = None
    source: TextEmbeddings | None = None
    known: Known = field(default_factory=Known)
    latents: State = field(default_factory=dict)
    recipes: tuple[dict[str, Any], ...] = ()
    at_once: int = 1
    scripts: tuple[PromptEmbeddings, ...] = ()
    tell: Callable[[Event], None] = lambda event: None


Running = Generator[Event, None, Made]


class Stage(Protocol):
    """One stage; ``needs`` lists the networks it uses, for placement and plans."""

    @property
    def needs(self) -> tuple[str, ...]: ...

    def __call__(self, context: Context, made: Made, /) -> Running: ...


class Finish(Protocol):
    """The last stage: results whose frames are decoded as they are consumed."""

    @property
    def needs(self) -> tuple[str, ...]: ...

    def results(self, context: Context, made: Made, /) -> Sequence[VideoStream | Soundtrack]: ...


# -- condition ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EncodeConditions:
    """Encodes the images that the jobs bring."""

    needs: tuple[str, ...] = ("vae",)

    def __call__(self, context: Context, made: Made) -> Running:
        if common(made.jobs).conditions:
            yield Phase("condition")
            return dataclasses.replace(made, known=known_of(context, made.jobs))
        return made


def known_of(context: Context, jobs: Sequence[Job]) -> Known:
    """What the jobs' conditions say of their results, as latents in float32.

    Latents are the mode of the autoencoder's posterior: the official code takes an unseeded sample of it, so that there
    a seed does not repeat a result.

    Args:
        context: The model.
        jobs: The jobs.

    Returns:
        The known latents.

    Raises:
        RequestError: The jobs do not agree with each other.
    """
    first = common(jobs)
    known = Known()
    for place, condition in enumerate(first.conditions):
        if condition.branch is not None:
            known = dataclasses.replace(known, extra={**known.extra, told_name(place): _told_by(context, jobs, place)})
    for condition, latents in encoded_conditions(context, jobs):
        if condition.kind == "frames":
            assert condition.at is not None
            known = with_known(known, latents, condition.at.start, condition.way, first, track=condition.track)
        elif condition.kind == "init":
            known = _with_source(known, condition, latents, first)
        else:
            name = "source" if condition.kind == "source" else "kept"
            known = dataclasses.replace(known, extra={**known.extra, name: latents})
    return known


def encoded_conditions(context: Context, jobs: Sequence[Job]) -> list[tuple[Condition, Tensor]]:
    """The conditions of jobs that agree in them, each with the latents of what it brings, without its context.

    Raises:
        RequestError: The jobs do not agree with each other.
    """
    made: list[tuple[Condition, Tensor]] = []
    for place, condition in enumerate(common(jobs).conditions):
        given = [job.conditions[place] for job in jobs]
        if condition.branch is not None:  # it has its own way in, see ``known_of``
            continue
        found = [_pixels_and_mask(one) for one in given if isinstance(one.data, FittedImage | FittedClip)]
        if not found:  # an input video is encoded by a stage of its own
            continue
        pixels, masks = [pixels for pixels, _ in found], [mask for _, mask in found]

        def encoded(pixels: list[Tensor] = pixels, masks: list[np.ndarray | None] = masks) -> list[Tensor | None]:
            device = context.placement.device("vae")
            with context.placement.hold("vae") as vae, torch.no_grad():
                each = [
                    encode_image(vae.encode, image.to(device), mask) for image, mask in zip(pixels, masks, strict=True)
                ]
            return [torch.cat(each).to(context.precision.islands)]

        latents = context.team.once(encoded)[0]
        assert latents is not None
        made.append((condition, latents[:, condition.context :]))
    return made


def told_name(place: int) -> str:
    """Under which name ``Known.extra`` has what the branch of a condition is told, by its place among these."""
    return f"branch {place}"


def _told_by(context: Context, jobs: Sequence[Job], place: int) -> Tensor:
    """What the branch of a condition is told of the clips."""
    tensor = context.team.once(partial(_told, context, [job.conditions[place] for job in jobs]))[0]
    assert tensor is not None
    return tensor


def _told(context: Context, given: Sequence[Condition]) -> list[Tensor | None]:
    made = []
    for one in given:
        assert isinstance(one.data, FittedClip) and one.branch is not None
        frames = one.data.frames_THWC
        if one.signal:
            of_clip = SIGNALS[one.signal].of_clip
            assert of_clip is not None
            frames = of_clip(frames)
        made.append(told_of_frames(context, frames, one.branch.features or LATENTS))
    return [torch.cat(made)]


def _pixels_and_mask(condition: Condition) -> tuple[Tensor, np.ndarray | None]:
    """The pixels of a condition, [1, T, H, W, 3] in [-1, 1], and where an image is repainted."""
    if isinstance(condition.data, FittedClip):
        return torch.from_numpy(condition.data.frames_THWC)[None].float() / 127.5 - 1.0, None
    assert isinstance(condition.data, FittedImage)
    mask = None if condition.mask is None else condition.mask.fitted(condition.data)
    return to_pixels(condition.data.pixels()), mask


def with_known(known: Known, latents_BTHWC: Tensor, start: int, way: Way, job: Job, *, track: str = VIDEO) -> Known:
    """``known`` with known frames, as the model is given them.

    The first frame is given as the model was trained to be given it, whatever is known beside it.

    Args:
        known: What is known so far.
        latents_BTHWC: Clean latents of some frames.
        start: The first of them.
        way: How the model is given frames that are not its first.
        job: The clip.
        track: Of the state.

    Returns:
        The new value.
    """
    frames = job.latent.frames
    natively = latents_BTHWC.shape[1] if way == "native" else 0
    if not start and job.card.does.knows.get("first frame") == "native":
        natively = max(natively, 1)
    if natively:
        known = with_frames(known, track, latents_BTHWC[:, :natively], start, frames)
    if natively < latents_BTHWC.shape[1]:
        known = with_frames(known, track, latents_BTHWC[:, natively:], start + natively, frames, follow=True)
    return known


def _with_source(known: Known, condition: Condition, latents_BTHWC: Tensor, job: Job) -> Known:
    """``known`` with the latent of a source; what was known before stays in its place."""
    track = condition.track
    if condition.strength < 1 or condition.prompt is not None:
        known = dataclasses.replace(known, begin={**known.begin, track: latents_BTHWC})
    if condition.kept is None:
        return known
    follow = torch.from_numpy(condition.kept.keep_THW)[None, ..., None]
    clean = latents_BTHWC
    for mask in (known.mask.get(track), known.follow.get(track)):
        if mask is not None:
            clean = known.clean[track].where(mask.to(clean.device), clean)
    if (before := known.follow.get(track)) is not None:
        follow = follow | before
    known = dataclasses.replace(known, clean={**known.clean, track: clean}, follow={**known.follow, track: follow})
    if condition.kept.keep_THW[0].all() and job.card.does.knows.get("first frame") == "native":
        known = with_frames(known, track, latents_BTHWC[:, :1], 0, job.latent.frames)
    return known


def with_frames(
    known: Known, track: str, latents_BTHWC: Tensor, start: int, frames: int, *, follow: bool = False
) -> Known:
    """``known`` with clean latents set from frame ``start`` on, in a latent of ``frames`` frames.

    Args:
        known: What is known so far.
        track: Of the state.
        latents_BTHWC: Clean latents of some frames.
        start: The first of them.
        frames: Frames of the whole latent.
        follow: Whether the state follows them with the noise of each time, see ``Known.follow``.

    Returns:
        The new value.
    """
    B, T, H, W, C = latents_BTHWC.shape
    name = "follow" if follow else "mask"
    masks: State = getattr(known, name)
    clean = known.clean.get(track, latents_BTHWC.new_zeros(B, frames, H, W, C)).clone()
    mask = masks.get(track, torch.zeros(B, frames, 1, 1, 1, dtype=torch.bool)).clone()
    clean[:, start : start + T] = latents_BTHWC
    mask[:, start : start + T] = True
    return dataclasses.replace(known, clean={**known.clean, track: clean}, **{name: {**masks, track: mask}})


def encode_image(
    encode: Callable[[Tensor], Tensor], pixels_BTHWC: Tensor, repaint_HW: np.ndarray | None = None
) -> Tensor:
    """Encode an image; with a mask, also a channel that marks what is kept, and the latents of what is kept.

    Quirk: any weight above 0 hides a pixel (it is replaced with grey), and of each square of pixels that share a latent
    the first one's weight counts.
    Source: ai-forever/Kandinsky-3@a4c9e92, inpainting_pipeline.py.

    Args:
        encode: Pixels in [-1, 1] to latents.
        pixels_BTHWC: The image.
        repaint_HW: Weights of the inpainting mask, 1 = to be generated anew.

    Returns:
        The latents, with the further channels after them.
    """
    if repaint_HW is None:
        return encode(pixels_BTHWC)
    repaint_HW1 = torch.from_numpy(repaint_HW).to(pixels_BTHWC)[..., None]
    latents = encode(pixels_BTHWC * (repaint_HW1 == 0))
    square = len(repaint_HW1) // latents.shape[2]
    kept_HW1 = 1 - repaint_HW1[::square, ::square]
    return torch.cat((kept_HW1.to(latents).expand(*latents.shape[:-1], 1), latents), dim=-1)


# -- encode ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Encode:
    """Expands prompts if asked for, and computes their embeddings."""

    needs: tuple[str, ...] = ("text",)

    def __call__(self, context: Context, made: Made) -> Running:
        yield Phase("encode")
        with ExitStack() as held:
            if any(job.expand for job in made.jobs) and context.team.is_first:
                held.enter_context(context.placement.hold("text"))  # the encoder is held for expanding and encoding
            jobs = expand(context, made.jobs)
            text, negative = encode(context, jobs)
            source = encode_sources(context, jobs)
            unused = unused_words(context, jobs)
        return dataclasses.replace(made, jobs=tuple(jobs), text=text, negative=negative, source=source, unused=unused)


def expand(context: Context, jobs: Sequence[Job]) -> list[Job]:
    """The jobs with their prompts expanded, for those that ask for it; each with its own seed."""
    if not any(one.expand and one.expanded_prompt is None for one in jobs):
        return list(jobs)
    made: Sequence[Job] = jobs
    if context.team.is_first:
        made = [_expanded(context, one) if one.expand and one.expanded_prompt is None else one for one in jobs]
    texts = context.team.agree([one.expanded_prompt for one in made])
    return [dataclasses.replace(one, expanded_prompt=text) for one, text in zip(jobs, texts, strict=True)]


def _expanded(context: Context, job: Job) -> Job:
    image = None if job.image is None else job.image.source.image
    with context.placement.hold("text") as encoder:
        if not isinstance(encoder, PromptWriter):
            raise BackendError(f"`{type(encoder).__name__}` cannot write prompts out: leave `expand=True` out")
        written = encoder.expand(job.prompt, task=context.card.task, seed=job.seed, image=image)
    log.info("expanded prompt: %s", written)
    return dataclasses.replace(job, expanded_prompt=written)


def encode(context: Context, jobs: Sequence[Job]) -> tuple[TextEmbeddings, TextEmbeddings | None]:
    """Embeddings of the prompts, and of the negative prompts if guidance is on.

    Prompts are encoded one by one, so that an embedding is the same in any batch; stored embeddings are reused.

    Args:
        context: The model.
        jobs: The jobs.

    Returns:
        Both; None for the second without guidance.
    """
    made = context.team.once(lambda: tensors_of(*_encoded(context, jobs)))
    return states_of(made[:3]), states_of(made[3:]) if made[3] is not None else None


def encode_sources(context: Context, jobs: Sequence[Job]) -> TextEmbeddings | None:
    """Embeddings of what the jobs' source clips show; None unless two prompts change them."""
    first = common(jobs)
    if first.source_prompt is None:
        return None

    def encoded() -> list[Tensor | None]:
        states = encode_each(
            [job.source_prompt or "" for job in jobs],
            still=first.shape.frames == 1,
            encoder=partial(context.placement.hold, "text"),
            store=context.text_store,
        )
        return tensors_of(join(states))

    return states_of(context.team.once(encoded))


def _encoded(context: Context, jobs: Sequence[Job]) -> tuple[TextEmbeddings, TextEmbeddings | None]:
    first = common(jobs)
    prompts = [context.prompt_of(job) for job in jobs]
    negative = [job.negative_prompt for job in jobs] if Guidance(first.guidance).is_on else []
    if context.card.does.text_sees_image and first.image is not None:
        images = [job.image.pixels() for job in jobs if job.image is not None]
        with context.placement.hold("text") as encoder:
            text = _encode_with_images(encoder, prompts, images)
            return text, _encode_with_images(encoder, negative, images) if negative else None
    if negative and context.part("text").contrasting:
        with Asked(context.placement, context.text_store) as asked:
            text = join([asked.states(prompt) for prompt in prompts])
            return text, join([asked.against(n, prompt) for n, prompt in zip(negative, prompts, strict=True)])
    states = encode_each(
        [*prompts, *negative],
        still=first.shape.frames == 1,
        encoder=partial(context.placement.hold, "text"),
        store=context.text_store,
    )
    return join(states[: len(prompts)]), join(states[len(prompts) :]) if negative else None


def _encode_with_images(encoder: TextEncoder, prompts: list[str], images: list[Image]) -> TextEmbeddings:
    if not isinstance(encoder, ImageTextEncoder):
        raise BackendError(f"`{type(encoder).__name__}` cannot be shown an image: use another text encoder")
    # one by one, so that a prompt's embeddings do not depend on its neighbours
    return join([encoder.encode_with_images([p], [image]) for p, image in zip(prompts, images, strict=True)])


def unused_words(context: Context, jobs: Sequence[Job]) -> tuple[tuple[str, ...], ...]:
    """For each job, the words of its prompt that the text encoder does not use; empty if it cannot tell."""
    if not context.part("text").tells_unused:
        return ()
    found: list[tuple[str, ...]] = []
    if context.team.is_first:
        with context.placement.hold("text") as encoder:
            if isinstance(encoder, ReadingTextEncoder):
                sees = context.card.does.text_sees_image
                found = [encoder.unused(job.text, beside_image=sees and job.image is not None) for job in jobs]
    return tuple(tuple(words) for words in context.team.agree(found))


def tensors_of(*states: TextEmbeddings | None) -> list[Tensor | None]:
    """Tokens, pooled embeddings and mask of each."""
    return [
        tensor
        for one in states
        for tensor in ((None,) * 3 if one is None else (one.tokens_BLC, one.pooled_BC, one.mask_BL))
    ]


def states_of(tensors: Sequence[Tensor | None]) -> TextEmbeddings:
    """The inverse of ``tensors_of`` for one."""
    tokens_BLC, pooled_BC, mask_BL = tensors
    assert tokens_BLC is not None and pooled_BC is not None
    return TextEmbeddings(tokens_BLC, pooled_BC, mask_BL)


# -- sample ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sample:
    """Draws noise, denoises it to latents, and keeps them on disk if asked for."""

    needs: tuple[str, ...] = ("dit",)

    def __call__(self, context: Context, made: Made) -> Running:
        yield Phase("sample")
        first = common(made.jobs)
        kept, cache = KeptBlocks(), start_cache(first)
        assert made.text is not None
        latents = yield from denoise(
            context,
            {VIDEO: noise(context, made.jobs)},
            made.text,
            made.negative,
            first,
            known=made.known,
            source=made.source,
            fresh=fresh_noise(context, made.jobs),
            seeds=[job.seed for job in made.jobs],
            cache=cache,
            kept=kept,
        )
        if cache:
            cache.skips = context.team.all_passes(cache.skips)
        shares = _kept_shares(context, kept, first, len(made.jobs))
        recipes = tuple(
            context.recipe(job, cache.report(i) if cache else None, shares[i])
            | ({"unused_words": list(made.unused[i])} if made.unused and made.unused[i] else {})
            for i, job in enumerate(made.jobs)
        )
        return keep(context, dataclasses.replace(made, latents=latents, recipes=recipes))


def keep(context: Context, made: Made) -> Made:
    """Write the latents to the files that were asked for; returns its input.

    Raises:
        RequestError: A file cannot be written.
    """
    for path, recipe, latent in zip(made.keep, made.recipes, made.latents[VIDEO], strict=True) if made.keep else ():
        if path is not None and context.team.is_first:
            write_latent(path, latent, recipe)
    return made


def start_cache(job: Job) -> StepCache | None:
    """A fresh step cache for one ``denoise``, if the job names one."""
    return step_cache.start(job.cache, steps=job.steps)


def noise(context: Context, jobs: Sequence[Job]) -> Tensor:
    """Initial noise [B, T, H, W, C], float32, one generator per sample.

    Raises:
        RequestError: The jobs do not agree with each other.
    """
    first = common(jobs)
    rules = sampler(first.sampling.sampler)
    return rules.start(_draws(context, jobs), rules.times(first.steps, first.shift))


def fresh_noise(context: Context, jobs: Sequence[Job]) -> Tensor | None:
    """What samplers that add noise at each step draw after the start, [N, B, T, H, W, C]; None for the others.

    Raises:
        RequestError: The jobs do not agree with each other.
    """
    rules = sampler(common(jobs).sampling.sampler)
    return _draws(context, jobs)[rules.unused + 1 :] if rules.fresh else None


def _draws(context: Context, jobs: Sequence[Job]) -> Tensor:
    first = common(jobs)
    count = sampler(first.sampling.sampler).draws(first.steps)
    seeds, rule, device = [job.seed for job in jobs], first.sampling.noise, context.noise_device
    if first.begin is not None:
        return noise_rule.draw_along(first.latent, seeds, rule, begin=first.begin, count=count, device=device)
    return noise_rule.draw_series(first.latent, seeds, rule, count=count, device=device)


def denoise(
    context: Context,
    state: State,
    text: TextEmbeddings,
    negative: TextEmbeddings | None,
    job: Job,
    *,
    known: Known | None = None,
    source: TextEmbeddings | None = None,
    fresh: Tensor | None = None,
    seeds: Sequence[int] | None = None,
    cache: Branches | None = None,
    kept: KeptBlocks | None = None,
    tiles: Tiles | None = None,
    strength: float | None = None,
    since: int = 0,
    began: Tensor | None = None,
) -> Generator[Step, None, State]:
    """Denoise to latents, float32, under text embeddings and what is known.

    Args:
        context: The model.
        state: Noise by track.
        text: Embeddings of the prompts.
        negative: Embeddings for the unconditional pass; None without guidance.
        job: Provides steps, shift, guidance and the card's values.
        known: What is known of the results.
        source: Result of ``encode_sources``; the source is then changed by the difference of the prompts.
        fresh: Result of ``fresh_noise``.
        seeds: Of each clip, for noise that is drawn while sampling; the job's and those after it by default.
        cache: Result of ``start_cache``; a new one by default.
        kept: Records what block-sparse attention keeps.
        tiles: In which parts the network sees the state; it sees all of it by default.
        strength: The time that sampling begins at, where ``known`` has what it begins from; the job's by default.
        since: See ``Pass``.
        began: See ``Pass``.

    Yields:
        Sampling steps.

    Returns:
        Latents by track.

    Raises:
        Cancelled: ``context.cancelling`` was set, or another process was told to stop.
        RequestError: A sampler lacks its fresh noise, or LoRAs are loaded and the weights are cut.
        NotFinite: Numbers overflowed; the message names the step.
    """
    team, device, sampling = context.team, context.placement.device("dit"), job.sampling
    state = each(lambda x: x.to(device, context.precision.islands), state)
    clips = len(next(iter(state.values())))

    def own(x: Tensor) -> Tensor:
        return team.own_clips(x) if len(x) == clips else x

    state, text = each(own, state), _own_states(text, clips, own)
    negative = None if negative is None else _own_states(negative, clips, own)
    known = (known or Known()).over(lambda x: own(x).to(device))
    if fresh is not None:
        fresh = own(fresh.transpose(0, 1)).transpose(0, 1)
    if team.layout.cuts_weights and context.adapters.names:
        raise RequestError(f"LoRAs need whole weights: unload them, or leave `{team.layout}` without tp and fsdp")
    bind = context.part("dit").bind
    if bind is None:
        raise BackendError(f"network `{context.card.dit.kind}` is not a denoiser")
    rules = sampler(sampling.sampler)
    times = rules.times(job.steps, job.shift)
    walk = {name: rules.step(times, job.shift, fresh) for name in state}
    shared: dict[Any, Any] = {}
    cache = cache or start_cache(job)
    start = first_step(known, times, job.strength if strength is None else strength)
    with ExitStack() as held:
        net = held.enter_context(context.placement.hold("dit"))
        context.adapters.apply(net, dtype=context.precision.compute)
        besides = _besides(context, job, known, times, start, held)

        def bound(
            states: TextEmbeddings,
            branch: str,
            known: Known = known,
            shared: dict[Any, Any] = shared,
        ) -> Denoiser:
            run = Pass(
                states.to(device),
                condition=sampling.condition,
                rope_scale=sampling.rope_scale,
                attention=context.attention_of(job),
                runner=cache.runner(branch) if cache else None,
                shared=shared,
                kept=kept,
                # a reference is what guidance strengthens, as it does the prompt
                branches=tuple(one for kind, one in besides if kind == CONTROL or branch != "unconditional"),
                since=since,
                began=began,
                together=context.together,
            )
            return bind()(net, known, run)

        def guided_by(known: Known, shared: dict[Any, Any]) -> Denoising[State]:
            one = bound(text, "conditional", known, shared)
            other = None if negative is None else bound(negative, "unconditional", known, shared)
            if context.together and not _are_joined(one, other):
                _told_apart(context.card.id, is_guided=Guidance(job.guidance).is_on)
            return team.guide(Guidance(job.guidance), one, other)

        def of_tile(place: tuple[int, int]) -> Denoising[State]:
            assert tiles is not None
            own_shared = {"layouts": shared.setdefault("layouts", {})}  # all else is of a place
            own_known = known.over(partial(tiles.cut, place=place))
            return guided_by(own_known, own_shared)

        guided = guided_by(known, shared) if tiles is None else tiled(tiles, of_tile)
        seeds = seeds or [job.seed + i for i in range(clips)]

        def drawn(number: int) -> Tensor:
            rule, on = sampling.noise, context.noise_device
            return own(noise_rule.draw_again(job.latent, seeds, rule, number=number, device=on)).to(device)

        follows = Following(known, state, rules.noising(job.shift).noised, times[-1])
        if source is not None:
            of_source = team.guide(Guidance(1.0), bound(_own_states(source, clips, own), "source"), None)
            guided = FlowEdit(guided, of_source, known.begin, drawn, known.pin)
            follows = Following(known, state, lambda clean, noise, t: clean, times[-1])
        # what looks at numbers, or is another work at another step, is not
        is_steady = not cache and not besides and tiles is None and source is None and team.size == 1
        latents: State = yield from watched(
            context,
            steps(
                context.computing(guided, is_steady=is_steady),
                follows.begin(times[start]),
                times,
                step=walk,
                start=start,
                pin=follows.pin if known.mask or known.follow else None,
                again=lambda clean, t, number: each(lambda x: follows.noised(x, drawn(number), t), clean),
                resample=job.resample,
            ),
        )
    # a later window of a long clip is given the end of the one before, which stays as it is
    if known.mask and not known.follow and sampling.normalize_first_frame and not job.begin and tiles is None:
        latents = each(normalize_first_frame, latents)
    return each(lambda x: team.all_clips(x, clips), latents)


def _are_joined(one: Denoiser, other: Denoiser | None) -> bool:
    return other is not None and isinstance(one, Pairing) and one.pair(other) is not None


@functools.cache
def _told_apart(model: str, *, is_guided: bool) -> None:
    """One log line for each model: what was asked for by name is not silently something else."""
    if is_guided:
        why = "its network, or what works within a pass (caches, branches, sparse or causal attention), runs one alone"
    else:
        why = "guidance is off, so there is one"
    log.info("backends `guidance=together`: passes of `%s` stay apart: %s", model, why)


def _besides(
    context: Context, job: Job, known: Known, times: Tensor, start: int, held: ExitStack
) -> list[tuple[str, Beside]]:
    """The job's branches by their kind, held on the device of the denoiser."""
    found, last = [], len(times) - 2
    taken = last + 1 - start  # a source that is begun from late skips the first steps
    free_branches(context, [one.branch for one in job.conditions if one.branch is not None])
    for place, one in enumerate(job.conditions):
        if one.branch is None:
            continue
        begin, end = (start + min(round(share * taken), taken) for share in one.shares)
        if begin == end or not one.strength:
            continue
        module = held.enter_context(hold_branch(context, one.branch))
        span = (1.0, 0.0) if (begin, end) == (start, last + 1) else (float(times[begin]), float(times[end - 1]))
        found.append((one.branch.kind, Beside(module, known.extra[told_name(place)], one.strength, *span)))
    return found


def watched(
    context: Context, walk: Generator[Progress[State], None, State], *, done: int = 0, total: int | None = None
) -> Generator[Step, None, State]:
    """A sampling loop as events; every process continues or stops as the first one's caller says.

    Args:
        context: The model.
        walk: The loop.
        done: Steps of earlier loops of the batch.
        total: Steps of all of them; this loop's by default.

    Yields:
        Sampling steps.

    Returns:
        What the loop returns.

    Raises:
        Cancelled: ``context.cancelling`` was set, or another process was told to stop.
        NotFinite: Numbers overflowed; the message names the step.
    """
    finite: list[Tensor] = []
    while True:
        try:
            progress = next(walk)
        except StopIteration as end:
            _check_finite(context, finite, done)
            latents: State = end.value
            return latents
        finite.append(progress.finite)
        if context.team.size == 1 and len(finite) > 2 and not finite[-3]:  # a device with queued work need not wait
            _check_finite(context, finite, done)
        try:
            yield Step(done + progress.step, total or progress.total, progress.clean, context.card.preview)
        except GeneratorExit:
            context.team.go_on(False)
            raise
        if not context.team.go_on(not context.cancelling.is_set()):
            raise Cancelled(f"cancelled after step {progress.step} of {progress.total}")


def _check_finite(context: Context, finite: Sequence[Tensor], done: int) -> None:
    """Refuse latents that are not finite on any process.

    Raises:
        NotFinite: They are not; the message names the first such step.
    """
    own = (~torch.stack(list(finite))).nonzero().flatten().tolist() if finite else []
    if steps := [step for step in context.team.gather(own[0] + 1 if own else None) if step is not None]:
        raise NotFinite(
            f"the latents are not finite from step {done + min(steps)} on: numbers ran out of the range of "
            f"`{context.precision.name}`",
            hint='try a smaller `guidance=…` or LoRA scale, `dtype="float32"`, or fetch the weights again',
        )


def _own_states(states: TextEmbeddings, clips: int, own: Callable[[Tensor], Tensor]) -> TextEmbeddings:
    """The embeddings of this process' clips; those of one prompt for all clips stay as they are."""
    if len(states.tokens_BLC) != clips:
        return states
    return states_of([None if tensor is None else own(tensor) for tensor in tensors_of(states)])


def _kept_shares(context: Context, kept: KeptBlocks, first: Job, clips: int) -> list[float | None]:
    """For each clip, the share of blocks that block-sparse attention computed, over all processes."""
    own = context.team.own_clips(torch.empty(clips, 0))
    heads = demand_of(first, context.attention_of(first)).heads
    return context.team.all_shares([kept.mean(i) for i in range(len(own))], heads)


# -- decode ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Decode:
    """Turns latents into clips, decoded as their pieces are consumed, so that no clip has to fit in memory whole."""

    needs: tuple[str, ...] = ("vae",)

    def results(self, context: Context, made: Made) -> list[VideoStream]:
        return streams(context, made.latents[VIDEO], made.recipes)


def streams(context: Context, latents_BTHWC: Tensor, recipes: Sequence[Mapping[str, Any]]) -> list[VideoStream]:
    """Clips of these latents and recipes, decoded as they are consumed; several processes decode them right away."""
    if context.team.size > 1:
        clips = [iter([clip]) for clip in decode_together(context, latents_BTHWC)]
    else:
        clips = [decode_pieces(context, latents_THWC) for latents_THWC in latents_BTHWC]
    whole = 1 + (latents_BTHWC.shape[1] - 1) * context.card.clip.temporal
    counts = [min(whole, int(made.get("frames", whole))) for made in recipes]
    return [
        VideoStream(first(pieces, count), count, fps=float(made["fps"]), seed=int(made["seed"]), recipe=dict(made))
        for pieces, count, made in zip(clips, counts, recipes, strict=True)
    ]


def first(pieces: Iterator[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """The first frames of a clip: what it is longer than asked for is cut off.

    Args:
        pieces: Frames [t, H, W, 3], piece by piece.
        count: How many are kept.

    Yields:
        Frames [t, H, W, 3].
    """
    for piece in pieces:
        kept = piece[:count]
        count -= len(kept)
        if len(kept):
            yield kept
        del piece, kept  # not while the next is made


def decode(context: Context, latents_BTHWC: Tensor) -> np.ndarray:
    """Frames [B, T, H, W, 3], uint8; one clip at a time, see ``decode_pieces``."""
    if context.team.size > 1:
        return decode_together(context, latents_BTHWC)
    with context.placement.hold("vae"):  # once for all clips
        clips = [np.concatenate(list(decode_pieces(context, one))) for one in latents_BTHWC]
    return np.stack(clips)


def decode_together(context: Context, latents_BTHWC: Tensor) -> np.ndarray:
    """Decode clips in turn on all processes; a single one on all if its autoencoder allows it, else on the first."""
    is_shared = len(latents_BTHWC) == 1 and context.part("vae").decodes_together

    def frames(latents_THWC: Tensor) -> Tensor:
        if not is_shared:
            return torch.from_numpy(np.concatenate(list(decode_pieces(context, latents_THWC))))
        with context.placement.hold("vae") as vae, torch.no_grad():
            latents_1THWC = latents_THWC[None].to(context.placement.device("vae"))
            return torch.cat(
                [
                    to_bytes(piece[0], rounds=context.part("vae").rounds)
                    for piece in context.team.decode(vae, latents_1THWC)
                ]
            )

    return np.stack(context.team.by_turns(frames, latents_BTHWC, everyone=is_shared))


def decode_pieces(context: Context, latents_THWC: Tensor) -> Iterator[np.ndarray]:
    """Frames of one clip, [t, H, W, 3] uint8, piece by piece as the autoencoder finishes them.

    Quirk: (x + 1)·127.5 is truncated, as in the official code, unless the autoencoder's part ``rounds``.

    Raises:
        Cancelled: ``context.cancelling`` was set.
        NotFinite: The autoencoder's output is not finite.
    """
    # One layout in memory, whether sampled or read from a file: convolutions of another layout give other bits.
    latents_THWC = latents_THWC.to(context.placement.device("vae")).contiguous()
    done = 0
    with context.placement.hold("vae") as vae:
        pieces = decoded(vae, latents_THWC[None], context.card.chunk)
        while True:
            check_cancelled(context, f"while decoding, after {done} frames")
            with torch.no_grad():  # not around the yield: the caller's own arithmetic is not ours to change
                if (piece := next(pieces, None)) is None:
                    return
                check_pixels(context, piece, f"from frame {done} on")
                frames = to_bytes(piece[0], rounds=context.part("vae").rounds).cpu().numpy()
            done += len(frames)
            yield frames
            del piece, frames  # not while the next is made


def check_cancelled(context: Context, when: str) -> None:
    """Stop if another thread asked for it; several processes continue, since the others would wait for this one.

    Raises:
        Cancelled: ``context.cancelling`` was set.
    """
    if context.team.size == 1 and context.cancelling.is_set():
        raise Cancelled(f"cancelled {when}")


def check_pixels(context: Context, pixels: Tensor, where: str) -> None:
    """Refuse pixels that are not finite although the latents were.

    Raises:
        NotFinite: They are not finite.
    """
    if not torch.isfinite(pixels).all():
        raise NotFinite(
            f"decoded values are not finite {where}: numbers ran out of the range of `{context.precision.name}`",
            hint='try `dtype="float32"`, or fetch the weights again',
        )


def to_bytes(pixels: Tensor, *, rounds: bool = False) -> Tensor:
    """Pixels in [-1, 1] (others are clamped) to uint8: truncated, or the nearest if it ``rounds``."""
    levels = (pixels.float().clamp(-1.0, 1.0) + 1.0) * 127.5
    return (levels.round() if rounds else levels).to(torch.uint8)


def to_pixels(image: Image) -> Tensor:
    """A Pillow image as a clip of one frame: [1, 1, H, W, 3], float32 in [-1, 1]."""
    return torch.from_numpy(np.array(image))[None, None].float() / 127.5 - 1.0


def check(context: Context, jobs: Sequence[Job]) -> None:
    """Refuse what cannot run on these processes, before anything is loaded.

    Raises:
        RequestError: There are no jobs, or the layout does not suit them.
    """
    if not jobs:
        raise RequestError("a batch needs at least one request")
    check_fits(context.team.layout, jobs[0], context.attention_of(jobs[0]), len(jobs))


GENERATE: tuple[tuple[Stage, ...], Finish] = ((EncodeConditions(), Encode(), Sample()), Decode())
