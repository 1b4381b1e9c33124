"""`kandinsky jobs`: what a store holds: requests to servers, and entries of prompt files."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kandinsky.cli.streams import emit, emit_json, say
from kandinsky.errors import RequestError
from kandinsky.printing import counted, escaped, shortened

if TYPE_CHECKING:
    from kandinsky.jobs.records import JobRecord
    from kandinsky.jobs.sqlite_store import SqliteStore

Store = Annotated[
    str | None, typer.Option("--store", metavar="FOLDER", help="Folder of the store; default: in your data folder.")
]
Name = Annotated[str, typer.Argument(metavar="JOB", help="A job's name, or its beginning.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_DAY_S = 86400.0


def list_jobs(
    state: Annotated[
        str | None, typer.Option("--state", help="queued, running, completed, failed or cancelled.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Most jobs to show.")] = 30,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """List jobs, the newest first: requests to servers and entries of prompt files."""
    from kandinsky.jobs.records import State

    if state is not None and state not in list(State):
        raise RequestError(f"state `{escaped(state)}` is unknown: use {', '.join(State)}")
    page = _opened(store).list(states=[State(state)] if state else [], limit=limit)
    if as_json:
        emit_json([_facts(job) for job in page.jobs], indent=1)
        return
    table = [("JOB", "STATE", "DONE", "MODEL", "DOOR", "AGE", "TOOK", "PROMPT")]
    for job in page.jobs:
        taken = "" if job.run_s is None else f"{job.run_s:.1f} s"
        age = _age(time.time() - job.created)
        done = f"{job.progress}%" if job.state == State.RUNNING and job.source == "http" else ""
        table.append((job.id[:16], str(job.state), done, job.model, job.source, age, taken, shortened(job.prompt)))
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    for row in table:
        emit(escaped("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()))
    if page.more:
        say(f"there are more: --limit {2 * limit} shows them")


def show_job(job: Name, store: Store = None, as_json: Json = False) -> None:
    """Show a job: what was asked for, where it stands, its files."""
    opened = _opened(store)
    found = _found(opened, job)
    facts = _facts(found) | {"order": dict(found.order), "result": found.result, "error": found.error}
    facts["files"] = [str(path) for path in _files(opened, found)]
    place = opened.place(found.id)
    if place is not None:
        facts["place"] = place.place
    if as_json:
        emit_json(facts, indent=1)
        return
    for name, value in facts.items():
        if value not in (None, "", [], {}):
            emit(f"{name:12} {escaped(value)}")


def cancel_job(job: Name, store: Store = None) -> None:
    """Cancel a job that waits or runs; a running one stops within a step."""
    opened = _opened(store)
    found = _found(opened, job)
    if found.state.is_final:
        raise RequestError(f"`{found.id}` is {found.state} already")
    if found.holder:
        raise RequestError(f"`{found.id}` belongs to a command that is running, {found.holder}: interrupt that")
    changed = opened.cancel(found.id)
    say(f"{found.id} {'is cancelled' if changed and changed.state.is_final else 'stops within a step'}")


def retry_job(job: Name, store: Store = None) -> None:
    """Queue a failed or cancelled job again."""
    opened = _opened(store)
    found = opened.retry(_found(opened, job).id)
    assert found is not None
    say(f"{found.id} waits again")


def prune_jobs(
    days: Annotated[
        float | None,
        typer.Option("--days", min=0, help="Also jobs that ended so many days ago; default: expired ones."),
    ] = None,
    store: Store = None,
) -> None:
    """Remove finished jobs whose time is over, with their files. Files of prompt files are yours and stay."""
    removed = _opened(store).prune(finished_before=None if days is None else time.time() - days * _DAY_S)
    say(f"{counted(len(removed), 'job')} removed")


def _opened(store: str | None) -> SqliteStore:
    from kandinsky.jobs.sqlite_store import open_store

    opened = open_store(store)
    opened.expire()  # of commands that were killed
    return opened


def _found(store: SqliteStore, name: str) -> JobRecord:
    """The job that a name, or the beginning of one, stands for.

    Raises:
        RequestError: There is none, or several.
    """
    if (job := store.get(name)) is not None:
        return job
    found = [one for one in store.list(limit=1000).jobs if name and one.id.removeprefix("job_").startswith(
        name.removeprefix("job_"))]  # fmt: skip
    if len(found) != 1:
        what = "several jobs begin so" if found else "there is no such job"
        raise RequestError(f"job `{escaped(name)}`: {what}: `kandinsky jobs list` shows them")
    return found[0]


def _files(store: SqliteStore, job: JobRecord) -> list[Any]:
    from kandinsky.jobs import job_files

    if job.source == "cli":
        return [path for path in [(job.result or {}).get("path")] if path]
    folder = job_files.folder_of(store.folder, job.id)
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _facts(job: JobRecord) -> dict[str, Any]:
    return {
        "id": job.id, "state": str(job.state), "kind": job.kind, "model": job.model, "door": job.source,
        "prompt": job.prompt, "owner": job.owner, "priority": job.priority, "progress": job.progress,
        "phase": job.phase, "attempts": job.attempts, "created": job.created, "started": job.started,
        "finished": job.finished, "expires": job.expires, "run_s": job.run_s, "bytes": job.bytes,
    }  # fmt: skip


def _age(seconds: float) -> str:
    for unit, size in (("d", _DAY_S), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
