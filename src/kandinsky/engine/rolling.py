"""Autoregressive generation: a clip is made along time, chunk by chunk, for as long as it is wanted.

The noise of a chunk depends on the seed and the chunk's number alone, and a clip is made of whole chunks and then cut,
so it is the beginning of the stream with the same seed. Memory does not grow: keys and values, latents and what the
decoder carries are those of a window.

Legend: B batch; T H W C latent frames, rows, columns, channels; N draws of noise.
"""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_right
from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kandinsky.diffusion import noise as noise_rule
from kandinsky.diffusion.guidance import Guidance
from kandinsky.diffusion.roll import CachedPast, Finished, Past, as_context
from kandinsky.diffusion.sample import steps
from kandinsky.diffusion.samplers import Sampler, sampler
from kandinsky.engine import stages
from kandinsky.engine.context import Context
from kandinsky.engine.events import Phase, Step
from kandinsky.engine.request import Job, common
from kandinsky.engine.stages import GENERATE, Finish, Made, Running, Stage
from kandinsky.errors import RequestError
from kandinsky.model.card import Card, Roll
from kandinsky.model.denoiser import VIDEO, Denoiser, Known, Pass
from kandinsky.model.timeline import Play, PromptAt, Shows, check_length, prompt_of, prompts_at, timeline
from kandinsky.model.timeline import seconds as second_of
from kandinsky.model.values import Request, TextEmbeddings
from kandinsky.ops.attention_spec import AttentionSpec
from kandinsky.ops.key_values import KeyValues

if TYPE_CHECKING:
    from kandinsky.model.denoiser import State

Prompts = Shows | Sequence[PromptAt | tuple[str, float | str]] | Callable[[float], Shows | None]


@dataclass(frozen=True, slots=True)
class Told:
    """What a chunk is told; the same object for as long as that does not change.

    Attributes:
        prompts: Of each job, as given.
        text: Embeddings of them.
        negative: Embeddings for the unconditional pass of guidance; None without it.
        unused: Of each job, the words that the text encoder does not use.
        action: What is done in the chunk, of a model whose card has `roll.actions`; the embeddings know nothing of it.
    """

    prompts: tuple[str, ...]
    text: TextEmbeddings
    negative: TextEmbeddings | None = None
    unused: tuple[tuple[str, ...], ...] = ()
    action: str = ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Finished latents.

    Attributes:
        number: From 0.
        begin: Place of its first latent frame.
        latents_BTHWC: Float32.
        told: What it was told.
    """

    number: int
    begin: int
    latents_BTHWC: Tensor
    told: Told


def roll_of(card: Card) -> Roll:
    """What a card says of autoregressive generation.

    Raises:
        RequestError: The model makes clips as a whole.
    """
    if card.roll is None:
        raise RequestError(
            f"`{card.id}` makes a clip as a whole and cannot be streamed: use an autoregressive model, whose card has "
            "a table `roll`",
            hint="`kandinsky live --list` names those of the catalogue; recipes/nano-live.yaml trains one",
        )
    return card.roll


def check_stream(card: Card) -> None:
    """Refuse a card whose clips cannot be made and decoded without an end; nothing is loaded.

    Raises:
        RequestError: Its denoiser or autoencoder needs whole clips.
    """
    roll_of(card)
    if not card.part("vae").carries:
        raise RequestError(f"`{card.id}` cannot be streamed: its autoencoder `{card.vae.kind}` decodes whole clips")


def spec_of(context: Context, job: Job) -> AttentionSpec:
    """The causal attention of a job.

    Raises:
        RequestError: Another attention was chosen, or more processes than one work together.
    """
    spec = context.attention_of(job)
    if spec.type != "causal" or not spec.reach:
        raise RequestError(
            f"attention `{spec}` cannot be streamed: `{context.card.id}` needs causal attention with a reach from 1 on"
        )
    return spec


def roll(
    context: Context,
    jobs: Sequence[Job],
    tell: Callable[[int], Told | None],
    *,
    known: Known | None = None,
    chunks: int | None = None,
) -> Generator[Step | Chunk, None, None]:
    """Make chunk after chunk.

    When the prompt changes, the chunks that the next one sees go through the network again, under the new one, each
    with what led to it. A new action leads to the next chunk alone, and what is remembered stays.

    Args:
        context: The model.
        jobs: They agree in all but prompt, seed and image.
        tell: Asked before each chunk, with the place of its first latent frame; None ends the clip.
        known: What is known of the clip's first frames.
        chunks: How many; without end where absent.

    Yields:
        Sampling steps, and finished chunks.

    Raises:
        Cancelled: ``context.cancelling`` was set.
        RequestError: The model or the options do not allow it.
        NotFinite: Numbers overflowed; the message names the step.
    """
    first, settings = common(jobs), roll_of(context.card)
    spec, rules = spec_of(context, first), sampler(first.sampling.sampler)
    times = _times(rules, settings, first)
    noised = rules.noising(first.shift).noised
    done: list[tuple[Finished, Tensor | None]] = []  # what the next chunk sees, and what led to it
    last: Tensor | None = None  # the newest latent frame
    past: Past | None = None
    told: Told | None = None
    network = _Held()
    for number in count() if chunks is None else range(chunks):
        begin = number * spec.frames
        before, told = told, tell(begin)
        if told is None:
            return
        led = _led(context, told, last)
        # held chunk by chunk, so that text encoder and autoencoder can have its place in between
        with context.placement.hold("dit") as network.net:
            context.adapters.apply(network.net, dtype=context.precision.compute)
            again = past is None or before is None or told.text is not before.text
            if again:
                past = _past(context, first, network, told, known, spec, settings.context_noise)
            assert past is not None
            for chunk, where in done if again else done[-1:]:
                network.led = where
                past.keep(chunk)
            network.led = led
            draws = _draws(context, jobs, rules, number, spec.frames)
            fresh = draws[rules.unused + 1 : -1] if rules.fresh else None
            pinned = _of_chunk(known, begin, spec.frames)
            state: State = {VIDEO: rules.start(draws, times)}
            walk = steps(
                lambda x, t, past=past, begin=begin: {VIDEO: past.ask(x[VIDEO], t, begin)},  # type: ignore[misc]
                state,
                times,
                step=rules.step(times, first.shift, fresh),
                pin=(lambda x, t, pinned=pinned: pinned.pin(x)) if pinned.mask else None,  # type: ignore[misc]
            )
            counted = (number + 1 if chunks is None else chunks) * first.steps
            latents = (yield from stages.watched(context, walk, done=number * first.steps, total=counted))[VIDEO]
            seen = as_context(noised, latents, draws[-1], settings.context_noise)
            done, last = spec.kept([*done, (Finished(begin, seen), led)]), latents[:, -1]
            network.net = None
        yield Chunk(number, begin, latents, told)


@dataclass(slots=True)
class _Held:
    """The network while it is held; a placement may give another object each time.

    Attributes:
        net: The network; None between chunks.
        led: What the action of the chunk that it is asked for leads to, in a world.
    """

    net: Any = None
    led: Tensor | None = None


def _led(context: Context, told: Told, last_BHWC: Tensor | None) -> Tensor | None:
    """What the action of a chunk leads to from the frames before it; None where there are no actions."""
    if not told.action:
        return None
    with context.placement.hold("text") as encoder:
        out: Tensor = encoder.steer(last_BHWC, [told.action] * len(told.prompts))
        return out


def _times(rules: Sampler, settings: Roll, job: Job) -> Tensor:
    if len(settings.times) == job.steps:
        return torch.tensor((*settings.times, 0.0))
    return rules.times(job.steps, job.shift)


def _past(
    context: Context, job: Job, network: _Held, told: Told, known: Known | None, spec: AttentionSpec, level: float
) -> CachedPast:
    """The network under these prompts, with a memory for each pass of guidance."""
    part, device = context.part("dit"), context.placement.device("dit")
    assert part.bind is not None
    bind, layouts = part.bind(), dict[str, Any]()
    texts = [told.text] if told.negative is None else [told.text, told.negative]
    memories = [KeyValues(spec) for _ in texts]
    on_device: dict[bytes, tuple[list[TextEmbeddings], dict[str, Tensor]]] = {}  # by what led to a chunk
    guidance = Guidance(job.guidance)

    def ask(x_BTHWC: Tensor, t: Tensor, begin: int) -> Tensor:
        key = b"" if network.led is None else network.led.numpy().tobytes()
        if key not in on_device:
            led, extra = texts, dict[str, Tensor]()
            if network.led is not None:
                with context.placement.hold("text") as encoder:
                    text, place = encoder.encode_in_world(told.prompts, network.led)
                led, extra = [text, *texts[1:]], {"place": place.to(device)}
            on_device[key] = [text.to(device) for text in led], extra
        chosen, extra = on_device[key]
        # what passes share is that of a chunk, but for its places
        shared: dict[Any, Any] = {"layouts": layouts}
        own = _of_chunk(known, begin, x_BTHWC.shape[1]).over(lambda x: x.to(device))
        if extra:
            own = dataclasses.replace(own, extra={**own.extra, **extra})

        def bound(text: TextEmbeddings, memory: KeyValues) -> Denoiser:
            run = Pass(
                text,
                condition=job.sampling.condition,
                rope_scale=job.sampling.rope_scale,
                attention=spec,
                shared=shared,
                memory=memory,
            )
            return bind(network.net, own, run)

        passes = [bound(text, memory) for text, memory in zip(chosen, memories, strict=True)]
        return context.computing(guidance.guide(*passes))({VIDEO: x_BTHWC}, t)[VIDEO]

    return CachedPast(ask, memories, level)


def _of_chunk(known: Known | None, begin: int, frames: int) -> Known:
    """What is known of some frames of a clip; of those behind the ones it speaks of, nothing."""
    if known is None:
        return Known()
    spoken = max((mask.shape[1] for mask in known.mask.values()), default=0)
    if begin + frames > spoken:
        return Known(extra=known.extra) if begin >= spoken else _of_chunk(_longer(known, begin + frames), begin, frames)
    own = slice(begin, begin + frames)
    cut = Known({n: x[:, own] for n, x in known.clean.items()}, {n: x[:, own] for n, x in known.mask.items()})
    return dataclasses.replace(cut if any(bool(m.any()) for m in cut.mask.values()) else Known(), extra=known.extra)


def _longer(known: Known, frames: int) -> Known:
    def longer(x: Tensor) -> Tensor:
        return torch.cat((x, x.new_zeros(len(x), frames - x.shape[1], *x.shape[2:])), dim=1)

    clean, mask = ({name: longer(x) for name, x in part.items()} for part in (known.clean, known.mask))
    return dataclasses.replace(known, clean=clean, mask=mask)


def _draws(context: Context, jobs: Sequence[Job], rules: Sampler, number: int, frames: int) -> Tensor:
    """All noise of a chunk, [N, B, T, H, W, C]: the sampler's draws, and the last for when it is context."""
    first = common(jobs)
    shape = dataclasses.replace(first.latent, frames=frames)
    seeds = [noise_rule.chunk_seed(job.seed, number) for job in jobs]
    drawn = noise_rule.draw_series(
        shape, seeds, first.sampling.noise, count=rules.draws(first.steps) + 1, device=context.noise_device
    )
    return drawn.to(context.placement.device("dit"), context.precision.islands)


# -- whole clips -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rolling:
    """Makes clips along time, and keeps their latents on disk if asked for."""

    needs: tuple[str, ...] = ("dit",)

    def __call__(self, context: Context, made: Made) -> Running:
        yield Phase("sample")
        first = common(made.jobs)
        assert made.text is not None
        rest = next(iter(roll_of(context.card).actions), "")
        told = Told(tuple(job.prompt for job in made.jobs), made.text, made.negative, made.unused, rest)
        frames, parts = first.latent.frames, list[Tensor]()
        chunks = -(-frames // spec_of(context, first).frames)
        # once for all chunks, where nothing else runs between them
        with nullcontext() if rest else context.placement.hold("dit"):
            for event in roll(context, made.jobs, lambda begin: told, known=made.known, chunks=chunks):
                if isinstance(event, Chunk):
                    parts.append(event.latents_BTHWC)
                else:
                    yield event
        latents = torch.cat(parts, dim=1)[:, :frames]
        recipes = tuple(
            context.recipe(job) | ({"unused_words": list(words)} if words else {})
            for job, words in zip(made.jobs, made.unused or [()] * len(made.jobs), strict=True)
        )
        return stages.keep(context, dataclasses.replace(made, latents={VIDEO: latents}, recipes=recipes))


ROLL: tuple[tuple[Stage, ...], Finish] = ((*GENERATE[0][:-1], Rolling()), GENERATE[1])


# -- streams -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DecodedChunk:
    """Decoded frames of a chunk.

    Attributes:
        chunk: Which.
        begin: Number of its first frame in the stream.
        frames_THWC: uint8.
    """

    chunk: Chunk
    begin: int
    frames_THWC: np.ndarray


@dataclass(frozen=True, slots=True)
class Script:
    """What a stream shows.

    Attributes:
        prompt: Of a time in seconds, with its action where there are some; None ends the stream.
        seconds: How long; None for no end.
        first: The first prompt, where it is known.
    """

    prompt: Callable[[float], Shows | None]
    seconds: float | None = None
    first: str | None = None


def script_of(prompts: Prompts, seconds: float | None, fps: float) -> Script:
    """Read the prompts of a stream.

    Args:
        prompts: A prompt; prompts with the second from which each holds; or a function of the time in seconds, which is
            asked before each chunk and ends the stream with None.
        seconds: How long; None for no end.
        fps: Frames per second.

    Raises:
        RequestError: There is no prompt, none holds at the beginning, or a time is not possible.
    """
    check_length(seconds)
    if isinstance(prompts, str | Play):
        return Script(lambda at: prompts, seconds, prompt_of(prompts))
    if callable(prompts):
        return Script(prompts, seconds)
    later = prompts_at(prompts)
    if not later:
        raise RequestError("the list of prompts is empty: give one or more, such as `[('a panda', 0), ('a cat', 3)]`")
    first = min(later, key=lambda one: second_of(one.at, fps=fps))
    if second_of(first.at, fps=fps) > 0:
        raise RequestError(f"no prompt holds at the beginning, `{first.prompt}` begins at `{first.at}`: begin one at 0")
    line = timeline(first.prompt, later, length=seconds or math.inf, fps=fps)
    begins = [begin for begin, _ in line.changes]
    return Script(lambda at: line.changes[bisect_right(begins, at + 1e-6) - 1][1], seconds, first.prompt)


def stream(
    context: Context, job: Job, script: Script, known: Known | None = None
) -> Generator[Step | DecodedChunk, None, None]:
    """Make and decode chunk after chunk; memory does not grow.

    Args:
        context: The model.
        job: Everything but the prompt.
        script: What it shows; a prompt holds for the chunks that begin in its time.
        known: What is known of the first frames.

    Yields:
        Sampling steps, and decoded frames.

    Raises:
        Cancelled: ``context.cancelling`` was set.
        RequestError: The model cannot be streamed.
        NotFinite: Numbers overflowed.
    """
    check_stream(context.card)
    clip, spec = context.card.clip, spec_of(context, job)
    wanted = None if script.seconds is None else max(1, round(script.seconds * job.fps))  # pixel frames
    chunks = None if wanted is None else -(-(1 + -(-(wanted - 1) // clip.temporal)) // spec.frames)
    tell = partial(_tell, context, job, script.prompt, _Last())
    done, carried = 0, None
    for event in roll(context, [job], tell, known=known, chunks=chunks):
        if not isinstance(event, Chunk):
            yield event
            continue
        # text encoder, denoiser and autoencoder are held in turn, each only while it runs
        with context.placement.hold("vae") as vae, torch.no_grad():
            latents = event.latents_BTHWC.to(context.placement.device("vae")).contiguous()
            pixels, carried = vae.decode_more(latents, carried)
            stages.check_pixels(context, pixels, f"from frame {done} on")
            frames = stages.to_bytes(pixels[0], rounds=context.part("vae").rounds).cpu().numpy()
        if wanted is not None:
            frames = frames[: wanted - done]
        yield DecodedChunk(event, done, frames)
        done += len(frames)
        stages.check_cancelled(context, f"after {done} frames")


@dataclass(slots=True)
class _Last:
    """What the chunk before was told."""

    told: Told | None = None


def _tell(context: Context, job: Job, prompts: Callable[[float], Shows | None], last: _Last, begin: int) -> Told | None:
    """What the chunk from a latent frame on is told."""
    frames = 0 if begin == 0 else 1 + (begin - 1) * context.card.clip.temporal
    shows = prompts(frames / job.fps)
    if shows is None:
        return None
    prompt, action = prompt_of(shows), _action(context.card, shows)
    if last.told is None or last.told.prompts[0] != prompt:
        if not isinstance(prompt, str) or not prompt.strip():
            raise RequestError(
                f"`{prompt!r}` is no prompt of a stream: say what it should show, or give None to end it"
            )
        Request(context.card.id, prompt)  # which checks its characters
        own = stages.expand(context, [dataclasses.replace(job, prompt=prompt, expanded_prompt=None)])
        text, negative = stages.encode(context, own)
        last.told = Told((prompt,), text, negative, stages.unused_words(context, own), action)
    elif last.told.action != action:
        last.told = dataclasses.replace(last.told, action=action)
    return last.told


def _action(card: Card, shows: Shows) -> str:
    """The action of a chunk; empty of a model that has none.

    Raises:
        RequestError: The model has no such action.
    """
    actions = roll_of(card).actions
    if not isinstance(shows, Play):
        return next(iter(actions), "")
    if shows.action not in actions:
        known = f"use {', '.join(actions)}" if actions else "its card has no `roll.actions`"
        raise RequestError(f"`{card.id}` knows no action `{shows.action}`: {known}")
    return shows.action
