"""Work done ahead by other processes: decoding and loading never hold up a network.

Results come in the order of the items, whatever the number of workers, and are the same without any.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from multiprocessing.context import BaseContext
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from kandinsky.errors import KandinskyError, RequestError

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST_WORKERS = 256
AHEAD = 2  # items a worker has in hand


def prefetched(
    work: Callable[[Item], Result], items: Iterable[Item], *, workers: int = 0, ahead: int = AHEAD
) -> Generator[Result]:
    """``work`` of each item, in order, by so many processes ahead of whoever takes the results.

    Close the generator when it is no longer needed: its processes end with it. They also end with the process that
    began them, however that ends. Workers leave Ctrl-C to it.

    Args:
        work: Can be pickled, as can its results. An error it raises is raised here, in the place of its item.
        items: May be endless; taken as they are needed.
        workers: 0 = in this process, when a result is asked for.
        ahead: Items a worker has in hand.

    Raises:
        RequestError: The number of workers is none.
        KandinskyError: A worker was killed, such as by the system when memory ran out.
    """
    if isinstance(workers, bool) or not isinstance(workers, int) or not 0 <= workers <= MOST_WORKERS:
        raise RequestError(
            f"`{workers}` workers cannot be started: use 0 (none besides this process) to {MOST_WORKERS}"
        )
    return _taken(work, items, workers, ahead)


def _taken(work: Callable[[Item], Result], items: Iterable[Item], workers: int, ahead: int) -> Generator[Result]:
    if not workers:
        for item in items:
            yield work(item)
        return
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of more workers than cores
        loader: DataLoader[Any] = DataLoader(
            _Work(work),
            sampler=_Once(items),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=ahead,
            multiprocessing_context=_context(),
            worker_init_fn=partial(_begin, dict(os.environ)),
            generator=torch.Generator(),  # else the caller's random numbers would go on
        )
        results: Iterator[Any] = iter(loader)
    try:
        while True:
            try:
                result = next(results)
            except StopIteration:
                return
            except RuntimeError as error:
                if "worker" in str(error) and "exited unexpectedly" in str(error):
                    raise KandinskyError(
                        "a worker process was killed, perhaps since memory ran out: use fewer workers"
                    ) from error
                raise
            if isinstance(result, _Failure):
                raise result.error
            yield result.value
    finally:
        end = getattr(results, "_shutdown_workers", None)
        if end is not None:
            end()


class Ahead(Generic[Item, Result]):
    """Random access to results that are usually asked for in order.

    Args:
        work: See ``prefetched``.
        after: The item that will be asked for after another.
        workers: See ``prefetched``.
    """

    def __init__(self, work: Callable[[Item], Result], after: Callable[[Item], Item], *, workers: int = 0) -> None:
        self._work, self._after, self._workers = work, after, workers
        self._results: Generator[Result] | None = None
        self._next: Item | None = None

    def __call__(self, item: Item) -> Result:
        """The result of an item; that of the next one is begun. Raises: as ``prefetched``."""
        if self._results is None or item != self._next:
            self.close()
            self._results = prefetched(self._work, _from(item, self._after), workers=self._workers)
        result = next(self._results)
        self._next = self._after(item)
        return result

    def close(self) -> None:
        """End the workers; they are begun anew when something is asked for."""
        if self._results is not None:
            with closing(self._results):
                self._results = None

    def __enter__(self) -> Ahead[Item, Result]:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()


def _from(item: Item, after: Callable[[Item], Item]) -> Iterator[Item]:
    while True:
        yield item
        item = after(item)


class _Work(Dataset[Any]):
    def __init__(self, work: Callable[[Any], Any]) -> None:
        self._work = work

    def __getitem__(self, item: Any) -> _Value | _Failure:
        try:
            return _Value(self._work(item))
        except KandinskyError as error:  # torch would make text of it
            return _Failure(error)


class _Value:
    """A result, wrapped so that the loader leaves it as it is."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _Failure:
    def __init__(self, error: KandinskyError) -> None:
        self.error = error


class _Once:
    """Items as a sampler; taken once."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)


def _context() -> BaseContext:
    """How workers start; a fork of this process would copy the locks of threads that are not there.

    On Linux they are forked from a process of their own that has imported what they need and computed nothing: torch
    is read once, not once a worker. Frameworks of macOS do not bear that.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # heeded when the first worker starts
    return context


def _begin(environment: Mapping[str, str], number: int) -> None:
    """Begin a worker, whose environment is that of the process that wants it now."""
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End when the process that began this one has ended: else a result that nobody takes would hold it for ever."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)
