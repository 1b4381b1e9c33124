"""The second stage: a finished clip is made larger by the same model, window by window and tile by tile.

The clip's frames are fitted to the larger size and encoded tile by tile; noise is added up to a time of the sampler,
and the remaining steps are taken with all tiles looking into one state (``diffusion/tiles.py``). The noise of a place
depends on the seed and its frame alone, and a window knows the end of the one before, so that neither tiles nor
windows show. Frames are consumed and given as they come: memory does not grow with the length of a clip.

Legend: B batch; T H W C frames, rows, columns, channels (of latents or pixels, as stated).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kandinsky.diffusion.following import first_step_from
from kandinsky.diffusion.noise import chunk_seed
from kandinsky.diffusion.samplers import sampler
from kandinsky.diffusion.tiles import Tiles
from kandinsky.engine import long
from kandinsky.engine.context import Context
from kandinsky.engine.events import Event, Step
from kandinsky.engine.request import Job
from kandinsky.engine.stages import Finish, Made, PromptEmbeddings
from kandinsky.engine.upscale import Upscale, overlap_of
from kandinsky.engine.windows import Window
from kandinsky.media.image import FittedImage, open_image
from kandinsky.model.condition import Condition
from kandinsky.model.values import LatentShape, TextEmbeddings, VideoShape, VideoStream

if TYPE_CHECKING:
    from kandinsky.media.input_clip import InputClip

SEED = -1  # number of the seed of the second stage, as chunks have theirs


@dataclass(frozen=True, slots=True)
class Enlarge:
    """Makes what another stage finishes larger.

    Attributes:
        first: Gives the results of the first stage; it is not asked where an input video is made larger.
    """

    first: Finish
    needs: tuple[str, ...] = ("dit", "vae")

    def results(self, context: Context, made: Made) -> list[VideoStream]:
        scripts = made.scripts or tuple(_script(made, row) for row in range(len(made.jobs)))
        keep = made.keep or [None] * len(made.jobs)
        counts = [_Counted(made.tell, job, _taken(context, job)) for job in made.jobs]
        if made.jobs[0].upscale is not None and made.jobs[0].upscale.source is not None:
            small = [_frames_of(context, job) for job in made.jobs]
        else:
            turn = _Turn(counts[0])
            told = dataclasses.replace(made, tell=lambda event: turn.of.first(event))
            results = [one for one in self.first.results(context, told) if isinstance(one, VideoStream)]
            small = [_in_turn(turn, count, one.pieces) for count, one in zip(counts, results, strict=True)]
        return [
            VideoStream(
                enlarged(context, job, script, pieces, folder if job.long else None, recipe, count.second),
                job.shape.frames,
                fps=float(job.fps),
                seed=job.seed,
                recipe=dict(recipe),
            )
            for job, script, pieces, folder, recipe, count in zip(
                made.jobs, scripts, small, keep, made.recipes, counts, strict=True
            )
        ]


def enlarged(
    context: Context,
    job: Job,
    script: PromptEmbeddings,
    small: Iterator[np.ndarray],
    keep: Path | None,
    recipe: Mapping[str, Any],
    tell: Callable[[Event], None],
) -> Iterator[np.ndarray]:
    """The frames of a clip at its larger size, as those of the smaller one are consumed.

    Args:
        context: The model.
        job: The clip, with its ``upscale``.
        script: Embeddings of its prompts.
        small: Frames [t, H, W, 3] uint8 of the first stage, piece by piece.
        keep: Folder for finished windows; those of the same clip that it holds are not made again.
        recipe: Recipe of the clip.
        tell: Called with each step and phase.

    Yields:
        Frames [t, H, W, 3], uint8.

    Raises:
        Cancelled: ``context.cancelling`` was set.
        NotFinite: Numbers overflowed.
    """
    assert job.upscale is not None
    source = SmallClip(context, job, _Pieces(small))
    whole = dataclasses.replace(
        job, long=job.upscale.long, conditions=(), cache=None, resample=0, seed=chunk_seed(job.seed, SEED)
    )
    return long.frames(context, whole, script, keep, recipe, tell, second=source)


@dataclass(frozen=True, slots=True)
class SmallClip:
    """What the windows of the second stage begin from; see ``long.Second``."""

    context: Context
    job: Job
    small: _Pieces

    @property
    def tiles(self) -> Tiles:
        latent, large = self.job.latent, self._latent(1)
        tile = (latent.height, latent.width)
        return Tiles.over(large.height, large.width, tile=tile, overlap=(overlap_of(tile[0]), overlap_of(tile[1])))

    @property
    def strength(self) -> float:
        return _upscale(self.job).strength

    def job_of(self, own: Job) -> Job:
        """A window at the larger size."""
        large = _upscale(self.job)
        shape = VideoShape(own.shape.frames, large.height, large.width)
        return dataclasses.replace(own, shape=shape, latent=self._latent(own.latent.frames))

    def begin(self, window: Window) -> Tensor:
        """The latents that a window is begun from, [1, T, H, W, C]."""
        step = self.context.card.clip.temporal
        return self.encoded(self._fitted(self.small.take(window.start * step, (window.frames - 1) * step + 1)))

    def encoded(self, frames_THWC: np.ndarray) -> Tensor:
        """Latents of frames of the larger size, encoded tile by tile."""
        tiles, scale = self.tiles, self.context.card.clip.spatial
        pixels = torch.from_numpy(frames_THWC)[None]
        return tiles.blended(
            [long.encoded(self.context, tiles.cut(pixels, place, scale)[0].numpy()) for place in tiles.places]
        )

    def given(self) -> list[tuple[Condition, Tensor]]:
        """The image that the clip begins with, encoded at full size, where the model was trained to be given one."""
        found = []
        for one in self.job.conditions:
            if one.kind == "frames" and one.way == "native" and isinstance(one.data, FittedImage):
                large = _upscale(self.job)
                image = FittedImage(one.data.source, large.width, large.height, "cover")
                found.append((one, self.encoded(np.array(image.pixels())[None])))
        return found

    def _latent(self, frames: int) -> LatentShape:
        large, clip = _upscale(self.job), self.context.card.clip
        return LatentShape(frames, large.height // clip.spatial, large.width // clip.spatial, clip.channels)

    def _fitted(self, frames_THWC: np.ndarray) -> np.ndarray:
        """Frames at the larger size: scaled to cover it, and cropped around the centre."""
        large = _upscale(self.job)
        return np.stack(
            [
                np.asarray(FittedImage(open_image(one), large.width, large.height, "cover").pixels())
                for one in frames_THWC
            ]
        )


class _Pieces:
    """Frames that come piece by piece, of which some are held: a window's, and those from which the next begins."""

    def __init__(self, pieces: Iterator[np.ndarray]) -> None:
        self.pieces, self.begin = pieces, 0
        self.frames: list[np.ndarray] = []

    def take(self, begin: int, count: int) -> np.ndarray:
        """So many frames from one on, at least the last one taken before; behind the end, the last is repeated."""
        while self.begin + len(self.frames) < begin + count and (piece := next(self.pieces, None)) is not None:
            self.frames += list(piece)
            self._forget(begin)
        self._forget(begin)
        found = self.frames[:count]
        return np.stack(found + found[-1:] * (count - len(found)))

    def _forget(self, begin: int) -> None:
        gone = min(begin - self.begin, len(self.frames))
        del self.frames[:gone]
        self.begin += gone


@dataclass
class _Counted:
    """Counts the steps of both stages of a clip, which are taken in turns.

    Attributes:
        tell: Called with what was counted.
        job: The clip.
        taken: Steps of the sampler that a window of the second stage takes.
        done: Steps of both stages so far.
    """

    tell: Callable[[Event], None]
    job: Job
    taken: int
    done: list[int] = field(default_factory=lambda: [0, 0])

    def __post_init__(self) -> None:
        if self.job.long is None:
            self.done[0] = self._before  # its only window was sampled with the batch

    @property
    def _before(self) -> int:
        """Steps of the first stage."""
        if _upscale(self.job).source is not None:
            return 0
        return self.job.steps * (1 if self.job.long is None else len(self.job.long.windows))

    def first(self, event: Event) -> None:
        if isinstance(event, Step):
            self.done[0] = event.step
            self._told(event)
        else:
            self.tell(event)

    def second(self, event: Event) -> None:
        if isinstance(event, Step):  # of a sampler's steps, a window takes the last
            window, step = divmod(event.step - 1, self.job.steps)
            self.done[1] = window * self.taken + step + 1 - (self.job.steps - self.taken)
            self._told(event)
        else:
            self.tell(event)

    def _told(self, event: Step) -> None:
        total = self._before + len(_upscale(self.job).long.windows) * self.taken
        self.tell(dataclasses.replace(event, step=sum(self.done), total=total))


def _taken(context: Context, job: Job) -> int:
    """The steps that each window of the second stage takes."""
    times = sampler(job.sampling.sampler).times(job.steps, job.shift)
    return job.steps - first_step_from(times, _upscale(job).strength)


@dataclass
class _Turn:
    """The clip of a batch whose first stage runs at present."""

    of: _Counted


def _in_turn(turn: _Turn, count: _Counted, pieces: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The pieces of a clip, whose events are its own while it is asked for them."""
    while True:
        turn.of = count
        if (piece := next(pieces, None)) is None:
            return
        yield piece
        del piece


def _upscale(job: Job) -> Upscale:
    assert job.upscale is not None
    return job.upscale


def _script(made: Made, row: int) -> PromptEmbeddings:
    """The embeddings of one job of a batch."""
    assert made.text is not None
    negative = None if made.negative is None else _row(made.negative, row)
    return PromptEmbeddings(_upscale(made.jobs[row]).long.script.prompts, _row(made.text, row), negative)


def _row(text: TextEmbeddings, row: int) -> TextEmbeddings:
    one = slice(row, row + 1) if len(text.tokens_BLC) > 1 else slice(None)
    mask = None if text.mask_BL is None else text.mask_BL[one]
    return TextEmbeddings(text.tokens_BLC[one], text.pooled_BC[one], mask)


def _frames_of(context: Context, job: Job) -> Iterator[np.ndarray]:
    """The frames of the input video that is made larger, one by one."""
    source: InputClip | None = _upscale(job).source
    assert source is not None
    for frame in source.read(source.shown_at(context.card.clip.fps)[: job.shape.frames]):
        yield frame[None]
