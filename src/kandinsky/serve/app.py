"""The HTTP application: endpoints over a store, nothing that computes."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI
from starlette.routing import Route
from starlette.types import ASGIApp

import kandinsky
from kandinsky.errors import needs_extra
from kandinsky.evaluate.study_store import StudyStore
from kandinsky.jobs.sqlite_store import SqliteStore, open_store
from kandinsky.serve import audio, comparisons, envelope, events, images, live, models, status, videos, web_page
from kandinsky.serve.announced import ANYWHERE, Announcement, announced, announcement
from kandinsky.serve.guard import Guard
from kandinsky.serve.hub import Hub
from kandinsky.serve.intake import Intake
from kandinsky.serve.keys import Keys
from kandinsky.serve.mcp_http import METHODS, PATH, McpOverHttp
from kandinsky.serve.metrics import Metrics
from kandinsky.serve.offers import Offers
from kandinsky.serve.routes import House
from kandinsky.serve.settings import ServeSettings
from kandinsky.serve.supervisor import Supervisor
from kandinsky.serve.sweeping import sweep
from kandinsky.serve.workers import Workers

log = logging.getLogger(__name__)
TEND_S, PRUNE_S = 1.0, 600.0
LONGEST_MESSAGE = 64 * 1024  # of a WebSocket's client
ABOUT = (
    "Clips, images and sound by the Kandinsky family. `/v1/videos` and `/v1/images` are shaped as OpenAI's, so that "
    "its clients work unchanged; every option of the library may be given beside theirs."
)


def open_of(settings: ServeSettings) -> SqliteStore:
    """The store of a server."""
    return open_store(settings.store, retention_s=settings.retention_s)


def create_app(settings: ServeSettings, *, store: SqliteStore | None = None) -> FastAPI:
    """The application, without what guards it; ``guarded`` adds that.

    Args:
        settings: What it offers.
        store: Where jobs are kept; None opens the one of the settings.

    Returns:
        The application. Its ``state`` holds `house`, `keys` and `metrics`.

    Raises:
        RequestError: A setting is not valid.
        WeightsError: Files of a model are missing.
    """
    store = store or open_of(settings)
    keys = Keys.read(settings.keys, folder=store.folder)
    settings.check(keys)
    offers = Offers(settings)
    metrics = Metrics(store)
    hub = Hub(store, seen=metrics.event)
    intake = Intake(store, offers, settings)
    lives = live.Lives(store, offers, settings, intake)
    supervisor = _workers(settings)(settings, store, names=tuple(offers.all), restarted=metrics.restarts.inc)

    @asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        sweep(store)
        hub.start()
        await lives.start()
        supervisor.start()
        tending = asyncio.create_task(_tend(store))
        try:
            yield
        finally:
            intake.closing = True
            tending.cancel()
            await lives.stop()
            await asyncio.to_thread(supervisor.stop)
            await hub.stop()
            with suppress(asyncio.CancelledError):
                await tending

    app = FastAPI(
        title="Kandinsky",
        version=kandinsky.__version__,
        description=ABOUT,
        lifespan=living,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,
        generate_unique_id_function=lambda route: f"{route.name}_{'_'.join(route.path.split('/')[2:3])}",
    )
    app.state.house = House(store, offers, settings, intake, hub, StudyStore(store.folder))
    app.state.keys, app.state.metrics, app.state.supervisor = keys, metrics, supervisor
    app.state.lives = lives
    envelope.install(app)
    modules = (videos, images, audio, live, events, models, comparisons, status, web_page)
    for module in modules:
        app.include_router(module.router)
    tools = Route(PATH, McpOverHttp(app), methods=METHODS, include_in_schema=False)
    app.router.routes.append(tools)
    app.openapi = functools.partial(_openapi, app.openapi)  # type: ignore[method-assign]
    app.state.routes = [*app.router.routes[:1], *(route for module in modules for route in module.router.routes), tools]
    return app


def _workers(settings: ServeSettings) -> type[Workers]:
    """What starts the workers: processes here, or replicas on a cluster."""
    if settings.ray is None:
        return Supervisor
    from kandinsky.serve.cluster import Cluster

    return Cluster


def _openapi(made: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The schema, without the answer to wrong parameters that FastAPI supposes: it is 400 here, in the envelope."""
    schema = made()
    foreign = "#/components/schemas/HTTPValidationError"
    for methods in schema["paths"].values():
        for method in methods.values():
            answer = method["responses"].get("422", {}).get("content", {}).get("application/json", {})
            if answer.get("schema", {}).get("$ref") == foreign:
                del method["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        schema["components"]["schemas"].pop(name, None)
    return schema


def guarded(app: FastAPI) -> ASGIApp:
    """The application with what every request passes first."""
    return Guard(app, settings=app.state.house.settings, seen=app.state.metrics.seen)


def _announcement(app: FastAPI, port: int) -> Announcement:
    """What the server says of itself to the command lines of its user."""
    house: House = app.state.house
    host = "127.0.0.1" if house.settings.host in ANYWHERE else house.settings.host
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    sources = {name: offer.source for name, offer in house.offers.all.items()}
    environment = app.state.supervisor.environment
    return announcement(url, sources, house.settings.options, environment, needs_key=bool(app.state.keys))


async def _tend(store: SqliteStore) -> None:
    """Give jobs of silent workers back, and remove what has expired."""
    pruned = time.monotonic()

    def tend(prune: bool) -> None:
        store.expire()
        if prune:
            store.prune()

    while True:
        await asyncio.sleep(TEND_S)
        due = time.monotonic() - pruned > PRUNE_S
        if due:
            pruned = time.monotonic()
        try:
            await asyncio.to_thread(tend, due)
        except Exception:
            log.warning("the store cannot be tended", exc_info=True)


def serve(settings: ServeSettings, *, ready: Any = None) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: What to serve.
        ready: Called with host and port when connections are accepted.

    Raises:
        RequestError: A setting is not valid, or the port is taken.
        BackendError: The extra `serve` is not installed.
    """
    with needs_extra("uvicorn", "serve", "a server"):
        import uvicorn
        import websockets  # noqa: F401 - what uvicorn speaks WebSocket with
    import socket

    from kandinsky.errors import RequestError

    app = create_app(settings)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # with its protocol named: only then asyncio switches Nagle's algorithm off, which would hold each answer 40 ms back
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
    except OSError as error:
        listening.close()
        raise RequestError(f"`{settings.host}:{settings.port}` cannot be listened on: {error.strerror}") from error
    config = uvicorn.Config(
        guarded(app),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
        timeout_keep_alive=30,
        ws="websockets-sansio",
        ws_max_size=LONGEST_MESSAGE,
        ws_per_message_deflate=False,  # JPEG does not shrink
        h11_max_incomplete_event_size=64 * 1024,
        lifespan="on",
    )

    class Told(uvicorn.Server):
        """Says when it listens."""

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                port = listening.getsockname()[1]
                if settings.ray is None and settings.workers != 0:  # its workers are this machine's, and its own
                    held.enter_context(announced(_announcement(app, port)))
                if ready is not None:
                    ready(settings.host, port)

        def handle_exit(self, sig: int, frame: Any) -> None:
            if self.should_exit:  # asked for a second time
                app.state.supervisor.hurry()
            super().handle_exit(sig, frame)

        async def shutdown(self, sockets: Any = None) -> None:
            app.state.house.intake.closing = True
            app.state.supervisor.leave()
            await app.state.lives.end()
            app.state.house.hub.end()  # streams end, so that connections can close
            await super().shutdown(sockets)

    held = ExitStack()
    server = Told(config)
    with listening, held, suppress(KeyboardInterrupt):  # the signal that ended it, once more
        server.run(sockets=[listening])
    gc.freeze()  # the interpreter looks through all objects before it ends
