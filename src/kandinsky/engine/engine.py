"""The engine: from requests to events."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

from kandinsky.engine.context import Context
from kandinsky.engine.enlarge import Enlarge
from kandinsky.engine.events import Done, Event, Failed, Phase, Piece
from kandinsky.engine.long import LONG
from kandinsky.engine.request import Job, resolve
from kandinsky.engine.stages import Finish, Made, Stage, check
from kandinsky.errors import Cancelled, KandinskyError, RequestError
from kandinsky.model.values import Request, Soundtrack, VideoStream


@dataclasses.dataclass(frozen=True, slots=True)
class Engine:
    """Runs jobs of one model through the stages of its task."""

    context: Context

    def resolve(self, request: Request) -> Job:
        """Check a request against the card and fill in its defaults.

        Raises:
            RequestError: A value is not allowed for this model.
            BackendError: The attention it asks for is not available.
        """
        context = self.context
        asked = request if request.cache is not None else request.with_values(cache=context.cache)
        job = resolve(context.branches.named(asked), context.card)
        context.attention_of(job)
        return job

    def run(self, jobs: Sequence[Job], *, keep: Sequence[Path | None] = ()) -> Iterator[Event]:
        """Generate the jobs as one batch and report it as events; closing the iterator cancels the work.

        Args:
            jobs: May differ in prompt, negative prompt, seed and images only.
            keep: A file for the latent of each job, written before any is decoded.

        Yields:
            Phases and steps; then, for each job in order, its pieces, and that it is done or why it failed.
        """
        try:
            made = yield from self.latents(jobs, keep=keep)
            results = self.results(made)
        except Cancelled:
            raise
        except KandinskyError as error:
            yield from (Failed(index, error) for index in range(len(jobs)))
            return
        yield Phase("decode")
        for index, result in enumerate(results):
            try:
                if isinstance(result, VideoStream):
                    for frames_THWC in result.pieces:
                        yield Piece(index, frames_THWC)
            except Cancelled:
                raise
            except KandinskyError as error:
                yield Failed(index, error)
            else:
                yield Done(index, result)

    def latents(
        self,
        jobs: Sequence[Job],
        *,
        keep: Sequence[Path | None] = (),
        at_once: int = 1,
        tell: Callable[[Event], None] = lambda event: None,
    ) -> Generator[Event, None, Made]:
        """Run the jobs up to their latents; those made in windows are only prepared, and run as results are consumed.

        Args:
            jobs: As for ``run``.
            keep: As for ``run``.
            at_once: Parts of a job that go through a network together, for jobs made in parts.
            tell: Called with the events of what runs only when results are consumed; it may raise.

        Yields:
            Phases and steps.

        Returns:
            The batch with its latents.

        Raises:
            RequestError: The jobs cannot run together, or on these processes.
            Cancelled: The run was cancelled.
            NotFinite: Numbers overflowed; the message names the step.
        """
        self.context.cancelling.clear()  # a request to cancel from before this run
        check(self.context, jobs)
        made = Made(tuple(self._agreed(jobs)), tuple(keep), at_once=at_once, tell=tell)
        for stage in self._stages(jobs)[0]:
            made = yield from stage(self.context, made)
        return made

    def results(self, made: Made) -> Sequence[VideoStream | Soundtrack]:
        """The results of a batch; the frames of clips are decoded as they are consumed."""
        return self._stages(made.jobs)[1].results(self.context, made)

    def _stages(self, jobs: Sequence[Job]) -> tuple[tuple[Stage, ...], Finish]:
        """The stages of a batch, and what turns its latents into results.

        Raises:
            RequestError: Only some of the jobs are made in windows.
        """
        in_windows = [job.long is not None for job in jobs]
        if any(in_windows) and not all(in_windows):
            raise RequestError("clips made in windows and others are no batch: make them one after another")
        made, finish = LONG if all(in_windows) else self.context.card.does.stages()
        return made, finish if jobs[0].upscale is None else Enlarge(finish)

    def _agreed(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs with the first process' seeds, since seeds drawn by each process differ."""
        seeds = self.context.team.agree([job.seed for job in jobs])
        return [dataclasses.replace(job, seed=seed) for job, seed in zip(jobs, seeds, strict=True)]
