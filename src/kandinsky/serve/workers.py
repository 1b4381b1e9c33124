"""What makes the jobs of a server, and how it ends: processes of this machine, or replicas on a cluster."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from kandinsky.jobs.sqlite_store import SqliteStore
from kandinsky.serve.settings import ServeSettings

LOOK_S = 0.05


class Workers(ABC):
    """The workers of a server.

    Args:
        settings: How many, and how they run.
        store: The store they work for.
        names: The models they run.
        restarted: Called when a worker is started again.
    """

    def __init__(
        self,
        settings: ServeSettings,
        store: SqliteStore,
        *,
        names: Sequence[str],
        restarted: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings = settings
        self.store = store
        self.names = tuple(names)
        self._restarted = restarted
        self._lock = threading.Lock()
        self._leaving = threading.Event()  # nothing more is begun
        self._hurried = threading.Event()  # nothing is waited for
        self._over = threading.Event()  # what runs is stopped

    @property
    def is_enough(self) -> bool:
        """Whether jobs may come though no worker is there."""
        return False

    @abstractmethod
    def start(self) -> None:
        """Start the workers, or what starts them."""

    @abstractmethod
    def _is_busy(self) -> bool:
        """Whether a job runs."""

    @abstractmethod
    def _end(self) -> None:
        """End what is left, after ``_over`` was set; unfinished jobs go back to the queue."""

    def leave(self) -> None:
        """Have the workers take nothing more."""
        with self._lock:
            self._leaving.set()

    def hurry(self) -> None:
        """Have ``stop`` wait for nothing. From any thread or signal handler."""
        self._hurried.set()

    def stop(self) -> None:
        """End the workers: they take nothing more, and their jobs may finish within the drain time.

        What is not finished then goes back to the queue.
        """
        self.leave()
        end = time.monotonic() + self.settings.drain
        while not self._hurried.is_set() and time.monotonic() < end and self._is_busy():
            time.sleep(LOOK_S)
        self._over.set()
        self._end()
