"""A progress bar for work that takes longer than a second: in a terminal on stderr, in a notebook below the cell.

Calls of a pipeline show one unless ``on_step`` is given. To switch it off: ``kandinsky.progress(False)``, the
environment variable ``KANDINSKY_PROGRESS=off``, or ``progress=False`` in a call. Nothing is shown if stderr is a file.
"""

from __future__ import annotations

import html
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock, Timer
from typing import Any, Protocol

from kandinsky.model.checks import checked
from kandinsky.printing import shortened

PATIENCE_S = 1.0  # faster work needs no bar
VARIABLE = "KANDINSKY_PROGRESS"
OFF = ("off", "0", "no", "false")
Tell = Callable[[str, int, int], None]  # (what is done, how much of it, of how much)
_switched: bool | None = None


def progress(on: bool | None) -> None:
    """Switch the progress bars of pipelines' calls on or off.

    Args:
        on: None returns to the environment variable ``KANDINSKY_PROGRESS``, and shows them if it is not set.

    Raises:
        RequestError: ``on`` is neither a boolean nor None.
    """
    global _switched
    _switched = checked("on", on, bool | None)


def is_on(asked: bool | None = None) -> bool:
    """Whether bars are wanted: by a call, else by ``progress``, else by the environment."""
    for choice in (asked, _switched):
        if choice is not None:
            return choice
    return os.environ.get(VARIABLE, "").strip().lower() not in OFF


@contextmanager
def bar(title: str, *, shown: bool = True) -> Iterator[Tell | None]:
    """Show a bar once a second has passed.

    Args:
        title: What it is for.
        shown: False shows none.

    Yields:
        A function that reports progress; None if no bar is shown.
    """
    drawn = _drawn(title) if shown else None
    if drawn is None:
        yield None
        return
    lock = Lock()
    timer = Timer(PATIENCE_S, lambda: _locked(lock, drawn.start))
    timer.daemon = True
    timer.start()
    try:
        yield lambda what, done, total: _locked(lock, drawn.update, what, done, total)
    finally:
        timer.cancel()
        timer.join()
        drawn.stop()


class _Bar(Protocol):
    def start(self) -> None: ...
    def update(self, what: str, done: int, total: int) -> None: ...
    def stop(self) -> None: ...


def _locked(lock: Lock, call: Callable[..., None], *values: Any) -> None:
    with lock:
        call(*values)


def _drawn(title: str) -> _Bar | None:
    if _in_notebook():
        return _Notebook(title)
    return _Terminal(title) if sys.stderr is not None and sys.stderr.isatty() else None


def _in_notebook() -> bool:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and hasattr(shell, "kernel")


class _Terminal:
    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(file=sys.stderr), transient=True)
        self._title = escape(shortened(title))  # a prompt is data, its brackets are not markup
        self._task = self._bar.add_task(self._title, total=None)

    def start(self) -> None:
        self._bar.start()

    def update(self, what: str, done: int, total: int) -> None:
        label = f"{self._title} {what}".strip()
        # the end of a stage is drawn at once: the next one may begin before the bar's next refresh
        self._bar.update(self._task, description=label, completed=done, total=total, refresh=done == total)

    def stop(self) -> None:
        self._bar.stop()


class _Notebook:
    def __init__(self, title: str) -> None:
        self._title, self._last, self._handle = html.escape(shortened(title, 80)), "", None

    def start(self) -> None:
        display = sys.modules["IPython"].display
        self._handle = display.display(display.HTML(self._last or self._title), display_id=True)

    def update(self, what: str, done: int, total: int) -> None:
        self._last = (
            f'<progress max="{total}" value="{done}" style="width: 20em"></progress> '
            f"{done}/{total} {html.escape(what)} {self._title}"
        )
        if self._handle is not None:
            self._handle.update(sys.modules["IPython"].display.HTML(self._last))

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.update(sys.modules["IPython"].display.HTML(""))
