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
        """A request, checked against the card. Raises: RequestError; BackendError for attention that is not there."""
        context = self.context
        job = resolve(request if request.cache is not None else request.with_values(cache=context.cache), context.card)
        context.attention_of(job)
        return job

    def run(self, jobs: Sequence[Job], *, keep: Sequence[Path | None] = ()) -> Iterator[Event]:
        """Make the jobs, as one batch, and tell of it; closing the iterator cancels the work.

        Args:
            jobs: may differ in prompt, negative prompt, seed and images only.
            keep: a file for the latent of each job, written before any is decoded.

        Yields: phases and steps; then, for each job in order, its pieces and that it is done, or why it failed.
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
        """``run`` up to the latents. Raises: as the stages do.

        at_once: parts of a job that go through a network together, where it is made in parts.
        """
        self.context.cancelling.clear()  # what was asked for while nothing ran
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
        """The jobs with the first process' seeds: random ones differ."""
        seeds = self.context.team.agree([job.seed for job in jobs])
        return [dataclasses.replace(job, seed=seed) for job, seed in zip(jobs, seeds, strict=True)]
