"""`kandinsky serve`: the HTTP server."""

from __future__ import annotations

import logging
from typing import Annotated, Any

import typer

from kandinsky.cli.complete import model_ids
from kandinsky.cli.rendered import Flags, rendered
from kandinsky.cli.streams import emit, say
from kandinsky.engine.options import RunOptions
from kandinsky.errors import needs_extra
from kandinsky.serve.settings import ServeSettings


@rendered(how=Flags(ServeSettings), run=Flags(RunOptions))
def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Models to offer; default: all that are on this machine.", autocompletion=model_ids),
    ] = None,
    *,
    how: dict[str, Any],
    run: dict[str, Any],
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only on stderr.")] = False,
    parent: Annotated[int, typer.Option("--parent", hidden=True)] = 0,
) -> None:
    """Serve models over HTTP: an OpenAI-shaped API with durable jobs. The line on stdout is its address."""
    with needs_extra("fastapi", "serve", "`kandinsky serve`"):
        import fastapi  # noqa: F401
    from kandinsky.jobs.worker import end_with
    from kandinsky.serve.app import serve as serve_until_told

    logging.getLogger("kandinsky").setLevel(logging.WARNING if quiet else logging.INFO)
    settings = ServeSettings(models=tuple(models or ()), options=RunOptions(**run), **how)

    if settings.mcp:
        from kandinsky.serve.mcp_stdio import serve_stdio

        serve_stdio(settings)
        return
    end_with(parent)

    def ready(host: str, port: int) -> None:
        emit(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        if not quiet:
            say("models are loaded when they are asked for; /ready says when a worker is there")

    serve_until_told(settings, ready=ready)
