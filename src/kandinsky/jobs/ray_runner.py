"""A batch on a Ray cluster: one actor per GPU (or per share of the CPUs), each with one loaded pipeline.

Items are handed out one by one, as actors become free (``ray.wait``). Actors compute; frames come back through Ray's
object store and are written where the batch was started, so the machines need no shared file system. Every item carries
its card's values, its seed and its image; the model's weights must be on each machine.

An actor whose process dies is restarted by Ray, and its item is handed out once more, to whichever actor is free first.
A result is written once: an item is either handed out, or waiting, or yielded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import kandinsky
from kandinsky.engine.request import Job
from kandinsky.errors import BackendError, KandinskyError, RequestError
from kandinsky.jobs.batch import Failure, Item, Loading, Made, attempt
from kandinsky.jobs.ray_connection import Resources, anywhere, connected, import_ray, reason_of

log = logging.getLogger(__name__)
ATTEMPTS = 2  # an item whose worker died is tried once more
RESTARTS = 3  # of one worker, by Ray
# a restarted worker imports everything again, and Ray refuses calls meanwhile
RETURN_S, ASK_AGAIN_S = 600.0, 0.5
PATIENCE_S = 30.0  # the cluster may be busy with other work: report that nothing has started yet


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker that has found its model.

    Attributes:
        where: Machine and process, in words.
        version: Version of this library there.
    """

    where: str
    version: str


class Worker:
    """The work of an actor; nothing is loaded in its constructor, where Ray cannot tell errors from a dead process."""

    def __init__(self, loading: Loading, threads: int | None) -> None:
        self.loading = loading
        self.threads = threads
        self.where = f"{os.uname().nodename}, process {os.getpid()}"

    def start(self) -> Ready | KandinskyError:
        """Load the pipeline."""
        if self.threads is not None:
            import torch

            torch.set_num_threads(self.threads)
        try:
            self.pipe = self.loading.load()
        except KandinskyError as error:
            return error
        return Ready(self.where, kandinsky.__version__)

    def work(self, job: Job) -> Made | Failure:
        """Compute one result."""
        return dataclasses.replace(attempt(lambda: self.pipe.run(job)), worker=self.where)


@dataclass(slots=True)
class _Place:
    """One actor; ``away_since`` is when it was first found dead or restarting, None while it answers."""

    number: int
    actor: Any
    away_since: float | None = None


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
            places = [_Place(i + 1, kind.remote(loading, None if gpus else cpus)) for i in range(count)]
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
        self, ray: Any, places: list[_Place], items: Sequence[Item]
    ) -> Iterator[tuple[Item, Made | Failure, int]]:
        waiting, attempts = deque(items), Counter[int]()
        running: dict[Any, tuple[_Place, Item | None]] = {}  # None: it loads
        idle: list[_Place] = []
        refusals: list[KandinskyError] = []
        has_started = False

        def start(place: _Place) -> None:
            running[place.actor.start.remote()] = (place, None)

        def assign() -> None:
            while waiting and idle:
                place, item = idle.pop(0), waiting.popleft()
                attempts[item.number] += 1
                running[place.actor.work.remote(item.job)] = (place, item)

        for place in places:
            start(place)
        while waiting or any(item is not None for _, item in running.values()):
            assign()
            if not running:  # every worker is gone
                break
            done, _ = ray.wait(list(running), num_returns=1, timeout=PATIENCE_S)
            if not done:
                if not has_started:
                    self.tell("no ray worker has started yet: they load their models, or the cluster is busy")
                continue
            place, given = running.pop(done[0])
            result, error = _fetch(ray, done[0])
            if given is None:
                if isinstance(result, Ready):
                    refusal = self._check(result)
                    if refusal is None:
                        has_started, place.away_since = True, None
                        self.tell(f"worker {place.number} is ready: {result.where}")
                        idle.append(place)
                        continue
                    result = refusal
                if error is not None and not _is_final(ray, error):
                    place.away_since = place.away_since or time.monotonic()
                    if time.monotonic() - place.away_since < RETURN_S:
                        time.sleep(ASK_AGAIN_S)
                        start(place)
                        continue
                refusals.append(result if isinstance(result, KandinskyError) else BackendError(_died(error)))
                self.tell(f"worker {place.number} is left out: {refusals[-1]}")
            elif error is None:
                idle.append(place)  # the next item runs while this one is written
                assign()
                yield given, result, attempts[given.number]
            else:
                self.tell(f"worker {place.number} died while it made number {given.number}")
                start(place)
                if attempts[given.number] < ATTEMPTS:
                    waiting.appendleft(given)
                else:
                    hint = 'its workers may have run out of memory: a smaller size, or `offload="module"`, needs less'
                    yield given, Failure(_died(error), hint), attempts[given.number]
        if waiting and not has_started:
            raise refusals[0]
        for item in waiting:
            yield item, Failure("no ray worker is left to make it"), attempts[item.number]

    @staticmethod
    def _check(ready: Ready) -> KandinskyError | None:
        if ready.version == kandinsky.__version__:
            return None
        return BackendError(
            f"version {ready.version} is installed on {ready.where}, and {kandinsky.__version__} here: install the same"
        )


def _fetch(ray: Any, reference: Any) -> tuple[Any, Exception | None]:
    """A call's value; or why there is none: the actor's death or a lost result."""
    try:
        return ray.get(reference), None
    except ray.exceptions.RayTaskError as error:  # the actor lives: the call itself went wrong
        return Failure.of(error), None
    except ray.exceptions.RayError as error:
        return None, error


def _is_final(ray: Any, error: Exception) -> bool:
    """Whether Ray will not restart the actor."""
    return isinstance(error, ray.exceptions.ActorDiedError)


def _died(error: Exception | None) -> str:
    return f"its ray worker died: {reason_of(error)}"
