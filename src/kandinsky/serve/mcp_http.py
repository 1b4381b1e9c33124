"""`/mcp`: the tools of ``mcp_tools`` over streamable HTTP, behind the same keys as everything else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from kandinsky.client import AsyncClient, Job
from kandinsky.errors import RequestError
from kandinsky.jobs.job_files import ID
from kandinsky.serve.access import owner_of
from kandinsky.serve.envelope import ApiError
from kandinsky.serve.mcp_tools import server_of

if TYPE_CHECKING:
    from mcp.server.lowlevel import Server

PATH, METHODS = "/mcp", ("GET", "POST", "DELETE")


class McpOverHttp:
    """Answers `/mcp`; each request stands alone, so that any process of a server can answer it.

    Args:
        app: The application whose API the tools use.
    """

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._server: Server[Any] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await owner_of(Request(scope, receive))
        if self._server is None:
            try:
                self._server = await asyncio.to_thread(server_of, self)  # the package takes seconds to import
            except Exception as error:
                raise ApiError(404, str(error), code="not_found") from error
        from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

        manager = StreamableHTTPSessionManager(self._server, json_response=True, stateless=True)
        async with manager.run():
            await manager.handle_request(scope, receive, send)

    @asynccontextmanager
    async def client(self, request: Any) -> AsyncIterator[AsyncClient]:
        """See ``Door``: this application, with the key of the request."""
        import httpx

        headers = request.headers
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
        async with AsyncClient(str(request.base_url), key=given, transport=transport) as made:
            yield made

    def file(self, given: str) -> Any:
        """See ``Door``: results of jobs and `data:` URLs, never a path of this machine."""
        if ID.fullmatch(given):
            return {"id": given}
        if given.startswith("data:"):
            return {"image_url": given}
        raise RequestError("give the name of a finished job, or a `data:` URL")

    async def place(self, request: Any, client: AsyncClient, job: Job) -> dict[str, str]:
        """See ``Door``."""
        return {"url": f"{client.url}/v1/jobs/{job.id}/content"}
