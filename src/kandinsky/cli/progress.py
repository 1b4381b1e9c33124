"""Progress bars on stderr for the longer commands; silent where stderr is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def counted(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for work that is counted; the value is called with (done, total)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(title, total=None)

        def tell(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield tell


@contextmanager
def training(title: str) -> Iterator[Callable[[dict[str, float]], None]]:
    """A bar for a training loop; the value takes the loop's log lines. Without a terminal: a line every minute."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeRemainingColumn(),
    )
    last = -60.0
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(title, total=None, loss=float("nan"))

        def tell(line: dict[str, float]) -> None:
            nonlocal last
            bar.update(task, completed=line["step"], total=line["steps"], loss=line["loss"])
            if not sys.stderr.isatty() and line["seconds"] - last >= 60:
                last = line["seconds"]
                print(
                    f"{title}: step {line['step']:.0f} of {line['steps']:.0f}, {last:.0f} s, loss {line['loss']:.4f}",
                    file=sys.stderr,
                )

        yield tell
