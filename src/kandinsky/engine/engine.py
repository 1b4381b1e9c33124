"""The engine: from requests to events."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

from kandinsky.engine.context import Context
from kandinsky.engine.events import Done, Event, Failed, Phase, Piece
from kandinsky.engine.request import Job, resolve
from kandinsky.engine.stages import Finish, Made, check
from kandinsky.errors import Cancelled, KandinskyError
from kandinsky.model.values import Request, VideoStream


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
            results = self.finish.results(self.context, made)
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
        self, jobs: Sequence[Job], *, keep: Sequence[Path | None] = (), at_once: int = 1
    ) -> Generator[Event, None, Made]:
        """Run the jobs up to their latents.

        Args:
            jobs: As for ``run``.
            keep: As for ``run``.
            at_once: Parts of a job that go through a network together, for jobs made in parts.

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
        made = Made(tuple(self._agreed(jobs)), tuple(keep), at_once=at_once)
        for stage in self.context.card.does.stages()[0]:
            made = yield from stage(self.context, made)
        return made

    @property
    def finish(self) -> Finish:
        """What turns latents into results."""
        finish: Finish = self.context.card.does.stages()[1]
        return finish

    def _agreed(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs with the first process' seeds, since seeds drawn by each process differ."""
        seeds = self.context.team.agree([job.seed for job in jobs])
        return [dataclasses.replace(job, seed=seed) for job, seed in zip(jobs, seeds, strict=True)]
