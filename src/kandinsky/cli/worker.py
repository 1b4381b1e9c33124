"""`kandinsky worker`: a process that runs the jobs of a store; `kandinsky serve` starts them itself."""

from __future__ import annotations

import os
import secrets
import socket
from typing import Annotated, Any

import typer

from kandinsky.cli.complete import model_ids
from kandinsky.cli.rendered import Flags, rendered
from kandinsky.cli.streams import say
from kandinsky.engine.options import RunOptions
from kandinsky.serve.settings import ServeSettings


@rendered(
    how=Flags(
        ServeSettings, ("store", "memory", "loras", "branches", "batch", "preview_every", "keep_days", "warm_up")
    ),
    run=Flags(RunOptions),
)
def worker(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Only jobs of these models; default: all.", autocompletion=model_ids),
    ] = None,
    *,
    how: dict[str, Any],
    run: dict[str, Any],
    name: Annotated[str | None, typer.Option("--name", help="Its name; default: made up.")] = None,
    lease: Annotated[
        float, typer.Option("--lease", min=1, help="Seconds of silence after which its jobs go to others.")
    ] = 15.0,
    parent: Annotated[int, typer.Option("--parent", hidden=True)] = 0,
) -> None:
    """Run the jobs of a store, one after the other, until interrupted."""
    from kandinsky.cli.progress import hush_libraries
    from kandinsky.jobs.worker import work

    options = RunOptions(**run)
    options.check()
    given = ServeSettings(options=options, **how)
    settings = given.for_workers(models or (), lease_s=lease, parent=parent)
    hush_libraries()
    name = name or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    if not parent:
        say(f"worker {name}: interrupt it to end; its job then goes back to the queue")
    work(given.store, settings, name=name, retention_s=given.retention_s)
