"""The entries of a prompt file in the store, so that a batch is listed beside the requests to servers. No torch.

The command that makes them holds them: no worker takes them, and if the command is killed, they end as interrupted. A
store that cannot be used is a note, and no reason not to make a batch.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from kandinsky.errors import KandinskyError
from kandinsky.jobs.order import Order, new_job
from kandinsky.jobs.sqlite_store import SqliteStore, new_id, open_store

if TYPE_CHECKING:
    from kandinsky.jobs.batch import Item, Outcome

log = logging.getLogger(__name__)
OFF = "off"
RENEW_S = 20.0


class Listing:
    """The entries of one batch in a store."""

    def __init__(self, store: SqliteStore, items: Sequence[Item], model: str) -> None:
        self._store = store
        self._holder = f"process {os.getpid()} on {socket.gethostname()}"
        self._ids: dict[int, str] = {}
        for item in items:
            job_id = new_id()
            request = {"model": model, "prompt": item.job.prompt, "seed": item.job.seed}
            order = Order(request=request, form=item.target.suffix.lstrip("."))
            new = new_job(order, item.job, job_id=job_id, source="cli", holder=self._holder, max_attempts=1)
            store.add(new)
            self._ids[item.number] = job_id

    def begin(self, item: Item) -> None:
        """An entry is being made."""
        with self._noted():
            self._store.begin(self._ids[item.number])

    def settle(self, outcome: Outcome) -> None:
        """An entry has ended."""
        if outcome.number not in self._ids:
            return
        with self._noted():
            is_made = outcome.error is None
            result = {"path": os.path.realpath(outcome.path or ""), "recipe": dict(outcome.recipe)}
            error = {"code": "failed", "message": outcome.error, "hint": outcome.hint or ""}
            self._store.settle(
                self._ids[outcome.number],
                result=result if is_made else None,
                error=None if is_made else error,
                run_s=outcome.taken_s,
            )

    def renew(self) -> None:
        """The command still runs."""
        with self._noted():
            self._store.hold(self._holder)

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            log.warning("the list of jobs cannot be kept: %s", error)


@contextmanager
def listed(items: Sequence[Item], model: str, store: str | None) -> Iterator[Listing | None]:
    """List the entries of a batch while it is made.

    Args:
        items: What is to be made.
        model: The model's name.
        store: Folder of the store; None for the default, `off` for none.

    Yields:
        The listing; None if there is none.
    """
    if store == OFF or not items:
        yield None
        return
    try:
        opened = open_store(store)
        listing = Listing(opened, items, model)
    except KandinskyError as error:
        if store is not None:
            raise
        log.warning("this batch is not listed: %s", error)
        yield None
        return
    over = threading.Event()

    def renew() -> None:
        while not over.wait(RENEW_S):
            listing.renew()
        with suppress(Exception):
            opened.close()

    thread = threading.Thread(target=renew, name="listing", daemon=True)
    thread.start()
    try:
        yield listing
    finally:
        over.set()
        thread.join()
        opened.close()
