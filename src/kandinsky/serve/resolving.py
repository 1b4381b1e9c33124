"""What a request comes to, checked with its files as a worker will check it: `python -m kandinsky.serve.resolving`.

Files of a request are decoded where they were read (``serve/decode.py``), here, and in a worker, never in the server:
this is a process of its own too, under the same limits. It reads a ``Query`` as JSON on standard input; stdout has one
JSON object: the job that is to be stored, or what is wrong.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kandinsky.engine.attention import attention_for
from kandinsky.engine.request import resolve
from kandinsky.errors import KandinskyError, RequestError
from kandinsky.jobs import job_files
from kandinsky.jobs.order import Order, new_job
from kandinsky.jobs.records import NewJob
from kandinsky.media.input_clip import open_clip
from kandinsky.model.card import Card

OVERLAP = 2  # groups of the latent after its first frame that a continuation begins with: motion goes on


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A request that is to be checked, as plain values.

    Attributes:
        model: The name that finds the model.
        order: ``Order.to_dict``.
        store: Folder of the store.
        job_id: The job, whose folder holds the files.
        attention: As in ``RunOptions``.
        branches: Folder of the branches that requests may name.
        goes_on: Whether it continues the clip `before`, and how much of it the new one begins with is to be found.
    """

    model: str
    order: Mapping[str, Any]
    store: str
    job_id: str
    attention: str
    branches: str | None = None
    goes_on: bool = False


def resolved(query: Query, card: Card) -> NewJob:
    """The job of a request; its files are decoded.

    Args:
        query: The request.
        card: The model.

    Returns:
        The job, without its owner.

    Raises:
        RequestError: A value is not allowed.
        WeightsError: A branch does not fit.
    """
    order, store = Order.from_dict(query.order), Path(query.store)
    if query.goes_on:
        order = _going_on(order, job_files.path_of(store, query.job_id, order.before), card)
    branches = None if query.branches is None else Path(query.branches)
    job = resolve(order.asked(store, query.job_id, in_memory=True, branches=branches), card)
    attention_for(card, job.sampling, query.attention)
    return new_job(order, job, job_id=query.job_id)


def _going_on(order: Order, before: Path, card: Card) -> Order:
    """How a clip goes on: the part of it that the new clip begins with, and the new clip's seconds, with that part.

    It begins with whole groups of the latent: ``OVERLAP`` of them after the first frame, or as many as the clip has, or
    as the seconds asked for leave room for where the model makes it as a whole.
    """
    clip, fps, step, longest = open_clip(before), card.clip.fps, card.clip.temporal, card.clip.max_seconds
    seconds = order.request.get("seconds")
    frames = len(clip.shown_at(fps))
    room = int((longest - (seconds or 0.0)) * fps + 1e-6)
    if seconds is not None and seconds > longest:  # made in windows, of any length
        room = frames
    known = max(0, min(OVERLAP * step, room // step * step, (frames - 1) // step * step)) + 1
    more = (known - 1) / fps
    length = min(card.clip.seconds + more, longest) if seconds is None else seconds + more
    part = ":" if known == frames else f"-{known / fps:.6f}s:"
    return dataclasses.replace(order, overlap=part, request={**order.request, "seconds": length})


def main() -> int:
    """Answer one query."""
    from kandinsky.serve.decode import confine

    query = Query(**json.loads(sys.stdin.buffer.read()))
    confine()
    from kandinsky.catalogue import source_of

    try:
        told: dict[str, Any] = {"new": dataclasses.asdict(resolved(query, source_of(query.model).card))}
    except MemoryError:
        told = _wrong(RequestError("the files of the request need too much memory"))
    except KandinskyError as error:
        told = _wrong(error)
    sys.stdout.write(json.dumps(told))
    return 0


def _wrong(error: KandinskyError) -> dict[str, Any]:
    return {"error": {"kind": type(error).__name__, "message": str(error), "hint": error.hint}}


if __name__ == "__main__":
    sys.exit(main())
