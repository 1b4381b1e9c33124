"""Audio for an input video: frames and text → embeddings → spectrogram, by the shared sampling loop → waveform.

Each step is public and fully typed. A video longer than the model's window is processed in overlapping windows, each
with noise of its own, and their audio is cross-faded.

Legend: N windows of a video, B of them in one pass; M bands and T columns of a spectrogram; H W C rows, columns and
channels of its latent; S samples; E width of the encoder's embeddings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kandinsky.diffusion import noise as noise_rule
from kandinsky.diffusion.guidance import Guidance
from kandinsky.diffusion.sample import steps as sampling
from kandinsky.diffusion.samplers import sampler
from kandinsky.engine.context import Context
from kandinsky.engine.events import Phase, Step
from kandinsky.engine.request import Job
from kandinsky.engine.stages import Finish, Made, Running, Stage, check_cancelled, check_pixels, watched
from kandinsky.errors import RequestError
from kandinsky.families.kandinsky4_v2a.clip_embeddings import ClipEmbeddings, read_embeddings
from kandinsky.families.kandinsky4_v2a.request import choice_of, input_video_of, shown_frames, times_of
from kandinsky.media import audio as sounds
from kandinsky.media import recipe as recipes
from kandinsky.media import spectrogram
from kandinsky.media.mux import InputVideo, frames_of_windows
from kandinsky.media.spectrogram import SpectrogramParams
from kandinsky.model.card import Card, sound_of
from kandinsky.model.denoiser import AUDIO, Denoiser, Known, Pass
from kandinsky.model.values import Audio, Soundtrack, TextEmbeddings
from kandinsky.runtime.randomness import stage_seed

if TYPE_CHECKING:
    from kandinsky.model.denoiser import State

BLACK_SIZE = (64, 64)  # side of the black video for the unconditional pass; encoders accept any size


@dataclasses.dataclass(frozen=True)
class SoundMade(Made):
    """The state of a batch of video-to-audio jobs so far.

    Attributes:
        clips: Embeddings of each job's video and text.
        windows: Latents of its windows, [N, 1, H, W, C] each.
    """

    clips: tuple[ClipEmbeddings, ...] = ()
    windows: tuple[Tensor, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class EncodeVideo:
    """Encodes every video, in windows, and the prompts."""

    needs: tuple[str, ...] = ("text",)

    def __call__(self, context: Context, made: Made) -> Running:
        yield Phase("encode")
        return SoundMade(made.jobs, at_once=made.at_once, clips=tuple(encode(context, made.jobs)))


@dataclasses.dataclass(frozen=True, slots=True)
class SampleSound:
    """Generates the latents of every window."""

    needs: tuple[str, ...] = ("dit",)

    def __call__(self, context: Context, made: Made) -> Running:
        assert isinstance(made, SoundMade)
        yield Phase("sample")
        windows = yield from sample(context, made.jobs, made.clips, at_once=made.at_once)
        recipes = tuple(recipe(context, job) for job in made.jobs)
        return dataclasses.replace(made, windows=tuple(windows), recipes=recipes)


@dataclasses.dataclass(frozen=True, slots=True)
class Listen:
    """Turns latents into spectrograms and these into waveforms."""

    needs: tuple[str, ...] = ("vae",)

    def results(self, context: Context, made: Made) -> list[Soundtrack]:
        assert isinstance(made, SoundMade)
        return [
            Soundtrack(listen(decode(context, latents), job), job.seed, recipe, input_video_of(job))
            for job, latents, recipe in zip(made.jobs, made.windows, made.recipes, strict=True)
        ]


SOUND: tuple[tuple[Stage, ...], Finish] = ((EncodeVideo(), SampleSound()), Listen())


def encode(context: Context, jobs: Sequence[Job]) -> list[ClipEmbeddings]:
    """Embeddings of every video and its prompts, from a file if a request names one.

    Raises:
        RequestError: A file does not fit its request.
    """
    given = [_given(job) for job in jobs]
    if None not in given:
        return [states for states in given if states is not None]
    device = context.placement.device("text")
    with context.placement.hold("text") as encoder, torch.no_grad():

        @cache
        def words(text: str) -> Tensor:
            out: Tensor = encoder.encode_prompts([text])
            return out

        @cache
        def darkness(moments: tuple[float, ...]) -> Tensor:
            black = torch.zeros(len(moments), *BLACK_SIZE, 3, dtype=torch.uint8, device=device)
            out: Tensor = encoder.encode_frames(black, torch.tensor(moments, device=device))
            return out

        def states_of(one: Job) -> ClipEmbeddings:
            windows, moments = [], ()
            for frames_THWC, times_s in windows_of(one):
                windows.append(encoder.encode_frames(frames_THWC.to(device), times_s.to(device)))
                moments = moments or tuple(times_s.tolist())
            states = ClipEmbeddings(torch.cat(windows), words(one.prompt))
            if not Guidance(one.guidance).is_on:
                return states
            return dataclasses.replace(states, black_1TE=darkness(moments), negative_1LE=words(one.negative_prompt))

        return [known or states_of(one) for one, known in zip(jobs, given, strict=True)]


def windows_of(job: Job) -> Iterator[tuple[Tensor, Tensor]]:
    """What the encoder sees of each window: frames [T, H, W, 3] uint8, and when they are shown, [T] seconds."""
    rules, video, windows = sound_of(job.card), input_video_of(job), choice_of(job).windows
    times = times_of(video)
    chosen = [shown_frames(times, start, windows.length_s, rules) for start in windows.starts_s]
    numbers = [some for some, _ in chosen]
    if isinstance(video, InputVideo):
        frames = frames_of_windows(video, numbers)
    else:
        frames = (video.frames_THWC[some] for some in numbers)
    for shown, (_, moments) in zip(frames, chosen, strict=True):
        yield torch.from_numpy(np.ascontiguousarray(shown)), torch.tensor(moments)


def sample(
    context: Context, jobs: Sequence[Job], clips: Sequence[ClipEmbeddings], *, at_once: int = 1
) -> Generator[Step, None, list[Tensor]]:
    """Latents of every video's spectrograms, [N, 1, H, W, C] float32 each, from the embeddings of ``encode``.

    Args:
        context: The model.
        jobs: The jobs.
        clips: Embeddings of each job.
        at_once: Windows in one pass of the U-Net; results then differ by the rounding of differently ordered sums.

    Yields:
        Sampling steps.

    Returns:
        The latents of each job.

    Raises:
        RequestError: The embeddings have another width than the U-Net's.
    """
    passes = _passes(list(zip(jobs, clips, strict=True)), at_once)
    rules, shift = sampler(context.card.sampling.sampler), context.card.sampling.shift
    total, done = sum(len(rules.times(some[0].one.steps, shift)) - 1 for some in passes), 0
    made: list[list[Tensor]] = [[] for _ in jobs]
    with context.placement.hold("dit"):  # once for all windows
        for some in passes:
            one = some[0].one
            seeds = [stage_seed(window.one.seed, window.number) for window in some]
            draws = noise_rule.draw_series(one.latent, seeds, context.card.sampling.noise, count=rules.draws(one.steps))
            latents = yield from denoise(
                context, draws, _together(some), steps=one.steps, guidance=one.guidance, done=done, total=total
            )
            done += len(rules.times(one.steps, shift)) - 1
            for window, latent in zip(some, latents, strict=True):
                made[window.clip].append(latent)
    return [torch.stack(windows) for windows in made]


def denoise(
    context: Context,
    draws_NBTHWC: Tensor,
    clips: ClipEmbeddings,
    *,
    steps: int,
    guidance: float,
    done: int = 0,
    total: int | None = None,
) -> Generator[Step, None, Tensor]:
    """Latents [B, 1, H, W, C] float32 of B windows.

    Args:
        context: The model.
        draws_NBTHWC: Noise; its first entry is the initial state, unless the sampler needs more of it.
        clips: Embeddings of B windows, or of one text for all.
        steps: Sampling steps.
        guidance: Classifier-free guidance scale.
        done: Steps of earlier loops, see ``engine.stages.watched``.
        total: Steps of all loops, see ``engine.stages.watched``.

    Yields:
        Sampling steps.

    Returns:
        The latents.
    """
    device = context.placement.device("dit")
    rules, shift = sampler(context.card.sampling.sampler), context.card.sampling.shift
    times = rules.times(steps, shift)
    step = rules.step(times, shift, draws_NBTHWC[rules.unused + 1 :] if rules.fresh else None)
    weight, bind = Guidance(guidance), context.part("dit").bind
    assert bind is not None
    with context.placement.hold("dit") as net:
        context.adapters.apply(net, dtype=context.precision.compute)
        width = net.params.encoder_dim
        if (given := clips.frames_NTE.shape[-1]) != width:
            raise RequestError(f"the encoder's states are {given} wide, and `{context.card.id}` takes {width}")

        def bound(text_BLE: Tensor, frames_BTE: Tensor) -> Denoiser:
            text = text_BLE.to(device)
            run = Pass(TextEmbeddings(text, text.mean(1)))
            return bind()(net, Known(extra={"frames": frames_BTE.to(device)}), run)

        negative = None
        if weight.is_on:
            if clips.negative_1LE is None or clips.black_1TE is None:
                raise RequestError(f"guidance {guidance:g} needs states of a negative prompt and of a black video")
            negative = bound(clips.negative_1LE, clips.black_1TE)
        guided = context.team.guide(weight, bound(clips.text_1LE, clips.frames_NTE), negative)
        begin: State = {AUDIO: rules.start(draws_NBTHWC, times).to(device, context.precision.islands)}
        walk = sampling(context.computing(guided), begin, times, step=step)
        latents = yield from watched(context, walk, done=done, total=total)
    return latents[AUDIO]


def decode(context: Context, latents_N1HWC: Tensor) -> Tensor:
    """Spectrograms [N, M, T, 3], uint8 on the host; rounded, as in the official code."""
    return (shares(pixels(context, latents_N1HWC)) * 255).round().to(torch.uint8)


def pixels(context: Context, latents_N1HWC: Tensor) -> Tensor:
    """The autoencoder's output, about [-1, 1], window by window."""
    device = context.placement.device("vae")
    with context.placement.hold("vae") as vae, torch.no_grad():
        made = []
        for number, one in enumerate(latents_N1HWC):
            check_cancelled(context, f"while decoding, after {number} windows")
            pixels = vae.decode(one[None].to(device))[0, 0].float()
            check_pixels(context, pixels, f"in window {number + 1}")
            made.append(pixels.cpu())
        return torch.stack(made)


def spectrogram_params(card: Card) -> SpectrogramParams:
    """The spectrogram parameters of a card."""
    return SpectrogramParams.from_dict(sound_of(card).spectrogram)


def listen(images_NMTC: Tensor, job: Job) -> Audio:
    """The audio of spectrograms, of the requested length."""
    rules, params, windows = sound_of(job.card), spectrogram_params(job.card), choice_of(job).windows
    rate = params.sample_rate
    length = round(windows.length_s * rate)
    pieces = []
    for number, image in enumerate(images_NMTC):
        mel = spectrogram.mel_of_image(image, params, max_value=rules.max_value)
        generator = torch.Generator().manual_seed(stage_seed(job.seed, number))
        magnitudes = spectrogram.magnitudes_of_mel(mel, params)
        waveform = spectrogram.griffin_lim(magnitudes, params, generator=generator)
        pieces.append(waveform.T.numpy()[:length])
    whole = faded(pieces, [round(start * rate) for start in windows.starts_s], round(rules.overlap_s * rate))
    samples = sounds.leveled(whole, rules.dbfs)
    return Audio(sounds.fit_length(samples, round(job.seconds * rate)), rate)


def recipe(context: Context, job: Job) -> dict[str, object]:
    """The recipe stored in the file; with the recipe of the input video, if it has one."""
    made, video = context.recipe(job), input_video_of(job)
    try:
        made_by = recipes.read(video.path) if isinstance(video, InputVideo) else video.recipe
    except RequestError:  # another program's video
        made_by = {}
    if made_by:
        made["video"] = {**made["video"], "recipe": made_by}
    return made


@dataclasses.dataclass(frozen=True, slots=True)
class _Window:
    """One window to sample; ``clip`` is the index of its video in the batch."""

    clip: int
    number: int
    one: Job
    states: ClipEmbeddings


def _passes(clips: Sequence[tuple[Job, ClipEmbeddings]], at_once: int) -> list[list[_Window]]:
    """Neighbouring windows that one pass can process together, at most ``at_once``."""
    passes: list[list[_Window]] = []
    last: object = None
    for place, (one, states) in enumerate(clips):
        key = (one.latent, one.steps, one.guidance, states.frames_NTE.shape[1:], states.text_1LE.shape)
        for number in range(len(choice_of(one).windows.starts_s)):
            if key != last or len(passes[-1]) >= at_once:
                passes.append([])
            last = key
            passes[-1].append(_Window(place, number, one, states))
    return passes


def _together(windows: Sequence[_Window]) -> ClipEmbeddings:
    """Embeddings of windows as one batch."""

    def joined(tensors: Iterable[Tensor | None]) -> Tensor | None:
        found = [tensor for tensor in tensors if tensor is not None]
        return torch.cat(found) if found else None

    return ClipEmbeddings(
        torch.cat([window.states.frames_NTE[window.number, None] for window in windows]),
        torch.cat([window.states.text_1LE for window in windows]),
        joined(window.states.black_1TE for window in windows),
        joined(window.states.negative_1LE for window in windows),
    )


def shares(pixels: Tensor) -> Tensor:
    """Pixels in [-1, 1] (others are clamped) as shares of white."""
    return (pixels / 2 + 0.5).clamp(0, 1)


def faded(pieces: list[np.ndarray], starts: list[int], overlap: int) -> np.ndarray:
    """Join pieces of audio [S, C]; of an overlap only the middle ``overlap`` samples are cross-faded."""
    cut = list(pieces)
    begins = list(starts)
    for i, (a, b) in enumerate(pairwise(range(len(pieces)))):
        common = begins[a] + len(cut[a]) - starts[b]
        before = max(0, (common - overlap) // 2)
        after = max(0, common - overlap - before)
        cut[a] = cut[a][: len(cut[a]) - after]
        cut[b], begins[i + 1] = cut[b][before:], starts[b] + before
    return sounds.join(cut, begins)


def _given(job: Job) -> ClipEmbeddings | None:
    """Embeddings from the file that a job names.

    Raises:
        RequestError: The file does not fit the request.
    """
    choice = choice_of(job)
    if choice.states is None:
        return None
    states = read_embeddings(choice.states)
    windows, given = len(choice.windows.starts_s), len(states.frames_NTE)
    if windows != given:
        raise RequestError(
            f"states `{choice.states}` are of {given} windows, and {job.seconds:g} s of video have {windows}"
        )
    if Guidance(job.guidance).is_on and (states.black_1TE is None or states.negative_1LE is None):
        raise RequestError(
            f"states `{choice.states}` lack `negative_image_embeds` or `negative_prompt_embeds`, which guidance "
            f"{job.guidance:g} needs: add them, or use guidance 1"
        )
    return states
