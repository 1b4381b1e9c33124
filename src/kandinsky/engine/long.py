"""Clips made in windows: each is sampled, kept on disk and decoded before the next, while its frames are consumed.

A window knows the end of the one before: its latents as they were sampled, but for the first, which is the last pixel
frame of its group encoded as a still, as a clip begins. Each window is decoded by itself, with what it knows in front
of what it makes. Noise is drawn frame by frame from the seed and the frame's place in the whole clip, so windows that
share a frame share its noise, and a clip that goes on from kept windows equals one that was never interrupted.

Legend: B batch; T H W C frames, rows, columns, channels (of latents or pixels, as stated).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from kandinsky.diffusion.noise import chunk_seed
from kandinsky.engine import stages
from kandinsky.engine.context import Context
from kandinsky.engine.events import Event, Phase, Step
from kandinsky.engine.latent_names import window_name
from kandinsky.engine.latents import read_latent, write_latent
from kandinsky.engine.request import Job
from kandinsky.engine.stages import Finish, Made, PromptEmbeddings, Running, Stage
from kandinsky.engine.windows import Window, job_of
from kandinsky.errors import KandinskyError
from kandinsky.media import recipe as recipes
from kandinsky.model.condition import Condition
from kandinsky.model.denoiser import VIDEO, Known
from kandinsky.model.values import TextEmbeddings, VideoStream

if TYPE_CHECKING:
    from kandinsky.diffusion.tiles import Tiles
    from kandinsky.engine.windows import Long


@dataclass(frozen=True, slots=True)
class Before:
    """What a window leaves for the next one.

    Attributes:
        latents_1THWC: Its latents.
        start: Place of the first of them in the whole clip.
        frames_THWC: Pixel frames from the last one of the group on that the next window begins with; none if that
            begins where this one does.
    """

    latents_1THWC: Tensor
    start: int
    frames_THWC: np.ndarray | None


class Second(Protocol):
    """What a second stage makes larger: where its windows begin, and in which tiles they are seen."""

    @property
    def tiles(self) -> Tiles: ...

    @property
    def strength(self) -> float: ...

    def job_of(self, own: Job, /) -> Job: ...

    def begin(self, window: Window, /) -> Tensor: ...

    def encoded(self, frames_THWC: np.ndarray, /) -> Tensor: ...

    def given(self) -> list[tuple[Condition, Tensor]]: ...


@dataclass(frozen=True, slots=True)
class Read:
    """Computes the embeddings of all prompts of each clip, and its recipe."""

    needs: tuple[str, ...] = ("text",)

    def __call__(self, context: Context, made: Made) -> Running:
        yield Phase("encode")
        scripts = tuple(script_of(context, job) for job in made.jobs)
        made_by = tuple(
            context.recipe(job, _cache_of(job)) | ({"unused_words": list(script.unused)} if script.unused else {})
            for job, script in zip(made.jobs, scripts, strict=True)
        )
        return dataclasses.replace(made, scripts=scripts, recipes=made_by)


@dataclass(frozen=True, slots=True)
class Windows:
    """Makes window after window as the frames of a clip are consumed, so that memory does not grow with its length."""

    needs: tuple[str, ...] = ("dit", "vae")

    def results(self, context: Context, made: Made) -> list[VideoStream]:
        keep = made.keep or [None] * len(made.jobs)
        return [
            VideoStream(
                stages.first(frames(context, job, script, folder, recipe, made.tell), job.frames),
                job.frames,
                fps=float(job.fps),
                seed=job.seed,
                recipe=dict(recipe),
            )
            for job, script, folder, recipe in zip(made.jobs, made.scripts, keep, made.recipes, strict=True)
        ]


def script_of(context: Context, job: Job) -> PromptEmbeddings:
    """The embeddings of the prompts of a clip that is made in windows."""
    prompts = _long(job).script.prompts
    each = [dataclasses.replace(job, prompt=prompt, long=None) for prompt in prompts]
    text, negative = stages.encode(context, each)
    unused = dict.fromkeys(word for words in stages.unused_words(context, each) for word in words)
    return PromptEmbeddings(prompts, text, negative, tuple(unused))


def frames(
    context: Context,
    job: Job,
    script: PromptEmbeddings,
    keep: Path | None,
    recipe: Mapping[str, Any],
    tell: Callable[[Event], None],
    *,
    second: Second | None = None,
) -> Iterator[np.ndarray]:
    """The frames of a clip, window by window.

    Args:
        context: The model.
        job: The clip.
        script: Embeddings of its prompts.
        keep: Folder for finished windows; those of the same clip that it holds are not made again.
        recipe: Recipe of the clip.
        tell: Called with each step and phase; it may raise.
        second: What windows begin from, where a finished clip is made larger.

    Yields:
        Decoded frames [t, H, W, 3], uint8.

    Raises:
        Cancelled: ``context.cancelling`` was set.
        NotFinite: Numbers overflowed.
        RequestError: A window cannot be written.
    """
    plan, temporal = _long(job).windows, context.card.clip.temporal
    given = stages.encoded_conditions(context, [job]) if second is None else second.given()
    beginning: list[np.ndarray] = []  # pixel frames that the end of a loop leads to
    wanted = plan[-1].tail * temporal
    before: Before | None = None
    for window in plan:
        own = job_of(job, window) if second is None else second.job_of(job_of(job, window))
        path = None if keep is None else keep / window_name(window.number, is_large=second is not None)
        told = {**recipe, "window": [window.start, window.known, window.stop]}
        latents = None if path is None else _kept(path, told)
        if latents is None:
            known = known_of(context, own, window, given, before, beginning, second)
            latents = wholly_known(known)
            if latents is None:
                tell(Phase("sample"))
                began = None if second is not None else began_with(window, given, _long(job), own)
                latents = _sampled(context, own, window, script, known, _long(job), tell, second, began)
            if path is not None:
                write_latent(path, latents[0], told)
        following = plan[window.number + 1] if window.number + 1 < len(plan) else None
        needed = None if following is None else temporal * (following.start - window.start)
        first = 0 if window.known == 0 else (window.known - window.start - 1) * temporal + 1
        last = (window.stop - window.tail - window.start - 1) * temporal + 1
        done, left = 0, list[np.ndarray]()
        tell(Phase("decode"))
        for piece in stages.decode_pieces(context, latents[0]):
            if needed:
                left.append(piece[max(0, needed - done) :].copy())
            new = piece[max(0, first - done) : max(0, last - done)]
            done += len(piece)
            if len(new):
                have = sum(map(len, beginning))
                if have < wanted:
                    beginning.append(new[: wanted - have].copy())
                yield new
            del piece, new  # not while the next is made
        before = Before(latents, window.start, np.concatenate(left) if left else None)


def known_of(
    context: Context,
    job: Job,
    window: Window,
    given: Sequence[tuple[Condition, Tensor]],
    before: Before | None,
    beginning: Sequence[np.ndarray],
    second: Second | None = None,
) -> Known:
    """What a window knows: the end of the one before, conditions of the clip that lie in it, and a loop's beginning.

    Args:
        context: The model.
        job: The window as a job.
        window: Its place.
        given: The conditions of the whole clip, encoded.
        before: The window before; None for the first.
        beginning: Pixel frames that a loop begins with.
        second: As for ``frames``.

    Returns:
        The known latents.
    """
    encode = partial(encoded, context) if second is None else second.encoded
    known, way = Known(), context.card.does.knows.get("frames", "replacement")
    if second is not None:
        known = Known(begin={VIDEO: second.begin(window)})
    if before is not None:
        end = carried(context, window, before) if second is None else carried(context, window, before, encode)
        known = stages.with_known(known, end, 0, way, job)
    for condition, latents in given:
        assert condition.at is not None
        first, stop = max(condition.at.start, window.known), min(condition.at.stop, window.stop - window.tail)
        if first < stop:
            part = latents[:, first - condition.at.start : stop - condition.at.start]
            known = stages.with_known(known, part, first - window.start, condition.way, job)
    if window.tail:
        pixels = np.concatenate(beginning)
        tail = encode(np.concatenate([pixels[:1], pixels]))[:, 1:]
        known = stages.with_known(known, tail, window.frames - window.tail, way, job)
    return known


def began_with(window: Window, given: Sequence[tuple[Condition, Tensor]], long: Long, job: Job) -> Tensor | None:
    """The first frame that the whole clip was given, for windows after it under its first prompt: [1, 1, H, W, C]."""
    if not window.start or long.since(window, job.fps, job.card.clip.temporal) != window.start:
        return None
    firsts = (latents[:, :1] for condition, latents in given if condition.at is not None and condition.at.start == 0)
    return next(firsts, None)


def wholly_known(known: Known) -> Tensor | None:
    """The latents of a window of which everything is known; None where something is to be generated."""
    masks = [mask for part in (known.mask, known.follow) if (mask := part.get(VIDEO)) is not None]
    if not masks or not torch.stack([mask.expand(masks[0].shape) for mask in masks]).any(dim=0).all():
        return None
    return known.clean[VIDEO]


def carried(
    context: Context, window: Window, before: Before, encode: Callable[[np.ndarray], Tensor] | None = None
) -> Tensor:
    """What a window knows of the one before, [1, T, H, W, C].

    The latents as they were sampled, which loses nothing from window to window; but the first, since a clip's first
    latent frame is a still to the autoencoder and the network.
    """
    latents = before.latents_1THWC[:, window.start - before.start : window.known - before.start]
    if before.frames_THWC is None:
        return latents
    encode = encode or partial(encoded, context)
    return torch.cat([encode(before.frames_THWC[:1]).to(latents), latents[:, 1:]], dim=1)


def _sampled(
    context: Context,
    job: Job,
    window: Window,
    script: PromptEmbeddings,
    known: Known,
    long: Long,
    tell: Callable[[Event], None],
    second: Second | None = None,
    began: Tensor | None = None,
) -> Tensor:
    """The latents of a window, [1, T, H, W, C]."""
    shares = long.prompts_of(window, job.fps, context.card.clip.temporal)
    weights = [shares.get(prompt, 0.0) for prompt in script.prompts]
    total = len(long.windows) * job.steps
    walk = stages.denoise(
        context,
        {VIDEO: stages.noise(context, [job])},
        mixed(script.text, weights),
        None if script.negative is None else mixed(script.negative, weights),
        job,
        known=known,
        fresh=stages.fresh_noise(context, [job]),
        seeds=[chunk_seed(job.seed, window.number)],
        tiles=None if second is None else second.tiles,
        strength=None if second is None else second.strength,
        since=long.since(window, job.fps, context.card.clip.temporal),
        began=began,
    )
    with closing(walk):
        while True:
            try:
                event: Step = next(walk)
            except StopIteration as end:
                latents: Tensor = end.value[VIDEO]
                return latents
            tell(dataclasses.replace(event, step=window.number * job.steps + event.step, total=total))


def mixed(text: TextEmbeddings, weights: Sequence[float]) -> TextEmbeddings:
    """Embeddings between several prompts: their weighted mean, token by token.

    Args:
        text: Embeddings of prompts, a row each.
        weights: Of each row, together 1.

    Returns:
        One row; a token counts where it does in any prompt that has a weight.
    """
    used = [i for i, weight in enumerate(weights) if weight > 0]
    if len(used) == 1:
        row = slice(used[0], used[0] + 1)
        mask = None if text.mask_BL is None else text.mask_BL[row]
        return TextEmbeddings(text.tokens_BLC[row], text.pooled_BC[row], mask)

    def mean(x: Tensor) -> Tensor:
        return torch.stack([x[i].float() * weights[i] for i in used]).sum(dim=0, keepdim=True).to(x.dtype)

    mask = None if text.mask_BL is None else text.mask_BL[used].any(dim=0, keepdim=True)
    return TextEmbeddings(mean(text.tokens_BLC), mean(text.pooled_BC), mask)


def encoded(context: Context, frames_THWC: np.ndarray) -> Tensor:
    """Latents of pixel frames that are a clip of their own, [1, T, H, W, C] float32."""
    pixels = torch.from_numpy(frames_THWC)[None].float() / 127.5 - 1.0
    with context.placement.hold("vae") as vae, torch.no_grad():
        latents: Tensor = vae.encode(pixels.to(context.placement.device("vae")))
    return latents.to(context.precision.islands)


def _kept(path: Path, recipe: Mapping[str, Any]) -> Tensor | None:
    """The latents of a window that an earlier run of the same clip left, [1, T, H, W, C]."""
    if not path.is_file():
        return None
    try:
        found = read_latent(path)
    except KandinskyError:
        return None
    same = recipes.to_text(found.recipe) == recipes.to_text(recipes.from_text(recipes.to_text(recipe)) or {})
    return found.latents_THWC[None] if same else None


def _long(job: Job) -> Long:
    assert job.long is not None
    return job.long


def _cache_of(job: Job) -> dict[str, Any] | None:
    cache = stages.start_cache(job)
    return None if cache is None else {name: cache.report(0)[name] for name in ("kind", "option")}


LONG: tuple[tuple[Stage, ...], Finish] = ((Read(),), Windows())
