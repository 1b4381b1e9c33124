"""Progress bars on stderr for the longer commands; silent if stderr is not a terminal."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kandinsky.engine.progress import bar, is_on


@contextmanager
def patient(title: str, *, quiet: bool = False) -> Iterator[Callable[[int, int, Any], bool] | None]:
    """A bar that appears after one second; the value is an ``on_step`` callback, or None without a bar."""
    with bar(title, shown=not quiet and is_on()) as tell:

        def on_step(step: int, total: int, _preview: Any) -> bool:
            assert tell is not None
            tell("", step, total)
            return True

        yield on_step if tell else None


def hush_extensions() -> None:
    """Silence Torchao and Diffusers, which report missing compiled extras on import: nothing here needs them."""
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # read when it is imported


def hush_libraries() -> None:
    """Silence the progress bars of the model libraries while they load: one bar is enough."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when they are imported
    if "transformers" in sys.modules:
        from transformers.utils import logging

        logging.disable_progress_bar()


@contextmanager
def counted(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for work that is counted; the value is called with (done, total)."""
    with bar(title, shown=is_on()) as tell:
        yield lambda done, total: tell("", done, total) if tell else None


@contextmanager
def staged() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for work in stages; the value is called with (stage, done, total)."""
    with bar("curating", shown=is_on()) as tell:
        yield lambda stage, done, total: tell(stage, done, total) if tell else None


@contextmanager
def training(title: str) -> Iterator[Callable[[dict[str, float]], None]]:
    """A bar for a training loop; the value receives the loop's log lines. Without a terminal: a line every minute."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeRemainingColumn(),
    )
    last, loss = -60.0, math.nan
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(title, total=None, loss=float("nan"))

        def tell(line: dict[str, float]) -> None:
            nonlocal last, loss
            loss = line["loss"] if math.isnan(loss) else 0.95 * loss + 0.05 * line["loss"]  # one step says little
            bar.update(task, completed=line["step"], total=line["steps"], loss=loss)
            if not sys.stderr.isatty() and line["seconds"] - last >= 60:
                last = line["seconds"]
                print(
                    f"{title}: step {line['step']:.0f} of {line['steps']:.0f}, {last:.0f} s, loss {loss:.4f}",
                    file=sys.stderr,
                )

        yield tell
