"""The log of a run: `log.jsonl`, one line of figures for some steps, each step at most once; TensorBoard besides."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from kandinsky.errors import BackendError
from kandinsky.files import not_writable, replacing

Log = Literal["jsonl", "tensorboard"]
Write = Callable[[Mapping[str, float]], None]
FILE, EVENTS, SAMPLES = "log.jsonl", "tensorboard", "samples"  # in the run's folder
DIGITS = 9  # enough to tell two float32 numbers apart


def check(log: Log) -> None:
    """Refuse what is not installed, before a run begins. Raises: BackendError."""
    if log == "tensorboard" and find_spec("tensorboard") is None:
        raise BackendError(
            "`log: tensorboard` needs the package tensorboard: pip install 'kandinsky-video[train]', or leave `log` out"
        )


@contextmanager
def opened(folder: Path, log: Log = "jsonl", *, after: int) -> Iterator[Write]:
    """Write on behind a step; what an interrupted run wrote of later ones is removed first.

    Args:
        folder: Of the run.
        log: See ``LoopSettings``.
        after: The last step that stays.

    Yields:
        Writes one line.

    Raises:
        RequestError: The log cannot be written.
    """
    with ExitStack() as held:
        writes = [held.enter_context(_lines_to(folder / FILE, after))]
        if log == "tensorboard":
            writes.append(held.enter_context(_events_to(folder / EVENTS, after)))

        def write(figures: Mapping[str, float]) -> None:
            for one in writes:
                one(figures)

        yield write


def read(path: Path) -> list[dict[str, float]]:
    """The whole lines of a log, in the order of their steps; of those that speak of one step, the last."""
    found: dict[float, dict[str, float]] = {line["step"]: line for line in map(json.loads, _lines(path))}
    return [line for _, line in sorted(found.items())]


@contextmanager
def _lines_to(path: Path, after: int) -> Iterator[Write]:
    """The file `log.jsonl`."""
    kept = [line for line in _lines(path) if json.loads(line)["step"] <= after]
    with replacing(path) as part:
        part.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    try:
        with path.open("a", encoding="utf-8") as stream:

            def write(figures: Mapping[str, float]) -> None:
                try:
                    stream.write(json.dumps({key: _short(value) for key, value in figures.items()}) + "\n")
                    stream.flush()
                except OSError as error:
                    raise not_writable(path, error) from error

            yield write
    except OSError as error:  # what could not be flushed is tried again when the file is closed
        raise not_writable(path, error) from error


@contextmanager
def _events_to(folder: Path, after: int) -> Iterator[Write]:
    """Event files of TensorBoard; it shows nothing that was written of steps after ``after`` before."""
    from torch.utils.tensorboard import SummaryWriter

    try:
        with SummaryWriter(str(folder), purge_step=after + 1) as events:

            def write(figures: Mapping[str, float]) -> None:
                for name, value in figures.items():
                    if name != "step":
                        events.add_scalar(tag(name), value, int(figures["step"]))

            yield write
    except OSError as error:
        raise not_writable(folder, error) from error


def tag(name: str) -> str:
    """What TensorBoard calls a figure: those of bins stand together, and so do those of speed."""
    first, _, rest = name.partition(" ")
    if rest[:1].isdigit():
        return f"{first} by time/{rest}"
    return f"{'speed' if '/' in name or ' per ' in name else 'training'}/{name.replace('/', ' per ')}"


def _short(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.{DIGITS}g}")


def _lines(path: Path) -> Iterator[str]:
    """The whole lines of the file that hold a step; a killed run may leave half of one."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and isinstance(found.get("step"), int):
            yield line
