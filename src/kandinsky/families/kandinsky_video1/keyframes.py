"""Keyframes → base frames → interpolation: three runs of the shared sampling loop (Kandinsky Video 1.0 and 1.1).

encode → [first frame] → keyframes → [fill the gaps, once or twice] → decode. Each stage is public and fully typed; a
network is read when its stage is reached, so a clip without interpolation never reads that network. Every stage draws
from a generator of its own, derived from the seed and the stage's number; so the keyframes of a seed are the same at
every frame rate.

Legend: B clips; T H W C latent frames, rows, columns, channels; F frames and G = F − 1 gaps between them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from kandinsky.diffusion import noise as noise_rule
from kandinsky.diffusion.cosine import CosineSchedule
from kandinsky.diffusion.gaps import MISSING, around, fill
from kandinsky.diffusion.guidance import Guidance, ImageGuidance, Mixing
from kandinsky.diffusion.sample import steps
from kandinsky.diffusion.samplers import sampler
from kandinsky.engine.context import Context
from kandinsky.engine.events import Phase, Step
from kandinsky.engine.request import Job, common
from kandinsky.engine.stages import Decode, Finish, Made, Running, Stage, keep, to_bytes, to_pixels, watched
from kandinsky.engine.text_states import Asked
from kandinsky.errors import BackendError, RequestError
from kandinsky.families.kandinsky_video1.request import KeyframeChoice, keyframes_of
from kandinsky.families.parts.unet.denoiser import bind, told
from kandinsky.families.parts.unet.unet import Marks
from kandinsky.model.card import Card
from kandinsky.model.denoiser import VIDEO, Denoiser, Known, Pass
from kandinsky.model.values import LatentShape, TextEmbeddings
from kandinsky.runtime.randomness import stage_seed
from kandinsky.text.protocol import GapTextEncoder, TextEncoder

if TYPE_CHECKING:
    from kandinsky.model.denoiser import State

STAGES = ("key frames", "first frame", "first frame's noise", "interpolation")
Walk = Generator[Step, None, Tensor]
Guided = tuple[Mixing, tuple[Denoiser | None, ...]]


@dataclass(frozen=True)
class KeyframesMade(Made):
    """The state of a keyframe job so far.

    Attributes:
        told: Embeddings for the interpolation.
        first: Clean latent [1, 1, H, W, C] of the first frame.
        done: Steps taken so far, over all its stages.
        total: Steps of all its stages.
    """

    told: TextEmbeddings | None = None
    first: Tensor | None = None
    done: int = 0
    total: int = 0

    @property
    def job(self) -> Job:
        (job,) = self.jobs
        return job


@dataclass(frozen=True, slots=True)
class EncodeText:
    """Embeddings of the prompt, of the negative prompt, and for the interpolation."""

    needs: tuple[str, ...] = ("text",)

    def __call__(self, context: Context, made: Made) -> Running:
        yield Phase("encode")
        (job,) = made.jobs
        text, nothing = encode(context, job)
        return KeyframesMade(
            made.jobs,
            made.keep,
            text=text,
            negative=nothing,
            told=encode_for_gaps(context, job, text),
            total=total_steps(job),
        )


@dataclass(frozen=True, slots=True)
class FirstFrame:
    """The first frame: the given image, else one made from the text; nothing for models that need none."""

    needs: tuple[str, ...] = ("dit", "image_vae")

    def __call__(self, context: Context, made: Made) -> Running:
        assert isinstance(made, KeyframesMade) and made.text is not None and made.negative is not None
        job, first = made.job, keyframes_of(context.card).first_frame
        if first is None:
            return made
        if job.image is not None:
            return dataclasses.replace(made, first=encode_image(context, job.image.pixels()))
        yield Phase("first frame")
        image = yield from make_first_frame(context, job, made.text, made.negative, total=made.total)
        # Quirk: a generated one is larger than the clip, becomes eight-bit pixels, and is reduced, as officially
        small = image.resize((job.shape.width, job.shape.height), Image.Resampling.BICUBIC)
        return dataclasses.replace(made, first=encode_image(context, small), done=job.steps)


@dataclass(frozen=True, slots=True)
class SampleKeyframes:
    """Latents of the keyframes."""

    needs: tuple[str, ...] = ("dit",)

    def __call__(self, context: Context, made: Made) -> Running:
        assert isinstance(made, KeyframesMade) and made.text is not None and made.negative is not None
        yield Phase("sample")
        latents = yield from sample_keyframes(
            context, made.job, made.text, made.negative, made.first, done=made.done, total=made.total
        )
        return dataclasses.replace(made, latents={VIDEO: latents}, done=made.done + made.job.steps)


@dataclass(frozen=True, slots=True)
class Interpolate:
    """The clip with its gaps filled as often as the frame rate requires."""

    needs: tuple[str, ...] = ("interpolation",)

    def __call__(self, context: Context, made: Made) -> Running:
        assert isinstance(made, KeyframesMade) and made.told is not None and made.negative is not None
        latents, done = made.latents[VIDEO], made.done
        for number in range(choice_of(made.job).passes):
            yield Phase("interpolate")
            latents = yield from fill_gaps_of(
                context, made.job, latents, made.told, made.negative, number=number, done=done, total=made.total
            )
            done += gap_steps(made.job)
        recipes = (context.recipe(made.job),)
        return keep(context, dataclasses.replace(made, latents={VIDEO: latents}, recipes=recipes))


@dataclass(frozen=True, slots=True)
class OneByOne:
    """Stages whose networks see one job at a time, applied to each job of a batch.

    The jobs need not be alike in anything but their card.
    """

    stages: tuple[Stage, ...]

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for stage in self.stages for name in stage.needs))

    def __call__(self, context: Context, made: Made) -> Running:
        common(made.jobs)
        done: list[Made] = []
        for place, job in enumerate(made.jobs):
            one = dataclasses.replace(made, jobs=(job,), keep=made.keep[place : place + 1])
            for stage in self.stages:
                one = yield from stage(context, one)
            done.append(one)
        latents = torch.cat([one.latents[VIDEO] for one in done])
        recipes = tuple(recipe for one in done for recipe in one.recipes)
        return dataclasses.replace(made, latents={VIDEO: latents}, recipes=recipes)


KEYFRAMES: tuple[tuple[Stage, ...], Finish] = (
    (OneByOne((EncodeText(), FirstFrame(), SampleKeyframes(), Interpolate())),),
    Decode(),
)


def choice_of(job: Job) -> KeyframeChoice:
    """The keyframe settings of a job.

    Raises:
        RequestError: The job is for another model.
    """
    if not isinstance(job.extra, KeyframeChoice):
        raise RequestError(f"this request was checked against `{job.card.id}`, which makes no key frames")
    return job.extra


def total_steps(job: Job) -> int:
    """Steps of all stages."""
    makes_first = keyframes_of(job.card).first_frame is not None and job.image is None
    return job.steps * (2 if makes_first else 1) + choice_of(job).passes * gap_steps(job)


def gap_steps(job: Job) -> int:
    """Steps of one interpolation pass: the card's, and no more than the keyframes take."""
    return min(keyframes_of(job.card).steps, job.steps)


def encode(context: Context, job: Job) -> tuple[TextEmbeddings, TextEmbeddings]:
    """Embeddings of the prompt and of the negative prompt, or else of an empty prompt."""
    with Asked(context.placement, context.text_store) as asked:
        prompt = context.prompt_of(job)
        return asked.states(prompt), asked.against(job.negative_prompt, prompt)


def encode_for_gaps(context: Context, job: Job, text: TextEmbeddings) -> TextEmbeddings:
    """Embeddings for the interpolation: ``text``, or its own if the card defines a projection for it."""
    is_its_own = context.card.text.params.get("gap_table") and choice_of(job).passes
    return gap_states(context, context.prompt_of(job)) if is_its_own else text


def gap_states(context: Context, prompt: str) -> TextEmbeddings:
    """Embeddings of the prompt for an interpolation that uses it."""
    own = bool(context.card.text.params.get("gap_table"))
    with Asked(context.placement, context.text_store) as asked:
        return asked.states(prompt, way="for gaps", ask=_for_gaps) if own else asked.states(prompt)


def _for_gaps(encoder: TextEncoder, prompt: str) -> TextEmbeddings:
    assert isinstance(encoder, GapTextEncoder)
    return encoder.encode_for_gaps([prompt])


def make_first_frame(
    context: Context,
    job: Job,
    text: TextEmbeddings,
    nothing: TextEmbeddings,
    *,
    done: int = 0,
    total: int | None = None,
) -> Generator[Step, None, Image.Image]:
    """A first frame from the text, larger than the clip.

    Raises:
        BackendError: The model does not need one.
    """
    first = keyframes_of(context.card).first_frame
    if first is None:
        raise BackendError(f"`{context.card.id}` makes no first frame")
    latent = job.latent
    shape = LatentShape(1, latent.height * first.scale, latent.width * first.scale, latent.channels)
    device = context.placement.device("dit")
    C = latent.channels

    def passes(net: torch.nn.Module, begin: Tensor) -> Guided:
        empty = begin.new_zeros(*begin.shape[:-1], C + 1)
        guidance = Guidance(first.guidance)
        bound = [bind(net, Known(extra={"behind": empty}), Pass(states.to(device))) for states in (text, nothing)]
        return guidance, (bound[0], bound[1] if guidance.is_on else None)

    seed = stage_seed(job.seed, STAGES.index("first frame"))
    made = yield from _walk(context, shape, passes, seed=seed, steps_=job.steps, done=done, total=total)
    with context.placement.hold("image_vae") as vae, torch.no_grad():
        pixels = to_bytes(vae.decode(made.to(context.placement.device("image_vae"))))
    return Image.fromarray(pixels[0, 0].cpu().numpy())


def sample_keyframes(
    context: Context,
    job: Job,
    text: TextEmbeddings,
    nothing: TextEmbeddings,
    first_BTHWC: Tensor | None = None,
    *,
    done: int = 0,
    total: int | None = None,
) -> Walk:
    """Latents of the keyframes [1, F, H, W, C], float32."""
    shape = dataclasses.replace(job.latent, frames=keyframes_of(context.card).count)
    device = context.placement.device("dit")
    marks = keyframe_marks(context.card, job, shape.frames)

    def passes(net: torch.nn.Module, begin: Tensor) -> Guided:
        def bound(states: TextEmbeddings, condition: Tensor | None = None) -> Denoiser:
            return bind(net, of_keyframes(marks, condition), Pass(states))

        told, untold = text.to(device), nothing.to(device)
        if first_BTHWC is None:
            guidance = Guidance(job.guidance)
            return guidance, (bound(told), bound(untold) if guidance.is_on else None)
        seed = stage_seed(job.seed, STAGES.index("first frame's noise"))
        condition = first_frame_channels(context.card, first_BTHWC, shape.frames, seed).to(device)
        weights = ImageGuidance(job.guidance, choice_of(job).image_guidance)
        return weights, (bound(told, condition), bound(untold, condition), bound(untold, torch.zeros_like(condition)))

    seed = stage_seed(job.seed, STAGES.index("key frames"))
    return (yield from _walk(context, shape, passes, seed=seed, steps_=job.steps, done=done, total=total))


def fill_gaps_of(
    context: Context,
    job: Job,
    latents_BTHWC: Tensor,
    text: TextEmbeddings,
    nothing: TextEmbeddings,
    *,
    number: int = 0,
    done: int = 0,
    total: int | None = None,
) -> Walk:
    """Fill the gaps of a job's clip once: three frames between every two, [1, 4·(T − 1) + 1, H, W, C].

    ``number`` is that of the pass; it determines the length of the gaps that the network is given.
    """
    return (
        yield from fill_gaps(
            context,
            latents_BTHWC,
            text if keyframes_of(context.card).guides_text else nothing,
            nothing,
            steps_=gap_steps(job),
            guidance=choice_of(job).interpolation_guidance,
            seed=job.seed,
            number=number,
            done=done,
            total=total,
        )
    )


def fill_gaps(
    context: Context,
    latents_BTHWC: Tensor,
    text: TextEmbeddings,
    nothing: TextEmbeddings,
    *,
    steps_: int,
    guidance: float,
    seed: int,
    number: int = 0,
    done: int = 0,
    total: int | None = None,
) -> Walk:
    """Three frames between every two of any clip's latents, [1, 4·(T − 1) + 1, H, W, C].

    Args:
        context: The model.
        latents_BTHWC: The clip.
        text: Embeddings for the guided pass.
        nothing: Embeddings for the pass that knows neither text nor frames.
        steps_: Sampling steps of this pass.
        guidance: Guidance scale of this pass.
        seed: Seed of this pass.
        number: Number of the pass, from 0.
        done: Steps of earlier loops.
        total: Steps of all loops.

    Yields:
        Sampling steps.

    Returns:
        The latents.
    """
    keyframes = keyframes_of(context.card)
    device = context.placement.device("interpolation")
    left, right = (side.to(device) for side in around(latents_BTHWC))
    shape = LatentShape(left.shape[1], left.shape[2], left.shape[3], left.shape[4] * MISSING)
    skips = keyframes.skips
    marks = Marks(skip=skips[min(number, len(skips) - 1)])

    def passes(net: torch.nn.Module, begin: Tensor) -> Guided:
        def bound(states: TextEmbeddings, before: Tensor, behind: Tensor, marks: Marks) -> Denoiser:
            return bind(net, of_gaps(marks, before, behind), Pass(states.to(device)))

        weight, nowhere = Guidance(guidance), torch.zeros_like(left)
        alone = dataclasses.replace(marks, mixes=not keyframes.guides_text)
        return weight, (
            bound(text, left, right, marks),
            bound(nothing, nowhere, nowhere, alone) if weight.is_on else None,
        )

    filled = yield from _walk(
        context,
        shape,
        passes,
        seed=stage_seed(seed, STAGES.index("interpolation") + number),
        steps_=steps_,
        done=done,
        total=total,
        part="interpolation",
    )
    return fill(latents_BTHWC.to(filled), filled)


Passes = Callable[[torch.nn.Module, Tensor], Guided]


def _walk(
    context: Context,
    shape: LatentShape,
    passes: Passes,
    *,
    seed: int,
    steps_: int,
    done: int,
    total: int | None,
    part: str = "dit",
) -> Walk:
    """One sampling loop of a network of this family: draws, times, guidance over ``passes``, steps."""
    card = context.card
    rules = sampler(card.sampling.sampler if part == "dit" else keyframes_of(card).sampler)
    times = rules.times(steps_, 1.0)
    draws = noise_rule.draw_series(shape, [seed], card.sampling.noise, count=rules.draws(steps_))
    begin = draws[0].to(context.placement.device(part))
    with context.placement.hold(part) as net:
        if part == "dit":
            context.adapters.apply(net, dtype=context.precision.compute)
        guidance, bound = passes(net, begin)
        guided = context.team.guide(guidance, *bound)
        state: State = {VIDEO: begin}
        walk = steps(guided, state, times, step=rules.step(times, 1.0, draws[1:]))
        latents = yield from watched(context, walk, done=done, total=total)
    return latents[VIDEO]


def first_frame_channels(card: Card, first_BTHWC: Tensor, frames: int, seed: int) -> Tensor:
    """Condition channels [1, F, H, W, C + 1]: the first frame with noise and a mask of ones, zeros behind it.

    Quirk: the noise is uniform in [0, 1), a slip of the official code that the released numbers have.

    Args:
        card: The model.
        first_BTHWC: Clean latent of the first frame, [1, 1, H, W, C].
        frames: Keyframes, F.
        seed: Of the noise.
    """
    first = keyframes_of(card).first_frame
    assert first is not None
    schedule = CosineSchedule(zero_snr=True)
    key = first_BTHWC.float().cpu()
    noise = noise_rule.draw_uniform(LatentShape(1, *key.shape[2:]), [seed])
    noised = schedule.noised(key, noise, torch.tensor(schedule.time(first.noise_level)))
    marked = torch.cat((noised, torch.ones_like(noised[..., :1])), dim=-1)
    return torch.cat((marked, marked.new_zeros(1, frames - 1, *marked.shape[2:])), dim=1)


def keyframe_marks(card: Card, job: Job, frames: int) -> Marks:
    """What the network of keyframes is told of so many of them."""
    keyframes = keyframes_of(card)
    places = tuple(float(i * keyframes.spacing) for i in range(frames))
    first, motion = keyframes.first_frame, choice_of(job).motion
    if first is None or motion is None:
        return Marks(places)
    return Marks(places, noise_level=first.noise_level, motion=first.motion[motion])


def of_keyframes(marks: Marks, condition_BTHWC: Tensor | None) -> Known:
    """What is known of keyframes: their marks, and the channels of the first of them where the model has these."""
    return Known(extra=told(marks) | ({} if condition_BTHWC is None else {"behind": condition_BTHWC}))


def of_gaps(marks: Marks, left_BGHWC: Tensor, right_BGHWC: Tensor) -> Known:
    """What is known of gaps: their marks, and the frames before and behind each."""
    return Known(extra=told(marks) | {"before": left_BGHWC, "behind": right_BGHWC})


def encode_image(context: Context, image: Image.Image) -> Tensor:
    """Latent [1, 1, H, W, C] of one image, float32."""
    name = "image_vae" if "image_vae" in context.card.components else "vae"
    device = context.placement.device(name)
    with context.placement.hold(name) as vae, torch.no_grad():
        out: Tensor = vae.encode(to_pixels(image).to(device)).to(context.precision.islands)
        return out
