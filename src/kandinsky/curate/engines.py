"""What runs the work on files: this process, or workers on a Ray cluster. Results come as they are done."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import kandinsky
from kandinsky.curate import watch
from kandinsky.errors import BackendError, KandinskyError, RequestError
from kandinsky.files import remove
from kandinsky.jobs.ray_connection import Resources, connected, import_ray, reason_of
from kandinsky.jobs.ray_crew import NOBODY_LEFT, Crew, Lost, Place, Ready

log = logging.getLogger(__name__)
SIGN = "shared-"  # a file by which workers see that they share a folder
ATTEMPTS = 3  # of a file whose worker dies
PATIENCE_S, LONGEST_PATIENCE_S = 600.0, 7 * 86400
_UNLIMITED = -1  # restarts of a worker: attempts of each file are limited


class Task(Protocol):
    """Work on one file; ``name`` is the file in words."""

    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Task)


class Engine(Protocol):
    """Runs work on files.

    Attributes:
        workers: How many files are worked on at once.
    """

    @property
    def workers(self) -> int: ...

    def run(self, tasks: Iterable[T], work: Callable[[T], Any]) -> Iterator[tuple[T, Any]]:
        """Do the work for each task.

        Args:
            tasks: Taken as workers are free for them.
            work: What is done; it is sent to where it is done.

        Yields:
            A task with its result, or a text that says why it has none, in the order in which they are done.
        """


class Alone:
    """This process, one file after the other."""

    workers = 1

    def run(self, tasks: Iterable[T], work: Callable[[T], Any]) -> Iterator[tuple[T, Any]]:
        """See ``Engine``."""
        for task in tasks:
            yield task, work(task)


class Hand:
    """The work of an actor.

    Args:
        sign: A file that lies in the data set.
        source: A file of the source.
        patience_s: How long work may stand still before this process is ended.
    """

    def __init__(self, sign: str, source: str, patience_s: float) -> None:
        self.sign, self.source, self.patience_s = Path(sign), Path(source), patience_s
        self.where = f"{os.uname().nodename}, process {os.getpid()}"

    def start(self) -> Ready | KandinskyError:
        """See that the files are here too."""
        # a file of the source may go away during the run, its folder stays
        for folder, is_there, what in (
            (self.sign.parent, self.sign.is_file(), "data set"),
            (self.source.parent, self.source.parent.is_dir(), "source"),
        ):
            if not is_there:
                return BackendError(
                    f"`{folder}` of the {what} is not on {self.where}: mount the same shared folder there"
                )
        return Ready(self.where, kandinsky.__version__)

    def work(self, work: Callable[[Any], Any], task: Any) -> Any:
        """Do one piece of work."""
        with watch.kept(self.patience_s):
            return work(task)


@dataclass(frozen=True, slots=True)
class OnRay:
    """Actors of a Ray cluster, each with one file at once.

    Attributes:
        ray: The package.
        workers: Number of actors.
        patience_s: How long a file may stand still.
        places: The actors; they stay from one call of ``run`` to the next.
        tell: Called with a line about workers that come and go.
    """

    ray: Any
    workers: int
    patience_s: float
    places: list[Place]
    tell: Callable[[str], None]

    def run(self, tasks: Iterable[T], work: Callable[[T], Any]) -> Iterator[tuple[T, Any]]:
        """See ``Engine``.

        Raises:
            BackendError: No worker could start, or none is left; or what is no fault of a file, such as a full disk.
        """
        sent = self.ray.put(work)

        def begin(actor: Any, task: T) -> Any:
            return actor.work.remote(sent, task)

        crew: Crew[T] = Crew(self.ray, self.places, begin, ATTEMPTS, lambda task: task.name, self.tell)
        for task, result, attempts in crew.hand_out(tasks):
            if isinstance(result, Lost):
                if not result.died:
                    raise BackendError(f"{task.name}: {NOBODY_LEFT}", hint="run it again: what was done is kept")
                yield task, self._why(result, attempts)
            elif isinstance(result, Exception):
                raise BackendError(f"{task.name}: {reason_of(getattr(result, 'cause', None) or result)}")
            else:
                yield task, result

    def _why(self, lost: Lost, attempts: int) -> str:
        if lost.seconds >= self.patience_s:
            return f"its worker crashed, or stood still for {self.patience_s:g} seconds, {attempts} times"
        return f"its worker crashed {attempts} times: the decoder, or no memory was left"


@contextlib.contextmanager
def engine(
    address: str | None,
    workers: int | None,
    patience_s: float,
    folder: Path,
    source: str,
    tell: Callable[[str], None] = log.info,
) -> Iterator[Engine]:
    """What runs the work.

    Args:
        address: Of a Ray cluster, as ``ray_connection.connected`` takes it; None for this process.
        workers: Number of workers; None = one for each CPU of the cluster.
        patience_s: How long a file may stand still.
        folder: Of what the data set remembers.
        source: A file of the source.
        tell: Called with a line about workers that come and go.

    Raises:
        RequestError: The number of workers does not fit.
        BackendError: Ray is not installed, or there is no cluster.
    """
    if address is None:
        yield Alone()
        return
    ray = import_ray()
    with connected(ray, address):
        size = Resources.of(ray)
        if workers is not None and not 1 <= workers <= size.cpus:
            raise RequestError(f"`{workers}` workers do not fit the ray cluster ({size}): use 1 to {size.cpus}")
        count = workers or max(1, size.cpus)
        tell(f"ray cluster of {size}; workers: {count}, each with CPUs: 1")
        sign = folder / f"{SIGN}{secrets.token_hex(8)}"
        sign.touch()
        kind = ray.remote(Hand).options(num_cpus=1, max_restarts=_UNLIMITED, max_task_retries=0)
        places: list[Place] = []
        try:
            places += [Place(number + 1, kind.remote(str(sign), source, patience_s)) for number in range(count)]
            yield OnRay(ray, count, patience_s, places, tell)
        finally:
            for place in places:
                with contextlib.suppress(Exception):  # it, or the connection, may be gone
                    ray.kill(place.actor, no_restart=True)
            remove(sign)
