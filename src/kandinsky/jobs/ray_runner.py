"""A batch on a Ray cluster: one actor per GPU (or per share of the CPUs), each with one loaded pipeline.

Items are handed out one by one, as actors become free (see ``ray_crew``). Actors compute; frames come back through
Ray's object store and are written where the batch was started, so the machines need no shared file system. Every item
carries its card's values, its seed and its image; the model's weights must be on each machine.

An actor whose process dies is restarted by Ray, and its item is handed out once more, to whichever actor is free first.
A result is written once: an item is either handed out, or waiting, or yielded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import kandinsky
from kandinsky.engine.request import Job
from kandinsky.errors import BackendError, KandinskyError, RequestError
from kandinsky.jobs.batch import Failure, Item, Loading, Made, attempt
from kandinsky.jobs.ray_connection import Resources, anywhere, connected, import_ray
from kandinsky.jobs.ray_crew import Crew, Lost, Place, Ready
from kandinsky.runtime import threads

log = logging.getLogger(__name__)
ATTEMPTS = 2  # an item whose worker died is tried once more
RESTARTS = 3  # of one worker, by Ray


class Worker:
    """The work of an actor; nothing is loaded in its constructor, where Ray cannot tell errors from a dead process."""

    def __init__(self, loading: Loading, threads: int | None) -> None:
        self.loading = loading
        self.threads = threads
        self.where = f"{os.uname().nodename}, process {os.getpid()}"

    def start(self) -> Ready | KandinskyError:
        """Load the pipeline."""
        if self.threads is not None:
            threads.use(self.threads)
        try:
            self.pipe = self.loading.load()
        except KandinskyError as error:
            return error
        return Ready(self.where, kandinsky.__version__)

    def work(self, job: Job) -> Made | Failure:
        """Compute one result."""
        return dataclasses.replace(attempt(lambda: self.pipe.run(job)), worker=self.where)


@dataclass(frozen=True)
class RayRunner:
    """Runs items on a cluster; see ``batch.Runner``.

    Attributes:
        loading: How to load the pipeline.
        address: `local` starts a cluster on this machine for this run, `auto` finds the one this machine belongs to,
            `ray://HOST:10001` connects to one from outside. An existing connection of this process is used as it is.
        workers: Number of workers; None = one per GPU, or one for every four CPU cores.
        gpus: Whether workers use GPUs; None = if the cluster has some.
        tell: Called with a line about workers that come and go.
    """

    loading: Loading
    address: str = "auto"
    workers: int | None = None
    gpus: bool | None = None
    tell: Callable[[str], None] = log.info

    def run(self, items: Sequence[Item]) -> Iterator[tuple[Item, Made | Failure, int]]:
        """Compute the items on the cluster.

        Args:
            items: What to generate.

        Yields:
            An item, its result, and the number of attempts.

        Raises:
            BackendError: Ray is not installed, there is no cluster, or no worker could start.
            KandinskyError: No worker could load the model; the error is theirs.
        """
        if not items:
            return
        ray = import_ray()
        with connected(ray, self.address):
            size, count, cpus, gpus = self._share(ray, len(items))
            self.tell(
                f"ray cluster of {size}; workers: {count}, each with {'GPUs' if gpus else 'CPUs'}: {gpus or cpus}"
            )
            kind = ray.remote(Worker).options(
                num_cpus=0 if gpus else cpus, num_gpus=gpus, max_restarts=RESTARTS, max_task_retries=0
            )
            loading = dataclasses.replace(self.loading, options=anywhere(self.loading.options))
            places = [Place(i + 1, kind.remote(loading, None if gpus else cpus)) for i in range(count)]
            try:
                yield from self._hand_out(ray, places, items)
            finally:
                for place in places:
                    with contextlib.suppress(Exception):  # it, or the connection, may be gone
                        ray.kill(place.actor, no_restart=True)

    def _share(self, ray: Any, items: int) -> tuple[str, int, int, int]:
        """(the cluster in words, workers, CPUs of each, GPUs of each).

        Raises:
            BackendError: The cluster lacks GPUs or CPUs.
            RequestError: The number of workers does not fit the cluster.
        """
        size = Resources.of(ray)
        if self.gpus and not size.gpus:
            raise BackendError(f'the ray cluster has no GPU ({size}): use `device="cpu"`')
        if self.gpus or (self.gpus is None and size.gpus):
            most, cpus, gpus = size.gpus, 0, 1
        else:
            most, cpus, gpus = size.cpus, size.worker_cpus(self.workers), 0
        if self.workers is not None and not 1 <= self.workers <= most:
            raise RequestError(f"`{self.workers}` workers do not fit the ray cluster ({size}): use 1 to {most}")
        fitting = most if gpus else size.fitting(cpus)
        return str(size), min(self.workers or fitting, items), cpus, gpus

    def _hand_out(
        self, ray: Any, places: list[Place], items: Sequence[Item]
    ) -> Iterator[tuple[Item, Made | Failure, int]]:
        def begin(actor: Any, item: Item) -> Any:
            return actor.work.remote(item.job)

        crew = Crew(ray, places, begin, ATTEMPTS, lambda item: f"number {item.number}", self.tell)
        for item, result, attempts in crew.hand_out(items):
            if isinstance(result, Lost):
                hint = 'its workers may have run out of memory: a smaller size, or `offload="module"`, needs less'
                result = Failure(result.reason, hint if result.died else None)
            elif isinstance(result, Exception):
                result = Failure.of(result)
            yield item, result, attempts
