"""What happens to jobs, as it happens: one thread looks at the store, and everybody who waits is woken."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress

from kandinsky.jobs.records import StoredEvent
from kandinsky.jobs.store import JobStore

LOOK_S, CALM_S = 0.04, 0.25
IDLE_S = 0.5
KEPT = 4000


class Hub:
    """The latest events in memory, and a bell for those who wait for more.

    Args:
        store: The store.
        seen: Called with each event, in order, from the hub's thread.
    """

    def __init__(self, store: JobStore, *, seen: Callable[[StoredEvent], None] = lambda _: None) -> None:
        self._store = store
        self._seen = seen
        self._kept: deque[StoredEvent] = deque(maxlen=KEPT)
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._bell: asyncio.Event | None = None
        self._waiting = 0
        self.position = 0
        self._begin = 0

    def start(self) -> None:
        """Begin to look; to be called in the event loop."""
        self._loop, self._bell = asyncio.get_running_loop(), asyncio.Event()
        self.position = self._begin = self._store.last_event()
        self._thread = threading.Thread(target=self._look, name="hub", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """End all streams; to be called in the event loop."""
        self._over.set()
        self._ring()

    async def stop(self) -> None:
        """End, and wait for the thread."""
        self.end()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    def _look(self) -> None:
        while not self._over.wait(LOOK_S if self._waiting else CALM_S):
            with suppress(Exception):
                if self._store.has_changed():
                    while events := self._store.events(self.position):
                        self._kept.extend(events)
                        for event in events:
                            with suppress(Exception):
                                self._seen(event)
                        self.position = events[-1].id
                        if self._loop is not None:
                            self._loop.call_soon_threadsafe(self._ring)
        self._store.close()

    def _ring(self) -> None:
        if self._bell is not None:
            self._bell.set()
            self._bell = asyncio.Event()

    async def more(self, timeout_s: float) -> None:
        """Wait until something happens, or a time is over."""
        bell = self._bell
        assert bell is not None
        self._waiting += 1
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(bell.wait(), timeout_s)
        finally:
            self._waiting -= 1

    def since(self, after: int) -> Sequence[StoredEvent] | None:
        """Events after a number, from memory; None if memory does not reach back so far."""
        kept = list(self._kept)
        oldest = kept[0].id - 1 if len(kept) == KEPT else self._begin
        return None if after < oldest else [event for event in kept if event.id > after]

    async def follow(self, after: int) -> AsyncIterator[Sequence[StoredEvent]]:
        """Batches of events after a number, for ever; an empty one at least every ``IDLE_S`` seconds."""
        while not self.is_over:
            upto = self.position
            found = self.since(after)
            if found is None:
                found = await asyncio.to_thread(self._store.events, after)
                after = found[-1].id if found else max(after, upto)
            else:
                after = max(after, upto, found[-1].id if found else 0)
            yield found
            if not found and self.position <= after:
                await self.more(IDLE_S)
