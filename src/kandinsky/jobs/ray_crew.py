"""Work handed out to actors of a Ray cluster one item at a time, of which none is lost when processes die.

An actor has two calls: ``start``, which gives ``Ready`` or says why it cannot work, and one that does an item. Each
has one item at once, so that a process which dies tells which item it died of; the item is handed out again, to
whichever actor is free first, as often as is allowed. Items are taken from their iterator when an actor is free for
them, and no sooner.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import kandinsky
from kandinsky.errors import BackendError, KandinskyError
from kandinsky.jobs.ray_connection import reason_of

log = logging.getLogger(__name__)
# a restarted worker imports everything again, and Ray refuses calls meanwhile
RETURN_S, ASK_AGAIN_S = 600.0, 0.5
PATIENCE_S = 30.0  # the cluster may be busy with other work: report that nothing has started yet
T = TypeVar("T")
NOBODY_LEFT = "no ray worker is left to make it"


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker that can begin.

    Attributes:
        where: Machine and process, in words.
        version: Version of this library there.
    """

    where: str
    version: str


@dataclass(frozen=True, slots=True)
class Lost:
    """An item that no worker finished.

    Attributes:
        reason: Why, in one line.
        seconds: How long the last one had it.
        died: Whether its worker died; else none was left to take it.
    """

    reason: str
    seconds: float = 0.0
    died: bool = True


@dataclass(slots=True)
class Place:
    """One actor; ``away_since`` is when it was first found dead or restarting, None while it answers."""

    number: int
    actor: Any
    away_since: float | None = None


@dataclass(slots=True)
class _Entry(Generic[T]):
    item: T
    attempts: int = 0
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class Crew(Generic[T]):
    """Actors and how they are given work.

    Attributes:
        ray: The package.
        places: The actors.
        begin: Starts one item on an actor, and gives Ray's reference to its result.
        attempts: How often an item is handed out at most.
        name: An item in words, for ``tell``.
        tell: Called with a line about workers that come and go.
    """

    ray: Any
    places: list[Place]
    begin: Callable[[Any, T], Any]
    attempts: int
    name: Callable[[T], str]
    tell: Callable[[str], None] = log.info

    def hand_out(self, items: Iterable[T]) -> Iterator[tuple[T, Any, int]]:
        """Have all items done.

        Args:
            items: What to do.

        Yields:
            An item; its result, an error that its call raised, or ``Lost``; and the number of attempts. In the order
            in which they are done.

        Raises:
            KandinskyError: No worker could start; the error is the first one's.
        """
        fresh, again = iter(items), deque[_Entry[T]]()
        running: dict[Any, tuple[Place, _Entry[T] | None]] = {}  # None: it starts
        idle: list[Place] = []
        refusals: list[KandinskyError] = []
        has_started = False

        def following() -> _Entry[T] | None:
            if again:
                return again.popleft()
            for item in fresh:
                return _Entry(item)
            return None

        def assign() -> None:
            while idle and (entry := following()) is not None:
                place = idle.pop(0)
                entry.attempts += 1
                entry.since = time.monotonic()
                running[self.begin(place.actor, entry.item)] = (place, entry)

        def start(place: Place) -> None:
            running[place.actor.start.remote()] = (place, None)

        first = following()
        if first is None:
            return
        again.append(first)
        for place in self.places:
            place.away_since = None  # of an earlier call
            start(place)
        while True:
            assign()
            if not running:  # all is done, or every worker is gone
                break
            if all(entry is None for _, entry in running.values()):
                if (entry := following()) is None:
                    return  # those that still start are not waited for
                again.appendleft(entry)
            done, _ = self.ray.wait(list(running), num_returns=1, timeout=PATIENCE_S)
            if not done:
                if not has_started:
                    self.tell("no ray worker has started yet: they load what they need, or the cluster is busy")
                continue
            place, given = running.pop(done[0])
            result, error = self._fetch(done[0])
            if given is None:
                if isinstance(result, Ready):
                    refusal = _check(result)
                    if refusal is None:
                        has_started, place.away_since = True, None
                        self.tell(f"worker {place.number} is ready: {result.where}")
                        idle.append(place)
                        continue
                    result = refusal
                if error is not None and not self._is_final(error):
                    place.away_since = place.away_since or time.monotonic()
                    if time.monotonic() - place.away_since < RETURN_S:
                        time.sleep(ASK_AGAIN_S)
                        start(place)
                        continue
                refusals.append(result if isinstance(result, KandinskyError) else BackendError(_died(error or result)))
                self.tell(f"worker {place.number} is left out: {refusals[-1]}")
            elif error is None:
                idle.append(place)  # the next item runs while the caller has this one
                assign()
                yield given.item, result, given.attempts
            else:
                self.tell(f"worker {place.number} died while it made {self.name(given.item)}")
                start(place)
                if given.attempts < self.attempts:
                    again.appendleft(given)
                else:
                    seconds = time.monotonic() - given.since
                    yield given.item, Lost(_died(error), seconds), given.attempts
        if not has_started:
            raise refusals[0]
        while (entry := following()) is not None:
            yield entry.item, Lost(NOBODY_LEFT, died=False), entry.attempts

    def _fetch(self, reference: Any) -> tuple[Any, Exception | None]:
        """A call's value or the error that it raised; or why there is neither: the actor's death or a lost result."""
        try:
            return self.ray.get(reference), None
        except self.ray.exceptions.RayTaskError as error:  # the actor lives: the call itself went wrong
            return error, None
        except self.ray.exceptions.RayError as error:
            return None, error

    def _is_final(self, error: Exception) -> bool:
        """Whether Ray will not restart the actor."""
        return isinstance(error, self.ray.exceptions.ActorDiedError)


def _check(ready: Ready) -> KandinskyError | None:
    if ready.version == kandinsky.__version__:
        return None
    return BackendError(
        f"version {ready.version} is installed on {ready.where}, and {kandinsky.__version__} here: install the same"
    )


def _died(error: Exception | None) -> str:
    return f"its ray worker died: {reason_of(error)}"
